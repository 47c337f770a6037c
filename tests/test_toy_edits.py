"""Toy edits show what their words say; these tests read the pixels without the judge."""

import re

import numpy as np
import pytest
import torch
from skimage.color import rgb2hsv
from transformers import PreTrainedTokenizerFast

from vera_lite.conditioning.vision_language import TOY_VLM
from vera_lite.errors import UserError
from vera_lite.evaluation.toy.edit_judge import seen_motion
from vera_lite.toy.edits import CATEGORIES, STYLES, EditConfig, render_edits
from vera_lite.toy.words import COLOURS, MOTIONS, SHAPES, describe

CLIPS = range(48)


@pytest.fixture(scope="module")
def edits():
    """48 clips of each category, by its name."""
    return {c: render_edits(7, CLIPS, EditConfig(categories=(c,))) for c in CATEGORIES}


def rows(batch):
    return zip(batch.source.numpy(), batch.target.numpy(), batch.attributes, strict=True)


def solid(video, colour):
    """(T, H, W): pixels of a hue that are purer than any background's, so those of an object."""
    hue, saturation, _ = np.moveaxis(rgb2hsv(np.moveaxis(video, 1, -1)), -1, 0)
    distance = (hue * 360 - COLOURS[colour] + 180) % 360 - 180
    return (np.abs(distance) < 20) & (saturation > 0.75)


def outline(mask, path):
    """The shape of a mask (T, H, W) in the middle frame, where no object is cut by the border."""
    column, row = (round(16 * (start + end)) for start, end in zip(*path, strict=True))
    if not mask[4, row - 1 : row + 1, column - 1 : column + 1].all():
        return "ring"
    pixels = np.argwhere(mask[4])
    thirds = np.quantile([pixels[:, 0].min(), pixels[:, 0].max()], [1 / 3, 2 / 3])
    top, bottom = pixels[pixels[:, 0] < thirds[0], 1], pixels[pixels[:, 0] > thirds[1], 1]
    if np.ptp(top) < 0.7 * np.ptp(bottom):
        return "triangle"
    reach = np.linalg.norm(pixels - pixels.mean(0), axis=1).max() / np.sqrt(len(pixels) / np.pi)
    return "circle" if reach < 1.075 else "square"  # a disc's own radius is 1


def test_a_clip_is_a_function_of_seed_and_index():
    picked = CLIPS[::-5]
    several, again = render_edits(7, CLIPS), render_edits(7, picked)
    for name in ("source", "target", "changed"):
        assert torch.equal(getattr(again, name), getattr(several, name)[list(picked)])
    for name in ("instruction", "target_caption", "attributes"):
        assert getattr(again, name) == [getattr(several, name)[i] for i in picked]
    assert not torch.equal(render_edits(8, [3]).source[0], several.source[3])


def test_tensors_are_videos_in_range(edits):
    for batch in edits.values():
        assert len(batch) == 48 and batch.source.shape == batch.target.shape == (48, 9, 3, 32, 32)
        assert all(video.min() >= 0 and video.max() <= 1 for video in (batch.source, batch.target))
    assert render_edits(7, range(4), EditConfig(5, 24, 40)).target.shape == (4, 5, 3, 24, 40)


def test_changed_is_where_source_and_target_differ(edits):
    for category, batch in edits.items():
        difference = (batch.target - batch.source).abs().amax(2, keepdim=True)
        assert batch.changed.shape == (48, 9, 1, 32, 32) and batch.changed.unique().tolist() == [0, 1]
        assert difference[batch.changed == 0].max() <= 1 / 255 < difference[batch.changed == 1].min()
        share = batch.changed.mean((1, 2, 3, 4))
        assert share.min() > 0.01 and (share.max() < 0.3) == (category != "global style")


def test_everything_that_was_promised_occurs(edits):
    assert {a["category"] for a in render_edits(7, CLIPS).attributes} == set(CATEGORIES)
    assert {a["style"] for a in edits["global style"].attributes} == set(STYLES)
    added = [a["after"] for a in edits["local add"].attributes]
    assert {t["shape"] for t in added} == set(SHAPES) and {t["motion"] for t in added} == set(MOTIONS)
    assert len({t["place"] for t in added}) == 9 and {t["colour"] for t in added} == set(COLOURS)
    for category, batch in edits.items():
        share = np.mean([a["other"] is not None for a in batch.attributes])
        assert share == 1 if category == "local remove" else 0.25 < share < 0.75


def test_a_local_change_is_of_colour_or_of_shape(edits):
    kinds = []
    for source, target, a in rows(edits["local change"]):
        before, after = a["before"], a["after"]
        (kind,) = (key for key in before if before[key] != after[key])
        kinds.append(kind)
        was, now = solid(source, before["colour"]), solid(target, after["colour"])
        assert was.sum() > 100 and outline(was, before["path"]) == before["shape"]
        assert now.sum() > 100 and outline(now, after["path"]) == after["shape"]
        if kind == "colour":  # of the same pixels, as bright as before
            assert not solid(target, before["colour"]).any()
            assert (was & now).sum() > 0.65 * was.sum()
            assert np.abs(source.max(1) - target.max(1))[was & now].mean() < 0.03
    assert {kind: kinds.count(kind) > 12 for kind in kinds} == {"colour": True, "shape": True}


def test_a_removed_object_leaves_the_scene_without_it(edits):
    batch = edits["local remove"]
    for source, target, a in rows(batch):
        assert a["after"] is None and solid(source, a["before"]["colour"]).sum() > 100
        assert not solid(target, a["before"]["colour"]).any()
        assert solid(target, a["other"]["colour"]).sum() > 100
    added = render_edits(7, CLIPS, EditConfig(categories=("local add",), distractor=1))
    assert torch.equal(batch.target, added.source) and torch.equal(batch.source, added.target)


def test_an_added_object_is_what_and_where_its_words_say(edits):
    names = {"x": ("left", "", "right"), "y": ("top", "", "bottom")}
    ways = {(0, 0): "still", (-1, 0): "left", (1, 0): "right", (0, -1): "up", (0, 1): "down"}
    for source, target, a in rows(edits["local add"]):
        thing, mask = a["after"], solid(target, a["after"]["colour"])
        assert a["before"] is None and not solid(source, thing["colour"]).any()
        assert outline(mask, thing["path"]) == thing["shape"]
        first, middle, last = ((np.argwhere(mask[t]).mean(0)[::-1] + 0.5) / 32 for t in (0, 4, 8))
        # A triangle's centre of mass is a little lower, and the border may cut an object.
        assert np.abs(np.array([first, last]) - thing["path"]).max() < 0.1
        assert ways[tuple(np.sign(last - first) * (np.abs(last - first) > 0.08))] == thing["motion"]
        place = {names[axis][round((at - 0.5) / 0.21) + 1] for axis, at in zip("xy", middle, strict=True)}
        assert place - {""} == set(thing["place"].split()) - {"centre"}


def guessed_motion(edits):
    """Share of motions that the start alone gives away: those of the nearest other clips, by vote."""
    things = [a["after"] for a in edits.attributes]
    start = torch.tensor([t["path"][0] for t in things])
    motion = torch.tensor([MOTIONS.index(t["motion"]) for t in things])
    nearest = torch.cdist(start, start).fill_diagonal_(torch.inf).topk(9, largest=False).indices
    return float((motion[nearest].mode(1).values == motion).float().mean())


def test_from_its_place_an_object_moves_as_said_and_not_as_its_start_says():
    middle, place = (
        render_edits(7, range(300), EditConfig(categories=("local add",), from_place=flag))
        for flag in (False, True)
    )
    assert middle.instruction == place.instruction
    for a, b in zip(middle.attributes, place.attributes, strict=True):
        (x0, y0), (x1, y1) = a["after"]["path"]
        travel, half = (x1 - x0, y1 - y0), ((x0 + x1) / 2, (y0 + y1) / 2)
        (start, end) = b["after"]["path"]
        assert start == pytest.approx(half, abs=1e-5)
        assert end == pytest.approx((half[0] + travel[0], half[1] + travel[1]), abs=1e-5)
    assert guessed_motion(middle) > 0.5 and guessed_motion(place) < 0.35  # chance is 0.2
    drawn = [
        seen_motion(v, a["after"]["colour"]) for v, a in zip(place.target, place.attributes, strict=True)
    ]
    assert drawn == [a["after"]["motion"] for a in place.attributes]


def test_styles_are_what_they_are_called(edits):
    for source, target, a in rows(edits["global style"]):
        assert a["before"] == a["after"]
        red, green, blue = np.moveaxis(target, 1, 0)
        cells, whole = (video.reshape(9, 3, 8, 4, 8, 4) for video in (target, source))
        facts = {
            "grey": np.ptp(target, axis=1).max() < 1e-6,
            "sepia": ((red >= green) & (green > blue)).all(),
            "negative": np.allclose(source + target, 1),
            "dark": np.allclose(target, 0.4 * source),
            "pixelated": np.ptp(cells, axis=(3, 5)).max() < 1e-6
            and np.allclose(cells.mean((3, 5)), whole.mean((3, 5)), atol=1e-5),
        }
        assert [style for style, holds in facts.items() if holds] == [a["style"]]


def test_a_name_fits_one_thing_only():
    for a in render_edits(9, range(300)).attributes:
        things = [thing for thing in (a["before"], a["after"], a["other"], a["background"]) if thing]
        colours = {thing["colour"] for thing in things}
        same = bool(a["before"] and a["after"] and a["before"]["colour"] == a["after"]["colour"])
        assert len(colours) == len(things) - same


def test_the_toy_model_knows_the_words_and_their_order(edits):
    tokenizer = PreTrainedTokenizerFast.from_pretrained(TOY_VLM)
    order = re.compile(
        r"(change|make|remove) the (?P<name>\w+ \w+)(( to)?( a)? \w+)?|change the video to \w+ style"
        r"|add a( \w+){2,3} at the \w+( \w+)? (standing still|moving \w+)"
    )
    ways = set()
    for category, batch in edits.items():
        for text in batch.instruction + batch.target_caption:
            assert tokenizer.unk_token_id not in tokenizer(text)["input_ids"]
        for text, answer, a in zip(batch.instruction, batch.target_caption, batch.attributes, strict=True):
            before, after = a["before"], a["after"]
            match = order.fullmatch(text)
            if category in ("local change", "local remove"):
                assert match["name"] == f"{before['colour']} {before['shape']}"
            if category == "local change":
                recoloured = before["colour"] != after["colour"]
                said = after["colour"] if recoloured else f"a {after['shape']}"
                made = text == f"make the {match['name']} {said}"
                assert made or text == f"change the {match['name']} to {said}"
                ways.add((recoloured, made))
            if category == "local add":
                assert all(after[key] in text for key in ("colour", "shape", "place"))
            if category != "global style":
                things = [thing for thing in (after, a["other"]) if thing]
                assert answer == describe(things, a["background"])
    assert ways == {(True, True), (True, False), (False, False)}


def test_a_styled_video_is_described_in_the_colours_that_it_shows(edits):
    shown = {"red": "cyan", "yellow": "blue", "green": "purple"}
    shown |= {new: old for old, new in shown.items()}
    batch = edits["global style"]
    for text, answer, a in zip(batch.instruction, batch.target_caption, batch.attributes, strict=True):
        style, true = a["style"], a["after"]["colour"]
        assert text == f"change the video to {style} style" and answer.endswith(f" in {style} style")
        colour = {"grey": "grey", "sepia": "sepia", "negative": shown[true]}.get(style, true)
        assert re.search(rf"a {colour} (\w+ )?{a['after']['shape']} at", answer)
        if style in ("grey", "sepia"):
            assert not set(answer.split()) & set(COLOURS)


def test_a_scene_is_described_from_the_top_left_on():
    ring = {"colour": "red", "texture": "striped", "shape": "ring", "place": "bottom", "motion": "up"}
    other = ring | {"texture": "plain", "place": "top", "motion": "still"}
    assert describe([ring, other], {"colour": "blue", "pattern": "clouds"}) == (
        "a red ring at the top standing still and a red striped ring at the bottom moving up on blue clouds"
    )
    assert describe([], {"colour": "blue", "pattern": "plain"}) == "no object on plain blue"


def test_bad_worlds_are_refused():
    for categories in (("paint",), ()):
        with pytest.raises(UserError, match="categories"):
            EditConfig(categories=categories)
    with pytest.raises(UserError, match="positive"):
        EditConfig(frames=0)
