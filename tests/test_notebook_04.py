"""Notebook 04: its exercises judge right and wrong answers, its measures say what they claim."""

import re

import pytest
import torch
from notebook_cells import Book
from torch.testing import assert_close

from vera_lite import viz

BOOK = Book("04_granularity_routing")


@pytest.fixture
def book():
    """The notebook's definitions."""
    return BOOK.definitions(LAYERS=6, FULL="L_s 3, lambda 0.1")


# ---------------------------------------------------------------------- exercises

EXERCISES = {"routing_mask": "check_routing_mask", "places_read": "check_places_read"}


@pytest.mark.parametrize("name", EXERCISES)
def test_the_solution_passes(name, book):
    book[EXERCISES[name]](BOOK.solution(book, name))


@pytest.mark.parametrize("name", EXERCISES)
def test_an_unsolved_exercise_says_so(name, book, capsys):
    book["attempt"](name, lambda: book[EXERCISES[name]](book[name]))
    assert capsys.readouterr().out == f"{name}: not solved yet\n"


def mask(rule):
    """An answer to exercise 1: a rule of block (L, 1), token (T,), L_s and K."""
    return lambda layers, routed, lengths: rule(
        torch.arange(layers)[:, None], torch.arange(sum(lengths)), routed, lengths[0]
    )


WRONG_MASKS = {
    "AND the editing tokens": mask(lambda i, j, routed, k: (j < k) ^ (i >= routed)),
    "upside down": mask(lambda i, j, routed, k: (j < k) | (i < routed)),
    "off by one": mask(lambda i, j, routed, k: (j < k) | (i > routed)),
    "every block is given the editing tokens": mask(lambda i, j, routed, k: (i >= routed) & (j >= 0)),
    "boolean": mask(lambda i, j, routed, k: ((j < k) | (i >= routed)).float()),
    "(blocks, tokens) are": mask(lambda i, j, routed, k: ((j < k) | (i >= routed)).T),
    "wrong for L": mask(lambda i, j, routed, k: (j < k + 1) | (i >= routed)),
}


def by_word_alone(words, given, placeholder, tokens, read):
    found = [i for i, word in enumerate(words) if word == placeholder]
    return list(range(len(words) - tokens, len(words))) if read == "last" else found


def always_last(words, given, placeholder, tokens, read):
    return list(range(len(words) - tokens, len(words)))


def always_queries(words, given, placeholder, tokens, read):
    return [i for i, word in enumerate(words) if given[i] and word == placeholder]


def without_the_last(words, given, placeholder, tokens, read):
    right = always_queries if read == "queries" else always_last
    return right(words, given, placeholder, tokens, read)[:-1]


def shifted(words, given, placeholder, tokens, read):
    right = always_queries if read == "queries" else always_last
    return [i - (read == "last") for i in right(words, given, placeholder, tokens, read)]


WRONG_PLACES = {
    "that is padding": by_word_alone,
    "queries: these are the last K places": always_last,
    "last: these are the queries": always_queries,
    "queries: they stand at [4, 5, 6, 7], not at [4, 5, 6]": without_the_last,
    "last: the last 4 places of 10 are [6, 7, 8, 9], not [5, 6, 7, 8]": shifted,
}


@pytest.mark.parametrize("hint", WRONG_MASKS)
def test_a_wrong_mask_is_named(hint, book):
    with pytest.raises(AssertionError, match=re.escape(hint)):
        book["check_routing_mask"](WRONG_MASKS[hint])


@pytest.mark.parametrize("hint", WRONG_PLACES)
def test_wrong_places_are_named(hint, book):
    with pytest.raises(AssertionError, match=re.escape(hint)):
        book["check_places_read"](WRONG_PLACES[hint])


# ---------------------------------------------------------------------- measures


def test_coarse_and_detail_are_told_apart(book):
    video = torch.rand(2, 3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    cells = book["coarse"](video)
    assert_close(cells, book["coarse"](cells))
    assert_close(cells[0, 0, :, :8, :8], video[0, 0, :, :8, :8].mean((1, 2), keepdim=True).expand(3, 8, 8))
    assert book["agreement"](video, video) == pytest.approx([1, 1])
    blurred, flipped = 0.5 * cells + 0.1 * (video - cells), cells - (video - cells)
    assert book["agreement"](blurred, video) == pytest.approx([1, 1])  # contrast does not count
    assert book["agreement"](flipped, video) == pytest.approx([1, -1])


def test_a_share_of_the_way(book):
    assert book["share_after"]({0: [0.2], 3: [0.5], 6: [0.8]}, 3) == pytest.approx(0.5)


def test_neighbours_and_plane(book):
    points = torch.tensor([[0.0, 0, 0], [0, 0.1, 0], [5, 0, 0], [5, 0.1, 0]])
    book["labels"] = torch.tensor([0, 0, 1, 0])
    assert book["neighbour_agrees"](points) == pytest.approx(0.5)
    flat = book["plane"](points)
    assert_close(torch.cdist(flat, flat), torch.cdist(points, points))


def test_claims_need_all_seeds(book, capsys):
    values = {"L_s 3, lambda 0.1": (3, 3, 3), "L_s 6, lambda 0.1": (1, 2, 2), "L_s 0, lambda 0.1": (4, 2, 2)}
    book["report"] = {
        "runs": [
            {"variant": v, "seed": s, "metrics": {"m": x}, "attention": {"a": [x, 2 * x]}}
            for v, seeds in values.items()
            for s, x in reversed(list(enumerate(seeds)))
        ]
    }
    full, gist, everything = (book["variant"](r) for r in (3, 6, 0))
    assert book["of_seeds"](everything, "m") == [4, 2, 2]
    assert book["by_depth"](full, "a") == {1: [3, 3, 3], 2: [6, 6, 6]}
    gains = {peer: book["difference"]("m", full, peer) for peer in (gist, everything)}
    assert gains == {gist: [2, 1, 1], everything: [-1, 1, 1]}
    for claim, gain in gains.items():
        book["judge_claim"](claim, gain)
    book["judge_claim"]("reverse", [-1, -2, -1])
    said = capsys.readouterr().out.splitlines()
    assert [line.split()[-4:] for line in said] == [
        ["of", "3", "seeds", "holds"],
        ["of", "3", "seeds", "unclear"],
        ["of", "3", "seeds", "reversed"],
    ]


# ---------------------------------------------------------------------- pictures


def test_who_sees_shows_what_is_given():
    readers = {"one": torch.tensor([True, False]), "two": torch.tensor([True, True])}
    figure = viz.who_sees(readers, ["a", "b"], ["left", "right"], "title")
    [ax] = figure.axes
    assert figure.get_suptitle() == "title" and [t.get_text() for t in ax.texts] == ["a", "a", "b"]
    colours = [patch.get_facecolor()[:3] for patch in ax.patches]
    assert colours[1] == (1, 1, 1) and colours[0] == colours[2] != colours[3]
    assert [t.get_text() for t in ax.get_yticklabels()] == ["one", "two"]
    assert [t.get_text() for t in figure.legends[0].get_texts()] == ["left", "right"]


def test_points_are_shown_by_group():
    points = {"a": torch.tensor([[0.0, 1], [2, 3]]), "b": torch.tensor([[4.0, 5]])}
    figure = viz.scatter({"left": points, "right": points}, "title")
    for ax, heading in zip(figure.axes, ("left", "right"), strict=True):
        assert ax.get_title() == heading
        shown = [torch.as_tensor(c.get_offsets().data).float() for c in ax.collections]
        assert torch.equal(shown[0], points["a"]) and torch.equal(shown[1], points["b"])
    assert [t.get_text() for t in figure.legends[0].get_texts()] == ["a", "b"]
