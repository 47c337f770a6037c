"""Intervals, trends and baselines: cases with known answers, scipy, and how often intervals hold."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from test_scores import close, random

from vera_lite.diagnostics.scores import lift, mask_ratio
from vera_lite.evaluation.statistics import bootstrap, shuffled_baseline, trend


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
