"""Notebook 02: a step of the sampler, two layers as one, and who sees whom."""

import torch

from vera_lite.exercises.judge import exercise
from vera_lite.media.clip import composite


def _levels(draw):
    for sigma, following in ((0.8, 0.6), (1.0, 0.35), (0.4, 0.0)):
        yield draw.normal(2, 3), draw.normal(2, 3), sigma, following


@exercise(
    _levels,
    {
        "that is away from the guess: sigma falls": lambda x, g, s, f: x + (s - f) * (x - g) / s,
        "this jumps to the guess itself: take a step of sigma - following towards it": lambda x, g, s, f: g,
        "the velocity is (x - guess) / sigma: divide": lambda x, g, s, f: x + (f - s) * (x - g),
        "the shares are swapped: x keeps following / sigma": lambda x, g, s, f: f / s * g + (1 - f / s) * x,
        "the velocity is divided by the present sigma, not by the next": lambda x, g, s, f: (
            x + (f - s) * (x - g) / max(f, 0.01)
        ),
    },
)
def step(x, guess, sigma, following):
    return x + (following - sigma) * (x - guess) / sigma


def _mattes(draw):
    for _ in range(2):
        top, bottom = draw.uniform(2, 2, 1, 4, 4)
        top[..., 0], bottom[..., 0] = 0, 0  # pixels that neither covers
        yield top, bottom


@exercise(
    _mattes,
    {
        "mattes do not add: the top hides a part of the bottom": lambda a, b: a + b,
        "mattes do not add, and a clamp does not mend it: the top hides a part of the bottom": lambda a, b: (
            a + b
        ).clamp(max=1),
        "too thin: both together let (1-a)(1-b) of the source through": torch.maximum,
        "this is where *both* are; asked is where either is": lambda a, b: a * b,
        "this is how much of the source shows; the matte is the rest": lambda a, b: (1 - a) * (1 - b),
    },
)
def merge_mattes(top, bottom):
    return top + (1 - top) * bottom


def _pairs(draw):
    for _ in range(2):
        top, bottom = draw.uniform(2, 2, 3, 4, 4)
        a, b = next(iter(_mattes(draw)))
        yield top, a, bottom, b


def _over_sources(result, *arguments):
    """The merged matte, the merged layer over two sources, and whether its colour is finite everywhere."""
    edit, alpha = map(torch.as_tensor, result)
    dark, light = torch.zeros_like(arguments[0]), torch.ones_like(arguments[0])
    over = [composite(edit.to(alpha), alpha, source.to(alpha)) for source in (dark, light)]
    return alpha, *over, bool(edit.isfinite().all()), torch.tensor(edit.shape)


def _merge(colour=lambda e, a, f, b: (a * e + (1 - a) * b * f) / merge_mattes(a, b).clamp_min(1e-6)):
    return lambda e, a, f, b: (colour(e, a, f, b), merge_mattes(a, b))


@exercise(
    _pairs,
    {
        "0 / 0 where neither layer covers: hold alpha above a tiny number": _merge(
            lambda e, a, f, b: (a * e + (1 - a) * b * f) / merge_mattes(a, b)
        ),
        "this colour is multiplied by alpha; divide by it": _merge(
            lambda e, a, f, b: a * e + (1 - a) * b * f
        ),
        "the bottom counts only as far as its matte shows it": _merge(lambda e, a, f, b: a * e + (1 - a) * f),
        "the bottom counts only as far as the top lets it through: 1 - top": _merge(
            lambda e, a, f, b: (a * e + b * f) / merge_mattes(a, b).clamp_min(1e-6)
        ),
        "top and bottom are swapped": lambda e, a, f, b: _merge()(f, b, e, a),
        "this is the top alone": lambda e, a, f, b: (e, a),
        "the mean of the two colours, whatever the mattes are": _merge(lambda e, a, f, b: (e + f) / 2),
    },
    _over_sources,
)
def merge(top_edit, top_alpha, bottom_edit, bottom_alpha):
    return _merge()(top_edit, top_alpha, bottom_edit, bottom_alpha)


def _wires(draw):
    """Who sees whom, never symmetric."""
    yield torch.tensor([[1, 0, 0], [1, 1, 1], [0, 1, 1]]).bool(), 6
    sees = draw.uniform(3, 3) < 0.5
    sees[0, 1], sees[1, 0], sees[2, 2] = True, False, True
    yield sees, draw.integer(2, 4)


def _spread(sees, tokens):
    return sees.repeat_interleave(tokens, 0).repeat_interleave(tokens, 1)


@exercise(
    _wires,
    {
        "inverted: True must mean allowed": lambda s, n: ~_spread(s, n),
        "rows are queries: you let branch j look at branch i": lambda s, n: _spread(s.T, n),
        "interleaved: the tokens of a branch must stay together": lambda s, n: s.repeat(n, n),
        "only the rows are spread: spread the keys, too": lambda s, n: s.repeat_interleave(n, 0),
        "the mask must be boolean: True where attention is allowed": lambda s, n: _spread(s, n).float(),
        "one way is enough: do not make it symmetric": lambda s, n: _spread(s | s.T, n),
    },
)
def branch_mask(sees, tokens):
    return _spread(sees, tokens)
