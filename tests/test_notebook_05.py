"""Notebook 05: its measures say what they claim."""

import pytest
import torch
from notebook_cells import BOOKS
from torch.testing import assert_close

from vera_lite.diffusion.infonce import info_nce


@pytest.fixture
def book():
    return BOOKS["05_attention_alignment"].definitions()


def test_the_plain_formula_is_the_librarys(book):
    a, b = torch.randn(2, 2, 9, 5, dtype=torch.float64)
    assert_close(book["plain"](a, b), info_nce(a, b)[0])


def test_groups_of_equal_positions(book):
    features = book["of_kinds"]([2, 1])
    assert features.tolist() == [[[1, 0], [1, 0], [0, 1]]]
    solution = BOOKS["05_attention_alignment"].solution(book, "best_estimate")
    assert float(info_nce(features, features)[0]) == pytest.approx(solution([0, 0, 1]), abs=1e-4)


def test_a_student_climbs_beyond_a_copy(book):
    common = 2 * torch.nn.functional.one_hot(torch.tensor(0), 4)
    reference = common + torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(1))
    climbed = book["trained_on_info_nce"](reference)
    assert (info_nce(climbed, reference)[0] > info_nce(reference, reference)[0] + 0.01).all()


def test_a_learned_critic_forgives_a_rotation(book):
    anchor = torch.randn(6, 4, generator=torch.Generator().manual_seed(1))
    book |= {"anchor": anchor}
    turned = anchor @ torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(2)))[0]
    before, after = (
        info_nce(x[None, :3], anchor[None, :3])[0] for x in (turned, book["learned_critic"](turned))
    )
    assert before < after


def test_differences_are_taken_seed_by_seed(book):
    runs = {"L_s 1, lambda 0.1": ([4.0, 2], [6.0, 4]), "L_s 1, lambda 0": ([5.0, 5], [3.0, 3])}
    book["report"] = {
        "runs": [
            {"variant": v, "seed": s, "metrics": {"m": a[0]}, "attention": {"rank": a}}
            for v, seeds in runs.items()
            for s, a in enumerate(seeds)
        ]
    }
    ours, theirs = book["variant"](), book["variant"](0)
    assert [book["mean_over_blocks"](v, "rank") for v in (ours, theirs)] == [[3, 5], [5, 3]]
    assert book["nearer"]("rank", ours, theirs) == [2, -2]
    assert book["difference"]("m", ours, theirs) == [-1, 3]
