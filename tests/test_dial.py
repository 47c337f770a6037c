"""The dial: a picture for every choice, in the order that its script counts in."""

import io

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from vera_lite import viz
from vera_lite.film import film
from vera_lite.widgets.dial import Dial


def grey(a, b, c):
    return torch.full((1, 2, 4), (a + (b == "y") + c) / 10), f"{a} {b} {c}"


@pytest.fixture
def dial():
    return Dial({"a": [0, 0.5, 2], "b": ["x", "y"], "c": [False, True]}, grey, "title")


def test_every_choice_has_its_picture_and_sentence(dial):
    assert dial.kinds == ["slider", "buttons", "switch"]
    assert dial.labels == [["0", "0.5", "2"], ["x", "y"], ["False", "True"]]
    assert dial.sentences[:4] == ["0 x False", "0 x True", "0 y False", "0 y True"]
    shades = [np.asarray(Image.open(io.BytesIO(png)))[0, 0, 0] for png in dial.pictures]
    assert shades[0] == 0 and shades[11] == round(255 * 0.4) and len(shades) == 12
    assert dial.chosen == [0, 0, 0]


def test_a_still_shows_the_choices_that_were_asked_for(dial):
    sheet = np.asarray(dial.still((2, 1, 1), (0, 0, 0), columns=2))
    tile = sheet.shape[1] // 2
    shades = [sheet[-10, tile // 2, 0], sheet[-10, tile + tile // 2, 0]]
    assert shades == [round(255 * 0.4), 0]


def test_figures_and_films_are_pictures():
    figure = Dial({"a": [1]}, lambda a: Figure(figsize=(1, 1)))
    assert Image.open(io.BytesIO(figure.pictures[0])).size == (viz.DPI, viz.DPI)
    played = Dial({"a": [1]}, lambda a: film({"clip": torch.rand(3, 3, 4, 4)}))
    assert Image.open(io.BytesIO(played.pictures[0])).n_frames == 4


def test_a_dial_without_choice_or_too_large_is_refused():
    with pytest.raises(ValueError, match="needs values"):
        Dial({"a": []}, grey)
    with pytest.raises(ValueError, match=r"2 pictures would put .* MB"):
        Dial({"a": [0, 1]}, lambda a: torch.rand(3, 700, 700))
