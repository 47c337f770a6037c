"""Rotary position embedding in three dimensions: one function of positions, for Wan and for CogVideoX.

A head's channels are pairs. Pair k of an axis with n channels turns by the angle p * w_k, where p is the
token's position on that axis and w_k = theta^(-2k / n). The attention logit of two tokens then depends on
the difference of their positions alone (RoFormer, arXiv 2104.09864).

All in real float32 numbers: complex ones have no code under Inductor, ONNX and MPS, float64 none on MPS.
"""

import torch
from torch import Tensor

Grid = tuple[int, int, int]


def grid_positions(grid: Grid, offset: Grid = (0, 0, 0), device: torch.device | None = None) -> Tensor:
    """Positions t, h, w of every token of a (t, h, w) grid, time outermost: (S, 3).

    Args:
        grid: tokens along t, h, w.
        offset: added to all positions. Streams with disjoint ranges can be distinguished (ERoPE).
        device: of the result.
    """
    axes = (torch.arange(a, a + n, device=device) for a, n in zip(offset, grid, strict=True))
    return torch.cartesian_prod(*axes).view(-1, 3)


def rotary_table(positions: Tensor, widths: Grid, theta: float = 10000.0) -> Tensor:
    """Cosines and sines for :func:`rotate`.

    Args:
        positions: (S, 3), t, h, w of each token.
        widths: channels of a head that each axis turns, all even. Their sum is d, the width of a head.
        theta: base of the frequencies.

    Returns:
        (2, S, d) float32. [0] holds cos(p w_k) twice per pair; [1] holds -sin(p w_k), +sin(p w_k).
    """
    angles = []
    for position, width in zip(positions.float().unbind(1), widths, strict=True):
        exponent = torch.arange(0, width, 2, device=positions.device).float() / width
        angles.append(torch.outer(position, theta**-exponent))
    angle = torch.cat(angles, 1)
    cos, sin = angle.cos(), angle.sin()
    return torch.stack((torch.stack((cos, cos), -1), torch.stack((-sin, sin), -1))).flatten(-2)


def rotate(x: Tensor, table: Tensor) -> Tensor:
    """Turn neighbouring channels (a, b) into (a cos - b sin, a sin + b cos).

    Args:
        x: (..., S, H, d).
        table: (2, S, d), from :func:`rotary_table`.

    Returns:
        Tensor of x's shape and dtype.
    """
    return _Rotation.apply(x, table)


class _Rotation(torch.autograd.Function):
    """The gradient of a rotation is the rotation back: one pass, where autograd would take four."""

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
