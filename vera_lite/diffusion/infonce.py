"""InfoNCE over all positions of a video: RVEDiT's alignment objective (arXiv 2605.24674, Eq. 4-5), exact.

For each position it asks: which of the S positions of a reference is the same one? And in reverse:

    l_ij     = cosine(features_i, reference_j) / temperature
    estimate = 1/(2S) sum_i [log softmax_j(l_ij) at j = i  +  log softmax_j(l_ji) at j = i]

For 81 frames at 480p, S = 32,760. The matrix l takes 4.3 GB in float32, and a plain implementation holds
about three of them. :func:`info_nce` never holds the whole matrix, and leaves out no position.
"""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


def info_nce(
    features: Tensor, reference: Tensor, temperature: float = 0.07, chunk: int = 256
) -> tuple[Tensor, Tensor]:
    """The estimate, and the rank of each position's own counterpart.

    Args:
        features: (B, S, D), of any scale. A row of zeros has cosine 0 with every other and gets no gradient.
        reference: (B, S, D), likewise.
        temperature: above 0.
        chunk: how many rows of l exist at a time, in two or three copies: memory is O(B * chunk * S). Rows
            are computed twice, forward and backward.

    Returns:
        estimate: (B,), at most 0, to be maximised. Computed in float32 (float64 for float64 input), under
            autocast too.
        rank: (B, S) int64, without gradient: how many of the S reference positions score at least as high
            as the position's own.

        For random features the mean rank is (S + 1) / 2 and the estimate is about
        -ln S - 1 / (2 D temperature^2). If all positions have the same features, the estimate is -ln S.
        Positions that look alike, as in a still background, count as negatives of each other: if every
        position has k - 1 exact copies, the estimate cannot exceed -ln k, and the mean rank is k at best.
        So log the mean rank and the share of rank 1 beside the estimate.

    Raises:
        ValueError: shapes that differ or are not (B, S, D), temperature <= 0, chunk < 1.
    """
    if chunk < 1:
        raise ValueError(f"chunk counts positions and must be at least 1, got {chunk}.")
    query, key = _unit_rows(features, reference, temperature)
    with without_autocast(query):
        return _ChunkedInfoNCE.apply(query, key, temperature, chunk)


def without_autocast(x: Tensor) -> torch.autocast:
    """No autocast on the device of ``x``; "meta" knows none."""
    return torch.autocast("cpu" if x.is_meta else x.device.type, enabled=False)


def _unit_rows(features: Tensor, reference: Tensor, temperature: float) -> list[Tensor]:
    if features.ndim != 3 or features.shape != reference.shape or not features.numel():
        raise ValueError(
            "features and reference must have the same shape (batch, positions, channels), none of them 0, "
            f"got {tuple(features.shape)} and {tuple(reference.shape)}."
        )
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}.")
    dtype = torch.promote_types(torch.result_type(features, reference), torch.float32)
    rows = [x.to(dtype) for x in (features, reference)]
    lengths = [x.norm(dim=-1, keepdim=True) for x in rows]
    # A zero-initialised layer puts out zero rows; F.normalize would multiply their gradient by 1e12.
    return [x / length.where(length > 0, torch.inf) for x, length in zip(rows, lengths, strict=True)]


class _ChunkedInfoNCE(torch.autograd.Function):
    """:func:`info_nce` of unit rows.

    With n_i the log-sum-exp of row i without its positive, log softmax_j(l_ij) at j = i is
    logsigmoid(l_ii - n_i). Near a perfect alignment l_ii - logsumexp_j(l_ij) would lose its digits.
    """

    @staticmethod
    def forward(ctx, query: Tensor, key: Tensor, temperature: float, chunk: int) -> tuple[Tensor, Tensor]:
        batch, positions, _ = query.shape
        positive, rows = query.new_empty(2, batch, positions, 1)
        columns = query.new_full((batch, 1, positions), -torch.inf)
        rank = torch.empty(batch, positions, dtype=torch.long, device=query.device)
        for start in range(0, positions, chunk):
            part = slice(start, start + chunk)
            logits = (query[:, part] / temperature) @ key.mT
            diagonal = logits.diagonal(start, -2, -1)
            positive[:, part, 0] = diagonal
            diagonal.fill_(-torch.inf)
            rank[:, part] = 1 + (logits >= positive[:, part]).sum(-1)
            rows[:, part] = logits.logsumexp(-1, keepdim=True)
            columns = torch.logaddexp(columns, logits.logsumexp(-2, keepdim=True))
        ctx.save_for_backward(query, key, positive, rows, columns)
        ctx.temperature, ctx.chunk = temperature, chunk
        return (F.logsigmoid(positive - rows) + F.logsigmoid(positive - columns.mT)).mean((1, 2)) / 2, rank

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor, _):
        query, key, positive, rows, columns = ctx.saved_tensors
        # Of -2S * estimate, the derivative by l_ij is p_ij = exp(l_ij - r_i) + exp(l_ij - c_j), with the
        # log-sum-exp of whole rows and columns; and p_ii - 2, here again without a difference.
        positive_slope = -(rows - positive).sigmoid() - (columns.mT - positive).sigmoid()
        rows, columns = torch.logaddexp(rows, positive), torch.logaddexp(columns, positive.mT)
        query_gradient = torch.empty_like(query) if ctx.needs_input_grad[0] else None
        key_gradient = torch.zeros_like(key) if ctx.needs_input_grad[1] else None
        with without_autocast(query):
            for start in range(0, query.shape[1], ctx.chunk):
                part = slice(start, start + ctx.chunk)
                logits = (query[:, part] / ctx.temperature) @ key.mT
                slope = (logits - rows[:, part]).exp_().add_(logits.sub_(columns).exp_())
                slope.diagonal(start, -2, -1).copy_(positive_slope[:, part, 0])
                if query_gradient is not None:
                    query_gradient[:, part] = slope @ key
                if key_gradient is not None:
                    key_gradient.baddbmm_(slope.mT, query[:, part])
        scale = -gradient.view(-1, 1, 1) / (2 * query.shape[1] * ctx.temperature)
        return *(None if g is None else g.mul_(scale) for g in (query_gradient, key_gradient)), None, None
