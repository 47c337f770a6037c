"""Errors that a person can mend, and one check of arguments."""

from collections.abc import Iterable


class UserError(ValueError):
    """A mistake in what a person typed or in a file; the command line prints it as one sentence and exits
    with 2."""


def check_choice(name: str, value: object, choices: Iterable[object]) -> None:
    """ValueError if ``value`` is none of ``choices``."""
    choices = tuple(choices)
    if value not in choices:
        raise ValueError(f"{name} is one of {', '.join(map(str, choices))}, not {value!r}.")
