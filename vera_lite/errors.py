"""Errors that a person can mend, and the checks of arguments that all rooms share."""

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
    """What a person should know although the work goes on; the command line prints it as one sentence."""


def check_choices(config) -> None:
    """ValueError if a field of a dataclass is none of the values that its ``Literal`` annotation lists."""
    for name, kind in get_type_hints(type(config)).items():
        value = getattr(config, name)
        if get_origin(kind) is Literal and value not in get_args(kind):
            raise ValueError(f"{name} is one of {', '.join(map(str, get_args(kind)))}, not {value!r}.")


def check_sizes(config, *names: str) -> None:
    """ValueError if one of these fields of a dataclass, numbers or tuples of numbers, has one below 1."""
    for name in names:
        value = getattr(config, name)
        if min(value if isinstance(value, tuple | list) else [value]) < 1:
            raise ValueError(f"{name} must be at least 1, not {value}.")


def check_number(name: str, value: object) -> None:
    """UserError unless ``value`` is a number in the range that :data:`RANGES` gives to ``name``."""
    low, high = RANGES[name]
    kind = int if name in ("seed", "steps") else int | float
    if not isinstance(value, kind) or isinstance(value, bool) or not low <= value <= high:  # refuses nan
        raise UserError(f"{name} lies in [{low:g}, {high:g}], not {value}.")


def check_prompt(text: str) -> None:
    """UserError if ``text`` says nothing, or more than any model reads."""
    if not text.strip():
        raise UserError("the prompt is empty: say what to do.")
    if len(text) > _LONGEST_PROMPT:
        raise UserError(
            f"the prompt has {len(text):,} characters; at most {_LONGEST_PROMPT:,} are read: say it shorter."
        )


def check_tensor(name: str, tensor, *shape: int | str) -> None:
    """ValueError unless ``tensor`` is floating and of this shape; a letter stands for any length."""
    fits = tensor.ndim == len(shape) and tensor.is_floating_point() and tensor.numel() > 0
    sides = zip(tensor.shape, shape, strict=False)
    if not fits or any(isinstance(wanted, int) and side != wanted for side, wanted in sides):
        wanted = ", ".join(map(str, shape))
        raise ValueError(f"{name} is {tensor.dtype} {tuple(tensor.shape)}; it must be floating ({wanted}).")
