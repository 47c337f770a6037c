"""MiVE's pairs and filter, sampling by quota, GenCompositor's triplets."""

from dataclasses import replace

import pytest
import torch

from vera_lite.dataset.papers import ExpandPairs, Quota, ScoreFilter, Triplet, verdict
from vera_lite.dataset.stage import Choice, Ok, Reject, Sample, Stage, digest
from vera_lite.dataset.stages import load
from vera_lite.media.clip import to_uint8
from vera_lite.media.placement import object_extent
from vera_lite.media.video_writer import write_video

SIZE = (48, 80)


@pytest.fixture
def layers(tmp_path):
    """A red square that walks to the right, as files by name."""
    alpha, colour = torch.zeros(5, 1, *SIZE), torch.zeros(5, 3, *SIZE)
    for t in range(5):
        alpha[t, :, 18:30, 10 + 10 * t : 22 + 10 * t] = 1
    colour[:, 0], colour[:, 1] = 0.8, 0.2
    videos = {"subject": colour, "mask": alpha, "shown": alpha, "kept": 1 - alpha}
    for name, video in videos.items():
        write_video(tmp_path / f"{name}.mkv", to_uint8(video.clone()), 8, "lossless")
    return {name: str(tmp_path / f"{name}.mkv") for name in videos}


def run(stage, sample, tmp_path):
    out = tmp_path / stage.name
    out.mkdir(exist_ok=True)
    outcome = stage(sample, lambda name: sample.files[name], out)
    if not isinstance(outcome, Ok):
        return outcome, []
    found = (outcome.sample, *outcome.more)
    real = [{n: f if "/" in f else str(out / f) for n, f in s.files.items()} for s in found]
    return outcome, [replace(s, files=files) for s, files in zip(found, real, strict=True)]


def test_one_subject_and_two_backgrounds_make_three_pairs(layers, tmp_path):
    files = {"subject": layers["subject"], "mask": layers["mask"], "alpha": layers["kept"]}
    sample = Sample("ab", "background_change", files, {"fps": 8.0, "label": "the square"})
    _, pairs = run(ExpandPairs(), sample, tmp_path)
    videos = {p.category: load(lambda n, p=p: p.files[n], "source", "composite") for p in pairs}
    assert list(videos) == ["deletion", "addition", "replacement"]
    assert len({p.key for p in pairs}) == 3
    (with_it, without), (empty, added), (before, after) = videos.values()
    assert torch.equal(with_it, added)
    assert torch.equal(with_it, before)
    assert torch.equal(without, empty)
    (mask,) = load(lambda n: pairs[0].files[n], "mask")
    inside = (mask > 0).expand_as(with_it)
    assert torch.equal(with_it[~inside], without[~inside])
    assert torch.equal(before[inside], after[inside])
    assert (before - after)[~inside].abs().mean() > 0.05
    assert (with_it - without)[inside].abs().mean() > 0.1
    assert all("the square" in p.facts["instruction"] for p in pairs)


@pytest.mark.parametrize(
    ("score", "reason"),
    [(0, "hard_reject"), (4.99, "hard_reject"), (5, "quality_reject"), (7.55, "quality_reject"),
     (8.45, "quality_reject"), (8.5, None), (10, None)],
)  # fmt: skip
def test_scores_have_bands_without_gaps(score, reason, tmp_path):
    assert verdict(score) == reason
    outcome, _ = run(ScoreFilter(), Sample("00", "addition", {}, {"score": score}), tmp_path)
    assert getattr(outcome, "reason", None) == reason


def test_a_threshold_and_a_missing_score(tmp_path):
    def outcome(**facts):
        return run(ScoreFilter(above=9.3), Sample("00", "addition", {}, facts), tmp_path)[0]

    assert outcome(score=9.3) == Reject("score_too_low", {"why": "its score is 9.3", "score": 9.3})
    assert isinstance(outcome(score=9.31), Ok)
    assert outcome().reason == "no_score"
    with pytest.raises(ValueError, match="11"):
        verdict(11)


def test_a_quota_is_met_in_an_order_that_nobody_chose():
    samples = [
        Sample(digest(k), category, {}, {"dataset": dataset})
        for category in ("local_add", "style", "subtitle")
        for dataset in ("one", "two")
        for k in (f"{category}{dataset}{i}" for i in range(20))
    ]
    quota = Quota(5, by=("dataset",), categories={"local_add": "addition", "style": "style"})
    assert isinstance(quota, Choice)
    left_out = quota.choose(samples)
    kept = [s for s in samples if s.key not in left_out]
    assert len(kept) == 20
    assert {left_out[s.key] for s in samples if s.category == "subtitle"} == {"category_not_used"}
    assert left_out == quota.choose(samples[::-1])
    fewer = replace(quota, most=3).choose(samples)
    assert {k for k, why in left_out.items() if why == "over_quota"} < set(fewer)
    other = [s for s in samples if s.key not in replace(quota, seed=1).choose(samples)]
    assert {s.key for s in other} != {s.key for s in kept}
    assert replace(quota, most=25).shortfall(samples) == {
        (category, dataset): 5 for category in ("addition", "style") for dataset in ("one", "two")
    }
    assert quota.shortfall(samples) == {}


def test_a_triplet_has_no_path_and_room_around_the_object(layers, tmp_path):
    files = {"subject": layers["subject"], "mask": layers["mask"], "alpha": layers["shown"]}
    sample = Sample("cd", "object_addition", files, {"fps": 8.0})
    stage = Triplet(canvas=64)
    assert isinstance(stage, Stage)
    _, (made,) = run(stage, sample, tmp_path)
    foreground, inflated, mask = load(lambda n: made.files[n], "foreground", "background_mask", "mask")
    assert foreground.shape == (5, 3, 64, 64)
    there = (foreground.amin(1, keepdim=True) < 0.9).float()
    centres = object_extent(there)[0]
    assert (centres - 31.5).abs().max() < 0.6
    assert foreground[:, :, 0].min() == 1
    path = torch.tensor(made.facts["path"])
    assert path.diff(dim=0)[:, 0] == pytest.approx(10, abs=0.1)
    assert inflated.sum() > mask.sum()
    assert torch.equal(torch.maximum(inflated, mask), inflated)
    assert 0.4 <= made.facts["gamma"] <= 1.9
    middle = foreground[0, :, 31, 31]
    assert middle == pytest.approx(torch.tensor([0.8, 0.2, 0]) ** made.facts["gamma"], abs=0.01)
    again = run(Triplet(canvas=64, seed=1), sample, tmp_path)[1][0]
    assert again.facts["gamma"] != made.facts["gamma"]
