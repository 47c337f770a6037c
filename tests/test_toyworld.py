"""The toy world: exact layers, pure functions of (seed, index), and prompts that say what is there."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vera_lite.errors import UserError
from vera_lite.evaluation.toy.object_judge import (
    judge,
    judge_final,
    name_pattern,
    read_background,
    read_object,
)
from vera_lite.media.clip import composite
from vera_lite.toy.phrases import PHRASES, toy_encoder
from vera_lite.toy.words import COLOURS, PATTERNS, SHAPES, instruction
from vera_lite.toy.world import WorldConfig, render

LAYERS = ("source", "edit", "alpha", "composite", "mask")


@pytest.fixture(scope="module")
def world():
    return render(11, range(256))


def test_layers_are_clips_in_range(world):
    for i in range(8):
        clip = world.clip(i)  # LayeredClip validates shapes and ranges
        assert clip.source.shape == (9, 3, 32, 32) and clip.instruction == world.instruction[i]


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**31), st.lists(st.integers(0, 2**31), min_size=1, max_size=4))
def test_a_clip_depends_on_its_seed_and_index_alone(seed, indices):
    together = render(seed, indices)
    for row, index in enumerate(indices):
        alone = render(seed, [index])
        assert all(torch.equal(getattr(alone, k)[0], getattr(together, k)[row]) for k in LAYERS)
        assert alone.attributes[0] == together.attributes[row]
    other = render(seed + 1, indices[:1])
    assert not torch.equal(other.source[0], together.source[0])


def test_additions_composite_exactly_and_backgrounds_nearly(world):
    again = composite(world.edit, world.alpha, world.source)
    for i, attributes in enumerate(world.attributes):
        difference = (again[i] - world.composite[i]).abs()
        if attributes["task"] == "add":
            assert difference.max() < 1e-6
        else:  # the old background bleeds in at soft edges, and only there
            edge = (world.alpha[i] > 0) & (world.alpha[i] < 1)
            assert difference.max() > 1e-3
            assert difference[~edge.expand_as(difference)].max() < 1e-6


def test_removal_gives_back_the_clean_scene():
    batch = render(5, range(64), WorldConfig(tasks=("remove",)))
    again = composite(batch.edit, batch.alpha, batch.source)
    assert (again - batch.composite).abs().max() < 0.06  # below half alpha 1/20: an invisible rim
    assert all(text.startswith("remove the ") for text in batch.instruction)
    assert not torch.allclose(batch.source, batch.composite)


def test_everything_that_was_promised_occurs(world):
    def values(key):
        return {str(a[key]) for a in world.attributes}

    assert values("task") == {"add", "background"}
    assert values("shape") == set(SHAPES) and values("colour") == set(COLOURS)
    assert values("background_pattern") == set(PATTERNS)
    for key in ("shadow", "behind"):
        assert values(key) == {"True", "False"}
    assert len(values("place")) == 9 and len(values("motion")) == 5 and len(values("texture")) == 3


def test_behind_means_cut_by_what_stands_in_front():
    batch = render(3, range(200), WorldConfig(tasks=("add",), distractor=1.0, behind=1.0, shadow=0.0))
    never = render(3, range(200), WorldConfig(tasks=("add",), distractor=1.0, behind=0.0, shadow=0.0))
    assert batch.alpha.sum() < 0.95 * never.alpha.sum()


@pytest.mark.parametrize("size", [(9, 32, 32), (5, 48, 48), (1, 24, 40)])
def test_any_size_renders(size):
    frames, height, width = size
    batch = render(0, range(4), WorldConfig(frames=frames, height=height, width=width))
    assert batch.source.shape == (4, frames, 3, height, width)


def test_bad_worlds_are_refused():
    with pytest.raises(UserError, match="paint"):
        WorldConfig(tasks=("paint",))
    with pytest.raises(UserError, match="positive"):
        WorldConfig(frames=0)


# --- prompts -------------------------------------------------------------------------------------


def test_every_instruction_parses_to_what_it_says(world):
    for text, a in zip(world.instruction, world.attributes, strict=True):
        phrases = toy_encoder().parse(text)
        if a["task"] == "background":
            assert set(phrases) == {"change", a["background_colour"], a["background_pattern"]}
            continue
        said = {"add", a["colour"], a["shape"], a["place"]}
        said.add("standing still" if a["motion"] == "still" else f"moving {a['motion']}")
        said |= {a["texture"]} - {"plain"}
        said |= {"shadow"} if a["shadow"] else set()
        said |= {"behind the other object"} if a["behind"] else set()
        assert set(phrases) == said and instruction(a) == text


def test_prompts_are_read_kindly():
    assert toy_encoder().parse("Add a RED ring, at the upper left; moving left!") == [
        "add",
        "red",
        "ring",
        "top left",
        "moving left",
    ]
    with pytest.raises(UserError, match="'rinf'.*'ring'"):
        toy_encoder().parse("add a red rinf")
    with pytest.raises(UserError, match="please"):
        toy_encoder().parse("please")
    with pytest.raises(UserError, match="11"):
        toy_encoder().parse("red " * 11)


def test_features_are_one_hot_in_the_order_of_the_phrases():
    features = toy_encoder()(["add a red ring", ""])
    assert features.shape == (2, 10, len(PHRASES)) and features[1].sum() == 0
    assert [PHRASES[int(row.argmax())] for row in features[0, :3]] == ["add", "red", "ring"]
    assert features[0, 3:].sum() == 0


# --- the judge -----------------------------------------------------------------------------------


def test_the_judge_is_right_about_the_truth(world):
    rights = {}
    for i, attributes in enumerate(world.attributes):
        for name, right in judge(world.edit[i], world.alpha[i], attributes).items():
            rights.setdefault((attributes["task"], name), []).append(right)
        final = judge_final(world.source[i], world.composite[i], attributes)
        rights.setdefault(("final", attributes["task"]), []).append(all(final.values()))
    for key, values in rights.items():
        floor = 0.96 if key[0] == "final" else 0.99
        assert sum(values) / len(values) >= floor, (key, sum(values) / len(values))


def test_the_judge_rejects_wrong_answers(world):
    """Each attribute changed in the request: the judge must object, and to that attribute only."""
    choices = {
        "colour": list(COLOURS),
        "shape": list(SHAPES),
        "motion": ["left", "right", "up", "down", "still"],
    }
    for i, attributes in enumerate(world.attributes):
        if attributes["task"] != "add" or attributes["behind"]:
            continue
        for name, values in choices.items():
            wrong = attributes | {name: values[(values.index(attributes[name]) + 1) % len(values)]}
            verdict = judge(world.edit[i], world.alpha[i], wrong)
            assert not verdict[name] and sum(not right for right in verdict.values()) == 1


def test_the_judge_sees_a_flickering_or_missing_object(world):
    i = next(k for k, a in enumerate(world.attributes) if a["task"] == "add" and not a["behind"])
    alpha = world.alpha[i].clone()
    assert read_object(world.edit[i], alpha)["steady"]
    gone = alpha.clone()
    gone[4] = 0
    assert not read_object(world.edit[i], gone)["steady"]
    jumping = alpha.clone()
    jumping[4] = jumping[4].roll(8, dims=-1)
    assert not read_object(world.edit[i], jumping)["steady"]
    assert read_object(world.edit[i], torch.zeros_like(alpha))["shape"] is None
    noise = torch.rand(alpha.shape, generator=torch.Generator().manual_seed(0))
    seen = read_object(world.edit[i], noise)
    assert not seen["steady"] and seen["fit"] < 0.6 < read_object(world.edit[i], alpha)["fit"]


def test_the_judge_tells_patterns_from_noise_and_from_each_other(world):
    noise = torch.rand(9, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert name_pattern(noise) not in ("checks", "vertical stripes", "horizontal stripes", "plain")
    i = next(
        k
        for k, a in enumerate(world.attributes)
        if a["background_pattern"] == "vertical stripes" and a["task"] == "background"
    )
    turned = world.edit[i].transpose(-1, -2)
    assert read_background(turned, world.alpha[i])["pattern"] == "horizontal stripes"
