"""How certain a number is: intervals over clips, trends over layers, and results by chance.

C clips, L layers, N tokens.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vera_lite.diagnostics.scores import mask_ratio


@dataclass(frozen=True)
class Interval:
    """A mean over clips and the interval around it, (...) each, float64."""

    #: mean, low, high: the numbers.
    mean: Tensor
    low: Tensor
    high: Tensor
    clips: int  #: C, number of clips.
    draws: int  #: number of resamples or assignments.
    level: float  #: of the interval.
    seed: int  #: of the draws.


@dataclass(frozen=True)
class Trend:
    """How a curve changes from the first layer to the last, (...) each, float64."""

    #: Spearman's correlation of layer index and value, in [-1, 1]; -1: it always falls. nan if flat.
    correlation: Tensor
    early_minus_late: Tensor  #: mean of the first L // 3 layers minus that of the last L // 3.


def bootstrap(values: Tensor, draws: int = 2000, level: float = 0.95, seed: int = 0) -> Interval:
    """Percentile bootstrap of the mean over clips. Give paired differences to compare two systems.

    Args:
        values: (C, ...), one number per clip. All columns are resampled together; nan gives nan.
        draws: resamples of C clips, drawn with replacement.
        level: of the interval. With few clips the interval is too narrow: a level of 0.95 covers the truth in
            0.93 of cases for 30 normal values, in 0.89 for 8, and less often for skewed values.
        seed: the same seed gives the same interval.

    Raises:
        ValueError: fewer than two clips, or a level outside (0, 1).
    """
    from scipy import stats

    clips = len(values) if values.ndim else 0
    if clips < 2 or not 0 < level < 1:
        raise ValueError(f"an interval needs two clips and a level in (0, 1), got {clips} and {level}.")
    values = values.detach().double().cpu()
    with warnings.catch_warnings():
        # A column with nan has a nan interval, which needs no warning.
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)
        found = stats.bootstrap(
            (values.reshape(clips, -1).numpy(),),
            np.mean,
            n_resamples=draws,
            batch=100,  # resamples that are in memory at once
            confidence_level=level,
            method="percentile",
            rng=np.random.default_rng(seed),
        ).confidence_interval
    low, high = (torch.as_tensor(end).reshape(values.shape[1:]) for end in (found.low, found.high))
    return Interval(values.mean(0), low, high, clips, draws, level, seed)


def trend(curve: Tensor) -> Trend:
    """Is a curve (..., L), L >= 3, higher in early layers than in late ones?

    For an interval, take the trend of each clip's curve (C, L) and :func:`bootstrap` its numbers.
    """
    from scipy import stats

    layers = curve.shape[-1] if curve.ndim else 0
    if layers < 3:
        raise ValueError(f"a trend needs at least three layers, got {layers}.")
    curve = curve.detach().double().cpu()
    # Spearman's is Pearson's of the ranks. Flat and nan curves have none.
    ranks = torch.as_tensor(stats.rankdata(curve.numpy(), axis=-1, nan_policy="propagate"))
    index = torch.arange(layers, dtype=torch.float64) - (layers - 1) / 2
    ranks = ranks - ranks.mean(-1, keepdim=True)
    third = layers // 3
    return Trend(
        correlation=((ranks * index).sum(-1) / (ranks.norm(dim=-1) * index.norm())).clamp(-1, 1),
        early_minus_late=curve[..., :third].mean(-1) - curve[..., -third:].mean(-1),
    )


def shuffled_baseline(
    weights: Tensor,
    coverage: Tensor,
    measure: Callable[[Tensor, Tensor], Tensor] = mask_ratio,
    draws: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """The measure with each clip's mask replaced by another clip's: what the place of masks explains alone.

    Args:
        weights: (C, ..., N).
        coverage: (C, N), in [0, 1].
        measure: of one clip's weights (..., N) and a coverage (N,).
        draws: assignments in which no clip keeps its mask (random cycles through all clips). Two clips
            have one such assignment, three have two.
        level, seed: as in :func:`bootstrap`.

    Returns:
        (...): mean over all pairs of a clip and another clip's mask, and the interval that holds ``level``
        of the assignments' means over clips. If the mean with the right masks lies outside, the measure
        depends on the content, up to chance: at 0.95, unrelated masks of 24 clips fall outside in 0.07 of
        cases.

    Raises:
        ValueError: fewer than two clips, or shapes that do not fit.
    """
    clips = len(weights)
    if clips < 2 or coverage.shape != (clips, weights.shape[-1]):
        raise ValueError(
            "weights (clips, ..., tokens) of two clips or more need a coverage (clips, tokens), "
            f"got {tuple(weights.shape)} and {tuple(coverage.shape)}."
        )
    pairs = torch.stack([measure(weights, mask) for mask in coverage])  # (mask, clip, ...)
    orders = torch.rand(draws, clips, generator=torch.Generator().manual_seed(seed)).argsort(1)
    means = torch.stack([pairs[order.roll(1), order].mean(0) for order in orders.to(weights.device)])
    foreign = ~torch.eye(clips, dtype=torch.bool, device=weights.device)
    tail = (1 - level) / 2
    low, high = means.quantile(torch.tensor([tail, 1 - tail]).to(means), dim=0)
    return Interval(pairs[foreign].mean(0), low, high, clips, draws, level, seed)
