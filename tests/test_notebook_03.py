"""Notebook 03: its measures say what they claim, its pictures show the positions."""

import math

import pytest
import torch
from notebook_cells import BOOKS
from torch.testing import assert_close

from vera_lite import viz
from vera_lite.systems.gencompositor import stream_positions


@pytest.fixture
def book():
    return BOOKS["03_erope"].definitions()


def test_turning_by_hand_is_a_rotation(book):
    quarter = book["turn"](torch.tensor([1.0, 0.0]), math.pi / 2)
    assert_close(quarter, torch.tensor([0.0, 1.0]), atol=1e-6, rtol=0)


def test_position_alone_cannot_tell_two_videos_apart_that_share_a_grid(book):
    token = 77
    for rope in ("shared", "paper"):
        own, other = book["position_attention"](token, stream_positions(book["GRID"], rope))
        assert float(own.sum() + other.sum()) == pytest.approx(1)
        assert own.flatten().argmax() == token
        assert torch.allclose(own, other) == (rope == "shared")


def test_halves_differ_only_where_positions_do(book):
    assert max(book["halves"]("shared")) < 1e-4 < 1e-2 < min(book["halves"]("released"))


def test_verdicts_are_those_of_the_interval_over_seeds(book):
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
    assert [book["judged"](g) for g in ([2, 2.1, 1.9], [2, 1, 1], [-2, -2.1, -1.9])] == [
        "supported",
        "undecided",
        "not supported",
    ]


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
