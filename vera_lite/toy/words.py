"""The words of the toy world, and sentences made of them.

Sentences are made of *facts*: the dictionaries that renderers give each clip as its ``attributes``. A thing
has ``colour, texture, shape, place, motion``, or ``colour, noun, place, motion`` (the colour is None if the
noun has its own). A background has ``colour, pattern``, or a ``name``.
"""

import torch
from torch import Tensor

SHAPES = ("circle", "square", "triangle", "ring")
COLOURS = {  # name -> hue in degrees; far enough apart for a judge
    "red": 0.0,
    "yellow": 55.0,
    "green": 120.0,
    "cyan": 180.0,
    "blue": 230.0,
    "purple": 290.0,
}
TEXTURES = ("plain", "striped", "dotted")
PLACES = (  # row by row, so that index = 3 * row + column
    "top left", "top", "top right",
    "left", "centre", "right",
    "bottom left", "bottom", "bottom right",
)  # fmt: skip
MOTIONS = ("still", "left", "right", "up", "down")
PATTERNS = ("plain", "vertical stripes", "horizontal stripes", "checks", "clouds")


def colour_index(hue: Tensor) -> Tensor:
    """Positions in ``COLOURS`` of the colours nearest to hues in degrees, of any shape."""
    return ((hue[..., None] - torch.tensor(list(COLOURS.values())) + 180) % 360 - 180).abs().argmin(-1)


def nearest_colour(hue: Tensor) -> list[str]:
    """Names of hues (B,) in degrees."""
    return [list(COLOURS)[k] for k in colour_index(hue).tolist()]


def instruction(facts: dict) -> str:
    """The sentence that asks for the edit of a :class:`~vera_lite.toy.world.ToyBatch` clip."""
    if facts["task"] == "background":
        return f"change the background to {describe_background(new_background(facts))}"
    if facts["task"] == "remove":
        return f"remove the {describe_object(facts)}"
    sentence = f"add {a(describe_object(facts))} at the {facts['place']} {describe_motion(facts)}"
    sentence += " with a shadow" if facts["shadow"] else ""
    return sentence + (" behind the other object" if facts["behind"] else "")


def new_background(facts: dict) -> dict:
    """The facts of the background that a "background" clip asks for."""
    if "background" in facts:
        return facts["background"]
    return {"colour": facts["background_colour"], "pattern": facts["background_pattern"]}


def a(name: str) -> str:
    """A name with its article."""
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def describe(things: list[dict], background: dict) -> str:
    """A scene in words, objects from the top left to the bottom right."""
    things = sorted(things, key=lambda t: PLACES.index(t["place"]))
    said = [f"{a(describe_object(t))} at the {t['place']} {describe_motion(t)}" for t in things]
    return " and ".join(said or ["no object"]) + f" on {describe_background(background)}"


def describe_object(thing: dict) -> str:
    """Such as "red striped ring" or "red car"."""
    if "noun" in thing:
        return " ".join(filter(None, (thing["colour"], thing["noun"])))
    return " ".join(thing[key] for key in ("colour", "texture", "shape") if thing[key] != "plain")


def describe_kind(thing: dict) -> str:
    """Its noun or shape."""
    return thing["noun"] if "noun" in thing else thing["shape"]


def describe_motion(thing: dict) -> str:
    """Such as "moving up", or "standing still"."""
    return "standing still" if thing["motion"] == "still" else f"moving {thing['motion']}"


def describe_background(background: dict) -> str:
    """Such as "blue clouds" or "a beach"."""
    if "name" in background:
        return background["name"]
    colour, pattern = background["colour"], background["pattern"]
    if pattern == "photograph":
        return "a photograph"
    return f"plain {colour}" if pattern == "plain" else f"{colour} {pattern}"
