"""Three-dimensional rotary position embedding, in Wan's layout."""

import functools

import torch
from torch import Tensor


@functools.lru_cache(maxsize=64)
def rotary_table(
    head_dim: int,
    grid: tuple[int, int, int],
    offset: tuple[int, int, int] = (0, 0, 0),
    theta: float = 10000.0,
    device: torch.device | None = None,
) -> Tensor:
    """Unit complex numbers e^{i p w_k} for every token of a (t, h, w) grid.

    Wan gives height and width 2 * (head_dim // 6) channels each and time the rest. Angles are
    computed in double precision, as in diffusers.

    Args:
        head_dim: channels of one head.
        grid: tokens along t, h, w.
        offset: added to the positions; two streams with disjoint ranges are told apart (ERoPE).
        theta: base of the frequencies.
        device: where the table lives.

    Returns:
        (S, head_dim / 2) complex64 with S = t * h * w; half the memory of a cos and a sin table that
        repeat every value.
    """
    # Kept by the cache beyond this call: it must not be born as an inference tensor.
    with torch.inference_mode(False):
        return _table(head_dim, grid, offset, theta, device)


def _table(head_dim, grid, offset, theta, device) -> Tensor:
    side = 2 * (head_dim // 6)
    angles = []
    for dim, size, start in zip((head_dim - 2 * side, side, side), grid, offset, strict=True):
        frequency = theta ** (-torch.arange(0, dim, 2, dtype=torch.float64, device=device) / dim)
        position = torch.arange(start, start + size, dtype=torch.float64, device=device)
        angles.append(torch.outer(position, frequency))
    t, h, w = grid
    angle = torch.cat(
        [
            angles[0].view(t, 1, 1, -1).expand(t, h, w, -1),
            angles[1].view(1, h, 1, -1).expand(t, h, w, -1),
            angles[2].view(1, 1, w, -1).expand(t, h, w, -1),
        ],
        dim=-1,
    )
    return torch.polar(torch.ones_like(angle), angle).reshape(t * h * w, -1).to(torch.complex64)


def rotate(x: Tensor, table: Tensor) -> Tensor:
    """Rotate neighbouring channel pairs: (x_2k + i x_2k+1) * e^{i p w_k}.

    Args:
        x: (..., S, heads, head_dim).
        table: (S, head_dim / 2) complex, from :func:`rotary_table`.

    Returns:
        Tensor of x's shape and dtype.
    """
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * table[:, None]).flatten(-2).type_as(x)
