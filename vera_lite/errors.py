"""Errors that a person can mend, and the checks of arguments that all rooms share."""

from collections.abc import Sequence
from typing import Literal, get_args, get_origin, get_type_hints

#: Numbers that a person may choose, and their ranges.
RANGES = {
    "seed": (0, 2**63 - 1),
    "steps": (1, 1000),
    "shift": (1e-3, 1e3),
    "guidance": (0, 100),
    "alpha_floor": (0, 0.999),
}
_LONGEST_PROMPT = 2000


class UserError(ValueError):
    """A mistake in what a person typed or in a file; the command line prints it as one sentence and exits
    with 2. Wrong use of the Python API raises ValueError or TypeError instead."""


class Notice(UserWarning):
    """A warning for the person at the command line, which prints it as one sentence; the work goes on."""


def check_choices(config) -> None:
    """Raise ValueError if a field of a dataclass has none of the values of its ``Literal`` annotation."""
    for name, kind in get_type_hints(type(config)).items():
        value = getattr(config, name)
        if get_origin(kind) is Literal and value not in get_args(kind):
            raise ValueError(f"{name} is one of {', '.join(map(str, get_args(kind)))}, not {value!r}.")


def check_sizes(config, *names: str) -> None:
    """Raise ValueError if one of these fields of a dataclass (a number or a tuple) has a number below 1."""
    for name in names:
        value = getattr(config, name)
        if min(value if isinstance(value, tuple | list) else [value]) < 1:
            raise ValueError(f"{name} must be at least 1, not {value}.")


def check_number(name: str, value: object) -> None:
    """Raise UserError unless ``value`` is a number in the range of ``name``, see :data:`RANGES`."""
    low, high = RANGES[name]
    kind = int if name in ("seed", "steps") else int | float
    if not isinstance(value, kind) or isinstance(value, bool) or not low <= value <= high:  # refuses nan
        raise UserError(f"{name} lies in [{low:g}, {high:g}], not {value}.")


def check_prompt(text: str) -> None:
    """Raise UserError if ``text`` is blank, or longer than any model reads."""
    if not text.strip():
        raise UserError("the prompt is empty: say what to do.")
    if len(text) > _LONGEST_PROMPT:
        raise UserError(f"the prompt has {len(text):,} characters; give at most {_LONGEST_PROMPT:,}.")


def unknown_word(word: str, known: Sequence[str]) -> UserError:
    """The error for a word that is not a known one; it names the closest ones."""
    import difflib

    close = difflib.get_close_matches(word.lower(), known, n=3, cutoff=0.7)
    hint = f" Did you mean {' or '.join(map(repr, close))}?" if close else ""
    return UserError(f"unknown word {word[:40]!r}.{hint} Known: {', '.join(known)}.")


def check_tensor(name: str, tensor, *shape: int | str) -> None:
    """Raise ValueError unless ``tensor`` is floating and has this shape; a letter stands for any length."""
    fits = tensor.ndim == len(shape) and tensor.is_floating_point() and tensor.numel() > 0
    sides = zip(tensor.shape, shape, strict=False)
    if not fits or any(isinstance(wanted, int) and side != wanted for side, wanted in sides):
        wanted = ", ".join(map(str, shape))
        raise ValueError(f"{name} is {tensor.dtype} {tuple(tensor.shape)}; it must be floating ({wanted}).")


def check_pixels(name: str, pixels) -> None:
    """Raise ValueError if pixels are not finite, or outside [0, 1] by more than rounding."""
    low, high = (v.item() for v in pixels.aminmax())
    if not (low >= -1e-3 and high <= 1 + 1e-3):  # nan fails every comparison
        raise ValueError(f"{name} ranges from {low:g} to {high:g}; it must lie in [0, 1].")
