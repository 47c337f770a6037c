"""Notebook 00: its exercises judge right and wrong answers."""

import re

import pytest
import torch
from notebook_cells import Book

from vera_lite.media.clip import composite

BOOK = Book("00_start_here")
EXERCISES = {"paste": "check_paste", "move_right": "check_move"}


@pytest.fixture
def book():
    return BOOK.definitions()


@pytest.mark.parametrize("name", EXERCISES)
def test_the_solution_passes(name, book):
    book[EXERCISES[name]](BOOK.solution(book, name))


@pytest.mark.parametrize("name", EXERCISES)
def test_an_unsolved_exercise_says_so(name, book, capsys):
    book["attempt"](name, lambda: book[EXERCISES[name]](book[name]))
    assert capsys.readouterr().out == f"{name}: not solved yet\n"


def roll_both(edit, alpha, source, n):
    return composite(edit.roll(n, -1), alpha.roll(n, -1), source)


def to_the_left(edit, alpha, source, n):
    edit, alpha = edit.roll(-n, -1), alpha.roll(-n, -1)
    alpha[..., -n:] = 0
    return composite(edit, alpha, source)


WRONG = {
    "paste": {
        "swapped": lambda e, a, s: a * s + (1 - a) * e,
        "straight colour": lambda e, a, s: e + (1 - a) * s,
        "1 - alpha": lambda e, a, s: a * e + s,
        "0 * inf is nan": lambda e, a, s: a * e + (1 - a) * s,
    },
    "move_right": {
        "matte has to move": lambda e, a, s, n: composite(e.roll(n, -1), a, s),
        "colour has to move": lambda e, a, s, n: composite(e, a.roll(n, -1), s),
        "moved the source": lambda e, a, s, n: composite(e, a, s).roll(n, -1),
        "came back on the left": roll_both,
        "to the left": to_the_left,
    },
}


@pytest.mark.parametrize(("name", "hint"), [(n, h) for n, hints in WRONG.items() for h in hints])
def test_a_wrong_answer_is_named(name, hint, book):
    with pytest.raises(AssertionError, match=re.escape(hint)):
        book[EXERCISES[name]](WRONG[name][hint])


def test_the_solution_leaves_its_arguments_alone(book):
    move_right = BOOK.solution(book, "move_right")
    edit, source = torch.rand(2, 1, 3, 4, 6)
    alpha = torch.rand(1, 1, 4, 6)
    before = alpha.clone()
    move_right(edit, alpha, source, 2)
    assert torch.equal(alpha, before)
