"""Questions to one attention call, answered exactly without the full matrix of weights A.

Every result has a residual: A V, recomputed from the measured weights, against the kernel's own output.

    Rows       where does this query look?             chosen rows of A
    GroupMass  how much does it give to that group?    A summed over groups of keys, for every query
    Columns    who looks at this key?                  A averaged over groups of queries, for every key
    RowReduce  any function of whole rows              e.g. the entropy of every row
    StoreQK    any question, later                     see :mod:`vera_lite.diagnostics.store`

Axis letters: B batch, H chosen heads, Q queries, K keys, d head size, m groups, b rows of a block, R chosen
rows.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from vera_lite.diagnostics.call import AttentionCall, AttentionShape, Capture, Cost
from vera_lite.diagnostics.exact import ExactHead, block_rows, exact_cost, key_head, largest_difference

if TYPE_CHECKING:
    from vera_lite.diagnostics.store import AttentionStore

# All but the one that builds the whole matrix.
_FUSED = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.CUDNN_ATTENTION]


# --- checks ----------------------------------------------------------------------------------------


def whole_numbers(what: str, indices: Sequence[int] | Tensor) -> Tensor:
    """Indices as a long vector on the CPU."""
    indices = torch.as_tensor(indices).cpu()
    if indices.ndim != 1 or not len(indices) or indices.is_floating_point() or indices.dtype == torch.bool:
        raise ValueError(f"{what} must be a list of one or more whole numbers.")
    return indices.long()


def check_range(module: str, what: str, indices: Tensor, count: int) -> None:
    """Indices must be 0 .. count - 1."""
    for index in (indices.min().item(), indices.max().item()):
        if not 0 <= index < count:
            raise ValueError(f"{module} has {count} {what}, numbered from 0; there is no {index}.")


def _one_hot(labels: Tensor, groups: int) -> Tensor:
    """(n,) -> (n, m) float32; a row of zeros for label -1."""
    return (labels[:, None] == torch.arange(groups)).float()


def _reduced_rows(call: AttentionCall, index: int, values: Tensor, reduce: Callable) -> list[float]:
    """Fill values (B, Q, n) with ``reduce`` of each row of one head; return residuals."""
    head, residuals = ExactHead(call, index), []
    for block, weights, _, _ in head.blocks():
        residuals.append(head.residual(weights, block))
        reduced, expected = reduce(weights, block), (len(values), len(block), values.shape[-1])
        if reduced.shape != expected:
            raise ValueError(f"reduce must return {expected}, not {tuple(reduced.shape)}.")
        values[:, block.cpu()] = reduced.float().cpu()
    return residuals


# --- measurements ----------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False, kw_only=True)
class Measurement:
    """Base of all measurements. ``heads``: which ones to measure, all by default."""

    heads: Sequence[int] | None = None

    def __call__(self, call: AttentionCall) -> "Capture | AttentionStore":
        """Measure one call. ValueError if the measurement does not fit, e.g. labels for other keys."""
        shape = AttentionShape.of(call)
        self.cost(shape)
        # The model may run under autocast, which would round our float32 products.
        with torch.no_grad(), torch.autocast(call.query.device.type, enabled=False):
            return self._measure(call, self._heads(shape))

    def cost(self, shape: AttentionShape) -> Cost:
        """The cost on a call of this shape. ValueError if the measurement does not fit."""
        raise NotImplementedError

    def _measure(self, call: AttentionCall, heads: tuple[int, ...]) -> "Capture | AttentionStore":
        raise NotImplementedError

    def _measure_head(self, call: AttentionCall, index: int, *results: Tensor) -> list[float]:
        """Fill the results of one head, (B, ...) each, and return residuals."""
        raise NotImplementedError

    def _fill(self, call: AttentionCall, heads: tuple[int, ...], *results: Tensor) -> float:
        """Fill results (B, H, ...) and return the residual."""
        residuals = []
        for i, index in enumerate(heads):
            residuals += self._measure_head(call, index, *(r[:, i] for r in results))
        return torch.tensor(residuals).amax().item()  # unlike Python's max, keeps nan

    def _capture(self, call: AttentionCall, heads: tuple[int, ...], *axes: int, **facts) -> Capture:
        """A capture of values (B, H, axes), filled head by head; ``facts`` are its names or queries."""
        values = torch.empty(call.query.shape[0], len(heads), *axes)
        return Capture(call.site, heads, values, self._fill(call, heads, values), **facts)

    def _heads(self, shape: AttentionShape) -> tuple[int, ...]:
        if self.heads is None:
            return tuple(range(shape.heads))
        heads = whole_numbers("heads", self.heads)
        check_range(shape.module, "heads", heads, shape.heads)
        return tuple(heads.tolist())


@dataclass(frozen=True, eq=False)
class Rows(Measurement):
    """Whole rows of A: where chosen queries look. Values (B, H, R, K)."""

    queries: Sequence[int] | Tensor  #: R indices.

    def __post_init__(self):
        object.__setattr__(self, "queries", whole_numbers("queries", self.queries))

    def cost(self, shape: AttentionShape) -> Cost:
        heads, rows = len(self._heads(shape)), len(self.queries)
        check_range(shape.module, "queries", self.queries, shape.queries)
        return exact_cost(shape, heads, rows, shape.batch * heads * rows * shape.keys)

    def _measure(self, call, heads):
        queries = tuple((query,) for query in self.queries.tolist())
        return self._capture(call, heads, len(queries), call.key.shape[2], queries=queries)

    def _measure_head(self, call, index, values):
        head, residuals, start = ExactHead(call, index), [], 0
        for block, weights, _, _ in head.blocks(self.queries):
            residuals.append(head.residual(weights, block))
            values[:, start : start + len(block)] = weights.cpu()
            start += len(block)
        return residuals


@dataclass(frozen=True, eq=False)
class _Grouped(Measurement):
    """Base of the measurements of groups of tokens."""

    #: labels 0 .. m - 1 of all keys (:class:`GroupMass`) or queries (:class:`Columns`); -1: in no group.
    groups: Tensor
    names: Sequence[str] | None = None  #: of the groups; their numbers by default.

    def __post_init__(self):
        groups = whole_numbers("group labels", self.groups)
        names = tuple(self.names or map(str, range(groups.max() + 1)))
        low, high = int(groups.min()), int(groups.max())
        if not names or low < -1 or high >= len(names):
            raise ValueError(f"group labels lie in -1 .. {len(names) - 1}, not {low} .. {high}.")
        object.__setattr__(self, "groups", groups)
        object.__setattr__(self, "names", names)

    def _check_labels(self, shape: AttentionShape, what: str, count: int) -> None:
        if len(self.groups) != count:
            raise ValueError(f"{shape.module} has {count} {what}, but there are {len(self.groups)} labels.")


@dataclass(frozen=True, eq=False)
class GroupMass(_Grouped):
    """How much of its attention every query gives to each group of keys. Values (B, H, Q, m).

    The fused kernel runs again in float32, with V replaced by one-hot columns for the group of each key. Free
    columns hold columns of the real V: their output must equal the model's, which checks every query at no
    cost. Blocks of exact rows replace the kernel in calls with a mask, which the kernel would write out in
    full, and for head sizes that 8 does not divide.
    """

    @staticmethod
    def _is_fused(shape: AttentionShape) -> bool:
        return not shape.mask_bytes and shape.head_dim % 8 == 0

    def cost(self, shape: AttentionShape) -> Cost:
        heads, groups, dim = len(self._heads(shape)), len(self.names), shape.head_dim
        self._check_labels(shape, "keys", shape.keys)
        numbers = shape.batch * heads * shape.queries * groups
        if not self._is_fused(shape):
            rows = block_rows(shape.batch, shape.keys, shape.queries)
            return exact_cost(
                shape, heads, shape.queries, numbers, (shape.keys + shape.batch * rows) * groups
            )
        calls = math.ceil(groups / (dim - 1))
        tokens = shape.batch * (shape.queries + shape.keys)
        transient = 4 * tokens * dim  # one-hot values and their output
        if shape.itemsize != 4:  # float32 copies of Q and K, and the kernel's output to compare
            free = min(calls * (dim - 1) - groups + 1, shape.value_dim)
            transient += 4 * (tokens * dim + shape.batch * shape.queries * free)
        pairs = shape.batch * heads * shape.queries * shape.keys
        return Cost(4 * numbers, transient, calls * 4 * pairs * dim)

    def _measure(self, call, heads):
        return self._capture(call, heads, call.query.shape[2], len(self.names), names=self.names)

    def _measure_head(self, call, index, values):
        is_fused = self._is_fused(AttentionShape.of(call))
        return (self._by_kernel if is_fused else self._by_blocks)(call, index, values)

    def _by_kernel(self, call: AttentionCall, index: int, values: Tensor) -> list[float]:
        shared = key_head(index, call.query.shape[1], call.key.shape[1])
        query, key = call.query[:, index, None].float(), call.key[:, shared, None].float()
        value = call.value[:, shared]
        groups, dim, residuals = self.groups.to(query.device), query.shape[-1], []
        for start in range(0, len(self.names), dim - 1):
            labels = torch.arange(start, min(start + dim - 1, len(self.names)), device=query.device)
            used = len(labels)
            free = min(dim - used, value.shape[-1])
            columns = key.new_zeros(key.shape)
            columns[..., :used] = groups[:, None] == labels
            columns[:, 0, :, used : used + free] = value[..., :free]
            with sdpa_kernel(_FUSED):
                result = F.scaled_dot_product_attention(
                    query, key, columns, is_causal=call.is_causal, scale=call.scale
                )[:, 0]
            values[..., start : start + used] = result[..., :used]
            ours, theirs = result[..., used : used + free], call.output[:, index, :, :free]
            residuals.append(largest_difference(ours, theirs))
        return residuals

    def _by_blocks(self, call: AttentionCall, index: int, values: Tensor) -> list[float]:
        columns = _one_hot(self.groups, len(self.names)).to(call.query.device)
        return _reduced_rows(call, index, values, lambda weights, _: weights @ columns)


@dataclass(frozen=True, eq=False)
class Columns(_Grouped):
    """How much attention every key receives from an average query of each group. Values (B, H, m, K).

    The mean over the group, not the sum: it compares groups of different sizes, and each (b, h, m) sums to
    1 as a row does. The residual compares the group's mean output.
    """

    def __post_init__(self):
        super().__post_init__()
        for group, name in enumerate(self.names):
            if not (self.groups == group).any():
                raise ValueError(f"group {name} has no query to average over.")

    def cost(self, shape: AttentionShape) -> Cost:
        heads, groups = len(self._heads(shape)), len(self.names)
        self._check_labels(shape, "queries", shape.queries)
        numbers = shape.batch * groups * shape.keys
        cost = exact_cost(shape, heads, shape.queries, heads * numbers, numbers)
        # A V is computed from the means, not from every row.
        rows = shape.queries * (shape.head_dim + groups) + groups * shape.value_dim
        return Cost(cost.result_bytes, cost.transient_bytes, 2 * shape.batch * heads * shape.keys * rows)

    def _measure(self, call, heads):
        return self._capture(call, heads, len(self.names), call.key.shape[2], names=self.names)

    def _measure_head(self, call, index, values):
        head, share = ExactHead(call, index), _one_hot(self.groups, len(self.names))
        share = (share / share.sum(0)).to(head.key).expand(len(values), -1, -1)  # (B, Q, m)
        mean = torch.zeros_like(values, device=head.key.device)
        for block, weights, _, _ in head.blocks():
            mean.baddbmm_(share[:, block].mT, weights)
        values.copy_(mean)
        return [largest_difference(mean @ head.value, share.mT @ head.output.float())]


@dataclass(frozen=True, eq=False)
class RowReduce(Measurement):
    """Any function of whole rows of A, which reduces block by block. Values (B, H, Q, n)."""

    #: (weights (B, b, K) of one head, indices (b,) of its queries) -> (B, b, n). It may use the memory of two
    #: more blocks.
    reduce: Callable[[Tensor, Tensor], Tensor]
    width: int = 1  #: n.

    def cost(self, shape: AttentionShape) -> Cost:
        heads = len(self._heads(shape))
        numbers = shape.batch * heads * shape.queries * self.width
        return exact_cost(shape, heads, shape.queries, numbers, blocks=3)

    def _measure(self, call, heads):
        return self._capture(call, heads, call.query.shape[2], self.width)

    def _measure_head(self, call, index, values):
        return _reduced_rows(call, index, values, self.reduce)
