"""Intervals, trends, baselines, ratings: known answers, other libraries, how often intervals hold."""

import math

import krippendorff
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from test_scores import close, random

from vera_lite.diagnostics.scores import lift, mask_ratio
from vera_lite.evaluation.statistics import (
    bootstrap,
    bradley_terry,
    compare_paired,
    crossed_bootstrap,
    holm,
    krippendorff_alpha,
    possible_votes,
    seed_interval,
    shuffled_baseline,
    trend,
    verdict,
    wilson,
)


def test_trend_equals_scipy_with_ties():
    curves = torch.randint(0, 6, (4, 10), generator=torch.Generator().manual_seed(0))
    expected = [stats.spearmanr(range(10), c).statistic for c in curves.numpy()]
    close(trend(curves).correlation, expected)
    close(trend(curves).early_minus_late, (curves[:, :3].sum(1) - curves[:, 7:].sum(1)) / 3, atol=1e-6)
    nan = curves.double()
    nan[0, 0] = math.nan
    assert trend(nan).correlation.isnan().tolist() == [True, False, False, False]
    assert trend(torch.ones(5)).correlation.isnan()


def test_bootstrap_is_that_of_all_resamples():
    # Three clips have 27 resamples. By hand: 1 / 27 of their means is 0, 3 / 27 is 1 / 3 and so on.
    band = bootstrap(torch.tensor([0.0, 1.0, 5.0]), draws=20_000, level=0.9)
    means = torch.cartesian_prod(*[torch.tensor([0.0, 1.0, 5.0])] * 3).mean(1)
    close(band.mean, 2.0)
    close(band.low, means.quantile(0.05), atol=1e-6)
    close(band.high, means.quantile(0.95), atol=1e-6)
    assert (band.clips, band.draws, band.level, band.seed) == (3, 20_000, 0.9, 0)


def test_bootstrap_is_reproducible_and_keeps_clips_together():
    values = random(9, 4)
    first, again, other = (bootstrap(values, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first.low, again.low) and not torch.equal(first.low, other.low)
    # Columns share their resamples: a difference of 1 in every clip has no spread at all.
    shifted = bootstrap(torch.stack([values[:, 0], values[:, 0] + 1], 1))
    close(shifted.low[1] - shifted.low[0], 1.0)
    close(bootstrap(values[:, 0] + 1 - values[:, 0]).high, 1.0)
    close(bootstrap(torch.tensor([0.0, 1.0])).low, 0.0)  # a quarter of all resamples are (0, 0)
    assert bootstrap(torch.tensor([0.0, 1.0, math.nan])).low.isnan()


@pytest.mark.parametrize("clips, coverage", [(8, 0.89), (30, 0.93)])
def test_bootstrap_covers_the_truth_as_often_as_it_says(clips, coverage):
    values = torch.randn(clips, 4000, generator=torch.Generator().manual_seed(clips))
    band = bootstrap(values, draws=1000)
    close(((band.low <= 0) & (band.high >= 0)).double().mean(), coverage, atol=0.02)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10_000))
def test_shuffled_baseline_of_unrelated_masks_covers_the_area(seed):
    weights, coverage = random(24, 3, 60, seed=seed), (random(24, 60, seed=seed + 1) < 0.2).double()
    baseline = shuffled_baseline(weights, coverage, draws=300, level=0.999)
    assert (baseline.low <= coverage.mean()).all() and (coverage.mean() <= baseline.high).all()
    close(shuffled_baseline(weights, coverage, lift, draws=1).mean, torch.ones(3), atol=0.1)


def test_shuffled_baseline_tells_content_from_place():
    # All masks cover token 0; each clip's own one covers one more, where half of its attention is.
    clips = 9  # odd: pairs alone cannot swap all masks
    coverage = torch.eye(clips + 1)[1:]
    coverage[:, 0] = 1
    weights = torch.eye(clips + 1)[1:] * 2
    weights[:, 0] = 2
    baseline = shuffled_baseline(weights, coverage)
    for value in (baseline.mean, baseline.low, baseline.high):
        close(value, 0.5)  # the common token only: no clip ever met its own mask
    close(torch.stack([mask_ratio(*pair) for pair in zip(weights, coverage, strict=True)]), torch.ones(clips))
    # Different pairs, mean over all of them.
    weights, coverage = random(5, 7), random(5, 7, seed=1)
    pairs = [mask_ratio(weights[c], coverage[m]) for c in range(5) for m in range(5) if c != m]
    baseline = shuffled_baseline(weights, coverage)
    close(baseline.mean, sum(pairs) / 20)
    assert baseline.low < baseline.mean < baseline.high
    assert torch.equal(baseline.low, shuffled_baseline(weights, coverage).low)


@pytest.mark.parametrize(
    "call",
    [
        lambda: trend(torch.ones(2)),
        lambda: bootstrap(torch.ones(1, 5)),
        lambda: bootstrap(torch.ones(3), level=95),
        lambda: shuffled_baseline(torch.ones(3, 5), torch.ones(2, 5)),
        lambda: shuffled_baseline(torch.ones(1, 5), torch.ones(1, 5)),
    ],
)
def test_what_would_give_a_wrong_number_is_refused(call):
    with pytest.raises(ValueError):
        call()


# ---------------------------------------------------------------------- verdicts


@pytest.mark.parametrize(
    ("low", "high", "smallest", "expected"),
    [
        (0.1, 0.3, 0, "supported"),
        (-0.3, -0.1, 0, "not supported"),
        (-0.1, 0.3, 0, "undecided"),
        (0.1, 0.3, 0.2, "undecided"),
        (0.1, 0.3, 0.4, "not supported"),  # an effect, but too small to matter
        (-math.inf, math.inf, 0, "undecided"),
        (math.nan, math.nan, 0, "undecided"),
        (0, 0, 0, "undecided"),
    ],
)
def test_a_verdict_asks_where_the_whole_interval_lies(low, high, smallest, expected):
    assert verdict(low, high, smallest) == expected


def test_the_interval_over_seeds_is_students():
    gains = [0.027, 0.76, 0.223]
    expected = stats.ttest_1samp(gains, 0).confidence_interval(0.9)
    assert seed_interval(gains, 0.9) == pytest.approx((expected.low, expected.high))
    assert seed_interval([0.0, 0.0]) == (0, 0) and seed_interval([1.0]) == (-math.inf, math.inf)
    # Signs agree in all three, and yet: by chance they do in one of four.
    assert verdict(*seed_interval(gains)) == "undecided"


def test_three_seeds_are_wrong_as_seldom_as_the_level_says():
    none = np.random.default_rng(0).standard_normal((4000, 3))
    decided = [verdict(*seed_interval(gains)) != "undecided" for gains in none]
    assert np.mean(decided) == pytest.approx(0.05, abs=0.012)


# ---------------------------------------------------------------------- what people say


@pytest.mark.parametrize("level", ["nominal", "ordinal", "interval"])
def test_alpha_is_that_of_the_reference_package(level):
    rng = np.random.default_rng(0)
    for _ in range(60):
        raters, clips = rng.integers(2, 6), rng.integers(6, 15)
        ratings = rng.integers(1, 6, (raters, clips)).astype(float)
        ratings[:, 4:] = np.where(rng.random(clips - 4) < 0.5, ratings[0, 0], ratings[:, 4:])  # some agree
        ratings[rng.random(ratings.shape) < 0.2] = np.nan
        expected = krippendorff.alpha(ratings, level_of_measurement=level)
        assert krippendorff_alpha(ratings, level) == pytest.approx(expected, abs=1e-12)


def test_alpha_by_hand():
    assert krippendorff_alpha([[1, 2, 3], [1, 2, 3]]) == 1
    # Two values, a coin each: 2 of 4 clips agree; by chance 3 of 7 would (8 ratings, four of each).
    assert krippendorff_alpha([[0, 0, 1, 1], [0, 1, 0, 1]], "nominal") == pytest.approx(1 - (1 / 2) / (4 / 7))
    # Ordinal: being one step off costs less than being four off.
    near, far = [[1, 2, 3, 4, 5], [2, 1, 3, 4, 5]], [[1, 2, 3, 4, 5], [5, 2, 3, 4, 1]]
    assert krippendorff_alpha(near) > 0.8 > 0 > krippendorff_alpha(far)


def test_paired_tests_equal_scipy_and_say_how_large_the_effect_is():
    rng = np.random.default_rng(1)
    ours, other = rng.random((2, 30))
    tests = compare_paired(ours, {"worse": ours - rng.random(30), "same": ours, "other": other})
    worse, same, unlike = tests
    assert worse.effect == 1 and worse.gain > 0 and worse.p == stats.wilcoxon(np.arange(1, 31)).pvalue
    assert (same.effect, same.gain, same.p, same.clips) == (0, 0, 1, 30)
    assert unlike.p == stats.wilcoxon(ours, other).pvalue
    plus = sum(stats.rankdata(abs(ours - other))[ours > other])
    assert unlike.effect == pytest.approx(2 * plus / (30 * 31 / 2) - 1)
    assert [t.p_holm for t in tests] == holm([t.p for t in tests])


def test_holm_by_hand():
    # Sorted: 0.01 * 4, then 0.02 * 3, then 0.03 * 2 = 0.06 (not below its neighbour), then 0.5.
    assert holm([0.03, 0.01, 0.5, 0.02]) == pytest.approx([0.06, 0.04, 0.5, 0.06])
    assert holm([0.9, 0.8]) == [1, 1]


def test_wilson_stays_inside_and_is_centred_on_shrunken_rates():
    assert wilson(0, 10)[0] == 0 and wilson(10, 10)[1] == 1
    z, n, p = stats.norm.ppf(0.975), 380, 272 / 380
    middle = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    assert sum(wilson(272, 380)) / 2 == pytest.approx(middle)


def test_printed_percentages_tell_how_many_votes_there_can_be():
    assert possible_votes(["50"], 5) == [2, 4]
    assert possible_votes(["71.58", "77.37"], 400) == [190, 380]
    assert possible_votes(["71.58", "77.38"], 190) == []


def test_strengths_are_the_most_likely_ones():
    wins = np.array([[0, 7, 9.5], [3, 0, 6], [0.5, 4, 0]])
    strength = bradley_terry(wins)
    assert strength.sum() == pytest.approx(0) and list(strength.argsort()) == [2, 1, 0]

    def likelihood(s):
        return (wins * -np.log1p(np.exp(s[None] - s[:, None]))).sum()

    best = likelihood(strength)
    for step in np.random.default_rng(0).standard_normal((50, 3)) * 0.01:
        assert likelihood(strength + step) < best
    # Two methods: the log odds themselves.
    assert np.diff(bradley_terry([[0, 1], [3, 0]]))[0] == pytest.approx(math.log(3))


def test_raters_are_drawn_anew_as_well_as_clips():
    # Raters differ much, clips hardly: an interval over clips alone is far too narrow.
    rng = np.random.default_rng(0)
    covered, alone = 0, 0
    for seed in range(100):
        values = rng.standard_normal((12, 1)) + 0.1 * rng.standard_normal((12, 40))
        low, high = crossed_bootstrap(values, draws=200, seed=seed)
        covered += low <= 0 <= high
        band = bootstrap(torch.as_tensor(values.mean(0)), draws=200, seed=seed)
        alone += bool(band.low <= 0 <= band.high)
    assert covered >= 85 > 30 >= alone
    values[0, :39] = np.nan
    low, high = crossed_bootstrap(values)
    assert low < np.nanmean(values) < high


def test_three_seeds_need_students_interval():
    rng = np.random.default_rng(0)
    crossed, students = 0, 0
    for k in range(200):
        values = (
            rng.standard_normal((3, 1)) + 0.3 * rng.standard_normal((1, 64)) + rng.standard_normal((3, 64))
        )
        low, high = crossed_bootstrap(values, draws=200, seed=k)
        crossed += low <= 0 <= high
        low, high = seed_interval(values.mean(1))
        students += low <= 0 <= high
    assert crossed / 200 == pytest.approx(0.77, abs=0.08) and students / 200 == pytest.approx(0.95, abs=0.04)


@pytest.mark.parametrize(
    "call",
    [
        lambda: krippendorff_alpha([[1, math.nan], [math.nan, 2]]),
        lambda: krippendorff_alpha([[3, 3], [3, 3]]),
        lambda: bradley_terry([[0, 5], [0, 0]]),
        lambda: wilson(3, 2),
    ],
)
def test_what_people_cannot_tell_is_refused(call):
    with pytest.raises(ValueError):
        call()
