"""A toy object as a foreground video, described in words."""

import torch
from torch import Tensor

from vera_lite.errors import UserError, unknown_word
from vera_lite.toy.drawing import ClipConfig, Sprite, paint, signed_distance, soft_coverage
from vera_lite.toy.words import COLOURS, SHAPES, TEXTURES

_RADIUS = 0.58  # of half the canvas, as in toy compositions
_KINDS = {"colour": tuple(COLOURS), "shape": SHAPES, "texture": TEXTURES, "motion": ("spinning", "pulsing")}


def toy_foreground(words: str, frames: int, side: int) -> tuple[Tensor, Tensor]:
    """An object of the toy world in the middle of a square canvas.

    Args:
        words: a colour and a shape, and if wanted a texture and "spinning" or "pulsing", such as "spinning
            striped red square".
        frames, side: of the canvas.

    Returns:
        Colour (frames, 3, side, side) and alpha (frames, 1, side, side) in [0, 1].

    Raises:
        UserError: a word is unknown, or there is not exactly one colour and one shape.
    """
    chosen = {}
    for word in words.lower().split():
        kind = next((kind for kind, known in _KINDS.items() if word in known), None)
        if kind is None:
            raise unknown_word(word, [known for words in _KINDS.values() for known in words])
        if kind in chosen:
            raise UserError(f"a toy object has one {kind}, not {chosen[kind]} and {word}.")
        chosen[kind] = word
    if not {"colour", "shape"} <= set(chosen):
        raise UserError(f'a toy object needs a colour and a shape, such as "toy:red circle", not {words!r}.')
    canvas, motion = ClipConfig(frames, side, side), chosen.get("motion")
    turns = torch.linspace(0, 1, frames)[None]
    sprite = Sprite(
        shape=torch.tensor([SHAPES.index(chosen["shape"])]),
        hue=torch.tensor([COLOURS[chosen["colour"]]]),
        texture=torch.tensor([TEXTURES.index(chosen.get("texture", "plain"))]),
        radius=_RADIUS * (1 + 0.2 * (motion == "pulsing") * torch.sin(2 * torch.pi * turns)),
        tilt=torch.pi / 2 * (motion == "spinning") * turns,
        cx=torch.zeros(1, 1),
        cy=torch.zeros(1, 1),
    )
    distance, u, v = signed_distance(sprite, canvas)
    return paint(sprite, u, v)[0], soft_coverage(distance, canvas)[0, :, None]
