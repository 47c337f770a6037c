"""Questions to one attention call, answered exactly without the full matrix of weights.

A probe takes an :class:`AttentionCall` and measures something about A = softmax(scale * q k^T + mask) in
float32, whatever precision the model runs in, one head at a time. It never touches the call. Every
result carries a residual: A V, recomputed from what was measured, against the kernel's own output.

    Rows          where does this query look?             chosen rows of A
    GroupMass     how much does it give to that group?    A summed over groups of keys, for every query
    Columns       who is looked at, by these queries?     A averaged over groups of queries, for every key
    Sweep         anything that reads whole rows          e.g. the entropy of every row
    SampledRows   group to group, at a fraction           A averaged both ways, with standard errors
    RandomAccess  anything, later                         Q, K and two numbers a row: any tile on demand

Axis letters: B batch, H heads that were asked for, Q queries, K keys, d head size, m groups, b rows of a
block. A row that sees no key is all zeros, as the kernel's output is.
"""

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from vera_lite.diagnostics.call import AttentionCall, Site
from vera_lite.errors import UserError
from vera_lite.media.files import replacing

#: Size of a block of float32 weights, (B, b, K); larger is no faster.
BLOCK_BYTES = 16 * 2**20

# All but the one that builds the whole matrix.
_FUSED = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.CUDNN_ATTENTION]


# --- what goes in and what comes out ---------------------------------------------------------------


@dataclass(frozen=True)
class AttentionShape:
    """Sizes of an attention call: all that its cost depends on.

    Attributes:
        module, step: as in :class:`Site`.
        batch, heads, kv_heads, queries, keys, head_dim, value_dim: sizes.
        itemsize: bytes of a number in Q, K and V.
        mask_bytes: of the mask as given, before it is broadcast; 0 without one.
        is_causal: see :class:`AttentionCall`.
    """

    module: str
    batch: int
    heads: int
    kv_heads: int
    queries: int
    keys: int
    head_dim: int
    value_dim: int
    itemsize: int = 4
    mask_bytes: int = 0
    is_causal: bool = False
    step: int = 0

    @classmethod
    def of(cls, call: AttentionCall) -> "AttentionShape":
        batch, heads, queries, head_dim = call.query.shape
        return cls(
            module=call.site.module,
            batch=batch,
            heads=heads,
            kv_heads=call.key.shape[1],
            queries=queries,
            keys=call.key.shape[2],
            head_dim=head_dim,
            value_dim=call.value.shape[-1],
            itemsize=call.query.itemsize,
            mask_bytes=0 if call.mask is None else _without_repeats(call.mask).nbytes,
            is_causal=call.is_causal,
            step=call.site.step,
        )

    @property
    def flops(self) -> int:
        """Of the call itself; causal calls count in full, as torch counts them."""
        pairs = self.batch * self.heads * self.queries * self.keys
        return 2 * pairs * (self.head_dim + self.value_dim)


@dataclass(frozen=True)
class Cost:
    """What a probe takes on one call.

    Attributes:
        result_bytes: of what it returns, exactly.
        transient_bytes: on top of it, while it runs.
        flops: of its matrix products.
    """

    result_bytes: int
    transient_bytes: int
    flops: int


@dataclass(frozen=True, eq=False)
class Capture:
    """What a probe measured.

    Attributes:
        site: where.
        heads: which heads, in the order of ``values``.
        values: float32 on the CPU; the probe says of what shape.
        residual: largest absolute difference between A V, recomputed from what was measured, and the
            kernel's own output. About 1e-6 where the model runs in float32; with a model in bfloat16 it
            is the rounding of the kernel's output, about 1e-2 of the largest value.
        names: of the groups.
        standard_error: of ``values``, where they are estimates.
    """

    site: Site
    heads: tuple[int, ...]
    values: Tensor
    residual: float
    names: tuple[str, ...] = ()
    standard_error: Tensor | None = None


# --- exact weights, block by block -----------------------------------------------------------------


def _without_repeats(mask: Tensor) -> Tensor:
    """The mask before it was expanded."""
    return mask[tuple(slice(1) if stride == 0 else slice(None) for stride in mask.stride())]


def _key_head(head: int, heads: int, kv_heads: int) -> int:
    """The key head that a head reads: groups of neighbours share one."""
    return head // (heads // kv_heads)


def _head_mask(mask: Tensor | None, head: int, batch: int, queries: int, keys: int) -> Tensor | None:
    """The mask of one head, a view (B, Q, K)."""
    if mask is None:
        return None
    mask = mask.reshape((1,) * (4 - mask.ndim) + mask.shape)
    return mask[:, head if mask.shape[1] > 1 else 0].expand(batch, queries, keys)


def _logits(
    query: Tensor,
    key: Tensor,
    mask: Tensor | None,
    is_causal: bool,
    scale: float,
    queries: Tensor | slice,
    keys: Tensor | slice,
    out: Tensor | None = None,
) -> Tensor:
    """Masked logits of a tile of one head, in float32.

    Args:
        query, key: (B, Q, d) and (B, K, d), any precision.
        mask: (B, Q, K) or None.
        is_causal, scale: as in :class:`AttentionCall`.
        queries, keys: which; b and c of them.
        out: where to, (B, b, c).

    Returns:
        (B, b, c), free to be overwritten.
    """
    query_block, key_block = query[:, queries].float(), key[:, keys].float()
    zero = query_block.new_zeros(1, 1, 1)
    logits = torch.baddbmm(zero, query_block, key_block.mT, beta=0, alpha=scale, out=out)
    if mask is not None:
        mask = mask[:, queries][:, :, keys]
        if mask.dtype == torch.bool:
            logits.masked_fill_(~mask, -torch.inf)
        else:
            logits.add_(mask)
    if is_causal:
        row = torch.arange(query.shape[1], device=query.device)[queries]
        column = torch.arange(key.shape[1], device=query.device)[keys]
        logits.masked_fill_(column > row[:, None], -torch.inf)
    return logits


class _Head:
    """One head of a call, keys and values in float32; a group of heads shares them."""

    def __init__(self, call: AttentionCall, head: int):
        shared = _key_head(head, call.query.shape[1], call.key.shape[1])
        self.call, self.query, self.output = call, call.query[:, head], call.output[:, head]
        self.key, self.value = call.key[:, shared].float(), call.value[:, shared].float()
        batch, _, queries, _ = call.query.shape
        self.mask = _head_mask(call.mask, head, batch, queries, self.key.shape[1])

    def blocks(self, queries: Tensor | None = None) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
        """Exact rows of A, all by default: indices (b,), weights (B, b, K), maximum and total (B, b, 1).

        weights = exp(logits - maximum) / total. The two stay apart because their logsumexp loses the
        total where a mask adds -3e38 to a whole row. The next block overwrites the weights.
        """
        call, (batch, count, _), keys = self.call, self.query.shape, self.key.shape[1]
        queries = torch.arange(count) if queries is None else queries
        rows = _block_rows(batch, keys, len(queries))
        buffer = self.key.new_empty(batch * rows * keys)
        for block in queries.to(self.query.device).split(rows):
            weights = buffer[: batch * len(block) * keys].view(batch, len(block), keys)
            _logits(
                self.query, self.key, self.mask, call.is_causal, call.scale, block, slice(None), out=weights
            )
            # The floor makes a row without keys exp(-inf) = 0. In all others the total is at least 1.
            maximum = weights.amax(-1, keepdim=True).clamp_min(torch.finfo(torch.float32).min)
            total = weights.sub_(maximum).exp_().sum(-1, keepdim=True).clamp_min(1)
            yield block, weights.div_(total), maximum, total

    def residual(self, weights: Tensor, block: Tensor) -> float:
        """|A V - the kernel's output|, the largest, of rows that ``blocks`` gave."""
        return _largest_difference(weights @ self.value, self.output[:, block])


def _largest_difference(ours: Tensor, theirs: Tensor) -> float:
    return ours.sub_(theirs).abs_().amax().item()  # overwrites ours


def _block_rows(batch: int, keys: int, rows: int) -> int:
    return min(max(BLOCK_BYTES // (4 * batch * keys), 1), rows)


def _sweep_cost(
    shape: AttentionShape,
    heads: int,
    rows: int,
    result_numbers: int,
    transient_numbers: int = 0,
    blocks: int = 1,
) -> Cost:
    """Of exact rows with their residual; ``blocks`` at a time, with a mask at least two."""
    dims = shape.head_dim + shape.value_dim
    blocks = max(blocks, 2 if shape.mask_bytes or shape.is_causal else 1)
    block = _block_rows(shape.batch, shape.keys, rows) * (blocks * shape.keys + 2 * dims)
    upcast = shape.keys * dims * (shape.itemsize != 4)
    return Cost(
        result_bytes=4 * result_numbers,
        transient_bytes=4 * (shape.batch * (block + upcast) + transient_numbers),
        flops=2 * shape.batch * heads * rows * shape.keys * dims,
    )


# --- checks ----------------------------------------------------------------------------------------


def _indices(what: str, indices: Sequence[int] | Tensor) -> Tensor:
    """As a long vector on the CPU."""
    indices = torch.as_tensor(indices).cpu()
    if indices.ndim != 1 or not len(indices) or indices.is_floating_point() or indices.dtype == torch.bool:
        raise UserError(f"{what} must be a list of one or more whole numbers.")
    return indices.long()


def _check_range(module: str, what: str, indices: Tensor, count: int) -> None:
    lowest, highest = indices.min().item(), indices.max().item()
    if lowest < 0 or highest >= count:
        raise UserError(
            f"{module} has {count} {what}, numbered from 0, and {lowest if lowest < 0 else highest} is none "
            "of them; ask for others."
        )


def _check_count(module: str, what: str, labels: Tensor, count: int) -> None:
    if len(labels) != count:
        raise UserError(
            f"{module} has {count} {what} and the probe has labels for {len(labels)}; give one label to each."
        )


def _labels(what: str, labels: Tensor, names: Sequence[str] | None) -> tuple[Tensor, tuple[str, ...]]:
    """Checked labels, -1 for none, and as many names as there are groups."""
    labels = _indices(what, labels)
    names = tuple(names or map(str, range(labels.max() + 1)))
    if not names or labels.min() < -1 or labels.max() >= len(names):
        raise UserError(
            f"{what} run from {labels.min()} to {labels.max()} with {len(names)} names; number the groups "
            "from 0, give each a name, and use -1 for what is in none."
        )
    return labels, names


def _one_hot(labels: Tensor, groups: int) -> Tensor:
    """(n,) -> (n, m) float32; a row of zeros for label -1."""
    return (labels[:, None] == torch.arange(groups)).float()


# --- probes ----------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False, kw_only=True)
class Probe:
    """What all probes share.

    Args:
        heads: which; all by default.
    """

    heads: Sequence[int] | None = None

    def __call__(self, call: AttentionCall) -> "Capture | AttentionStore":
        """Measure one call.

        Raises:
            UserError: the probe does not fit the call, e.g. labels for another number of keys.
        """
        shape = AttentionShape.of(call)
        self.cost(shape)
        # The model may run under autocast, which would round our float32 products.
        with torch.no_grad(), torch.autocast(call.query.device.type, enabled=False):
            return self._measure(call, self._heads(shape))

    def cost(self, shape: AttentionShape) -> Cost:
        """What it would take on a call of this shape.

        Raises:
            UserError: the probe does not fit the call.
        """
        raise NotImplementedError

    def _measure(self, call: AttentionCall, heads: tuple[int, ...]) -> "Capture | AttentionStore":
        raise NotImplementedError

    def _measure_head(self, call: AttentionCall, index: int, *results: Tensor) -> list[float]:
        """Fill the results of one head, (B, ...) each, and return residuals."""
        raise NotImplementedError

    def _fill(self, call: AttentionCall, heads: tuple[int, ...], *results: Tensor) -> float:
        """Fill results (B, H, ...), or (B, 1, ...) that all heads share, and return the residual."""
        residuals = []
        for i, index in enumerate(heads):
            residuals += self._measure_head(call, index, *(r[:, min(i, r.shape[1] - 1)] for r in results))
        return torch.tensor(residuals).amax().item()  # unlike Python's max, keeps nan

    def _heads(self, shape: AttentionShape) -> tuple[int, ...]:
        if self.heads is None:
            return tuple(range(shape.heads))
        heads = _indices("heads", self.heads)
        _check_range(shape.module, "heads", heads, shape.heads)
        return tuple(heads.tolist())


@dataclass(frozen=True, eq=False)
class Rows(Probe):
    """Whole rows of A: what chosen queries look at. Values (B, H, R, K).

    Args:
        queries: R indices.
        mean_over_heads: keep the mean over the heads only, (B, 1, R, K).
        heads: which; all by default.
    """

    queries: Sequence[int] | Tensor
    mean_over_heads: bool = False

    def __post_init__(self):
        object.__setattr__(self, "queries", _indices("queries", self.queries))

    def cost(self, shape: AttentionShape) -> Cost:
        heads, rows = len(self._heads(shape)), len(self.queries)
        _check_range(shape.module, "queries", self.queries, shape.queries)
        kept = 1 if self.mean_over_heads else heads
        return _sweep_cost(shape, heads, rows, shape.batch * kept * rows * shape.keys)

    def _measure(self, call, heads):
        kept = 1 if self.mean_over_heads else len(heads)
        values = torch.zeros(call.query.shape[0], kept, len(self.queries), call.key.shape[2])
        residual = self._fill(call, heads, values)
        return Capture(call.site, heads, values.div_(len(heads) / kept), residual)

    def _measure_head(self, call, index, values):
        head, residuals, start = _Head(call, index), [], 0
        for block, weights, _, _ in head.blocks(self.queries):
            residuals.append(head.residual(weights, block))
            values[:, start : start + len(block)] += weights.cpu()
            start += len(block)
        return residuals


@dataclass(frozen=True, eq=False)
class GroupMass(Probe):
    """How much of its attention every query gives to each group of keys. Values (B, H, Q, m).

    The model's fused kernel is called again with V replaced by one-hot columns that say which group a
    key is in. Columns that the groups leave free take columns of the real V, whose output must be the
    kernel's: a certificate for every query at no cost. Calls with a mask, for which the kernel would
    write the mask out in full, and head sizes that do not divide by 8 go through row blocks instead.

    Args:
        groups: (K,) labels 0 .. m - 1, or -1 for keys in no group.
        names: of the groups; their numbers by default. A named group may be empty.
        upcast: run the kernel in float32; a bfloat16 kernel is wrong by about 2e-3.
        heads: which; all by default.
    """

    groups: Tensor
    names: Sequence[str] | None = None
    upcast: bool = True

    def __post_init__(self):
        groups, names = _labels("group labels", self.groups, self.names)
        object.__setattr__(self, "groups", groups)
        object.__setattr__(self, "names", names)

    @staticmethod
    def _is_fused(shape: AttentionShape) -> bool:
        return not shape.mask_bytes and shape.head_dim % 8 == 0

    def cost(self, shape: AttentionShape) -> Cost:
        heads, groups, dim = len(self._heads(shape)), len(self.names), shape.head_dim
        _check_count(shape.module, "keys", self.groups, shape.keys)
        numbers = shape.batch * heads * shape.queries * groups
        if not self._is_fused(shape):
            rows = _block_rows(shape.batch, shape.keys, shape.queries)
            return _sweep_cost(
                shape, heads, shape.queries, numbers, (shape.keys + shape.batch * rows) * groups
            )
        calls = math.ceil(groups / (dim - 1))
        tokens = shape.batch * (shape.queries + shape.keys)
        # One-hot values and their output; float32 copies of Q and K, and the kernel's output to compare.
        transient = tokens * dim * (4 if self.upcast else shape.itemsize)
        if self.upcast and shape.itemsize != 4:
            free = min(calls * (dim - 1) - groups + 1, shape.value_dim)
            transient += 4 * (tokens * dim + shape.batch * shape.queries * free)
        pairs = shape.batch * heads * shape.queries * shape.keys
        return Cost(4 * numbers, transient, calls * 4 * pairs * dim)

    def _measure(self, call, heads):
        batch, _, queries, _ = call.query.shape
        values = torch.empty(batch, len(heads), queries, len(self.names))
        return Capture(call.site, heads, values, self._fill(call, heads, values), self.names)

    def _measure_head(self, call, index, values):
        is_fused = self._is_fused(AttentionShape.of(call))
        return (self._fused if is_fused else self._swept)(call, index, values)

    def _fused(self, call: AttentionCall, index: int, values: Tensor) -> list[float]:
        shared = _key_head(index, call.query.shape[1], call.key.shape[1])
        query, key, value = call.query[:, index, None], call.key[:, shared, None], call.value[:, shared]
        if self.upcast:
            query, key = query.float(), key.float()
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
            residuals.append(_largest_difference(ours, theirs))
        return residuals

    def _swept(self, call: AttentionCall, index: int, values: Tensor) -> list[float]:
        head, residuals = _Head(call, index), []
        columns = _one_hot(self.groups, len(self.names)).to(head.key)
        for block, weights, _, _ in head.blocks():
            values[:, block.cpu()] = (weights @ columns).cpu()
            residuals.append(head.residual(weights, block))
        return residuals


@dataclass(frozen=True, eq=False)
class Columns(Probe):
    """How much attention every key receives from an average query of each group. Values (B, H, m, K).

    The mean over the group, not the sum: comparable between groups of different sizes, and each
    (b, h, m) sums to 1 as a row does. Computed by a sweep over row blocks, which on a CPU takes a
    quarter of the time of the other exact way, the gradient with respect to V.

    The residual compares the group's mean output.

    Args:
        groups: (Q,) labels 0 .. m - 1 of the queries, or -1 for queries in no group.
        names: of the groups; their numbers by default.
        heads: which; all by default.
    """

    groups: Tensor
    names: Sequence[str] | None = None

    def __post_init__(self):
        groups, names = _labels("group labels", self.groups, self.names)
        for group, name in enumerate(names):
            if not (groups == group).any():
                raise UserError(f"group {name} has no query to average over; leave it out.")
        object.__setattr__(self, "groups", groups)
        object.__setattr__(self, "names", names)

    def cost(self, shape: AttentionShape) -> Cost:
        heads, groups = len(self._heads(shape)), len(self.names)
        _check_count(shape.module, "queries", self.groups, shape.queries)
        numbers = shape.batch * groups * shape.keys
        cost = _sweep_cost(shape, heads, shape.queries, heads * numbers, numbers)
        # A V is taken of the means instead of every row.
        rows = shape.queries * (shape.head_dim + groups) + groups * shape.value_dim
        return Cost(cost.result_bytes, cost.transient_bytes, 2 * shape.batch * heads * shape.keys * rows)

    def _measure(self, call, heads):
        values = torch.empty(call.query.shape[0], len(heads), len(self.names), call.key.shape[2])
        return Capture(call.site, heads, values, self._fill(call, heads, values), self.names)

    def _measure_head(self, call, index, values):
        head, share = _Head(call, index), _one_hot(self.groups, len(self.names))
        share = (share / share.sum(0)).to(head.key).expand(len(values), -1, -1)  # (B, Q, m)
        mean = torch.zeros_like(values, device=head.key.device)
        for block, weights, _, _ in head.blocks():
            mean.baddbmm_(share[:, block].mT, weights)
        values.copy_(mean)
        return [_largest_difference(mean @ head.value, share.mT @ head.output.float())]


Reduce = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Sweep(Probe):
    """Anything that reads whole rows of A: each block is reduced at once. Values (B, H, Q, n).

    Args:
        reduce: (weights (B, b, K) of one head, indices (b,) of its queries) -> (B, b, n). The estimate
            grants it two more blocks of memory.
        width: n.
        heads: which; all by default.
    """

    reduce: Reduce
    width: int = 1

    def cost(self, shape: AttentionShape) -> Cost:
        heads = len(self._heads(shape))
        numbers = shape.batch * heads * shape.queries * self.width
        return _sweep_cost(shape, heads, shape.queries, numbers, blocks=3)

    def _measure(self, call, heads):
        batch, _, queries, _ = call.query.shape
        values = torch.empty(batch, len(heads), queries, self.width)
        return Capture(call.site, heads, values, self._fill(call, heads, values))

    def _measure_head(self, call, index, values):
        head, residuals = _Head(call, index), []
        for block, weights, _, _ in head.blocks():
            residuals.append(head.residual(weights, block))
            reduced = self.reduce(weights, block)
            if reduced.shape != (len(values), len(block), self.width):
                raise UserError(
                    f"reduce must return {(len(values), len(block), self.width)}, a row for every query, not "
                    f"{tuple(reduced.shape)}."
                )
            values[:, block.cpu()] = reduced.float().cpu()
        return residuals


def row_entropy(keys: Sequence[int] | Tensor | None = None) -> Reduce:
    """For :class:`Sweep`: entropy of every row over chosen keys, in nats.

    The weights of the chosen keys are first made to sum to 1, so the result lies in [0, log(keys)]:
    0 where one key takes all, log(keys) where all get the same, nan where none gets anything. Over the
    keys of a picture this is the spatial entropy.

    Args:
        keys: indices; all by default.
    """
    keys = slice(None) if keys is None else _indices("keys", keys)

    def reduce(weights: Tensor, _queries: Tensor) -> Tensor:
        chosen = weights[..., keys]
        mass = chosen.sum(-1, keepdim=True)
        return torch.special.entr(chosen).sum(-1, keepdim=True) / mass + mass.log()

    return reduce


@dataclass(frozen=True, eq=False)
class SampledRows(Probe):
    """Mean attention from strata of queries to groups of keys, from a sample. Values (B, H, strata, m).

    Queries are drawn without replacement within each stratum, the same ones for every head and call, so
    differences between layers are less noisy than their errors say. Standard errors carry the
    finite-population correction: a stratum that is sampled whole has none.

    Args:
        strata: (Q,) labels of the queries, or -1 for queries left out.
        groups: (K,) labels 0 .. m - 1 of the keys, or -1 for keys in no group.
        per_stratum: queries drawn from each stratum, two or more; a smaller stratum is taken whole.
        names: of the groups; their numbers by default.
        seed: of the draw.
        heads: which; all by default.

    Attributes:
        drawn: indices of the sampled queries, one vector a stratum.
    """

    strata: Tensor
    groups: Tensor
    per_stratum: int
    names: Sequence[str] | None = None
    seed: int = 0
    drawn: list[Tensor] = field(init=False)

    def __post_init__(self):
        strata, stratum_names = _labels("strata", self.strata, None)
        groups, names = _labels("group labels", self.groups, self.names)
        if self.per_stratum < 2:
            raise UserError("per_stratum must be two or more: one query tells nothing about the spread.")
        if len(strata.unique()) - (-1 in strata) < len(stratum_names):
            raise UserError("some stratum has no query; number the strata without gaps.")
        generator = torch.Generator().manual_seed(self.seed)
        members = [(strata == s).nonzero()[:, 0] for s in range(len(stratum_names))]
        drawn = [m[torch.randperm(len(m), generator=generator)[: self.per_stratum]] for m in members]
        object.__setattr__(self, "strata", strata)
        object.__setattr__(self, "groups", groups)
        object.__setattr__(self, "names", names)
        object.__setattr__(self, "drawn", drawn)

    def cost(self, shape: AttentionShape) -> Cost:
        heads, groups = len(self._heads(shape)), len(self.names)
        _check_count(shape.module, "queries", self.strata, shape.queries)
        _check_count(shape.module, "keys", self.groups, shape.keys)
        rows = sum(map(len, self.drawn))
        numbers = 2 * shape.batch * heads * len(self.drawn) * groups
        return _sweep_cost(shape, heads, rows, numbers, (shape.keys + shape.batch * rows) * groups)

    def _measure(self, call, heads):
        values = torch.empty(call.query.shape[0], len(heads), len(self.drawn), len(self.names))
        standard_error = torch.empty_like(values)
        residual = self._fill(call, heads, values, standard_error)
        return Capture(call.site, heads, values, residual, self.names, standard_error)

    def _measure_head(self, call, index, values, standard_error):
        head, parts, residuals = _Head(call, index), [], []
        columns = _one_hot(self.groups, len(self.names)).to(head.key)
        for block, weights, _, _ in head.blocks(torch.cat(self.drawn)):
            residuals.append(head.residual(weights, block))
            parts.append(weights @ columns)
        mass = torch.cat(parts, dim=1).cpu()  # (B, rows, m)
        for s, sample in enumerate(mass.split([len(rows) for rows in self.drawn], dim=1)):
            count, population = sample.shape[1], (self.strata == s).sum().item()
            values[:, s] = sample.mean(1)
            standard_error[:, s] = 0
            if count < population:
                standard_error[:, s] = sample.std(1) * math.sqrt((1 - count / population) / count)
        return residuals


@dataclass(frozen=True, eq=False)
class RandomAccess(Probe):
    """Q, K and two numbers a row, from which any tile of A follows later. See :class:`AttentionStore`.

    One sweep over all rows finds the two numbers and checks every row against the kernel.

    Args:
        heads: which; all by default.
    """

    def _shared(self, heads: tuple[int, ...], shape: AttentionShape) -> list[int]:
        return [_key_head(head, shape.heads, shape.kv_heads) for head in heads]

    def cost(self, shape: AttentionShape) -> Cost:
        heads = self._heads(shape)
        cost = _sweep_cost(shape, len(heads), shape.queries, 2 * shape.batch * len(heads) * shape.queries)
        tokens = len(heads) * shape.queries + len(set(self._shared(heads, shape))) * shape.keys
        stored = shape.batch * tokens * shape.head_dim * shape.itemsize + shape.mask_bytes
        # Q and K are copied after the sweep, when its memory is free again.
        return Cost(cost.result_bytes + stored, max(cost.transient_bytes - stored, 0), cost.flops)

    def _measure(self, call, heads):
        batch, _, queries, _ = call.query.shape
        maximum = torch.empty(batch, len(heads), queries, 1)
        total = torch.empty_like(maximum)
        residual = self._fill(call, heads, maximum, total)
        shared = self._shared(heads, AttentionShape.of(call))
        kept = sorted(set(shared))
        return AttentionStore(
            site=call.site,
            heads=heads,
            key_heads=tuple(map(kept.index, shared)),
            query=_select(call.query, heads),
            key=_select(call.key, kept),
            mask=None if call.mask is None else _without_repeats(call.mask).to("cpu", copy=True),
            is_causal=call.is_causal,
            scale=call.scale,
            maximum=maximum,
            total=total,
            residual=residual,
        )

    def _measure_head(self, call, index, maximum, total):
        head, residuals = _Head(call, index), []
        for block, weights, block_maximum, block_total in head.blocks():
            residuals.append(head.residual(weights, block))
            maximum[:, block.cpu()] = block_maximum.cpu()
            total[:, block.cpu()] = block_total.cpu()
        return residuals


def _select(x: Tensor, heads: Sequence[int]) -> Tensor:
    """A copy of some heads on the CPU, each head contiguous; head by head to hold nothing twice."""
    out = torch.empty(x.shape[0], len(heads), *x.shape[2:], dtype=x.dtype)
    for i, head in enumerate(heads):
        out[:, i] = x[:, head]
    return out


@dataclass(frozen=True, eq=False)
class AttentionStore:
    """Attention weights of one call, on demand: A[q, k] = exp(scale * q . k + mask - maximum) / total.

    The product is rounded otherwise than when the maximum was taken, so weights are exact to about 1e-7
    of the largest logit: 1e-6 for logits of 10.

    Attributes:
        site: where.
        heads: which heads of the call are kept, H of them.
        key_heads: of each head, its place in ``key``.
        query, key: (B, H, Q, d) and (B, key heads, K, d) in the model's precision.
        mask, is_causal, scale: as in :class:`AttentionCall`.
        maximum, total: of each row's logits and of their exponentials, (B, H, Q, 1);
            maximum + log(total) is the logsumexp.
        residual: as in :class:`Capture`, over all rows.
    """

    site: Site
    heads: tuple[int, ...]
    key_heads: tuple[int, ...]
    query: Tensor
    key: Tensor
    mask: Tensor | None
    is_causal: bool
    scale: float
    maximum: Tensor
    total: Tensor
    residual: float

    def rows(self, queries: Sequence[int], heads: Sequence[int] | None = None) -> Tensor:
        """What these queries look at, (B, H, queries, K); see :meth:`tile`."""
        return self.tile(queries, None, heads)

    def columns(self, keys: Sequence[int], heads: Sequence[int] | None = None) -> Tensor:
        """Who looks at these keys, (B, H, Q, keys); see :meth:`tile`."""
        return self.tile(None, keys, heads)

    def tile(
        self,
        queries: Sequence[int] | None,
        keys: Sequence[int] | None,
        heads: Sequence[int] | None = None,
    ) -> Tensor:
        """Exact weights, float32.

        Args:
            queries, keys: indices; None for all.
            heads: some of ``heads``; None for all.

        Returns:
            (B, heads, queries, keys).

        Raises:
            UserError: an index that there is not, or a head that was not kept.
        """
        batch, _, query_count, _ = self.query.shape
        key_count = self.key.shape[2]
        queries = self._chosen("queries", queries, query_count)
        keys = self._chosen("keys", keys, key_count)
        heads = self.heads if heads is None else heads
        if not set(heads) <= set(self.heads):
            raise UserError(f"{self.site.module} was stored with heads {self.heads}; ask for some of these.")
        tiles = []
        for head in heads:
            i = self.heads.index(head)
            mask = _head_mask(self.mask, head, batch, query_count, key_count)
            query, key = self.query[:, i], self.key[:, self.key_heads[i]]
            tile = _logits(query, key, mask, self.is_causal, self.scale, queries, keys)
            tiles.append(tile.sub_(self.maximum[:, i, queries]).exp_().div_(self.total[:, i, queries]))
        return torch.stack(tiles, dim=1)

    def _chosen(self, what: str, indices: Sequence[int] | None, count: int) -> Tensor | slice:
        if indices is None:
            return slice(None)
        indices = _indices(what, indices)
        _check_range(self.site.module, what, indices, count)
        return indices

    def save(self, path: str | Path) -> None:
        """Write a safetensors file; it appears whole or not at all."""
        tensors = {name: getattr(self, name) for name in ("query", "key", "maximum", "total")}
        if self.mask is not None:
            tensors["mask"] = self.mask.contiguous()
        facts = {
            "site": asdict(self.site),
            "heads": self.heads,
            "key_heads": self.key_heads,
            "is_causal": self.is_causal,
            "scale": self.scale,
            "residual": self.residual,
        }
        with replacing(path) as temporary:
            save_file(tensors, temporary, {"attention": json.dumps(facts)})

    @classmethod
    def load(cls, path: str | Path) -> "AttentionStore":
        """Open a file that ``save`` wrote. Tensors are memory-mapped: only what is used is read.

        Raises:
            UserError: no such file, or another kind of file.
        """
        try:
            with safe_open(path, framework="pt") as file:
                facts = json.loads((file.metadata() or {})["attention"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError, KeyError) as error:
            raise UserError(f"{path} is no saved attention; give a file that save() wrote.") from error
        facts["site"] = Site(**facts["site"])
        facts["heads"], facts["key_heads"] = tuple(facts["heads"]), tuple(facts["key_heads"])
        return cls(mask=tensors.pop("mask", None), **facts, **tensors)
