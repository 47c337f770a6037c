"""Notebook 08: modulation, two vectors for all tokens, and what a context costs."""

import torch

from vera_lite.exercises.judge import exercise


def _one_vector(draw):
    for S in (1, 5):
        yield draw.normal(S, 3), *draw.normal(2, 3)


@exercise(
    _one_vector,
    {
        "a scale of 0 must leave x as it is: use 1 + scale": lambda x, scale, shift: x * scale + shift,
        "scale and shift are swapped": lambda x, scale, shift: x * (1 + shift) + scale,
        "the shift comes after the scale": lambda x, scale, shift: (x + shift) * (1 + scale),
        "the shift is missing": lambda x, scale, shift: x * (1 + scale),
        "the scale is missing": lambda x, scale, shift: x + shift,
        "x itself is added once too often": lambda x, scale, shift: x + x * (1 + scale) + shift,
    },
)
def modulate(x, scale, shift):
    return x * (1 + scale) + shift


def _two_vectors(draw):
    for S, clean in ((6, 2), (5, 0), (4, 4)):
        yield draw.normal(S, 3), draw.normal(2, 3), draw.normal(2, 3), clean


def _by_row(row, plus=1.0):
    """Modulation by the row of each token, a rule of its number and of ``clean``."""

    def adaln(x, scale, shift, clean):
        rows = row(torch.arange(len(x)), clean).long()
        return x * (plus + scale[rows]) + shift[rows]

    return adaln


@exercise(
    _two_vectors,
    {
        "upside down: row 0 is t = 0, for the clean tokens": _by_row(lambda i, clean: i < clean),
        "a scale of 0 must leave x as it is: use 1 + scale": _by_row(lambda i, clean: i >= clean, 0.0),
        "every token is modulated as clean": _by_row(lambda i, clean: i < 0),
        "every token is modulated as noisy": _by_row(lambda i, clean: i >= 0),
        "off by one: the first clean tokens are 0 to clean - 1": _by_row(lambda i, clean: i > clean),
        "off by one: the token of number `clean` is the first noisy one": _by_row(
            lambda i, clean: i + 1 >= clean
        ),
        "only the clean tokens: put both parts together": lambda x, scale, shift, clean: (
            x[:clean] * (1 + scale[0]) + shift[0]
        ),
        "the parts are in the wrong order: clean ones first": lambda x, scale, shift, clean: torch.cat(
            [x[clean:] * (1 + scale[1]) + shift[1], x[:clean] * (1 + scale[0]) + shift[0]]
        ),
    },
)
def per_token_adaln(x, scale, shift, clean):
    return _by_row(lambda i, clean: i >= clean)(x, scale, shift, clean)


def _sizes(draw):
    yield 64, 128, 500
    yield 79_200, 5120, 13_824
    yield draw.integer(5, 50), draw.integer(8, 90), draw.integer(8, 90)


def _cost(linear=8, pairs=4, fed=4):
    return lambda S, D, F: linear * S * D**2 + pairs * S**2 * D + fed * S * D * F


_FORGOTTEN = {
    "attention's pairs are missing: S x S of them": _cost(pairs=0),
    "the feed-forward part is missing": _cost(fed=0),
    "attention's linear layers are missing": _cost(linear=0),
    "two matrix products have pairs: queries with keys, and weights with values": _cost(pairs=2),
    "attention has four linear layers: queries, keys, values, output; this counts one": _cost(linear=2),
    "attention has four linear layers: queries, keys, values, output; this counts three": _cost(linear=6),
    "the feed-forward part has two linear layers": _cost(fed=2),
}


@exercise(
    _sizes,
    _FORGOTTEN
    | {
        "a multiplication and an addition are two operations": _cost(4, 2, 2),
        "pairs: S x S of them, not S": lambda S, D, F: 8 * S * D**2 + 4 * S * D + 4 * S * D * F,
    },
)
def block_cost(tokens, dim, inner):
    return _cost()(tokens, dim, inner)


def _contexts(draw):
    yield 150, 64, 128, 500
    yield 4096, 79_200, 5120, 13_824
    yield 0, 10, 8, 32
    yield draw.integer(5, 50), draw.integer(5, 50), draw.integer(8, 90), draw.integer(8, 90)


def _ratio(cost):
    return lambda context, video, D, F: cost(context + video, D, F) / cost(video, D, F)


@exercise(
    _contexts,
    {
        "upside down: with the context it costs more": lambda *n: 1 / _ratio(_cost())(*n),
        "what is added; a factor of 1 is no change": lambda *n: _ratio(_cost())(*n) - 1,
        "this is the ratio of tokens; pairs grow with its square": lambda c, v, D, F: (c + v) / v,
        "context and video are one sequence: do not add their costs": lambda c, v, D, F: (
            1 + _cost()(c, D, F) / _cost()(v, D, F)
        ),
    }
    | {hint: _ratio(cost) for hint, cost in _FORGOTTEN.items() if "pairs are missing" not in hint},
)
def cost_factor(context, video, dim, inner):
    return _ratio(_cost())(context, video, dim, inner)
