"""Q, K and two numbers per row of one attention call, from which any part of A follows later."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from vera_lite.diagnostics.call import AttentionShape, CallSite, Cost, without_repeats
from vera_lite.diagnostics.exact import ExactHead, exact_cost, head_mask, key_head, masked_logits
from vera_lite.diagnostics.measurements import Measurement, check_range, whole_numbers
from vera_lite.errors import UserError
from vera_lite.media.files import replacing


@dataclass(frozen=True, eq=False)
class StoreQK(Measurement):
    """Keep Q, K and two numbers per row: returns an :class:`AttentionStore`.

    All rows are computed once, to find the two numbers and to check every row against the kernel.

    Args:
        heads: which; all by default.
    """

    def _shared(self, heads: tuple[int, ...], shape: AttentionShape) -> list[int]:
        return [key_head(head, shape.heads, shape.kv_heads) for head in heads]

    def cost(self, shape: AttentionShape) -> Cost:
        heads = self._heads(shape)
        cost = exact_cost(shape, len(heads), shape.queries, 2 * shape.batch * len(heads) * shape.queries)
        tokens = len(heads) * shape.queries + len(set(self._shared(heads, shape))) * shape.keys
        stored = shape.batch * tokens * shape.head_dim * shape.itemsize + shape.mask_bytes
        # Q and K are copied after the rows were computed, when that memory is free again.
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
            mask=None if call.mask is None else without_repeats(call.mask).to("cpu", copy=True),
            is_causal=call.is_causal,
            scale=call.scale,
            maximum=maximum,
            total=total,
            residual=residual,
        )

    def _measure_head(self, call, index, maximum, total):
        head, residuals = ExactHead(call, index), []
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

    The product is rounded in another way than when the maximum was taken, so weights are exact to about
    1e-7 of the largest logit: 1e-6 for logits of 10.

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

    site: CallSite
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

    def rows(self, queries: Sequence[int]) -> Tensor:
        """What these queries look at, (B, H, queries, K); see :meth:`tile`."""
        return self.tile(queries, None)

    def columns(self, keys: Sequence[int]) -> Tensor:
        """Who looks at these keys, (B, H, Q, keys); see :meth:`tile`."""
        return self.tile(None, keys)

    def tile(self, queries: Sequence[int] | None, keys: Sequence[int] | None) -> Tensor:
        """Exact weights of some queries and keys, None for all: (B, H, queries, keys) float32.

        Raises:
            ValueError: an index is out of range.
        """
        batch, _, query_count, _ = self.query.shape
        key_count = self.key.shape[2]
        queries = self._chosen("queries", queries, query_count)
        keys = self._chosen("keys", keys, key_count)
        tiles = []
        # Autocast would round the products, but maximum and total were found without it.
        with torch.autocast(self.query.device.type, enabled=False):
            for i, head in enumerate(self.heads):
                mask = head_mask(self.mask, head, batch, query_count, key_count)
                query, key = self.query[:, i], self.key[:, self.key_heads[i]]
                tile = masked_logits(query, key, mask, self.is_causal, self.scale, queries, keys)
                tiles.append(tile.sub_(self.maximum[:, i, queries]).exp_().div_(self.total[:, i, queries]))
        return torch.stack(tiles, dim=1)

    def _chosen(self, what: str, indices: Sequence[int] | None, count: int) -> Tensor | slice:
        if indices is None:
            return slice(None)
        indices = whole_numbers(what, indices)
        check_range(self.site.module, what, indices, count)
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
        facts["site"] = CallSite(**facts["site"])
        facts["heads"], facts["key_heads"] = tuple(facts["heads"]), tuple(facts["key_heads"])
        return cls(mask=tensors.pop("mask", None), **facts, **tensors)
