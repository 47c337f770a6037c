"""Notebook 07: its helpers say what they claim, and its exercises can be used."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from notebook_cells import BOOKS

BOOK = BOOKS["07_evaluation"]


@pytest.fixture
def book():
    return BOOK.definitions()


def test_the_preserved_region_is_far_from_the_object(book):
    mask = torch.zeros(1, 1, 7, 7)
    mask[..., 3, 3] = 1
    assert (~book["away_from"](mask, 0)).sum() == 1 and (~book["away_from"](mask, 2)).sum() == 25
    assert book["away_from"](mask, 2)[..., 0, 0].all(), "the frame's rim counts"


def test_pooling_is_over_pixels(book):
    a = torch.zeros(2, 1, 3, 4, 4)
    b, where = a.clone(), torch.ones(2, 1, 1, 4, 4, dtype=torch.bool)
    b[0] += 0.1
    values = book["by_clip"](book["psnr_kept"], a, b, where)
    assert values == [pytest.approx(20, abs=1e-4), math.inf]
    assert book["pooled"](book["psnr_kept"], a, b, where) == pytest.approx(10 * math.log10(200), abs=1e-4)


def test_a_simulated_rater_without_errors_prefers_what_is_nearer(book):
    truth = torch.full((2, 3, 4, 4), 0.5)
    book |= {
        "world": SimpleNamespace(composite=[truth]),
        "everywhere": torch.ones(2, 1, 4, 4, dtype=torch.bool),
    }
    near, far = truth + 0.1, truth + 0.2
    rate = book["simulated"]
    generator = np.random.default_rng(0)

    def answer(*videos):
        return rate(SimpleNamespace(item="clip 0", videos=videos), 0, generator)

    assert (answer(near, far), answer(far, near), answer(near, near)) == (2, -2, 0)
    assert answer(near, truth + 0.12) == 1


def test_the_solutions_can_be_used(book, capsys):
    for name in ("kept_mse", "kept_psnr", "corrected"):
        book[name] = BOOK.solution(book, name)
    source = [torch.zeros(2, 3, 8, 8)]
    mask = torch.zeros(2, 1, 8, 8)
    mask[..., :2, :2] = 1
    leaky = source[0].clone()
    leaky[..., 3, 3] = 0.1
    book |= {"world": SimpleNamespace(mask=[mask], source=source), "methods": {"layers": [leaky]}}
    book["leak_by_distance"]()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("exact in 0 of 10 clips") and lines[1].endswith("exact in 1 of 10 clips")
    book["mive_corrected"]()
    out = capsys.readouterr().out
    assert out.count("->") == 8 and "no longer" not in out and "0.0087 -> 0.0174" in out
