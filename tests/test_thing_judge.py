"""The judge of things on places: it sees the truth, and it sees what is wrong."""

from collections import Counter
from dataclasses import replace

import pytest
import torch

from vera_lite.codecs import PatchCodec
from vera_lite.evaluation.toy.edit_judge import judge_edits
from vera_lite.evaluation.toy.thing_judge import (
    Seen,
    difference_matte,
    judge_frames,
    judge_layers,
    read_background,
    read_thing,
)
from vera_lite.toy.edits import CATEGORIES
from vera_lite.toy.scene_edits import SceneEditConfig, render_scene_edits
from vera_lite.toy.scenes import SceneConfig, render_scenes
from vera_lite.training.toy.layers import SCENE_CODEC


@pytest.fixture(scope="module")
def scenes():
    return render_scenes(11, range(64), SceneConfig(behind=0))


def shares(verdicts):
    right, all_ = Counter(), Counter()
    for verdict in verdicts:
        all_.update(verdict.keys())
        right.update({key: int(ok) for key, ok in verdict.items()})
    return {key: right[key] / all_[key] for key in all_}


def of_layers(batch, edit, alpha):
    rows = zip(edit, alpha, batch.source, batch.attributes, strict=True)
    return shares(judge_layers(*row) for row in rows)


def test_layers_are_read_as_they_were_drawn_also_through_the_codec(scenes):
    codec = PatchCodec.load(SCENE_CODEC)
    edit, alpha = (codec.decode(codec.encode(v)) for v in (scenes.edit, scenes.alpha))
    for layers in ((scenes.edit, scenes.alpha), (edit, alpha.mean(2, keepdim=True))):
        seen = of_layers(scenes, *layers)
        assert set(seen) == {"noun", "colour", "place", "motion", "steady", "background"}
        assert min(seen.values()) >= 0.99, seen


def test_results_alone_are_read_nearly_as_well(scenes):
    rows = zip(scenes.source, scenes.composite, scenes.attributes, strict=True)
    assert min(shares(judge_frames(*row) for row in rows).values()) >= 0.95


def test_wrong_layers_are_seen(scenes):
    """Answers may be right by chance in some clips."""

    def turned(axis):
        batch = replace(scenes, source=scenes.source.flip(axis))
        return of_layers(batch, scenes.edit.flip(axis), scenes.alpha.flip(axis))

    mirrored, backwards = turned(-1), turned(1)
    assert mirrored["place"] < 0.5 and mirrored["motion"] < 0.9 and mirrored["colour"] > 0.9
    assert backwards["motion"] < 0.4 and backwards["noun"] > 0.95
    hues = of_layers(scenes, scenes.edit.roll(1, 2), scenes.alpha)
    assert hues["colour"] < 0.2
    nothing = of_layers(scenes, scenes.edit, torch.zeros_like(scenes.alpha))
    assert nothing["noun"] == nothing["place"] == nothing["steady"] == 0
    noise = of_layers(scenes, torch.rand(scenes.edit.shape, generator=torch.manual_seed(0)), scenes.alpha)
    assert noise["noun"] < 0.1 and noise["background"] < 0.5
    adds = [i for i, facts in enumerate(scenes.attributes) if facts["task"] == "add"]
    others = of_layers(
        replace(scenes, attributes=[scenes.attributes[i] for i in adds], source=scenes.source[adds]),
        scenes.edit[adds].roll(1, 0),
        scenes.alpha[adds].roll(1, 0),
    )
    assert others["noun"] < 0.15 and others["place"] < 0.4


def test_a_thing_that_jumps_or_vanishes_is_not_steady(scenes):
    i = next(i for i, f in enumerate(scenes.attributes) if f["task"] == "add" and f["motion"] != "still")
    video, alpha, scene = scenes.composite[i], scenes.alpha[i], scenes.source[i]
    body = (2 * alpha - 1).clamp(0, 1)
    assert read_thing(video, body, scene).steady
    gone = body.clone()
    gone[4] = 0
    assert not read_thing(video, gone, scene).steady
    order = [0, 8, 1, 7, 2, 6, 3, 5, 4]
    assert not read_thing(video[order], body[order], scene[order]).steady
    assert read_thing(scene, torch.zeros_like(body), scene) == Seen()


def test_backgrounds_are_told_apart_where_they_show():
    batch = render_scenes(12, range(96), SceneConfig(tasks=("background",)))
    named = [f["background"]["name"] for f in batch.attributes]
    seen = [read_background(*row) for row in zip(batch.edit, batch.alpha, strict=True)]
    assert sum(a == b for a, b in zip(seen, named, strict=True)) / 96 >= 0.98
    old = [read_background(*row) for row in zip(batch.source, batch.alpha, strict=True)]
    truth = [f["source_background"]["name"] for f in batch.attributes]
    assert sum(a == b for a, b in zip(old, truth, strict=True)) / 96 >= 0.95


def test_a_soft_shadow_is_no_thing():
    scene = render_scenes(13, [0]).source[0]
    shadow = scene * (1 - 0.4 * torch.linspace(0, 1, 32))
    assert difference_matte(shadow, scene).mean() < 0.02
    assert difference_matte(1 - scene, scene).mean() > 0.3


@pytest.mark.parametrize("category", CATEGORIES)
def test_the_true_edit_scores_best_and_the_source_follows_no_instruction(category):
    edits = render_scene_edits(11, range(16), SceneEditConfig(categories=(category,)))
    noise = torch.rand(edits.source.shape, generator=torch.manual_seed(0))

    def compliance(results):
        return float(judge_edits(edits, results)["instruction_compliance"].mean())

    assert compliance(edits.target) > 98
    assert compliance(edits.source) < 2 and compliance(noise) < 15
    assert compliance(edits.target.roll(1, 0)) < 35
    if category == "local add":
        held = edits.target[:, :1].expand_as(edits.target)
        assert compliance(held) < 98  # its motion is wrong
    if category in ("local change", "local add"):
        assert compliance(edits.target.roll(1, 2)) < 75  # other colours
