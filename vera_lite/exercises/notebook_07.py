"""Notebook 07: the error of what was to stay, its PSNR, and several tests at once."""

import numpy as np
import torch

from vera_lite.evaluation.statistics import holm
from vera_lite.exercises.judge import exercise


def _videos(draw):
    """Two videos and what is kept of them: of one frame little, of the other much."""
    for shape in ((2, 3, 4, 5), (3, 3, 6, 4)):
        a, b = draw.uniform(*shape), draw.uniform(*shape)
        keep = draw.uniform(shape[0], 1, *shape[2:]) < 0.4
        keep[0] = False
        keep[0, 0, 0, 0] = keep[1, 0, 0, 1] = True
        yield a, b, keep


def _error(count=lambda keep: 3 * keep.sum(), where=lambda keep: keep, power=2):
    return lambda a, b, keep: ((a - b).abs() ** power * where(keep)).sum() / count(keep)


_SHARED = {
    "pixels outside count as perfect: divide by the kept ones alone": _error(lambda keep: 3 * keep.numel()),
    "all pixels count: use keep": _error(lambda keep: 3 * keep.numel(), torch.ones_like),
    "these are the pixels that were edited": _error(lambda keep: 3 * (~keep).sum(), lambda keep: ~keep),
    "three channels: divide by 3 times the kept pixels": _error(lambda keep: keep.sum()),
}


@exercise(
    _videos,
    _SHARED
    | {
        "this is the absolute error; square it": _error(power=1),
        "the root of the mean: asked is the mean of the squares": lambda a, b, k: _error()(a, b, k).sqrt(),
        "the mean over frames: pool all kept pixels, then divide once": lambda a, b, k: torch.stack(
            [_error()(*frame) for frame in zip(a, b, k, strict=True)]
        ).mean(),
    },
)
def kept_mse(edited, source, keep):
    return _error()(edited, source, keep)


def _decibels(error, factor=-10):
    return lambda a, b, keep: factor * torch.log10(error(a, b, keep))


@exercise(
    _videos,
    {hint: _decibels(error) for hint, error in _SHARED.items()}
    | {
        "a mean of decibels over frames: pool the squared error first": lambda a, b, k: torch.stack(
            [_decibels(_error())(*frame) for frame in zip(a, b, k, strict=True)]
        ).mean(),
        "the sign: a smaller error is a higher PSNR": _decibels(_error(), 10),
        "ten times the logarithm": _decibels(_error(), -1),
        "twenty is for the root of the mean squared error; here it is ten": _decibels(_error(), -20),
        "the logarithm has base 10": lambda a, b, k: -10 * torch.log(_error()(a, b, k)),
    },
)
def kept_psnr(edited, source, keep):
    return _decibels(_error())(edited, source, keep)


def _p_values(draw):
    yield ([0.03, 0.01, 0.5, 0.02],)
    yield ([0.2, 0.9, 0.8],)
    yield ([0.0087, 0.0001, 0.0001, 0.247],)
    yield ((draw.uniform(6) * 0.3).tolist(),)


def _holm(factors=lambda n: np.arange(n, 0, -1), rising=True, most=1.0, back=True, order=np.argsort):
    """Holm's correction with one step done otherwise."""

    def corrected(p_values):
        p = np.array(p_values)
        at = order(p)
        raised = p[at] * factors(len(p))
        raised = (np.maximum.accumulate(raised) if rising else raised).clip(max=most)
        return (raised[np.argsort(at)] if back else raised).tolist()

    return corrected


@exercise(
    _p_values,
    {
        "this is Bonferroni: only the smallest is multiplied by n": _holm(lambda n: n),
        "a value may not be below the one before it, nor above 1": _holm(rising=False, most=9.0),
        "in the sorted order a value may not be below the one before it": _holm(rising=False),
        "a p value is at most 1": _holm(most=9.0),
        "give them back in the old order": _holm(back=False),
        "sort first, then multiply": _holm(rising=False, order=lambda p: np.arange(len(p))),
        "sort first: the rest is right": _holm(order=lambda p: np.arange(len(p))),
        "nothing is corrected": list,
        "the smallest is multiplied by n, the largest by 1, not the other way": _holm(
            lambda n: np.arange(1, n + 1)
        ),
    },
)
def corrected(p_values):
    return holm(p_values)
