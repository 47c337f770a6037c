"""The rating panel's Python half: what the page may know, what comes back, and what is refused."""

import io
import json

import numpy as np
import pytest
import torch
from PIL import Image
from traitlets import TraitError

from vera_lite.errors import UserError
from vera_lite.media.clip import to_uint8
from vera_lite.widgets import rating
from vera_lite.widgets.rating import Pair, RatingPanel

METHODS = ("layers", "regeneration")


def grey(value, frames=2, size=(6, 8)):
    return torch.full((frames, 3, *size), value)


def make_pairs(count=4, **changes):
    """Pairs of grey clips: k / 10 by the first method, half lighter by the second."""
    return [
        Pair(f"clip {k}", METHODS, (grey(k / 10), grey(0.5 + k / 10)), f"edit {k}", grey(0.95), **changes)
        for k in range(count)
    ]


def shade(panel, screen, part):
    """Grey of what a screen shows at one side, in [0, 1]."""
    files = panel._videos[panel._screens[screen][part]]
    return np.asarray(Image.open(io.BytesIO(files[0])))[0, 0, 0] / 255


def answer_all(panel, rule):
    """Answer each screen by a rule of the two greys: left, right -> -2 .. 2."""
    panel.answers = [
        {"screen": k, "answer": rule(shade(panel, k, "left"), shade(panel, k, "right")), "seconds": 1.5}
        for k in range(len(panel._screens))
    ]


def darker(left, right):
    return -2 if left < right else 2


# ---------------------------------------------------------------------- blind, random, the same again


def test_the_page_does_not_know_the_methods():
    checks = [Pair("check", METHODS, (grey(0.0), grey(1.0)), "look", better="layers")]
    panel = RatingPanel(make_pairs() + checks)
    state = panel.get_manager_state(widgets=[panel])["state"][panel.model_id]["state"]
    told = json.dumps({name: value for name, value in state.items() if name not in ("_esm", "_css")})
    assert not [word for word in (*METHODS, "check", "better", "clip") if word in told]
    assert "edit 3" in told and "look" in told


def test_sides_order_and_numbers_are_random():
    firsts, orders, numbers = [], set(), []
    for seed in range(60):
        panel = RatingPanel(make_pairs(), seed=seed)
        firsts += [shade(panel, k, "left") < 0.5 for k in range(4)]
        orders.add(tuple(screen["instruction"] for screen in panel._screens))
        numbers += [panel._screens[k]["left"] < panel._screens[k]["right"] for k in range(4)]
    assert 0.4 < np.mean(firsts) < 0.6 and len(orders) > 15
    assert 0.4 < np.mean(numbers) < 0.6, "a video's number tells its side"
    by_method = np.corrcoef(firsts, numbers)[0, 1]
    assert abs(by_method) < 0.25, "a video's number tells its method"


def test_the_same_study_is_the_same_again():
    one, same, other = (RatingPanel(make_pairs(), seed=seed) for seed in (0, 0, 1))
    assert one._screens == same._screens and one.study == same.study != other.study
    assert RatingPanel(make_pairs(3)).study != one.study


def test_frames_are_stored_exactly():
    pair = make_pairs(1)[0]
    noise = torch.rand(3, 3, 9, 7, generator=torch.Generator().manual_seed(0))
    panel = RatingPanel([Pair(pair.item, METHODS, (noise, 1 - noise), "")])
    left = 0 if panel._order[0][1] == 0 else 1
    for part, video in (("left", (noise, 1 - noise)[left]), ("right", (noise, 1 - noise)[1 - left])):
        files = panel._videos[panel._screens[0][part]]
        shown = np.stack([np.asarray(Image.open(io.BytesIO(file))) for file in files])
        np.testing.assert_array_equal(shown, to_uint8(video).permute(0, 2, 3, 1).numpy())


# ---------------------------------------------------------------------- answers


def test_answers_are_given_back_to_their_methods():
    panel = RatingPanel(make_pairs(), seed=3)
    answer_all(panel, darker)  # the first method's clips are the darker ones
    assert [r.preference for r in panel.ratings()] == [2] * 4
    assert sorted(r.item for r in panel.ratings()) == [f"clip {k}" for k in range(4)]
    answer_all(panel, lambda left, right: 0)
    assert {r.preference for r in panel.ratings()} == {0}
    answer_all(panel, lambda left, right: 1 if left < right else -1)
    assert {r.preference for r in panel.ratings()} == {-1}
    assert {(r.seconds, r.passed, r.is_repeat) for r in panel.ratings()} == {(1.5, None, False)}


def test_repeats_come_last_with_sides_exchanged():
    panel = RatingPanel(make_pairs(), seed=1, repeats=2)
    assert len(panel._screens) == 6
    answer_all(panel, darker)
    repeats = [r for r in panel.ratings() if r.is_repeat]
    assert len(repeats) == 2 and {r.preference for r in panel.ratings()} == {2}
    for k in (4, 5):
        first = next(s for s in panel._screens[:4] if s["instruction"] == panel._screens[k]["instruction"])
        assert (first["left"], first["right"]) == (panel._screens[k]["right"], panel._screens[k]["left"])


def test_attention_checks_are_passed_or_not():
    checks = [Pair(f"check {k}", METHODS, (grey(0.0), grey(1.0)), "", better=METHODS[k]) for k in range(2)]
    panel = RatingPanel(checks)
    answer_all(panel, darker)
    assert {r.item: r.passed for r in panel.ratings()} == {"check 0": True, "check 1": False}
    answer_all(panel, lambda left, right: 0)
    assert not any(r.passed for r in panel.ratings()), "a tie is no attention"


def test_a_saved_file_is_read_and_resumed(tmp_path):
    panel, again = (RatingPanel(make_pairs(), seed=5) for _ in range(2))
    answer_all(panel, darker)
    panel.rater, panel.answers = "seven", panel.answers[:3]
    panel.write(tmp_path / "a.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert [row["screen"] for row in rows] == [0, 1, 2] and {row["rater"] for row in rows} == {"seven"}
    assert again.read(tmp_path / "a.jsonl") == panel.ratings()
    again.resume(tmp_path / "a.jsonl")
    assert (again.answers, again.rater, again.screen) == (panel.answers, "seven", 3)


def test_files_of_several_raters_may_be_one(tmp_path):
    panel = RatingPanel(make_pairs())
    answer_all(panel, darker)
    path, text = tmp_path / "all.jsonl", ""
    for rater in ("one", "two"):
        panel.rater = rater
        text += panel.lines()
    path.write_text(text)
    assert [r.rater for r in panel.read(path)] == ["one"] * 4 + ["two"] * 4
    with pytest.raises(UserError, match="2 raters"):
        panel.resume(path)


@pytest.mark.parametrize(
    "changes",
    [
        {"study": "another"},
        {"screen": 4},
        {"screen": True},
        {"answer": 3},
        {"answer": 0.5},
        {"seconds": -1},
        {"seconds": float("nan")},
        {"more": 1},
    ],
)
def test_a_file_that_is_none_of_this_study_is_refused(tmp_path, changes):
    panel = RatingPanel(make_pairs())
    row = {"study": panel.study, "rater": "", "screen": 0, "answer": 1, "seconds": 2}
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(row) + "\n" + json.dumps(row | {"screen": 1} | changes) + "\n")
    with pytest.raises(UserError, match="line 2 of"):
        panel.read(path)
    path.write_text(json.dumps(row) + "\n" + json.dumps(row) + "\n")
    with pytest.raises(UserError, match="two answers"):
        panel.read(path)
    path.write_text("no JSON")
    with pytest.raises(UserError, match="line 1 of"):
        panel.read(path)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("answers", [{"screen": 0, "answer": 5, "seconds": 1.0}]),
        ("answers", [{"screen": 0, "answer": 1}]),
        ("screen", 5),
        ("screen", -1),
    ],
)
def test_a_state_that_cannot_be_is_refused(name, value):
    panel = RatingPanel(make_pairs())
    with pytest.raises(TraitError):
        setattr(panel, name, value)
    assert panel.screen == 0 and panel.answers == []


@pytest.mark.parametrize(
    ("pairs", "options", "sentence"),
    [
        ([], {}, "give pairs"),
        (make_pairs(), {"repeats": 5}, "give pairs"),
        ([Pair("a", ("x", "x"), (grey(0.0), grey(1.0)))], {}, "two methods"),
        (make_pairs(better="neither"), {}, "two methods"),
        ([Pair("a", METHODS, (grey(0.0), grey(1.0, frames=3)))], {}, "shapes"),
        ([Pair("a", METHODS, (grey(0.0), grey(255.0)))], {}, "regeneration of a "),
        (make_pairs(), {"fps": 0}, "frame rate"),
    ],
)
def test_pairs_that_do_not_fit_are_refused(pairs, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        RatingPanel(pairs, **options)


def test_too_many_pictures_are_refused(monkeypatch):
    monkeypatch.setattr(rating, "BUDGET", 1000)
    with pytest.raises(ValueError, match="MB of pictures"):
        RatingPanel(make_pairs())
