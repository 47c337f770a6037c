"""Vera's stages one after the other, on files of the ground truth."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

from vera_lite.dataset.stage import LAYERS, Ok, Reject, Sample, Stage, digest
from vera_lite.dataset.stages import (
    Background,
    Caption,
    Inspect,
    Matte,
    Plate,
    Segment,
    Select,
    load,
    shots,
)
from vera_lite.media.clip import composite, to_uint8
from vera_lite.media.video import VideoReader
from vera_lite.media.video_writer import write_video
from vera_lite.toy.truth import truth_clip

SIZE = (136, 240)
VERA = (Select(), Segment(), Plate(), Matte(width=3), Background(), Inspect(), Caption())


def run(stages, sample, folder):
    """The outcome of the last stage that ran, with real paths as the store has them."""
    outcome = None
    for stage in stages:
        out = folder / stage.name
        out.mkdir()
        outcome = stage(sample, lambda name, now=sample: Path(now.files[name]), out)
        json.dumps(outcome.facts if isinstance(outcome, Reject) else outcome.sample.facts, allow_nan=False)
        if not isinstance(outcome, Ok):
            return outcome
        files = {name: f if "/" in f else str(out / f) for name, f in outcome.sample.files.items()}
        sample = replace(outcome.sample, files=files)
    return replace(outcome, sample=sample)


def given(path, category="object_addition", **facts):
    return Sample(digest(path.name), category, {"clip": str(path)}, facts)


@pytest.fixture(scope="module")
def truth():
    return truth_clip(11, 17, SIZE)


@pytest.fixture
def file(truth, tmp_path):
    write_video(tmp_path / "clip.mkv", to_uint8(truth.composite.clone()), 16, "lossless")
    return tmp_path / "clip.mkv"


def test_an_object_becomes_a_layer_over_a_clean_plate(truth, file, tmp_path):
    outcome = run(VERA, given(file, label="a tractor"), tmp_path)
    assert isinstance(outcome, Ok), outcome
    sample = outcome.sample
    assert set(LAYERS) <= set(sample.files)
    source, edit, alpha, target, mask = load(lambda name: sample.files[name], *LAYERS)
    assert torch.equal(to_uint8(target), to_uint8(truth.composite.clone()))
    assert (source - truth.source).abs().mean() < 0.01
    assert (alpha - truth.alpha).abs().mean() < 0.4 * truth.alpha.mean()
    assert (composite(edit, alpha, source) - target).abs().mean() < 0.01
    overlap = ((mask > 0.5) & (truth.mask > 0.5)).sum() / ((mask > 0.5) | (truth.mask > 0.5)).sum()
    assert overlap > 0.6
    assert sample.facts["shadow"] > 0
    assert sample.facts["instruction"].startswith("Add a tractor")


def test_a_subject_moves_to_another_background(truth, file, tmp_path):
    steps = (Select(), Segment({"background_change": "moving"}), *VERA[2:])
    outcome = run(steps, given(file, "background_change"), tmp_path)
    assert isinstance(outcome, Ok), outcome
    sample = outcome.sample
    source, edit, alpha, target, mask = load(lambda name: sample.files[name], *LAYERS)
    inside, outside = mask.bool() & (alpha == 0), (alpha == 1).expand_as(target)
    assert inside.any()
    assert (source - target)[inside.expand_as(target)].abs().max() < 0.02  # the subject stays
    assert (source - target)[outside].abs().mean() > 0.05
    assert (edit - target)[outside].abs().max() < 0.02
    assert (composite(edit, alpha, source) - target).abs().mean() < 0.01
    assert "Change the background" in sample.facts["instruction"]


def test_what_is_never_seen_is_not_invented(truth, tmp_path):
    video = truth.composite.clone()
    video[..., 50:80, 90:110] = torch.tensor([0.9, 0.1, 0.1])[:, None, None]
    write_video(tmp_path / "clip.mkv", to_uint8(video), 16, "lossless")
    mask = torch.zeros(17, 1, *SIZE)
    mask[..., 50:80, 90:110] = 1
    write_video(tmp_path / "mask.mkv", to_uint8(mask), 16, "lossless")
    files = {"composite": str(tmp_path / "clip.mkv"), "mask": str(tmp_path / "mask.mkv")}
    sample = Sample("00", "object_addition", files, {"fps": 16.0})
    outcome = run([Plate()], sample, tmp_path)
    assert isinstance(outcome, Reject)
    assert outcome.reason == "unseen_background"
    assert outcome.facts["unseen"] == pytest.approx(1, abs=0.05)


def test_a_clip_without_a_category_is_tried_as_both(file, tmp_path):
    outcome = run([Select()], given(file, "clip"), tmp_path)
    both = (outcome.sample, *outcome.more)
    assert [s.category for s in both] == ["object_addition", "background_change"]
    assert len({s.key for s in both}) == 2


def test_select_takes_the_longest_shot_at_a_steady_rate_and_size(tmp_path):
    first, second = (truth_clip(i, 41, (68, 120)) for i in (13, 6))
    video = torch.cat([first.composite[:20], second.composite, second.composite.flip(0)[1:]])
    write_video(tmp_path / "clip.mkv", to_uint8(video.clone()), 32, "lossless")
    assert shots(VideoReader(tmp_path / "clip.mkv")) == [(0, 20), (20, 101)]
    sample = run([Select(height=34)], given(tmp_path / "clip.mkv"), tmp_path).sample
    assert sample.facts["shot"] == [20, 101]
    assert sample.facts["fps"] == 16
    (kept,) = load(lambda name: sample.files[name], "composite")
    assert kept.shape == (41, 3, 34, 60)
    small = torch.nn.functional.avg_pool2d(video[20:101:2], 2)
    assert (kept - small).abs().max() < 0.01
    part = replace(given(tmp_path / "clip.mkv"), facts={"seconds": [0.7, 2.0]})
    (tmp_path / "part").mkdir()
    assert run([Select()], part, tmp_path / "part").sample.facts["shot"] == [22, 64]


@pytest.mark.parametrize(
    ("frames", "reason"), [(torch.rand(5, 3, 16, 16), "too_short"), (torch.ones(20, 3, 16, 16), "no_motion")]
)
def test_clips_that_are_no_use_are_rejected(frames, reason, tmp_path):
    write_video(tmp_path / "clip.mkv", to_uint8(frames.clone()), 16, "lossless")
    outcome = run([Select()], given(tmp_path / "clip.mkv"), tmp_path)
    assert isinstance(outcome, Reject)
    assert outcome.reason == reason


def test_bad_samples_are_caught(truth, file, tmp_path):
    """A plate that still shows the object, and a mask that comes and goes."""
    for name, video in {"composite": truth.composite, "mask": truth.mask, "alpha": truth.alpha}.items():
        write_video(tmp_path / f"{name}.mkv", to_uint8(video.clone()), 16, "lossless")
    blinking = truth.mask.clone()
    blinking[::3] = 0
    blinking[::3, :, 60:64, 60:64] = 1
    write_video(tmp_path / "blinking.mkv", to_uint8(blinking), 16, "lossless")
    files = {name: str(tmp_path / f"{name}.mkv") for name in ("composite", "mask", "alpha")}
    still_there = Sample("00", "object_addition", files | {"source": files["composite"]}, {"fps": 16.0})
    outcome = run([Inspect()], still_there, tmp_path)
    assert (type(outcome), outcome.reason) == (Reject, "object_still_there")
    (tmp_path / "again").mkdir()
    flickers = replace(still_there, files=still_there.files | {"mask": str(tmp_path / "blinking.mkv")})
    outcome = run([Inspect()], flickers, tmp_path / "again")
    assert (type(outcome), outcome.reason) == (Reject, "mask_flickers")


def test_the_shipped_configuration_lists_these_stages():
    path = Path("vera_lite/configs/dataset_vera.yaml")
    rows = yaml.safe_load(path.read_text())["stages"]
    import vera_lite.dataset.stages as module

    own = [row for row in rows if ".stages." in row["class_path"]]
    made = [getattr(module, row["class_path"].rpartition(".")[2])(**row.get("init_args", {})) for row in own]
    assert [type(stage) for stage in made] == [type(stage) for stage in VERA]
    for stage in made:
        assert isinstance(stage, Stage)
        assert json.loads(json.dumps(stage.config)) == stage.config
