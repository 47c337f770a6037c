"""The exercises of the notebooks accept their solutions and name the likely mistakes."""

import re

import pytest
import torch
from notebook_cells import BOOKS
from wrong_answers import WRONG

EXERCISES = [(book, exercise) for book in BOOKS for exercise in BOOKS[book].checks]
MISTAKES = [(*at, hint) for at in EXERCISES for hint in WRONG[at[1]]]


def attempt(book, exercise, answer):
    """The notebook's check of an answer: a function, or a function of the notebook's definitions."""
    torch.manual_seed(0)
    names = BOOKS[book].definitions()
    return names[BOOKS[book].checks[exercise]](answer)


def test_every_exercise_has_wrong_answers():
    assert sorted(exercise for _, exercise in EXERCISES) == sorted(WRONG)
    assert all(len(book.checks) == 2 for book in BOOKS.values())


@pytest.mark.parametrize(("book", "exercise"), EXERCISES)
def test_the_solution_passes(book, exercise):
    attempt(book, exercise, BOOKS[book].solution(BOOKS[book].definitions(), exercise))


@pytest.mark.parametrize(("book", "exercise"), EXERCISES)
def test_an_unsolved_exercise_says_so(book, exercise, capsys):
    names = BOOKS[book].definitions()
    names["attempt"]("exercise 1", lambda: names[BOOKS[book].checks[exercise]](names[exercise]))
    assert capsys.readouterr().out == "exercise 1: not solved yet\n"


@pytest.mark.parametrize(("book", "exercise", "hint"), MISTAKES)
def test_a_wrong_answer_is_named(book, exercise, hint):
    with pytest.raises(AssertionError, match=re.escape(hint)):
        attempt(book, exercise, WRONG[exercise][hint])


def test_the_solution_leaves_its_arguments_alone():
    book = BOOKS["00_start_here"]
    move_right = book.solution(book.definitions(), "move_right")
    edit, source = torch.rand(2, 1, 3, 4, 6)
    alpha = torch.rand(1, 1, 4, 6)
    before = alpha.clone()
    move_right(edit, alpha, source, 2)
    assert torch.equal(alpha, before)
