"""Notebook 04: its measures say what they claim."""

import pytest
import torch
from notebook_cells import BOOKS
from torch.testing import assert_close


@pytest.fixture
def book():
    return BOOKS["04_granularity_routing"].definitions()


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


def test_differences_are_taken_seed_by_seed(book):
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
