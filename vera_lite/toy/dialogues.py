"""Questions about toy clips with their true answers, to train the toy vision-language model.

Coordinates are cells of an 8 x 8 grid over the frame: "x3 y2" is the fourth column, third row.
"""

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from vera_lite.toy.scenes import NAMED
from vera_lite.toy.sprites import COLOURED, NOUNS
from vera_lite.toy.things import seen_words
from vera_lite.toy.vlm import CELLS
from vera_lite.toy.words import (
    COLOURS,
    PATTERNS,
    PLACES,
    SHAPES,
    a,
    describe,
    describe_background,
    describe_kind,
    describe_motion,
    describe_object,
    new_background,
)
from vera_lite.toy.world import ToyBatch

#: Kinds of questions, each with an example. "compare" also has an image, and then is the only question.
KINDS = {
    "locate": "the red ring in the video -> from x2 y5 to x4 y5",
    "where": "where is the red ring ? -> at the left moving right",
    "what": "what is at the left ? -> a red striped ring moving right",
    "background": "what is the background ? -> blue clouds",
    "describe": "describe the video -> everything",
    "instruct": "describe the result : remove the red ring -> everything, after the edit",
    "compare": "what changed ? (image: the edited first frame) -> what is in the new layer",
}


@dataclass(frozen=True)
class Dialogue:
    """One question. ``clip`` (T, 3, H, W) and ``image`` (3, H, W) or None are in [0, 1]; ``mask``
    (T, 1, H, W) is the object that a "locate" question names."""

    kind: str
    clip: Tensor
    image: Tensor | None
    question: str
    answer: str
    mask: Tensor


def ask(batch: ToyBatch, kind: str, seed: int, indices) -> list[Dialogue]:
    """One question of a kind about each clip of a batch.

    Args:
        batch: clips of a world without occlusion (``behind=0``).
        kind: a key of ``KINDS``.
        seed, indices: of the clips; an "instruct" question draws its order from them.
    """
    return [_ask(batch, row, kind, _draws(seed, i), False) for row, i in enumerate(indices)]


def talk(batch: ToyBatch, seed: int, indices, turns: int = 5) -> list[list[tuple[str, str]]]:
    """``turns`` questions and answers about each clip in random order, a pure function of (seed, index).

    They are about both objects. The last question asks for a description, which answers all others.
    """
    talks = []
    for row, i in enumerate(indices):
        draws = _draws(seed, i)
        about = [(kind, other) for kind in ("locate", "where", "what") for other in (False, True)]
        about += [("background", False)] * 2
        if not batch.attributes[row]["other"]:
            about = [(kind, other) for kind, other in about if not other]
        picked = [about[k] for k in draws.permutation(len(about))[: turns - 1]]
        picked.append((("describe", "instruct")[draws.integers(2)], False))
        asked = [_ask(batch, row, kind, draws, other) for kind, other in picked]
        talks.append([(d.question, d.answer) for d in asked])
    return talks


def _draws(seed: int, index: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=[seed + 7_000_000, int(index)]))


def _ask(batch: ToyBatch, row: int, kind: str, draws, about_other: bool) -> Dialogue:
    facts = batch.attributes[row]
    thing, other = facts, facts["other"]
    if about_other:
        thing, other = other, thing
    background = facts["source_background"]
    if facts["task"] == "background":
        background = new_background(facts)
    things = [thing] + ([other] if other else [])
    name = _name(thing, other)
    clip, image = batch.composite[row], None

    if kind == "locate":
        (x0, y0), (x1, y1) = ([_cell(c) for c in point] for point in thing["path"])
        question, answer = f"the {name} in the video", f"from x{x0} y{y0} to x{x1} y{y1}"
    elif kind == "where":
        question, answer = f"where is the {name} ?", f"at the {thing['place']} {describe_motion(thing)}"
    elif kind == "what":
        question = f"what is at the {thing['place']} ?"
        answer = f"{a(describe_object(thing))} {describe_motion(thing)}"
    elif kind == "background":
        question, answer = "what is the background ?", describe_background(background)
    elif kind == "describe":
        question, answer = "describe the video", describe(things, background)
    elif kind == "instruct":
        edit = _scene_edit if "noun" in thing else _edit
        order, result = edit(draws, thing, other, background)
        question, answer = f"describe the result : {order}", result
    elif kind == "compare":
        clip, image, question = batch.source[row], batch.composite[row, 0], "what changed ?"
        answer = f"{a(describe_object(thing))} at the {thing['place']}"
        if facts["task"] == "background":
            answer = f"the background is {describe_background(background)}"
    else:
        raise ValueError(f"unknown kind of question: {kind!r}")
    return Dialogue(kind, clip, image, question, answer, batch.mask[row])


def _edit(draws, thing: dict, other: dict | None, background: dict) -> tuple[str, str]:
    """An instruction and the description of its result."""
    rest, name = [other] if other else [], _name(thing, other)
    kind = draws.integers(5)
    colour, shape = draws.choice(list(COLOURS)), draws.choice(SHAPES)
    pattern, place = draws.choice(PATTERNS), draws.choice(PLACES)
    if kind == 0:
        return f"remove the {name}", describe(rest, background)
    if kind == 1:
        return f"change the {name} to {colour}", describe([thing | {"colour": colour}, *rest], background)
    if kind == 2:
        return f"change the {name} to a {shape}", describe([thing | {"shape": shape}, *rest], background)
    if kind == 3:
        new = {"colour": colour, "pattern": pattern}
        return f"change the background to {describe_background(new)}", describe([thing, *rest], new)
    added = {"colour": colour, "texture": "plain", "shape": shape, "place": place, "motion": "still"}
    order = f"add a {colour} {shape} at the {place} standing still"
    return order, describe([thing, *rest, added], background)


def _scene_edit(draws, thing: dict, other: dict | None, background: dict) -> tuple[str, str]:
    """The same for things on places; it makes no held-out pairs."""
    rest, name = [other] if other else [], describe_object(thing)
    kind = draws.integers(5)
    if kind == 0:
        return f"remove the {name}", describe(rest, background)
    if kind == 1 and thing["colour"]:
        colour = draws.choice(seen_words("colour", thing["noun"]))
        return f"change the {name} to {colour}", describe([thing | {"colour": colour}, *rest], background)
    if kind == 4:
        new = {"name": draws.choice(NAMED)}
        return f"change the background to {new['name']}", describe([thing, *rest], new)
    taken = {t["noun"] for t in (thing, *rest)}
    nouns = [noun for noun in NOUNS if noun not in taken]
    if kind < 3:
        nouns = [n for n in nouns if all(thing[k] in seen_words(k, n) for k in ("place", "motion"))]
    new = {"noun": draws.choice(nouns), "colour": None}
    if new["noun"] in COLOURED:
        new["colour"] = draws.choice(seen_words("colour", new["noun"]))
    if kind < 3:
        order = f"change the {name} to {a(describe_object(new))}"
        return order, describe([thing | new, *rest], background)
    place, motion = (draws.choice(seen_words(k, new["noun"])) for k in ("place", "motion"))
    new |= {"place": place, "motion": motion}
    order = f"add {a(describe_object(new))} at the {place} {describe_motion(new)}"
    return order, describe([thing, *rest, new], background)


def _name(thing: dict, other: dict | None) -> str:
    """The shortest name that distinguishes a thing from the other one; never by its place."""
    same = other and (other["colour"], describe_kind(other)) == (thing["colour"], describe_kind(thing))
    return describe_object(thing) if same or "noun" in thing else f"{thing['colour']} {thing['shape']}"


def _cell(position: float) -> int:
    return min(CELLS - 1, max(0, int(position * CELLS)))
