"""The exercises of the notebooks accept what is right, however it is written, and name mistakes."""

import copy
import inspect

import numpy as np
import pytest
import torch
from notebook_cells import BOOKS
from right_answers import RIGHT

from vera_lite import exercises
from vera_lite.exercises.judge import EXERCISES, problem_of

SEED = 7
ASKED = [(book, name) for book in BOOKS for name in BOOKS[book].exercises]
MISTAKES = [(name, hint) for name in EXERCISES for hint in EXERCISES[name].mistakes]


def problem(name, answer, seed=SEED):
    return problem_of(answer, EXERCISES[name], seed)


def converted(value, into):
    """A result with another type of floating numbers; masks and whole numbers stay as they are."""
    if isinstance(value, tuple | list):
        return type(value)(converted(part, into) for part in value)
    if isinstance(value, float) or (torch.is_tensor(value) and value.is_floating_point()):
        return into(torch.as_tensor(value))
    return value


def nudged(value):
    """A result that is a little wrong."""
    if isinstance(value, tuple | list):
        return [nudged(value[0]), *value[1:]]
    if torch.is_tensor(value) and value.dtype == torch.bool:
        return value ^ (torch.arange(value.numel()).view(value.shape) == 0)
    if isinstance(value, dict):
        return value | {"more": 1}
    return -1 if value is None else value + 1 + value // 10 if isinstance(value, int) else value * 1.3 + 0.3


def test_the_notebooks_ask_every_exercise_once_and_three_or_four_each():
    assert sorted(name for _, name in ASKED) == sorted(EXERCISES) == sorted(RIGHT)
    assert {len(book.exercises) for book in BOOKS.values()} <= {3, 4}
    assert all(len(EXERCISES[name].mistakes) >= 4 and len(RIGHT[name]) >= 3 for name in EXERCISES)


@pytest.mark.parametrize(("book", "name"), ASKED)
def test_the_solution_in_the_notebook_passes(book, name):
    definitions = BOOKS[book].definitions()
    for step in BOOKS[book].exercises:  # a solution may call those before it
        definitions[step] = BOOKS[book].solution(definitions, step)
    assert problem(name, definitions[name]) is None


@pytest.mark.parametrize("name", EXERCISES)
@pytest.mark.parametrize("seed", range(3))
def test_right_answers_pass_however_they_are_written(name, seed):
    assert [problem(name, answer, seed) for answer in RIGHT[name]] == [None] * len(RIGHT[name])


@pytest.mark.parametrize("name", EXERCISES)
@pytest.mark.parametrize(
    "into", [torch.Tensor.double, torch.Tensor.half, torch.Tensor.bfloat16, lambda x: x.double().numpy()]
)
def test_any_floating_type_is_accepted(name, into):
    right = EXERCISES[name].right
    if name in ("block_cost", "state_bytes") and into is torch.Tensor.half:
        pytest.skip("float16 has no such large numbers")
    assert problem(name, lambda *arguments: converted(right(*arguments), into)) is None


@pytest.mark.parametrize(("name", "hint"), MISTAKES)
def test_a_mistake_is_named(name, hint):
    assert {problem(name, EXERCISES[name].mistakes[hint], seed) for seed in range(3)} == {hint}


@pytest.mark.parametrize("name", EXERCISES)
def test_what_no_hint_knows_is_refused_too(name):
    """A forgotten return, the answer to another call, a small error, another form, a changed argument."""
    right, [first, *_] = EXERCISES[name].right, EXERCISES[name].cases(exercises.judge.Draw(SEED))
    constant = right(*copy.deepcopy(first))
    assert "`return` missing" in problem(name, lambda *arguments: None)
    for wrong in (
        lambda *arguments: constant,
        lambda *arguments: nudged(right(*arguments)),
        lambda *arguments: [right(*arguments)],
        lambda *arguments: "done",
        lambda *arguments: np.nan,
    ):
        assert problem(name, wrong) is not None


def in_place(edit, alpha, source):
    result = EXERCISES["paste"].right(edit, alpha, source)
    alpha.zero_()
    return result


def test_an_argument_must_stay_as_it_is():
    said = problem("paste", in_place)
    assert said == "the result is right, but the function changes its argument alpha"
    both = list(inspect.signature(EXERCISES["corrected"].right).parameters)
    assert both == ["p_values"]
    assert "p_values" in problem("corrected", lambda p: (EXERCISES["corrected"].right(p), p.sort())[0])


def test_a_check_says_how_it_stands(capsys):
    def shift(layer, pixels):
        raise NotImplementedError

    exercises.check(shift)
    exercises.check(EXERCISES["shift"].right)
    assert exercises.use(lambda: 5) == 5 and exercises.use(lambda: shift(0, 0)) is None
    assert capsys.readouterr().out == (
        "shift: not solved yet\nshift: solved\n<lambda>: solve the exercises above first\n"
    )


def test_a_wrong_answer_fails_with_its_name_and_can_be_drawn_again():
    def shift(layer, pixels):
        return layer * 2

    with pytest.raises(AssertionError, match=r"^shift: .*`seed=3` draws the same arguments again"):
        exercises.check(shift, seed=3)
    with pytest.raises(ValueError, match="keep the name"):
        exercises.check(len)


def test_the_students_own_errors_are_shown_as_they_are():
    def shift(layer, pixels):
        return layer + undefined  # noqa: F821

    with pytest.raises(NameError):
        exercises.check(shift)
