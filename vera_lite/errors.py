"""Errors that a person can mend, and the checks of arguments that all rooms share."""

from collections.abc import Iterable


class UserError(ValueError):
    """A mistake in what a person typed or in a file; the command line prints it as one sentence and exits
    with 2. Wrong use of the Python API raises ValueError or TypeError instead."""


def check_choice(name: str, value: object, choices: Iterable[object]) -> None:
    """ValueError if ``value`` is none of ``choices``."""
    choices = tuple(choices)
    if value not in choices:
        raise ValueError(f"{name} is one of {', '.join(map(str, choices))}, not {value!r}.")


def check_tensor(name: str, tensor, *shape: int | str) -> None:
    """ValueError unless ``tensor`` is floating and of this shape; a letter stands for any length."""
    fits = tensor.ndim == len(shape) and tensor.is_floating_point() and tensor.numel() > 0
    sides = zip(tensor.shape, shape, strict=False)
    if not fits or any(isinstance(wanted, int) and side != wanted for side, wanted in sides):
        wanted = ", ".join(map(str, shape))
        raise ValueError(f"{name} is {tensor.dtype} {tuple(tensor.shape)}; it must be floating ({wanted}).")
