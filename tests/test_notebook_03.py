"""Notebook 03: its exercises judge right and wrong answers, its figures show the positions they claim."""

import math
import re

import pytest
import torch
from notebook_cells import Book
from torch.testing import assert_close

from vera_lite import viz
from vera_lite.systems.gencompositor import stream_positions

BOOK = Book("03_erope")


@pytest.fixture
def book():
    """The notebook's definitions."""
    grid = (3, 8, 8)
    return BOOK.definitions(GRID=grid, S=math.prod(grid), head_dim=32, seed=0)


# ---------------------------------------------------------------------- exercises

EXERCISES = {"token_position": "check_token_position", "canvas_pixel": "check_canvas_pixel"}


@pytest.mark.parametrize("name", EXERCISES)
def test_the_solution_passes(name, book):
    book[EXERCISES[name]](BOOK.solution(book, name))


@pytest.mark.parametrize("name", EXERCISES)
def test_an_unsolved_exercise_says_so(name, book, capsys):
    book["attempt"](name, lambda: book[EXERCISES[name]](book[name]))
    assert capsys.readouterr().out == f"{name}: not solved yet\n"


def moved_along_time(s, t, h, w, grid, reading):
    return (t, h, w) if reading == "shared" else (t + s * grid[0], h, w)


def always_shared(s, t, h, w, grid, reading):
    return t, h, w


def released_as_in_the_paper(s, t, h, w, grid, reading):
    return (t, h, w) if reading == "shared" else (t, h + s * grid[1], w)


def rows_of_one_video(s, t, h, w, grid, reading):
    T, H, W = grid
    if reading != "released":
        return released_as_in_the_paper(s, t, h, w, grid, reading)
    time, rest = divmod(((s * T + t) * H + h) * W + w, H * W)
    return time, *divmod(rest, W)


def swapped(s, t, h, w, grid, reading):
    return released_as_in_the_paper(s, t, w, h, grid, reading)


WRONG_POSITIONS = {
    "this is the shared reading": always_shared,
    "paper: this moves along time": moved_along_time,
    "released: this moves along time": rows_of_one_video,
    "deals its table out in another order": released_as_in_the_paper,
    "but it must be": swapped,
}
WRONG_PIXELS = {
    "the path's own pixel": lambda pixel, place, scale, centre: (pixel - place) / scale,
    "multiplied by the scale": lambda pixel, place, scale, centre: (pixel - place) * scale + centre,
    "mirrored": lambda pixel, place, scale, centre: (place - pixel) / scale + centre,
    "is (2, -4) off the middle": lambda pixel, place, scale, centre: pixel - place + centre,
}


@pytest.mark.parametrize("hint", WRONG_POSITIONS)
def test_a_wrong_position_is_named(hint, book):
    with pytest.raises(AssertionError, match=re.escape(hint)):
        book["check_token_position"](WRONG_POSITIONS[hint])


@pytest.mark.parametrize("hint", WRONG_PIXELS)
def test_a_wrong_pixel_is_named(hint, book):
    with pytest.raises(AssertionError, match=re.escape(hint)):
        book["check_canvas_pixel"](WRONG_PIXELS[hint])


# ---------------------------------------------------------------------- definitions


def test_turning_by_hand_is_a_rotation(book):
    quarter = book["turn"](torch.tensor([1.0, 0.0]), math.pi / 2)
    assert_close(quarter, torch.tensor([0.0, 1.0]), atol=1e-6, rtol=0)


def test_position_alone_cannot_tell_two_videos_apart_that_share_a_grid(book):
    token = 77
    for rope in ("shared", "paper"):
        own, other = book["position_attention"](token, stream_positions(book["GRID"], rope))
        assert float(own.sum() + other.sum()) == pytest.approx(1)
        assert own.flatten().argmax() == token
        assert torch.equal(own, other) == (rope == "shared")


def test_halves_differ_only_where_positions_do(book):
    assert max(book["halves"]("shared")) < 1e-4 < 1e-2 < min(book["halves"]("released"))


def test_verdicts_need_all_seeds(book):
    book["report"] = {
        "runs": [
            {"study": "s", "variant": v, "seed": seed, "metrics": {"psnr": p, "loss": -p}}
            for v, values in {"best": (3, 3, 3), "worse": (1, 2, 2), "mixed": (4, 2, 2)}.items()
            for seed, p in enumerate(values)
        ]
    }
    for metric in ("psnr", "loss"):  # a higher PSNR, a lower loss
        gains = book["gains"]("s", "best", metric)
        assert gains == {"worse": [2, 1, 1], "mixed": [-1, 1, 1]}
    assert [book["verdict"](g) for g in ([2, 1, 1], [-1, 1, 1], [-1, -2, -1])] == [
        "holds",
        "unclear",
        "reversed",
    ]


# ---------------------------------------------------------------------- pictures


def test_a_position_map_splits_shared_squares(book):
    panels = {name: book["plane"](name, (3, 2, 2)) for name in ("shared", "paper")}
    figure = viz.position_maps(panels, "title")
    shared, apart = figure.axes
    assert figure.get_suptitle() == "title" and [ax.get_title() for ax in figure.axes] == list(panels)
    assert len(shared.patches) == len(apart.patches) == 12
    assert {round(p.get_width(), 2) for p in shared.patches} == {0.45}
    assert {round(p.get_width(), 2) for p in apart.patches} == {0.9}
    assert [t.get_text() for t in apart.texts] == [
        str(f) for _ in range(2) for f in range(3) for _ in range(2)
    ]
    lowest = max(p.get_y() for p in apart.patches)
    assert lowest == pytest.approx(3 - 0.45)
