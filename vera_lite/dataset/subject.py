"""How a person says what the subject of a clip is. Nothing here needs torch or OpenCV."""

from typing import Any

from vera_lite.errors import UserError

#: x, y, width and height in pixels.
Box = tuple[int, int, int, int]
Point = tuple[int, int]


def parse_subject(text: str) -> tuple[str, Box | Point | str | None]:
    """Read a subject.

    ``person``; ``moving``; ``moving:X,Y,W,H``, what moves in a box; ``X,Y,W,H``, what is in it at first; or,
    by SAM 2, ``sam2:X,Y,W,H``, the same in longer clips, ``sam2:X,Y``, what is at that point at first, and
    ``sam2:WORDS``, what the words name.

    Returns:
        "person", "moving", "box" or "sam2"; and the box, the point or the words, if there are some.

    Raises:
        UserError: it is none of these.
    """
    if text in ("person", "moving"):
        return text, None
    kind, _, numbers = text.rpartition(":")
    place: Any = None
    try:
        place = tuple(int(number) for number in numbers.split(","))
        if len(place) != 4 and not (len(place) == 2 and kind == "sam2"):
            raise ValueError("neither a box nor a point")
    except ValueError:
        if kind == "sam2" and numbers.strip(" ."):
            return kind, numbers.strip(" .")
        kind = "unknown"
    if kind not in ("", "moving", "sam2"):
        raise UserError(
            f"the subject is person, moving, moving:X,Y,W,H, X,Y,W,H in pixels, or sam2:WORDS, not {text!r}."
        )
    return kind or "box", place


def check_box(box: Box | Point, height: int, width: int) -> None:
    """UserError unless a box or a point is a part of a frame, and not all of it."""
    x, y, w, h = (*box, 1, 1)[:4]
    if min(x, y, w - 1, h - 1) < 0 or x + w > width or y + h > height or w * h == width * height:
        raise UserError(f"the box {x},{y},{w},{h} is no part of a frame of {width}x{height} pixels.")
