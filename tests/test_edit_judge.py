"""The judge of toy edits: the truth gets full marks, and each error costs on its own axis."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from vera_lite.evaluation.toy.edit_judge import judge_edits, seen_motion
from vera_lite.toy.edits import CATEGORIES, STYLES, EditConfig, render_edits
from vera_lite.toy.words import COLOURS, MOTIONS, PLACES, SHAPES

CLIPS = range(24)
LOCAL = CATEGORIES[:3]


def render(category, **options):
    return render_edits(3, CLIPS, EditConfig(categories=(category,), **options))


@pytest.fixture(scope="module")
def edits():
    """24 clips of each category, by its name; local ones with another object."""
    return {c: render(c, distractor=1 if c in LOCAL else 0.5) for c in CATEGORIES}


@pytest.fixture(scope="module")
def truth(edits):
    return {category: judge_edits(batch, batch.target) for category, batch in edits.items()}


def means(scores):
    """Instruction compliance, content fidelity, visual quality."""
    return [float(score.mean()) for score in scores.values()]


def wish(batch, key, values):
    """The same clips with a request for a ``key`` that nothing in the scene has."""
    attributes = []
    for a in batch.attributes:
        parts = (a["before"], a["after"], a["other"], a["background"])
        seen = [part[key] for part in parts if part and key in part]
        attributes.append(a | {"after": a["after"] | {key: next(v for v in values if v not in seen)}})
    return replace(batch, attributes=attributes)


@pytest.mark.parametrize("category", CATEGORIES)
def test_truth_source_noise_and_flicker_are_told_apart(edits, truth, category):
    batch, best = edits[category], truth[category]
    assert all(score.min() >= 1 and score.max() <= 100 for score in best.values())
    assert best["instruction_compliance"].min() > 80 and means(best)[0] > 95
    assert means(best)[1:] == pytest.approx([100, 100], abs=0.01)

    compliance, fidelity, quality = means(judge_edits(batch, batch.source))
    assert compliance < 4 and (fidelity, quality) == pytest.approx((100, 100), abs=0.01)

    noise = torch.rand(batch.source.shape, generator=torch.Generator().manual_seed(0))
    assert all(score < 8 for score in means(judge_edits(batch, noise)))

    flicker = batch.target.clone()
    flicker[:, ::2] *= 0.8
    scores = means(judge_edits(batch, flicker))
    assert scores[2] < 35
    if category in LOCAL:  # what was asked for is there all the same
        assert scores[0] == pytest.approx(means(best)[0], abs=1)


def test_blur_and_standstill_cost_quality_and_less_than_noise(edits):
    batch = edits["local remove"]
    blurred = F.avg_pool2d(batch.target.flatten(0, 1), 3, 1, 1, count_include_pad=False)
    for worse in (blurred.view_as(batch.target), batch.target[:, :1].expand_as(batch.target)):
        compliance, _, quality = means(judge_edits(batch, worse))
        assert compliance > 95 and 40 < quality < 90


def test_another_colour_or_shape_than_the_asked_one_is_no_compliance(edits):
    batch = edits["local change"]
    recoloured = [a["before"]["colour"] != a["after"]["colour"] for a in batch.attributes]
    assert 6 < sum(recoloured) < 18
    for key, values, rows in (
        ("colour", COLOURS, torch.tensor(recoloured)),
        ("shape", SHAPES, ~torch.tensor(recoloured)),
    ):
        scores = judge_edits(wish(batch, key, values), batch.target)
        assert scores["instruction_compliance"][rows].mean() < 4
        assert means(scores)[1:] == pytest.approx([100, 100], abs=0.01)


def test_the_wrong_object_removed_costs_compliance_and_fidelity(edits):
    batch = edits["local remove"]
    wrong = render("local add", distractor=0)  # the same scenes with the object and without the other
    compliance, fidelity, _ = means(judge_edits(batch, wrong.target))
    assert compliance < 3 and fidelity < 50


def test_each_word_of_an_addition_counts(edits):
    batch = edits["local add"]
    scores = judge_edits(wish(batch, "colour", COLOURS), batch.target)
    assert means(scores)[0] < 4
    for key, values in {"shape": SHAPES, "place": PLACES, "motion": MOTIONS}.items():
        scores = judge_edits(wish(batch, key, values), batch.target)
        assert means(scores)[0] == pytest.approx(75.25, abs=2), key


@pytest.mark.parametrize("category", LOCAL)
def test_what_else_goes_missing_costs_fidelity_alone(edits, truth, category):
    batch = edits[category]
    if category == "local remove":  # both objects gone
        lonely = render("local add", distractor=0).source
    else:
        lonely = render(category, distractor=0).target
    compliance, fidelity, quality = means(judge_edits(batch, lonely))
    assert compliance > means(truth[category])[0] - 8 and fidelity < 50 and quality > 75


def test_another_style_than_the_asked_one_is_no_compliance(edits):
    batch, names = edits["global style"], list(STYLES)
    assert {a["style"] for a in batch.attributes} == set(names)
    for step in range(1, len(names)):
        wrong = [names[(names.index(a["style"]) + step) % len(names)] for a in batch.attributes]
        result = torch.stack([STYLES[name](v) for name, v in zip(wrong, batch.source, strict=True)])
        compliance, fidelity, _ = means(judge_edits(batch, result))
        assert compliance < 4 and fidelity > 99


def test_a_style_is_seen_whatever_the_content_and_content_whatever_the_style(edits):
    batch = edits["global style"]
    compliance, fidelity, quality = means(judge_edits(batch, batch.target.flip(-1)))
    assert compliance > 90 and fidelity < 75 and quality > 99
    others = batch.target.roll(1, dims=0)  # the target of another clip
    assert means(judge_edits(batch, others))[1] < 40


def test_results_that_do_not_fit_are_refused(edits):
    batch = edits["local add"]
    for results in (batch.target[1:], batch.target / 0):
        with pytest.raises(ValueError, match="finite"):
            judge_edits(batch, results)


def test_a_single_frame_is_judged():
    batch = render_edits(3, range(4), EditConfig(frames=1, categories=("local remove", "global style")))
    assert all(score.min() > 95 for score in judge_edits(batch, batch.target).values())


def test_motion_is_read_off_the_video(edits):
    batch = edits["local add"]
    things = [a["after"] for a in batch.attributes]
    assert len({thing["motion"] for thing in things}) == len(MOTIONS)
    pairs = list(zip(batch.target, things, strict=True))
    assert sum(seen_motion(video, t["colour"]) == t["motion"] for video, t in pairs) / len(pairs) > 0.9
    held = [seen_motion(video[:1].expand_as(video), t["colour"]) for video, t in pairs]
    assert held.count("still") / len(pairs) > 0.9
    for video, thing in pairs:
        turned = {"up": "down", "down": "up"}.get(thing["motion"])
        if turned:
            assert seen_motion(video.flip(0), thing["colour"]) == turned
    missing = [seen_motion(video, t["colour"]) for video, t in zip(batch.source, things, strict=True)]
    assert missing.count(None) / len(pairs) > 0.9
