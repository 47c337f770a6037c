"""Notebook 05: its exercises judge right and wrong answers, its measures say what they claim."""

import math
import re

import pytest
import torch
from notebook_cells import Book
from torch.nn import functional as F
from torch.testing import assert_close

from vera_lite import viz
from vera_lite.diffusion.infonce import info_nce

BOOK = Book("05_attention_alignment")


@pytest.fixture
def book():
    """The notebook's definitions."""
    torch.manual_seed(0)
    return BOOK.definitions(LAYERS=2, S=6, D=4, seed=0, learning_steps=60)


# ---------------------------------------------------------------------- exercises

EXERCISES = {"symmetric_info_nce": "check_info_nce", "best_estimate": "check_best_estimate"}


@pytest.mark.parametrize("name", EXERCISES)
def test_the_solution_passes(name, book):
    book[EXERCISES[name]](BOOK.solution(book, name))


@pytest.mark.parametrize("name", EXERCISES)
def test_an_unsolved_exercise_says_so(name, book, capsys):
    book["attempt"](name, lambda: book[EXERCISES[name]](book[name]))
    assert capsys.readouterr().out == f"{name}: not solved yet\n"


def both(logits):
    return (logits.log_softmax(1).diagonal() + logits.log_softmax(0).diagonal()) / 2


def cosines(a, b):
    return F.normalize(a, dim=1) @ F.normalize(b, dim=1).T


WRONG_ESTIMATES = {
    "the sign": lambda a, b, tau: -both(cosines(a, b) / tau).mean(),
    "not normalised": lambda a, b, tau: both(a @ b.T / tau).mean(),
    "divide by the temperature": lambda a, b, tau: both(cosines(a, b) * tau).mean(),
    "let each A* find its A as well": lambda a, b, tau: (
        (cosines(a, b) / tau).log_softmax(1).diagonal().mean()
    ),
    "let each A find its A* as well": lambda a, b, tau: (
        (cosines(a, b) / tau).log_softmax(0).diagonal().mean()
    ),
    "the sum of both directions": lambda a, b, tau: 2 * both(cosines(a, b) / tau).mean(),
    "the sum over positions": lambda a, b, tau: both(cosines(a, b) / tau).sum(),
    "no negatives": lambda a, b, tau: cosines(a, b).diagonal().mean() / tau,
    "take the mean": lambda a, b, tau: both(cosines(a, b) / tau),
    "but it must be": lambda a, b, tau: both(cosines(a, b) / tau).mean() - 0.1,
}


def sizes(labels):
    return [labels.count(label) for label in set(labels)]


WRONG_BESTS = {
    "all alike": lambda labels: -math.log(len(labels)),
    "a mean over groups": lambda labels: -sum(map(math.log, sizes(labels))) / len(sizes(labels)),
    "the mean size": lambda labels: -math.log(len(labels) / len(sizes(labels))),
    "not the group once": lambda labels: -sum(map(math.log, sizes(labels))) / len(labels),
    "the sign": lambda labels: sum(k * math.log(k) for k in sizes(labels)) / len(labels),
    "but it must be": lambda labels: -1.0,
}


@pytest.mark.parametrize("hint", WRONG_ESTIMATES)
def test_a_wrong_estimate_is_named(hint, book):
    with pytest.raises(AssertionError, match=re.escape(hint)):
        book["check_info_nce"](WRONG_ESTIMATES[hint])


@pytest.mark.parametrize("hint", WRONG_BESTS)
def test_a_wrong_best_is_named(hint, book):
    with pytest.raises(AssertionError, match=re.escape(hint)):
        book["check_best_estimate"](WRONG_BESTS[hint])


# ---------------------------------------------------------------------- measures


def test_the_plain_formula_is_the_librarys(book):
    a, b = torch.randn(2, 2, 9, 5, dtype=torch.float64)
    assert_close(book["plain"](a, b), info_nce(a, b)[0])


def test_groups_of_equal_positions(book):
    features = book["of_kinds"]([2, 1])
    assert features.tolist() == [[[1, 0], [1, 0], [0, 1]]]
    solution = BOOK.solution(book, "best_estimate")
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


def test_means_over_blocks_and_claims(book, capsys):
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
    book["judge_claim"]("a claim", [2, -2])
    assert capsys.readouterr().out.split()[-5:] == ["1", "of", "2", "seeds", "unclear"]
    assert [book["verdict"](g) for g in ([1, 2], [-1, -2])] == ["holds", "reversed"]


# ---------------------------------------------------------------------- pictures


def test_lines_show_mean_seeds_and_range():
    lines = {"ours": {0: [1.0, 3.0], 2: [4.0]}}
    figure = viz.line_panels({"a": lines, "b": {"theirs": {1: [0.0]}}}, "title", "x", {"a": ("chance", 2.0)})
    left, right = figure.axes
    assert figure.get_suptitle() == "title" and [ax.get_title() for ax in (left, right)] == ["a", "b"]
    assert left.lines[0].get_xydata().tolist() == [[0, 2], [2, 4]]  # means
    assert left.lines[1].get_xydata().tolist() == [[0, 1], [0, 3]]  # seeds
    [band] = left.collections
    assert {tuple(p) for p in band.get_paths()[0].vertices.tolist()} == {(0, 1), (0, 3), (2, 4)}
    assert left.lines[-1].get_ydata() == [2, 2]
    names = [t.get_text() for t in figure.legends[0].get_texts()]
    assert names == ["ours", "chance", "theirs"]
    assert left.get_xlim() == right.get_xlim() and left.get_ylim() != right.get_ylim()
    figure = viz.line_panels({"a": lines, "b": {"theirs": {1: [0.0]}}}, "title", "x", sharey=True)
    assert figure.axes[0].get_ylim() == figure.axes[1].get_ylim()


def test_matrices_can_be_other_things_than_attention():
    figure = viz.attention_matrices({"m": torch.eye(2)}, "ab", "title", labels=("row", "column", "bar"))
    ax, bar = figure.axes
    assert (ax.get_ylabel(), ax.get_xlabel(), bar.get_ylabel()) == ("row", "column", "bar")
