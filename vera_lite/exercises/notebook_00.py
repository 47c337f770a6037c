"""Notebook 00: paste a layer, shift a layer, move the object."""

import torch

from vera_lite.exercises.judge import exercise
from vera_lite.media.clip import composite


def _layers(draw):
    """Edit, alpha and source; a column is outside the matte, where the edit holds nonsense in one case."""
    for nonsense in (0.5, float("inf")):
        edit, source = draw.uniform(2, 2, 3, 5, 8)
        alpha = draw.uniform(2, 1, 5, 8)
        alpha[..., 4] = 0
        edit[..., 4] = nonsense
        yield edit, alpha, source


@exercise(
    _layers,
    {
        "swapped: alpha is how much of the *edit* shows": lambda e, a, s: composite(s, a, e),
        "straight colour: the edit has to be multiplied by alpha too": lambda e, a, s: e + (1 - a) * s,
        "the source shows only as far as the edit lets it: 1 - alpha": lambda e, a, s: a * e + s,
        "where alpha is 0, take the source as it is (0 * inf is nan)": lambda e, a, s: a * e + (1 - a) * s,
        "a hard cut: alpha between 0 and 1 is a mixture": lambda e, a, s: torch.where(a > 0.5, e, s),
    },
)
def paste(edit, alpha, source):
    return composite(edit, alpha, source)


@exercise(
    lambda draw: [(draw.uniform(2, 3, 4, 9), n) for n in (0, 1, 3)],
    {
        "what left on the right came back on the left": lambda x, n: x.roll(n, -1),
        "that is to the left": lambda x, n: torch.nn.functional.pad(x, (0, n))[..., n:],
        "that is downwards: the last axis is the width": lambda x, n: torch.nn.functional.pad(
            x, (0, 0, n, 0)
        )[..., : x.shape[-2], :],
        "the layer has grown: cut off what leaves on the right": lambda x, n: torch.nn.functional.pad(
            x, (n, 0)
        ),
        "what came in on the left must be empty, 0": lambda x, n: torch.cat(
            [x[..., :1].expand(*x.shape[:-1], n), x[..., : x.shape[-1] - n]], -1
        ),
    },
)
def shift(layer, pixels):
    return torch.nn.functional.pad(layer, (pixels, 0))[..., : layer.shape[-1]]


def _moves(draw):
    for n in (1, 3):
        edit, source = draw.uniform(2, 2, 3, 5, 8)
        yield edit, draw.uniform(2, 1, 5, 8), source, n


@exercise(
    _moves,
    {
        "the matte has to move with the colour": lambda e, a, s, n: composite(shift(e, n), a, s),
        "the colour has to move with the matte": lambda e, a, s, n: composite(e, shift(a, n), s),
        "you moved the source as well": lambda e, a, s, n: composite(shift(e, n), shift(a, n), shift(s, n)),
        "what left on the right came back on the left": lambda e, a, s, n: composite(
            e.roll(n, -1), a.roll(n, -1), s
        ),
        "nothing has moved": lambda e, a, s, n: composite(e, a, s),
    },
)
def move_right(edit, alpha, source, pixels):
    return composite(shift(edit, pixels), shift(alpha, pixels), source)
