"""Measures of attention: cases with known answers, scipy, and properties that hold for any map."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import spatial, stats

from vera_lite.diagnostics.measures import (
    bootstrap,
    cosine,
    entropy,
    group_mass,
    jensen_shannon,
    lift,
    mask_ratio,
    shuffled_baseline,
    similarity_map,
    sinks,
    trend,
)
from vera_lite.errors import UserError

# A map has six tokens with some mass; small integers keep different maps apart by more than rounding.
MAPS = st.lists(st.integers(0, 20), min_size=6, max_size=6).filter(any).map(torch.tensor)
COVERAGES = st.lists(st.floats(0, 1), min_size=6, max_size=6).map(torch.tensor)


def random(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def close(a, b, atol=1e-12):
    torch.testing.assert_close(a, torch.as_tensor(b, dtype=a.dtype), atol=atol, rtol=0, equal_nan=True)


# --- attention and masks -------------------------------------------------------------------------


def test_mask_ratio_by_hand():
    weights = torch.tensor([[0.1, 0.2, 0.3, 0.0], [5.0, 0.0, 0.0, 5.0], [0.0, 0.0, 0.0, 0.0]])
    coverage = torch.tensor([1.0, 0.5, 0.0, 0.0])
    close(mask_ratio(weights, coverage), [0.2 / 0.6, 0.5, math.nan], atol=1e-7)
    close(mask_ratio(weights, coverage > 0.4), [0.5, 0.5, math.nan], atol=1e-7)
    # Without token 0 the second map has nothing left on the mask.
    close(mask_ratio(weights, coverage, torch.tensor([0])), [0.1 / 0.5, 0, math.nan], atol=1e-7)


def test_averaging_before_and_after_the_ratio_differ():
    # One text token looks hard at the masked token, the other faintly at the rest.
    weights, coverage = torch.tensor([[0.8, 0.0], [0.0, 0.2]]), torch.tensor([1, 0])
    close(mask_ratio(weights.mean(-2), coverage), 0.8, atol=1e-7)
    close(mask_ratio(weights, coverage).mean(-1), 0.5)


@settings(deadline=None)
@given(MAPS, COVERAGES, st.floats(1e-3, 1e3))
def test_mask_ratio_is_a_share_and_ignores_scale(weights, coverage, scale):
    ratio = mask_ratio(weights, coverage)
    assert -1e-12 <= ratio <= 1 + 1e-12
    close(mask_ratio(weights * scale, coverage), ratio, atol=1e-6)
    close(mask_ratio(weights, 1 - coverage), 1 - ratio, atol=1e-6)


@settings(deadline=None)
@given(COVERAGES.filter(lambda c: c.sum() > 0.01), st.floats(1e-6, 1e6))
def test_uniform_attention_has_lift_one(coverage, height):
    close(lift(torch.full((2, 6), height), coverage), [1, 1])


def test_lift_leaves_the_excluded_out_of_the_area_too():
    weights, coverage = torch.tensor([6.0, 1, 1, 1, 1]), torch.tensor([0.0, 1, 0, 0, 0])
    close(lift(weights, coverage), 0.1 / 0.2)
    close(lift(weights, coverage, torch.tensor([0])), 1.0)
    assert lift(weights, torch.zeros(5)).isnan()


def test_similarity_maps_by_hand():
    text = torch.tensor([[2.0, 0.0, 0.0, 0.0], [0.0, 2.0, 0.0, 0.0]])
    video = torch.tensor([[1.0, 0.0, 9.0, 9.0], [0.0, -3.0, 0.0, 0.0], [2.0, 2.0, 0.0, 0.0]])
    product = np.array([[2.0, 0, 4], [0, -6, 4]])  # E B^T, half of it below zero
    rows = np.exp(product / 2) / np.exp(product / 2).sum(1, keepdims=True)
    close(similarity_map(text, video), rows.mean(0))
    close(similarity_map(text, video, "shifted"), [1 + 3, 0, 4 + 3])
    with pytest.raises(UserError, match="not negative"):
        mask_ratio((text @ video.T).mean(0), torch.ones(3))


def test_group_mass_by_hand():
    weights = torch.tensor([[[0.1, 0.2, 0.3, 0.4]], [[1.0, 0.0, 0.0, 0.0]]])
    mass = group_mass(weights, torch.tensor([2, 0, 2, 0]), 4)
    close(mass, [[[0.6, 0, 0.4, 0]], [[0, 0, 1, 0]]], atol=1e-7)


def test_planted_sinks_are_found_and_nothing_else():
    received = 0.5 + random(2, 3, 400)  # (layers, heads, K), no token above three times its share
    assert len(sinks(received).indices) == 0
    received[0, 1, 7] = 100  # in one head only
    received[:, :, 399] = 200
    before = received.clone()
    found = sinks(received)
    assert found.indices.tolist() == [399, 7]
    close(found.share, received.sum((0, 1))[[399, 7]] / received.sum())
    close(found.share_by_map, (received / received.sum(-1, keepdim=True))[..., [399, 7]])
    expected = torch.zeros(2, 3, 2, dtype=torch.bool)
    expected[..., 0] = True
    expected[0, 1, 1] = True
    assert torch.equal(found.is_sink, expected)
    assert torch.equal(received, before)
    # The threshold itself: factor times 1 / K.
    assert sinks(torch.tensor([5.0, 1, 1, 1, 1, 1]), 2.9).indices.tolist() == [0]
    assert sinks(torch.tensor([5.0, 1, 1, 1, 1, 1]), 3.1).indices.tolist() == []


def test_planted_mask_gives_the_known_curve_and_trend():
    # A soft box in a 4 x 6 x 6 video; layer l puts strength[l] of its mass on the box, the rest evenly.
    box = torch.zeros(4, 6, 6)
    box[1:3, 2:5, 1:4] = 1
    box[1:3, 2:5, 4] = 0.25
    coverage = box.flatten().double()
    on_box = coverage / coverage.sum()
    strength = torch.linspace(0.8, 0.1, 7, dtype=torch.float64)
    weights = strength[:, None] * on_box + (1 - strength[:, None]) / len(coverage)
    area = coverage.mean()
    expected = strength * (coverage**2).sum() / coverage.sum() + (1 - strength) * area
    curve = mask_ratio(weights, coverage)
    close(curve, expected)
    close(lift(weights, coverage), expected / area)
    close(trend(curve).correlation, -1.0)
    close(trend(curve).early_minus_late, expected[:2].mean() - expected[-2:].mean())


# --- one trace, two traces -----------------------------------------------------------------------


def test_entropy_equals_scipy():
    weights = random(3, 50)
    weights[:, :10] = 0
    close(entropy(weights, normalised=False), stats.entropy(weights.numpy(), axis=1))
    close(entropy(weights), stats.entropy(weights.numpy(), axis=1) / math.log(50))
    close(entropy(torch.stack([torch.ones(8), torch.eye(8)[3], torch.zeros(8)])), [1, 0, math.nan])
    assert entropy(torch.ones(1)).isnan()


def test_cosine_and_jensen_shannon_equal_scipy():
    a, b = random(5, 30), random(5, 30, seed=1)
    a[:, ::4] = 0
    b[:, ::3] = 0
    for i, (p, q) in enumerate(zip(a.numpy(), b.numpy(), strict=True)):
        close(cosine(a, b)[i], 1 - spatial.distance.cosine(p, q))
        close(jensen_shannon(a, b)[i], spatial.distance.jensenshannon(p, q) ** 2)
    close(cosine(-a * 1e-9, a), -torch.ones(5))
    close(jensen_shannon(torch.eye(2), torch.eye(2).flip(0)), [math.log(2)] * 2)
    for measure in (cosine, jensen_shannon):
        assert measure(torch.zeros(3), torch.ones(3)).isnan()


@settings(deadline=None)
@given(MAPS, MAPS)
def test_jensen_shannon_is_symmetric_bounded_and_zero_only_for_equal_maps(p, q):
    value = jensen_shannon(p, q)
    assert value == jensen_shannon(q, p) and 0 <= value <= math.log(2)
    equal = torch.equal(p * q.sum(), q * p.sum())
    assert (value < 1e-12) == equal
    close(jensen_shannon(3 * p, q), value)


# --- curves over layers, bands over clips --------------------------------------------------------


def test_trend_equals_scipy_with_ties():
    curves = torch.randint(0, 6, (4, 10), generator=torch.Generator().manual_seed(0))
    expected = [stats.spearmanr(range(10), c).statistic for c in curves.numpy()]
    close(trend(curves).correlation, expected)
    close(trend(curves).early_minus_late, (curves[:, :3].sum(1) - curves[:, 7:].sum(1)) / 3, atol=1e-6)
    nan = curves.double()
    nan[0, 0] = math.nan
    assert trend(nan).correlation.isnan().tolist() == [True, False, False, False]
    assert trend(torch.ones(5)).correlation.isnan()


def test_bootstrap_equals_scipy():
    values = random(12, 2, 3) ** 2
    ours = bootstrap(values, resamples=20_000, level=0.9)
    theirs = stats.bootstrap(
        (values.numpy(),), np.mean, n_resamples=20_000, confidence_level=0.9, method="percentile", rng=0
    ).confidence_interval
    width = float((ours.high - ours.low).min())
    close(ours.mean, values.mean(0))
    close(ours.low, theirs.low, atol=0.05 * width)
    close(ours.high, theirs.high, atol=0.05 * width)


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


@pytest.mark.parametrize("clips, coverage", [(8, 0.90), (30, 0.93)])
def test_bootstrap_covers_the_truth_as_often_as_it_says(clips, coverage):
    values = torch.randn(clips, 4000, generator=torch.Generator().manual_seed(clips))
    band = bootstrap(values, resamples=1000)
    close(((band.low <= 0) & (band.high >= 0)).double().mean(), coverage, atol=0.015)


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


# --- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: mask_ratio(torch.ones(4), torch.ones(3)), "coverage of 4 tokens"),
        (lambda: mask_ratio(torch.ones(4), torch.full((4,), 255)), r"coverage must lie in \[0, 1\]"),
        (lambda: mask_ratio(torch.tensor([1, math.nan]), torch.ones(2)), "finite"),
        (lambda: mask_ratio(torch.tensor(1.0), torch.ones(0)), "last axis"),
        (lambda: mask_ratio(torch.ones(4), torch.ones(4), torch.tensor([4])), "from 0 to 3"),
        (lambda: lift(torch.ones(4), torch.ones(4), torch.tensor([0.5])), "integer token indices"),
        (lambda: similarity_map(torch.ones(2, 3), torch.ones(5, 4)), "differ in tokens only"),
        (lambda: similarity_map(torch.ones(3), torch.ones(5, 3)), "differ in tokens only"),
        (lambda: similarity_map(torch.ones(2, 3), torch.ones(5, 3), "dot"), "softmax or shifted"),
        (lambda: group_mass(torch.ones(2, 4), torch.zeros(3, dtype=torch.long), 1), "one integer"),
        (lambda: group_mass(torch.ones(4), torch.tensor([0, 1, 2, -1]), 3), r"0 \.\. 2"),
        (lambda: sinks(torch.ones(16)), "number of tokens 16"),
        (lambda: sinks(torch.ones(16), 1), "number of tokens 16"),
        (lambda: entropy(-torch.ones(3)), "not negative"),
        (lambda: cosine(torch.ones(3), torch.ones(4)), "one shape"),
        (lambda: jensen_shannon(torch.ones(1, 3), torch.ones(3)), "one shape"),
        (lambda: trend(torch.ones(2)), "at least three layers, got 2"),
        (lambda: bootstrap(torch.ones(1, 5)), "at least two clips, got 1"),
        (lambda: bootstrap(torch.ones(3), resamples=0), "at least one draw"),
        (lambda: bootstrap(torch.ones(3), level=95), "at least one draw"),
        (lambda: shuffled_baseline(torch.ones(3, 5), torch.ones(2, 5)), r"coverage of \(clips, tokens\)"),
        (lambda: shuffled_baseline(torch.ones(1, 5), torch.ones(1, 5)), "at least two clips"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(call, message):
    with pytest.raises(UserError, match=message):
        call()
