"""Notebook 04: the lead of a token, routing as a mask, and the places that are read."""

import math

import torch

from vera_lite.exercises.judge import exercise


def _shares(draw):
    for share in (0.5, 0.2, 0.9):
        yield share, tuple(draw.integer(2, 60) for _ in range(3))


@exercise(
    _shares,
    {
        "this gives half of the attention, whatever `share` is": lambda p, n: math.log((n[1] + n[2]) / n[0]),
        "the numbers of tokens are missing": lambda p, n: math.log(p / (1 - p)),
        "upside down: fewer editing tokens need a larger lead": lambda p, n: math.log(
            p / (1 - p) * n[0] / (n[1] + n[2])
        ),
        "the logarithm is missing": lambda p, n: p / (1 - p) * (n[1] + n[2]) / n[0],
        "the words compete, too: V + W tokens": lambda p, n: math.log(p / (1 - p) * n[1] / n[0]),
        "the sign: a lead is how much *higher* they score": lambda p, n: (
            -math.log(p / (1 - p) * (n[1] + n[2]) / n[0])
        ),
        "the others get 1 - share, not 1": lambda p, n: math.log(p * (n[1] + n[2]) / n[0]),
    },
)
def lead(share, lengths):
    K, V, W = lengths
    return math.log(share / (1 - share) * (V + W) / K)


def _routes(draw):
    for layers, routed in ((4, 2), (5, 1), (5, 0), (3, 3)):
        yield layers, routed, tuple(draw.integer(1, 4) for _ in range(3))


def _mask(rule):
    return lambda L, routed, n: rule(torch.arange(L)[:, None], torch.arange(sum(n)), routed, n[0])


@exercise(
    _routes,
    {
        "deep blocks are given the native tokens AND the editing tokens": _mask(
            lambda i, j, r, k: (j < k) ^ (i >= r)
        ),
        "upside down: the shallow blocks are given the gist alone, not the deep ones": _mask(
            lambda i, j, r, k: (j < k) | (i < r)
        ),
        "off by one: the first L_s blocks are 0 to L_s - 1": _mask(lambda i, j, r, k: (j < k) | (i > r)),
        "every block is given the editing tokens": _mask(lambda i, j, r, k: (i >= r) & (j >= 0)),
        "inverted: True where a block may look": _mask(lambda i, j, r, k: ~((j < k) | (i >= r))),
        "the mask must be boolean: True where a block may look": _mask(
            lambda i, j, r, k: ((j < k) | (i >= r)).float()
        ),
        "turned: a row is a block, a column a token": _mask(lambda i, j, r, k: ((j < k) | (i >= r)).T),
        "the words are left out: deep blocks see X_e, X_v and X_l": lambda L, routed, n: _mask(
            lambda i, j, r, k: (j < k) | (i >= r) & (j < n[0] + n[1])
        )(L, routed, n),
    },
)
def routing_mask(layers, routed, lengths):
    return _mask(lambda i, j, r, k: (j < k) | (i >= r))(layers, routed, lengths)


def _prompts(draw):
    for pads, closing in ((0, 2), (2, 1), (3, 2)):
        tokens = draw.integer(3, 5)
        words = ["(pad)"] * pads + ["(video)", "make", "it", "red", *["(pad)"] * tokens, *["end"] * closing]
        for read in ("queries", "last"):
            yield words, [False] * pads + [True] * (len(words) - pads), "(pad)", tokens, read


def _read(rule):
    """Places by a rule of: whether queries are read, all placeholders, the real ones, the last K places."""

    def places(words, given, placeholder, tokens, read):
        found = [i for i, word in enumerate(words) if word == placeholder]
        last = list(range(len(words) - tokens, len(words)))
        return rule(read == "queries", found, [i for i in found if given[i]], last)

    return places


@exercise(
    _prompts,
    {
        "queries: that is padding, a placeholder counts only where `given` is True": _read(
            lambda q, found, real, last: found if q else last
        ),
        "queries: that is padding, take the last K placeholders or ask `given`": _read(
            lambda q, found, real, last: found[: len(last)] if q else last
        ),
        "queries: these are the last K places, but the turn is closed behind the queries": _read(
            lambda q, found, real, last: last
        ),
        "last: these are the queries; the released code counts from the end": _read(
            lambda q, found, real, last: real
        ),
        "the two readings are swapped": _read(lambda q, found, real, last: last if q else real),
        "last: off by one, the last place counts, too": _read(
            lambda q, found, real, last: real if q else [i - 1 for i in last]
        ),
    },
)
def places_read(words, given, placeholder, tokens, read):
    return _read(lambda q, found, real, last: real if q else last)(words, given, placeholder, tokens, read)
