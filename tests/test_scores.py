"""Scores of attention maps: cases with known answers, scipy, and properties that hold for any map."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import spatial, stats

from vera_lite.diagnostics.scores import (
    entropy,
    jensen_shannon,
    lift,
    mask_ratio,
    similarity_map,
    sinks,
)

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
    with pytest.raises(ValueError, match="not negative"):
        mask_ratio((text @ video.T).mean(0), torch.ones(3))


def test_planted_sinks_are_found_and_nothing_else():
    received = 0.5 + random(2, 3, 400)  # (layers, heads, K), no token above three times its share
    assert len(sinks(received).indices) == 0
    received[0, 1, 7] = 100  # in one head only
    received[:, :, 399] = 200
    before = received.clone()
    found = sinks(received)
    assert found.indices.tolist() == [399, 7]
    close(found.share, received.sum((0, 1))[[399, 7]] / received.sum())
    expected = torch.zeros(2, 3, 2, dtype=torch.bool)
    expected[..., 0] = True
    expected[0, 1, 1] = True
    assert torch.equal(found.is_sink, expected)
    assert torch.equal(received, before)
    # The threshold itself: factor times 1 / K.
    assert sinks(torch.tensor([5.0, 1, 1, 1, 1, 1]), 2.9).indices.tolist() == [0]
    assert sinks(torch.tensor([5.0, 1, 1, 1, 1, 1]), 3.1).indices.tolist() == []


# --- one trace, two traces -----------------------------------------------------------------------


def test_entropy_equals_scipy():
    weights = random(3, 50)
    weights[:, :10] = 0
    close(entropy(weights, normalised=False), stats.entropy(weights.numpy(), axis=1))
    close(entropy(weights), stats.entropy(weights.numpy(), axis=1) / math.log(50))
    close(entropy(torch.stack([torch.ones(8), torch.eye(8)[3], torch.zeros(8)])), [1, 0, math.nan])
    assert entropy(torch.ones(1)).isnan()


def test_jensen_shannon_equals_scipy():
    a, b = random(5, 30), random(5, 30, seed=1)
    a[:, ::4] = 0
    b[:, ::3] = 0
    close(jensen_shannon(a, b), spatial.distance.jensenshannon(a.numpy(), b.numpy(), axis=1) ** 2)
    close(jensen_shannon(torch.eye(2), torch.eye(2).flip(0)), [math.log(2)] * 2)
    assert jensen_shannon(torch.zeros(3), torch.ones(3)).isnan()


@settings(deadline=None)
@given(MAPS, MAPS)
def test_jensen_shannon_is_symmetric_bounded_and_zero_only_for_equal_maps(p, q):
    value = jensen_shannon(p, q)
    assert value == jensen_shannon(q, p) and 0 <= value <= math.log(2)
    equal = torch.equal(p * q.sum(), q * p.sum())
    assert (value < 1e-12) == equal
    close(jensen_shannon(3 * p, q), value)


# --- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "call",
    [
        lambda: mask_ratio(torch.ones(4), torch.ones(3)),
        lambda: mask_ratio(torch.ones(4), torch.full((4,), 255)),
        lambda: mask_ratio(torch.tensor([1, math.nan]), torch.ones(2)),
        lambda: mask_ratio(torch.tensor(1.0), torch.ones(0)),
        lambda: similarity_map(torch.ones(2, 3), torch.ones(5, 3), "dot"),
        lambda: sinks(torch.ones(16)),  # 20 times the uniform share is more than all
        lambda: sinks(torch.ones(16), 1),
        lambda: entropy(-torch.ones(3)),
        lambda: jensen_shannon(torch.ones(1, 3), torch.ones(3)),
    ],
)
def test_what_would_give_a_wrong_number_is_refused(call):
    with pytest.raises(ValueError):
        call()
