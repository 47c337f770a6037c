"""Pictures of sixty well-known things, from Noto Color Emoji (SIL Open Font License 1.1).

A sprite has a colour, a matte and a soft shadow. Nouns that come in colours have a sprite in each of
:data:`~vera_lite.toy.words.COLOURS`.
"""

import functools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from vera_lite.toy.words import COLOURS

SHEET = Path(__file__).parents[1] / "assets" / "sprites" / "sprites.png"
CELL, COLUMNS = 48, 10  # pixels of a sprite, and sprites per row of the sheet
MARGIN = 8  # empty pixels around a sprite, for its shadow
SHADOW_BLUR = 3.5  # standard deviation of the shadow's rim, in pixels of a sprite


@dataclass(frozen=True)
class Noun:
    """A thing: its emoji, and the hue in degrees of the part that may change colour; None if it has none."""

    character: str
    hue: float | None = None


#: In the order of the sheet. Append only: worlds depend on it.
NOUNS = {
    "dog": Noun("🐕"), "cat": Noun("🐈"), "rabbit": Noun("🐇"), "fox": Noun("🦊"), "bear": Noun("🐻"),
    "panda": Noun("🐼"), "frog": Noun("🐸"), "pig": Noun("🐖"), "cow": Noun("🐄"), "horse": Noun("🐎"),
    "elephant": Noun("🐘"), "lion": Noun("🦁"), "tiger": Noun("🐯"), "penguin": Noun("🐧"),
    "owl": Noun("🦉"), "chick": Noun("🐥"), "rooster": Noun("🐓"), "giraffe": Noun("🦒"),
    "dolphin": Noun("🐬"), "whale": Noun("🐳"), "turtle": Noun("🐢"), "snail": Noun("🐌"),
    "butterfly": Noun("🦋"), "bee": Noun("🐝"), "ladybird": Noun("🐞"), "crab": Noun("🦀"),
    "octopus": Noun("🐙"), "dinosaur": Noun("🦕"), "snowman": Noun("⛄"), "robot": Noun("🤖"),
    "ghost": Noun("👻"), "bus": Noun("🚌"), "train": Noun("🚂"), "truck": Noun("🚚"), "plane": Noun("✈"),
    "rocket": Noun("🚀"), "tractor": Noun("🚜"), "banana": Noun("🍌"), "cherries": Noun("🍒"),
    "carrot": Noun("🥕"), "mushroom": Noun("🍄"), "pizza": Noun("🍕"), "burger": Noun("🍔"),
    "cake": Noun("🎂"), "pineapple": Noun("🍍"), "football": Noun("⚽"), "clock": Noun("🕐"),
    "tree": Noun("🌲"), "car": Noun("🚗", 0), "balloon": Noun("🎈", 0), "heart": Noun("❤", 0),
    "star": Noun("⭐", 48), "apple": Noun("🍎", 0), "tulip": Noun("🌷", 335), "book": Noun("📕", 0),
    "shoe": Noun("👟", 210), "shirt": Noun("👕", 195), "umbrella": Noun("☂", 250), "bird": Noun("🐦", 205),
    "fish": Noun("🐟", 205),
}  # fmt: skip
COLOURED = tuple(name for name, noun in NOUNS.items() if noun.hue is not None)
#: Where a noun's sprites begin in :func:`textures`; the colours of a coloured noun follow each other.
FIRST = dict(
    zip(NOUNS, np.cumsum([0, *(len(COLOURS) if n in COLOURED else 1 for n in NOUNS)]).tolist(), strict=False)
)


@functools.cache
def textures(softness: float) -> Tensor:
    """All sprites, (sprites, 5, side, side) in [0, 1]: straight colour (which continues beyond the matte),
    matte, shadow.

    Args:
        softness: standard deviation, in pixels of a sprite, of a blur against aliasing in a frame.
    """
    from PIL import Image

    sheet = torch.from_numpy(np.array(Image.open(SHEET).convert("RGBA"))).float() / 255
    cells = sheet.unflatten(0, (-1, CELL)).unflatten(2, (COLUMNS, CELL)).permute(0, 2, 4, 1, 3).flatten(0, 1)
    sprites = []
    for cell, noun in zip(cells, NOUNS.values(), strict=False):
        hues = [None] if noun.hue is None else COLOURS.values()
        sprites += [torch.cat([_recolour(cell[:3], noun.hue, hue), cell[3:]]) for hue in hues]
    sprites = F.pad(torch.stack(sprites), [MARGIN] * 4)
    colour, matte = sprites[:, :3], sprites[:, 3:]
    soft = _blur(matte, softness)
    near, far = (_blur(colour * matte, s) / _blur(matte, s).clamp_min(1e-4) for s in (softness, SHADOW_BLUR))
    return torch.cat([torch.where(soft > 0.01, near, far), soft, _blur(matte, SHADOW_BLUR)], 1)


def _recolour(rgb: Tensor, old: float | None, new: float | None) -> Tensor:
    """Change pixels of the hue ``old`` (degrees) to the hue ``new``, at equal brightness; (3, H, W)."""
    if old is None or new is None:
        return rgb
    high, low = rgb.amax(0), rgb.amin(0)
    chroma = high - low
    angle = torch.rad2deg(torch.atan2(3**0.5 * (rgb[1] - rgb[2]), 2 * rgb[0] - rgb[1] - rgb[2]))
    distance = ((angle - old + 180) % 360 - 180).abs()
    share = ((60 - distance) / 20).clamp(0, 1) * (chroma / 0.15).clamp(0, 1)
    k = (torch.tensor([5.0, 3.0, 1.0]) + new / 60) % 6
    pure = 1 - torch.minimum(k, 4 - k).clamp(0, 1)
    turned = low + chroma * pure[:, None, None]
    return rgb + share * (turned - rgb)


def _blur(image: Tensor, deviation: float) -> Tensor:
    x = torch.arange(-2 * MARGIN, 2 * MARGIN + 1)
    kernel = torch.exp(-(x**2) / (2 * deviation**2))
    kernel = (kernel / kernel.sum()).view(1, 1, -1, 1)
    flat = image.flatten(0, 1)[:, None]
    with torch.autocast(image.device.type, enabled=False):  # drawing stays in float32
        flat = F.conv2d(F.conv2d(flat, kernel, padding=(2 * MARGIN, 0)), kernel.mT, padding=(0, 2 * MARGIN))
    return flat.view_as(image)
