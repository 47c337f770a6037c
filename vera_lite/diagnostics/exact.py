"""Exact attention weights of one call, head by head and block by block.

A = softmax(scale * q k^T + mask) in float32, in whatever precision the model runs. A block holds all keys of
a few queries, so memory stays at :data:`BLOCK_BYTES` for any length of the sequence.

Axis letters: B batch, H heads, Q queries, K keys, d head size, b rows of a block, c some of the keys.
A row that sees no key is all zeros, as the kernel's output is.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from vera_lite.diagnostics.call import AttentionCall, AttentionShape, Cost

#: Size of a block of float32 weights, (B, b, K); larger is no faster.
BLOCK_BYTES = 16 * 2**20


def key_head(head: int, heads: int, kv_heads: int) -> int:
    """The key head that a head reads; neighbouring heads share one."""
    return head // (heads // kv_heads)


def head_mask(mask: Tensor | None, head: int, batch: int, queries: int, keys: int) -> Tensor | None:
    """The mask of one head, a view (B, Q, K)."""
    if mask is None:
        return None
    mask = mask.reshape((1,) * (4 - mask.ndim) + mask.shape)
    return mask[:, head if mask.shape[1] > 1 else 0].expand(batch, queries, keys)


def masked_logits(
    query: Tensor,
    key: Tensor,
    mask: Tensor | None,
    is_causal: bool,
    scale: float,
    queries: Tensor | slice,
    keys: Tensor | slice,
    out: Tensor | None = None,
) -> Tensor:
    """Masked float32 logits (B, b, c) of b queries and c keys of one head; the caller may overwrite them.

    Query is (B, Q, d), key (B, K, d), mask (B, Q, K) or None; ``out`` takes the result.
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


class ExactHead:
    """One head of a call, with keys and values in float32."""

    def __init__(self, call: AttentionCall, head: int):
        shared = key_head(head, call.query.shape[1], call.key.shape[1])
        self.call, self.query, self.output = call, call.query[:, head], call.output[:, head]
        self.key, self.value = call.key[:, shared].float(), call.value[:, shared].float()
        batch, _, queries, _ = call.query.shape
        self.mask = head_mask(call.mask, head, batch, queries, self.key.shape[1])

    def blocks(self, queries: Tensor | None = None) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
        """Exact rows of A, all by default: indices (b,), weights (B, b, K), maximum and total (B, b, 1).

        weights = exp(logits - maximum) / total; a logsumexp of both would lose the total where a mask adds
        -3e38 to a whole row. The next block overwrites the weights.
        """
        call, (batch, count, _), keys = self.call, self.query.shape, self.key.shape[1]
        queries = torch.arange(count) if queries is None else queries
        rows = block_rows(batch, keys, len(queries))
        buffer = self.key.new_empty(batch * rows * keys)
        for block in queries.to(self.query.device).split(rows):
            weights = buffer[: batch * len(block) * keys].view(batch, len(block), keys)
            masked_logits(
                self.query, self.key, self.mask, call.is_causal, call.scale, block, slice(None), out=weights
            )
            # The floor turns a row without keys into exp(-inf) = 0. In all other rows the total is >= 1.
            maximum = weights.amax(-1, keepdim=True).clamp_min(torch.finfo(torch.float32).min)
            total = weights.sub_(maximum).exp_().sum(-1, keepdim=True).clamp_min(1)
            yield block, weights.div_(total), maximum, total

    def residual(self, weights: Tensor, block: Tensor) -> float:
        """The largest |A V - kernel's output| of rows that ``blocks`` yielded."""
        return largest_difference(weights @ self.value, self.output[:, block])


def largest_difference(ours: Tensor, theirs: Tensor) -> float:
    """The largest |ours - theirs|; overwrites ours."""
    return ours.sub_(theirs).abs_().amax().item()


def block_rows(batch: int, keys: int, rows: int) -> int:
    """Queries in one block."""
    return min(max(BLOCK_BYTES // (4 * batch * keys), 1), rows)


def exact_cost(
    shape: AttentionShape,
    heads: int,
    rows: int,
    result_numbers: int,
    transient_numbers: int = 0,
    blocks: int = 1,
) -> Cost:
    """Cost of exact rows and their residual, with ``blocks`` in memory at a time (two with a mask)."""
    dims = shape.head_dim + shape.value_dim
    blocks = max(blocks, 2 if shape.mask_bytes or shape.is_causal else 1)
    block = block_rows(shape.batch, shape.keys, rows) * (blocks * shape.keys + 2 * dims)
    upcast = shape.keys * dims * (shape.itemsize != 4)
    return Cost(
        result_bytes=4 * result_numbers,
        transient_bytes=4 * (shape.batch * (block + upcast) + transient_numbers),
        flops=2 * shape.batch * heads * rows * shape.keys * dims,
    )
