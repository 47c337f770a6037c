"""Notebook 03: the place of a token under each reading, and the pixel of the foreground to show."""

import torch

from vera_lite.exercises.judge import exercise
from vera_lite.systems.gencompositor import stream_positions


def _tokens(draw):
    for grid in ((3, 2, 4), (2, 3, 2)):
        cells = torch.cartesian_prod(*map(torch.arange, (2, *grid)))
        yield from ((*cell, grid) for cell in cells.tolist())


def _of_library(s, t, h, w, grid, rope):
    return tuple(stream_positions(grid, rope).view(2, *grid, 3)[s, t, h, w].tolist())


@exercise(
    _tokens,
    {
        "these are shared positions: the foreground has to move": lambda s, t, h, w, g: (t, h, w),
        "this moves along time; the paper moves along height": lambda s, t, h, w, g: (t + s * g[0], h, w),
        "this moves along width; the paper moves along height": lambda s, t, h, w, g: (t, h, w + s * g[2]),
        "moved by one row only: the videos still overlap": lambda s, t, h, w, g: (
            t,
            h + s,
            w,
        ),
        "both videos have moved: a common offset changes nothing": lambda s, t, h, w, g: (t, h + g[1], w),
        "the composite has moved, and not the foreground": lambda s, t, h, w, g: (t, h + (1 - s) * g[1], w),
    },
)
def erope_position(s, t, h, w, grid):
    return t, h + s * grid[1], w


def _folded(index, rows):
    """The cell of each token in a table whose frames have ``rows(H)`` rows."""

    def position(s, t, h, w, grid):
        time, rest = divmod(index(s, t, h, w, *grid), rows(grid[1]) * grid[2])
        return time, *divmod(rest, grid[2])

    return position


def _index(s, t, h, w, T, H, W):
    return ((s * T + t) * H + h) * W + w


@exercise(
    _tokens,
    {
        "this is the paper's; the code deals its table out in another order": erope_position,
        "these are shared positions": lambda s, t, h, w, g: (t, h, w),
        "this moves along time: a frame of the table has 2 H rows": _folded(_index, lambda H: H),
        "both videos get the same places: in the sequence the foreground comes after the composite": (
            _folded(lambda s, t, h, w, T, H, W: (t * H + h) * W + w, lambda H: 2 * H)
        ),
        "a row has W tokens: the last divmod is by the width": lambda s, t, h, w, g: (
            divmod(_index(s, t, h, w, *g), 2 * g[1] * g[2])[0],
            *divmod(divmod(_index(s, t, h, w, *g), 2 * g[1] * g[2])[1], g[1]),
        ),
    },
)
def released_position(s, t, h, w, grid):
    return _of_library(s, t, h, w, grid, "released")


def _places(draw):
    for scale in (0.5, 2.0, 0.8):
        pixel, place, centre = 10 * draw.uniform(3, 2) + torch.tensor([[12.0], [3.0], [7.0]])
        yield pixel, place, scale, centre


@exercise(
    _places,
    {
        "this is measured from the middle of the canvas: add `centre`": lambda x, p, s, c: (x - p) / s,
        "multiplied by the scale: going back, divide by it": lambda x, p, s, c: (x - p) * s + c,
        "mirrored: pixel minus place, not place minus pixel": lambda x, p, s, c: (p - x) / s + c,
        "the scale is missing": lambda x, p, s, c: x - p + c,
        "forwards: this is where a canvas pixel ends up": lambda x, p, s, c: (x - c) * s + p,
        "the scale belongs to the distance from the path alone": lambda x, p, s, c: (x - p + c) / s,
    },
)
def canvas_pixel(pixel, place, scale, centre):
    return (pixel - place) / scale + centre
