"""What judges an answer to an exercise: arguments drawn at random, the right results, and known mistakes."""

from __future__ import annotations

import copy
import inspect
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Number
from typing import Any

import numpy as np
import torch
from torch import Tensor

#: Relative and absolute difference between equal results, by the type of the answer's numbers.
TOLERANCE = {torch.float16: 2e-2, torch.bfloat16: 5e-2}
_TOLERANCE = 1e-4  # float32, float64, Python's floats

#: Name of a function that a student writes -> its exercise.
EXERCISES: dict[str, Exercise] = {}


class Draw:
    """Random arguments; the same seed draws the same ones."""

    def __init__(self, seed: int):
        self.generator = torch.Generator().manual_seed(seed)

    def uniform(self, *shape: int) -> Tensor:
        """Numbers in [0, 1)."""
        return torch.rand(*shape, generator=self.generator)

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator)

    def integer(self, low: int, high: int) -> int:
        """``low`` to ``high``, both included."""
        return int(torch.randint(low, high + 1, (), generator=self.generator))


@dataclass(frozen=True)
class Exercise:
    """A function to write, and what is needed to judge it.

    Args:
        right: the function as it should be.
        cases: draws the arguments of some calls.
        mistakes: hint -> the function with this mistake, and no other.
        view: takes a result and its arguments to what is compared; None: the result itself.
    """

    right: Callable
    cases: Callable[[Draw], Iterable[tuple]]
    mistakes: Mapping[str, Callable]
    view: Callable | None = None

    def results(self, function: Callable, cases: Sequence[tuple]) -> list:
        """What a function makes of copies of the arguments, as it is compared."""
        results = [function(*copy.deepcopy(case)) for case in cases]
        return [self.seen(result, case) for result, case in zip(results, cases, strict=True)]

    def seen(self, result: Any, case: tuple) -> Any:
        return result if self.view is None else self.view(result, *case)


def exercise(
    cases: Callable[[Draw], Iterable[tuple]], mistakes: Mapping[str, Callable], view: Callable | None = None
) -> Callable[[Callable], Callable]:
    """Register the decorated function as the right answer to the exercise of its name; see Exercise."""

    def register(right: Callable) -> Callable:
        EXERCISES[right.__name__] = Exercise(right, cases, mistakes, view)
        return right

    return register


def check(answer: Callable, seed: int | None = None) -> None:
    """Judge a function that a student wrote, and print "solved" or "not solved yet".

    It is called with arguments that are drawn anew each time. Results may be tensors, arrays or numbers of
    any floating type.

    Args:
        answer: the function; its name says which exercise it answers.
        seed: of the arguments, to see the same ones again.

    Raises:
        AssertionError: the answer is wrong; the message names the mistake where it is a known one.
        ValueError: no exercise has this name.
    """
    name = getattr(answer, "__name__", str(answer))
    if name not in EXERCISES:
        raise ValueError(f"no exercise is called {name}: keep the name of the function.")
    seed = random.SystemRandom().randrange(10_000) if seed is None else seed
    try:
        if problem := problem_of(answer, EXERCISES[name], seed):
            raise AssertionError(f"{name}: {problem}")
    except NotImplementedError:
        return print(f"{name}: not solved yet")
    print(f"{name}: solved")


def use(function: Callable) -> Any:
    """Call a function that needs solved exercises, and return its result; say so if one is not solved."""
    try:
        return function()
    except NotImplementedError:
        return print(f"{function.__name__}: solve the exercises above first")


def problem_of(answer: Callable, exercise: Exercise, seed: int) -> str | None:
    """What is wrong with an answer; None if nothing is."""
    cases = list(exercise.cases(Draw(seed)))
    names = list(inspect.signature(exercise.right).parameters)
    results, changed = [], set()
    for case in cases:
        given = copy.deepcopy(case)
        results.append(answer(*given))
        changed |= {name for name, a, b in zip(names, case, given, strict=True) if not same(b, a)}
    right = exercise.results(exercise.right, cases)
    if all(result is None for result in results) and any(r is not None for r in right):
        return "the function returns None: is its `return` missing?"
    try:
        found = [exercise.seen(result, case) for result, case in zip(results, cases, strict=True)]
        converted = [normal(result) for result in found]
    except Exception as error:  # whatever a view or a conversion makes of a result of another form
        return f"the result has another form than asked for ({type(error).__name__}: {error})"
    if all(map(same, found, right)):
        if changed:
            return (
                f"the result is right, but the function changes its argument {' and '.join(sorted(changed))}"
            )
        return None
    for hint, wrong in exercise.mistakes.items():
        if all(map(same, found, exercise.results(wrong, cases))):
            return hint
    at = next(i for i in range(len(cases)) if not same(found[i], right[i]))
    difference = describe(converted[at], normal(right[at]))
    return f"{difference} (call {at + 1} of {len(cases)}; `seed={seed}` draws the same arguments again)"


# --- comparing --------------------------------------------------------------------------------------------


def normal(value: Any) -> Any:
    """A result as a tensor, a list of results, a dict of results, a string or None.

    Raises:
        TypeError: it is something else, such as a function.
    """
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, Tensor):
        return value.detach().cpu()
    if isinstance(value, Number | np.generic | np.ndarray):
        # float64 also for Python's numbers, which torch would round to float32
        array = np.asarray(value)
        return torch.as_tensor(array.astype(float) if array.dtype.kind == "f" else array)
    if isinstance(value, Mapping):
        return {key: normal(value[key]) for key in sorted(value)}
    if isinstance(value, Iterable):
        parts = [normal(part) for part in value]
        if parts and all(isinstance(part, Tensor) and part.shape == parts[0].shape for part in parts):
            return torch.stack(parts)  # [[1, 2], [3, 4]] is the tensor that it spells
        return parts
    raise TypeError(f"{type(value).__name__} is no result")


def same(found: Any, wanted: Any) -> bool:
    """Whether two results are equal within rounding; a mask must be boolean, whole numbers must be exact."""
    found, wanted = normal(found), normal(wanted)
    if isinstance(wanted, Tensor):
        if not isinstance(found, Tensor) or found.shape != wanted.shape:
            return False
        if wanted.dtype == torch.bool and found.dtype != torch.bool:
            return False
        within = max(TOLERANCE.get(x.dtype, _TOLERANCE) for x in (found, wanted))
        if not wanted.is_floating_point():
            within = 1e-6  # a whole number may come as float32, and must be that number
        return torch.allclose(found.double(), wanted.double(), rtol=within, atol=within, equal_nan=True)
    if isinstance(wanted, list | dict):
        if type(found) is not type(wanted) or len(found) != len(wanted):
            return False
        if isinstance(wanted, dict):
            return found.keys() == wanted.keys() and all(same(found[key], wanted[key]) for key in wanted)
        return all(map(same, found, wanted))
    return found == wanted if not isinstance(found, Tensor) else False


def describe(found: Any, wanted: Any) -> str:
    """How a wrong result differs from the right one."""
    if isinstance(wanted, list) and isinstance(found, list) and len(found) == len(wanted):
        part = next(i for i in range(len(wanted)) if not same(found[i], wanted[i]))
        return f"part {part + 1} of the result: {describe(found[part], wanted[part])}"
    if not isinstance(wanted, Tensor) or not isinstance(found, Tensor):
        return f"the result is {short(found)}, but it must be {short(wanted)}"
    if found.shape != wanted.shape:
        return f"the result has the shape {tuple(found.shape)}, but it must be {tuple(wanted.shape)}"
    if wanted.dtype == torch.bool and found.dtype != torch.bool:
        return f"the result is of {found.dtype}, but it must be boolean"
    if wanted.numel() <= 8:
        return f"the result is {short(found)}, but it must be {short(wanted)}"
    away = (found.double() - wanted.double()).abs()
    if not away.isfinite().all():
        return "the result is not finite where it must be"
    worst = tuple(int(i) for i in np.unravel_index(int(away.argmax()), away.shape))
    place = ", ".join(map(str, worst))
    return f"at [{place}] the result is {found[worst]:.4g}, but it must be {wanted[worst]:.4g}"


def short(value: Any) -> str:
    """A result in a few characters."""
    if isinstance(value, Tensor):
        values = value.tolist()
        flat = values if isinstance(values, list) and value.ndim == 1 else [values]
        shown = [f"{v:.4g}" if isinstance(v, float) else str(v) for v in flat]
        text = f"[{', '.join(shown)}]" if value.ndim else shown[0]
    elif isinstance(value, list):
        text = f"[{', '.join(map(short, value))}]"
    else:
        text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
