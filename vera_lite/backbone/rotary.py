"""Rotary position embedding in three dimensions (RoFormer, arXiv 2104.09864), for Wan and for CogVideoX.

Pair k of the n channels of an axis turns by the angle p * w_k, with p the token's position on that axis and
w_k = 10000^(-2k / n). The attention logit of two tokens then depends on the difference of their positions
alone. The numbers are real float32: Inductor, ONNX and MPS lack complex numbers, and MPS lacks float64.
"""

import torch
from torch import Tensor

Grid = tuple[int, int, int]


def grid_positions(grid: Grid, offset: Grid = (0, 0, 0), device: torch.device | None = None) -> Tensor:
    """Positions t, h, w of every token of a (t, h, w) grid, time outermost, plus ``offset``: (S, 3)."""
    axes = (torch.arange(a, a + n, device=device) for a, n in zip(offset, grid, strict=True))
    return torch.cartesian_prod(*axes).view(-1, 3)


def rotary_table(positions: Tensor, widths: Grid) -> Tensor:
    """Cosines and sines for :func:`rotate`.

    Args:
        positions: (S, 3), t, h, w of each token.
        widths: how many channels t, h and w turn, even numbers; their sum is d, the width of a head.

    Returns:
        (2, S, d) float32. Per pair, [0] holds cos(p w_k) twice and [1] holds -sin(p w_k), sin(p w_k).
    """
    angles = []
    for position, width in zip(positions.float().unbind(1), widths, strict=True):
        exponent = torch.arange(0, width, 2, device=positions.device).float() / width
        angles.append(torch.outer(position, 10000.0**-exponent))
    angle = torch.cat(angles, 1)
    cos, sin = angle.cos(), angle.sin()
    return torch.stack((torch.stack((cos, cos), -1), torch.stack((-sin, sin), -1))).flatten(-2)


def rotate(x: Tensor, table: Tensor) -> Tensor:
    """Turn neighbouring channels (a, b) of x (..., S, H, d) into (a cos - b sin, a sin + b cos).

    ``table`` (2, S, d) comes from :func:`rotary_table`; the result has x's shape and dtype.
    """
    return _Rotation.apply(x, table)


class _Rotation(torch.autograd.Function):
    """The gradient of a rotation is the inverse rotation: one pass, where autograd would take four."""

    @staticmethod
    def forward(ctx, x: Tensor, table: Tensor) -> Tensor:
        ctx.save_for_backward(table)
        return _turned(x, table[0], table[1])

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        (table,) = ctx.saved_tensors
        return _turned(gradient, table[0], -table[1]), None


def _turned(x: Tensor, cos: Tensor, signed_sin: Tensor) -> Tensor:
    exact = x.float()
    first, second = exact.unflatten(-1, (-1, 2)).unbind(-1)
    swapped = torch.stack((second, first), -1).flatten(-2)
    return swapped.mul_(signed_sin[:, None]).addcmul_(exact, cos[:, None]).type_as(x)
