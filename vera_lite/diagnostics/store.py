"""Q, K and two numbers per row of one attention call, which give any part of A later."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vera_lite.diagnostics.call import AttentionShape, CallSite, Cost, without_repeats
from vera_lite.diagnostics.exact import ExactHead, exact_cost, head_mask, key_head, masked_logits
from vera_lite.diagnostics.measurements import Measurement, check_range, whole_numbers


@dataclass(frozen=True, eq=False)
class StoreQK(Measurement):
    """Keep Q, K and two numbers per row: returns an :class:`AttentionStore`.

    It computes all rows once, to get the two numbers and to check every row against the kernel.
    """

    def _shared(self, heads: tuple[int, ...], shape: AttentionShape) -> list[int]:
        return [key_head(head, shape.heads, shape.kv_heads) for head in heads]

    def cost(self, shape: AttentionShape) -> Cost:
        heads = self._heads(shape)
        cost = exact_cost(shape, len(heads), shape.queries, 2 * shape.batch * len(heads) * shape.queries)
        tokens = len(heads) * shape.queries + len(set(self._shared(heads, shape))) * shape.keys
        stored = shape.batch * tokens * shape.head_dim * shape.itemsize + shape.mask_bytes
        # Q and K are copied after the rows are computed, when the memory of the rows is free.
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
    """A copy of some heads on the CPU, each head contiguous; made head by head to save memory."""
    out = torch.empty(x.shape[0], len(heads), *x.shape[2:], dtype=x.dtype)
    for i, head in enumerate(heads):
        out[:, i] = x[:, head]
    return out


@dataclass(frozen=True, eq=False)
class AttentionStore:
    """Attention weights of one call, on demand: A[q, k] = exp(scale * q . k + mask - maximum) / total.

    The products are rounded differently from those of the first pass, so weights are exact to about 1e-7 of
    the largest logit: 1e-6 for logits of 10.
    """

    site: CallSite
    heads: tuple[int, ...]  #: which heads of the call are kept, H of them.
    key_heads: tuple[int, ...]  #: of each head, its place in ``key``.
    #: query, key: (B, H, Q, d) and (B, key heads, K, d) in the model's precision.
    query: Tensor
    key: Tensor
    #: mask, is_causal, scale: as in :class:`AttentionCall`.
    mask: Tensor | None
    is_causal: bool
    scale: float
    #: maximum, total: of each row's logits and of their exponentials, (B, H, Q, 1); maximum + log(total) is
    #: the logsumexp.
    maximum: Tensor
    total: Tensor
    residual: float  #: as in :class:`Capture`, over all rows.

    def rows(self, queries: Sequence[int]) -> Tensor:
        """Where these queries look, (B, H, queries, K); see :meth:`tile`."""
        return self.tile(queries, None)

    def columns(self, keys: Sequence[int]) -> Tensor:
        """Who looks at these keys, (B, H, Q, keys); see :meth:`tile`."""
        return self.tile(None, keys)

    def tile(self, queries: Sequence[int] | None, keys: Sequence[int] | None) -> Tensor:
        """Exact weights of some queries and keys, None for all: (B, H, queries, keys) float32."""
        batch, _, query_count, _ = self.query.shape
        key_count = self.key.shape[2]
        rows = self._chosen("queries", queries, query_count)
        columns = self._chosen("keys", keys, key_count)
        tiles = []
        # Maximum and total were computed without autocast, which would round the products.
        with torch.autocast(self.query.device.type, enabled=False):
            for i, head in enumerate(self.heads):
                mask = head_mask(self.mask, head, batch, query_count, key_count)
                query, key = self.query[:, i], self.key[:, self.key_heads[i]]
                tile = masked_logits(query, key, mask, self.is_causal, self.scale, rows, columns)
                tiles.append(tile.sub_(self.maximum[:, i, rows]).exp_().div_(self.total[:, i, rows]))
        return torch.stack(tiles, dim=1)

    def _chosen(self, what: str, indices: Sequence[int] | None, count: int) -> Tensor | slice:
        if indices is None:
            return slice(None)
        chosen = whole_numbers(what, indices)
        check_range(self.site.module, what, chosen, count)
        return chosen
