"""Notebook 01: lift, mass by group, and the token of a pixel."""

import torch
from torch.nn import functional as F

from vera_lite.exercises.judge import exercise


def _maps(draw):
    for rows, tokens in ((3, 6), (1, 5)):
        yield draw.normal(rows, tokens + 2).softmax(-1)[:, :tokens], draw.uniform(tokens).square()


def _lift(ratio=lambda mean, c: (mean * c).sum() / mean.sum(), zero=lambda c: c.mean()):
    return lambda attention, coverage: ratio(attention.mean(0), coverage) / zero(coverage)


@exercise(
    _maps,
    {
        "this is the ratio; lift is the ratio divided by the area": _lift(zero=lambda c: 1.0),
        "the area is the *mean* of the coverage, not its sum": _lift(zero=lambda c: c.sum()),
        "the rows do not sum to 1 over the clip: divide by the attention to the whole clip": _lift(
            lambda mean, c: (mean * c).sum()
        ),
        "average over the text tokens first, then divide once": lambda a, c: (
            ((a * c).sum(-1) / a.sum(-1)).mean() / c.mean()
        ),
        "upside down: ratio divided by area": lambda a, c: 1 / _lift()(a, c),
        "a token counts as far as the mask covers it, not all or nothing": lambda a, c: _lift()(
            a, (c > 0).to(a)
        ),
    },
)
def lift(attention, coverage):
    return _lift()(attention, coverage)


def _groups(draw):
    for heads, labels, groups in ((2, [0, 1, 1, 1, 2, 2, 0], 3), (1, [0, 2, 2, 1, 0], 4)):
        q, k = draw.normal(heads, 5, 8), draw.normal(heads, len(labels), 8)
        yield q, k, torch.tensor(labels), groups


def _mass(weigh=lambda v: v, scale=None):
    def mass(q, k, labels, groups):
        values = weigh(F.one_hot(labels, groups).to(q))
        return F.scaled_dot_product_attention(q, k, values.expand(len(q), -1, -1), scale=scale)

    return mass


@exercise(
    _groups,
    {
        "this is the mean over a group's keys; mass is the sum": _mass(lambda v: v / v.sum(0).clamp_min(1)),
        "the scale is missing": _mass(scale=1.0),
        "groups are mixed up: value column g must be 1 for keys of group g": _mass(lambda v: v.roll(1, 1)),
        "a group is missing: there are `groups` columns, also for a group without keys": _mass(
            lambda v: v[:, :-1]
        ),
        "every key is in one group, so masses must sum to one": _mass(lambda v: v / 2),
        "this is one row for all heads: keep the heads apart": lambda q, k, *rest: (
            _mass()(q, k, *rest).mean(0, keepdim=True).expand(len(q), -1, -1)
        ),
    },
)
def mass_by_group(q, k, labels, groups):
    return _mass()(q, k, labels, groups)


def _frames(draw):
    for frames in ([0, 3, 5, 8], [1, 2, 6, 7, 9, 12]):
        yield from ((frame, frames) for frame in (*frames, 4))


@exercise(
    _frames,
    {
        "the slot counts sampled frames, not the clip's": lambda f, frames: f // 2 if f in frames else None,
        "two frames share a slot": lambda f, frames: frames.index(f) if f in frames else None,
        "slots are counted from 0": lambda f, frames: frames.index(f) // 2 + 1 if f in frames else None,
        "a frame that was never shown has no slot: return None": lambda f, frames: (
            sum(x < f for x in frames) // 2
        ),
        "slots are whole numbers: divide with //": lambda f, frames: (
            frames.index(f) / 2 if f in frames else None
        ),
    },
)
def slot_of(frame, frames):
    return frames.index(frame) // 2 if frame in frames else None


def _pixels(draw):
    for frames, height, width, size in (([0, 3, 5, 8], 16, 32, 4), ([1, 2, 6, 7], 40, 24, 8)):
        asked = [(frames[-1], height - 1, 1), (4, 0, 0)]
        asked += [(f, draw.integer(0, height - 1), draw.integer(0, width - 1)) for f in frames]
        yield from ((*at, frames, height, width, size) for at in asked)


def _token(slot=slot_of, row=lambda height, width, size: width // size, swap=False):
    def token(frame, y, x, frames, height, width, size):
        if (number := slot(frame, frames)) is None:
            return None
        y, x = (x, y) if swap else (y, x)
        slots = (height // size) * (width // size)
        return number * slots + y // size * row(height, width, size) + x // size

    return token


@exercise(
    _pixels,
    {
        "x and y are swapped": _token(swap=True),
        "a row has width / size tokens, not height / size": _token(row=lambda h, w, s: h // s),
        "the slot counts sampled frames, not the clip's": _token(
            lambda f, frames: f // 2 if f in frames else None
        ),
        "two frames share a token": _token(lambda f, frames: frames.index(f) if f in frames else None),
        "this counts pixels: a token is size x size of them": lambda f, y, x, frames, h, w, s: _token()(
            f, y * s, x * s, frames, h * s, w * s, s
        ),
        "every slot starts at 0 again: add the tokens of the slots before": _token(
            lambda f, frames: 0 if f in frames else None
        ),
    },
)
def token_at(frame, y, x, frames, height, width, size):
    return _token()(frame, y, x, frames, height, width, size)
