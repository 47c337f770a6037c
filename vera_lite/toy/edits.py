"""Toy edits: a source video, an instruction, and the video as it looks when the instruction is followed.

The data of RVEDiT (arXiv 2605.24674) at toy scale, in the manner of :mod:`vera_lite.toy.world`: each clip is
a pure function of (seed, index), and one or two objects move over a pattern while the camera pans. An
instruction names an object by colour and shape. The objects, the background and a new colour have four
different colours, so a name fits one thing only.

Categories
    local change    an object gets another colour, or another shape.
    local remove    one of two objects disappears.
    local add       an object appears, at a named place and with a motion.
    global style    the whole video in one of ``STYLES``.

Instructions and captions use the words of the toy vision-language model, which was trained on them in its
second stage (:class:`vera_lite.training.ToyDialogues`).
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from vera_lite.errors import UserError
from vera_lite.toy.drawing import (
    ClipConfig,
    Draws,
    Sprite,
    draw_background,
    draw_sprite,
    name_background,
    name_sprite,
    put,
    render_background,
)
from vera_lite.toy.words import (
    COLOURS,
    MOTIONS,
    PLACES,
    SHAPES,
    a,
    describe,
    describe_kind,
    instruction,
    nearest_colour,
)

CATEGORIES = ("local change", "local remove", "local add", "global style")
LUMA = (0.299, 0.587, 0.114)  # of R, G, B (Rec. 601)
#: Two objects stand at opposite sides, or at the centre and in a corner: neighbours would hide each other.
_FAR = [
    [k for k in range(9) if max(abs(k % 3 - place % 3), abs(k // 3 - place // 3)) == 2] or [0, 2, 6, 8]
    for place in range(9)
]


# --- styles --------------------------------------------------------------------------------------


def _mix(video: Tensor, rows: tuple) -> Tensor:
    with torch.autocast(video.device.type, enabled=False):  # drawing stays in float32
        return torch.einsum("ij,...jhw->...ihw", torch.tensor(rows), video).clamp(0, 1)


def _pixelate(video: Tensor) -> Tensor:
    cells = F.interpolate(video.reshape(-1, *video.shape[-3:]), size=(8, 8), mode="area")
    return F.interpolate(cells, size=video.shape[-2:]).view_as(video)


_SEPIA = ((0.393, 0.769, 0.189), (0.349, 0.686, 0.168), (0.272, 0.534, 0.131))

#: Word -> function of a video (..., 3, H, W) in [0, 1]. The vocabulary also has "posterised", but the toy
#: codec cannot hold hard edges everywhere.
STYLES: dict[str, Callable[[Tensor], Tensor]] = {
    "grey": lambda video: _mix(video, (LUMA,) * 3),
    "sepia": lambda video: _mix(video, _SEPIA),
    "negative": lambda video: 1 - video,
    "dark": lambda video: 0.4 * video,
    "pixelated": _pixelate,  # 8 x 8 cells; stripes and checks have two cells per period and fade at times
}

_COMPLEMENT = nearest_colour(torch.tensor(list(COLOURS.values())) + 180)
#: What each colour looks like in a style, for the description of a styled video.
_SEEN = {
    "grey": dict.fromkeys(COLOURS, "grey"),
    "sepia": dict.fromkeys(COLOURS, "sepia"),
    "negative": dict(zip(COLOURS, _COMPLEMENT, strict=True)),
}


# --- edits ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class EditConfig(ClipConfig):
    """What the world contains.

    Attributes:
        categories: the categories drawn from, uniformly; one that is named twice comes twice as often.
        distractor: chance of another object in the source; a "local remove" always has one.
        from_place: objects begin at their place and move away from it. Otherwise the place is the middle of
            the path, and the first frame alone gives the motion away: an object that will move right begins
            left of its place. An editor that is shown this frame could ignore the instruction.
    """

    categories: tuple[str, ...] = CATEGORIES
    distractor: float = 0.5
    from_place: bool = False

    def __post_init__(self):
        super().__post_init__()
        if not self.categories or set(self.categories) - set(CATEGORIES):
            known = ", ".join(CATEGORIES)
            raise UserError(f"categories are {list(self.categories)}: name one or more of {known}.")

    def render(self, seed: int, indices) -> "ToyEdits":
        """Clips ``indices`` of the world ``seed``."""
        return render_edits(seed, indices, self)


@dataclass(frozen=True)
class ToyEdits:
    """B edits.

    Attributes:
        source, target: (B, T, 3, H, W) in [0, 1], before and after.
        changed: (B, T, 1, H, W), 1 where they differ by more than one step of 8 bits, else 0.
        instruction: what the user asks for.
        target_caption: a description of the target, RVEDiT's l*.
        attributes: facts of each clip: its ``category``; the edited object ``before`` and ``after`` (None
            where there is none; equal if the edit is a style) and the ``other`` object (or None), each with
            its ``colour, texture, shape, place, motion`` and ``path``; the ``background`` with its ``colour``
            and ``pattern``; and ``style`` (or None).
        scene: the source without the edited object, if known; like ``source``.
    """

    source: Tensor
    target: Tensor
    changed: Tensor
    instruction: list[str]
    target_caption: list[str]
    attributes: list[dict]
    scene: Tensor | None = None

    def __len__(self) -> int:
        return len(self.instruction)


def render_edits(seed: int, indices, world: EditConfig = EditConfig()) -> ToyEdits:  # noqa: B008 (frozen)
    """Render clips ``indices`` of the world ``seed``.

    A clip's scene does not depend on ``world.categories`` and ``world.distractor``: worlds that differ in
    these show other edits of the same scene. With ``world.from_place`` the same paths begin elsewhere.
    """
    indices = list(indices)
    draws, batch = Draws(seed, indices), len(indices)
    category = torch.tensor([CATEGORIES.index(c) for c in world.categories])
    category = category[draws.choice(len(world.categories))]
    change, remove, add, restyle = (category == k for k in range(4))

    # Object, other object, background, new colour: four of the six, in random order.
    order = draws.take(len(COLOURS)).argsort(1)
    hue = torch.tensor(list(COLOURS.values()))[order] + 16 * draws.take(len(COLOURS)).float() - 8
    place, motion = draws.choice(len(PLACES)), draws.choice(len(MOTIONS))
    thing = replace(draw_sprite(draws, world, place, motion), hue=hue[:, 0])
    pairs = zip(place.tolist(), draws.choice(60).tolist(), strict=True)  # there are 3, 4 or 5 far places
    other_place = torch.tensor([_FAR[p][k % len(_FAR[p])] for p, k in pairs])
    other_motion = draws.choice(len(MOTIONS))
    other = replace(draw_sprite(draws, world, other_place, other_motion), hue=hue[:, 1])
    if world.from_place:
        thing, other = _from_place(thing), _from_place(other)
    bg = replace(draw_background(draws, photo=0.0), hue=hue[:, 2])
    pan_x, pan_y = draws.uniform(-0.12, 0.12), draws.uniform(-0.12, 0.12)

    recolour = draws.chance(0.5)
    new_shape = (thing.shape + 1 + draws.choice(len(SHAPES) - 1)) % len(SHAPES)
    edited = replace(
        thing,
        hue=torch.where(change & recolour, hue[:, 3], thing.hue),
        shape=torch.where(change & ~recolour, new_shape, thing.shape),
    )
    style = draws.choice(len(STYLES))
    has_other = draws.chance(world.distractor) | remove
    make = draws.chance(0.5)  # which of the two ways to ask for a colour

    scene, _ = put(other, has_other, render_background(bg, pan_x, pan_y, world), world)
    source, _ = put(thing, ~add, scene, world)
    target, _ = put(edited, ~remove, scene, world)
    for k, restyled in enumerate(STYLES.values()):
        rows = restyle & (style == k)
        target[rows] = restyled(target[rows])

    before, after = name_sprite(thing, place, motion), name_sprite(edited, place, motion)
    others, backgrounds = name_sprite(other, other_place, other_motion), name_background(bg)
    attributes = [
        {
            "category": CATEGORIES[category[i]],
            "before": None if add[i] else before[i],
            "after": None if remove[i] else after[i],
            "other": others[i] if has_other[i] else None,
            "background": backgrounds[i],
            "style": list(STYLES)[style[i]] if restyle[i] else None,
        }
        for i in range(batch)
    ]
    return told(source, target, attributes, make)


def told(
    source: Tensor, target: Tensor, attributes: list[dict], make: Tensor, scene: Tensor | None = None
) -> ToyEdits:
    """Edits with their words; where ``make`` (B,) holds, a new colour is asked for by "make"."""
    changed = ((target - source).abs().amax(2, keepdim=True) > 1 / 255).float()
    orders = [_order(facts, bool(m)) for facts, m in zip(attributes, make, strict=True)]
    captions = [_caption(facts) for facts in attributes]
    return ToyEdits(source, target, changed, orders, captions, attributes, scene)


def _from_place(sprite: Sprite) -> Sprite:
    """The same path, begun where its middle was."""
    cx, cy = (path + (path[:, -1:] - path[:, :1]) / 2 for path in (sprite.cx, sprite.cy))
    return replace(sprite, cx=cx, cy=cy)


# --- words ---------------------------------------------------------------------------------------


def _order(attributes: dict, make: bool) -> str:
    """The sentence that asks for the edit; a new colour is asked for by "make" or by "change"."""
    before, after, style = (attributes[key] for key in ("before", "after", "style"))
    if style:
        return f"change the video to {style} style"
    if not before:
        return instruction({"task": "add", **after, "shadow": False, "behind": False})
    name = " ".join(filter(None, (before["colour"], describe_kind(before))))
    if not after:
        return f"remove the {name}"
    if describe_kind(after) != describe_kind(before):
        return f"change the {name} to {a(describe_kind(after))}"
    return f"make the {name} {after['colour']}" if make else f"change the {name} to {after['colour']}"


def _caption(attributes: dict) -> str:
    """What the target shows; its colours are named as they look in its style."""
    things, style = [thing for key in ("after", "other") if (thing := attributes[key])], attributes["style"]
    if not style:
        return describe(things, attributes["background"])
    seen = _SEEN.get(style, {})
    *things, background = (
        part | {"colour": seen.get(part.get("colour"), part.get("colour"))}
        for part in (*things, attributes["background"])
    )
    return f"{describe(things, background)} in {style} style"
