"""How certain a number is, for notebooks, benchmarks and claims: intervals, verdicts, trends, human ratings.

Values by clip and curves are tensors; what people and seeds give is few, and is taken as arrays or lists.
C clips, L layers, N tokens, R raters, M methods.
"""

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from vera_lite.diagnostics.scores import mask_ratio

VERDICTS = ("supported", "not supported", "undecided")


def verdict(low: float, high: float, smallest_effect: float = 0.0) -> str:
    """What an interval of an effect says of the claim that the effect is larger than ``smallest_effect``.

    "supported" if the whole interval lies above, "not supported" if it lies below, otherwise "undecided".
    Choose the smallest effect that would matter before the measurement, in the effect's unit.
    """
    if low > smallest_effect:
        return VERDICTS[0]
    return VERDICTS[1] if high < smallest_effect else VERDICTS[2]


def seed_interval(gains: Sequence[float], level: float = 0.95) -> tuple[float, float]:
    """Student's t interval of the mean of few independent differences, such as one for each seed.

    Three seeds that agree in sign prove little: chance alone does that once in four. With three, the interval
    reaches 2.5 standard deviations to either side. A single one leaves everything open: (-inf, inf).
    """
    from scipy import stats

    n = len(gains)
    if n < 2:
        return -math.inf, math.inf
    mean, half = np.mean(gains), stats.t.ppf((1 + level) / 2, n - 1) * np.std(gains, ddof=1) / math.sqrt(n)
    return float(mean - half), float(mean + half)


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


# --- what people say --------------------------------------------------------------------------------


@dataclass(frozen=True)
class PairedTest:
    """One method against another on the same clips."""

    name: str  #: of the other method.
    clips: int  #: C.
    gain: float  #: mean difference, positive if ours is higher.
    #: Matched-pairs rank-biserial correlation, in [-1, 1]; 1 if ours is higher on every clip.
    effect: float
    p: float  #: two-sided, of the Wilcoxon signed-rank test.
    p_holm: float  #: the same, for as many tests as were asked at once (Holm, 1979).


def krippendorff_alpha(ratings: ArrayLike, level: str = "ordinal") -> float:
    """How well raters agree: 1 if always, 0 as by chance, below 0 if less than that.

    Args:
        ratings: (R, C), nan where a rater saw no clip. Clips with one rating do not count.
        level: "nominal" (labels), "ordinal" (ranks) or "interval" (distances) of the scale.

    Raises:
        ValueError: no clip has two ratings, or all ratings are equal: then chance cannot disagree either.

    Source: Krippendorff, *Computing Krippendorff's Alpha-Reliability*, 2011.
    """
    ratings = np.asarray(ratings, float)
    scale = np.unique(ratings[~np.isnan(ratings)])
    counts = (ratings[:, :, None] == scale).sum(0).astype(float)  # (C, values): how often each was given
    counts = counts[counts.sum(1) >= 2]
    if len(counts) == 0:
        raise ValueError("agreement needs clips with two ratings or more.")
    pairs = counts[:, :, None] * counts[:, None] - counts[:, :, None] * np.eye(len(scale))
    observed = (pairs / (counts.sum(1) - 1)[:, None, None]).sum(0)
    total = observed.sum(1)
    if np.count_nonzero(total) < 2:
        raise ValueError("all ratings are equal, so agreement has no meaning.")
    if level == "nominal":
        distance = 1 - np.eye(len(scale))
    else:  # ordinal: how many ratings lie between two values
        place = scale if level == "interval" else total.cumsum() - total / 2
        distance = (place[:, None] - place) ** 2
    expected = total[:, None] * total / (total.sum() - 1)
    return float(1 - (observed * distance).sum() / (expected * distance).sum())


def compare_paired(ours: ArrayLike, others: Mapping[str, ArrayLike]) -> list[PairedTest]:
    """Wilcoxon signed-rank tests of ours against each other method; give mean ratings by clip, (C,) each.

    Clips without a difference are left out of the test (scipy's ``zero_method="wilcox"``).
    """
    from scipy import stats

    found = []
    for name, theirs in others.items():
        gains = np.asarray(ours, float) - np.asarray(theirs, float)
        changed = gains[gains != 0]
        ranks = stats.rankdata(abs(changed))
        effect = float((np.sign(changed) * ranks).sum() / ranks.sum()) if len(changed) else 0.0
        p = float(stats.wilcoxon(changed).pvalue) if len(changed) else 1.0
        found.append((name, len(gains), float(gains.mean()), effect, p))
    adjusted = holm([row[-1] for row in found])
    return [PairedTest(*row, p_holm=p) for row, p in zip(found, adjusted, strict=True)]


def holm(p_values: Sequence[float]) -> list[float]:
    """P values of several tests, raised: chance puts any of them below 0.05 in at most 0.05 of cases."""
    p = np.asarray(p_values, float)
    order = p.argsort()
    raised = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)).clip(max=1)
    return raised[order.argsort()].tolist()


def wilson(wins: int, votes: int, level: float = 0.95) -> tuple[float, float]:
    """Wilson's interval of a preference rate, in [0, 1]; leave ties out of ``votes``, and say how many."""
    from scipy import stats

    found = stats.binomtest(wins, votes).proportion_ci(level, method="wilson")
    return float(found.low), float(found.high)


def possible_votes(percentages: Sequence[str], most: int = 1000) -> list[int]:
    """All numbers of votes up to ``most`` from which every one of the printed percentages can come.

    Percentages are strings, as printed: "71.58" is any share that rounds to it.
    """

    def possible(printed: str, votes: int) -> bool:
        percent = Decimal(printed)
        half = Decimal(1).scaleb(percent.as_tuple().exponent) / 2
        wins = round(percent * votes / 100)
        return abs(Decimal(100 * wins) / votes - percent) <= half

    return [n for n in range(1, most + 1) if all(possible(p, n) for p in percentages)]


def bradley_terry(wins: ArrayLike, tolerance: float = 1e-10) -> np.ndarray:
    """Strengths (M,) of methods from how often each was preferred to each: the most likely ones, mean 0.

    In log odds: i is preferred to j with probability 1 / (1 + exp(s_j - s_i)).

    Args:
        wins: (M, M), how often the row was preferred to the column; count a tie as half a win of each.
        tolerance: of the strengths.

    Raises:
        ValueError: some methods were never, directly or through others, preferred to the rest, so that their
            strength would be minus infinity.

    Source: Hunter, *MM Algorithms for Generalized Bradley-Terry Models*, 2004.
    """
    from scipy.sparse.csgraph import connected_components

    wins = np.asarray(wins, float) * (1 - np.eye(len(wins)))
    if connected_components(wins > 0, connection="strong")[0] > 1:
        raise ValueError("some methods always lose to the rest: ask more people, or leave these methods out.")
    games, strength = wins + wins.T, np.zeros(len(wins))
    while True:
        odds = np.exp(strength)
        new = np.log(wins.sum(1)) - np.log((games / (odds[:, None] + odds)).sum(1))
        new -= new.mean()
        if abs(new - strength).max() < tolerance:
            return new
        strength = new


def crossed_bootstrap(
    values: ArrayLike, draws: int = 2000, level: float = 0.95, seed: int = 0
) -> tuple[float, float]:
    """Interval of the mean over raters (or seeds) and clips, both drawn anew, each with replacement.

    Drawing clips alone would take the raters for all raters there are. With few it is too narrow: asked for
    0.95, it covers the truth in 0.93 of cases for 12 raters, in 0.86 for 5, in 0.77 for 3. For three seeds
    give the means by seed to :func:`seed_interval`.

    Args:
        values: (R, C), nan where there is none.
        draws, level, seed: as in :func:`bootstrap`.

    Source: Owen, *The pigeonhole bootstrap*, 2007.
    """
    values = np.asarray(values, float)
    given = ~np.isnan(values)
    rng = np.random.default_rng(seed)
    rows, columns = (rng.multinomial(n, [1 / n] * n, draws).astype(float) for n in values.shape)
    sums, numbers = ((rows @ v * columns).sum(1) for v in (np.where(given, values, 0), given))
    with np.errstate(invalid="ignore"):  # a draw without any value has no mean
        low, high = np.nanquantile(sums / numbers, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
