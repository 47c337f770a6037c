"""Ground truth for the dataset pipeline: sprites over photographs, filmed as a camera films, layer by layer.

Six kinds of clips, one difficulty each (:data:`KINDS`). The layers are exact; the filmed clip carries the noise
of a sensor and 8 bits, as a video file does.
"""

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from vera_lite.media.clip import LayeredClip, composite, to_float, to_uint8
from vera_lite.toy.drawing import SHADOW_STRENGTH
from vera_lite.toy.sprites import CELL, FIRST, MARGIN, textures
from vera_lite.toy.things import LANDSCAPES, _landscape
from vera_lite.toy.words import COLOURS

KINDS = ("static", "pan", "thin", "fast", "blurred", "shadow")
#: Nouns by kind: those of "thin" have legs, wings or tails of a few pixels.
NOUNS = {
    "static": ("dog", "car", "train", "penguin"),
    "pan": ("car", "elephant", "robot", "bus"),
    "thin": ("butterfly", "giraffe", "bee", "umbrella"),
    "fast": ("football", "bird", "rocket", "rabbit"),
    "blurred": ("bird", "football", "plane", "fish"),
    "shadow": ("cat", "tractor", "pineapple", "cake"),
}
PHOTOS = ("coffee", "rocket", "chelsea", "astronaut")
NOISE = 1.2 / 255  # standard deviation of the sensor's noise
SHUTTER, MOMENTS = 0.02, 8  # how much of the clip a blurred frame sees, and how often it looks


def truth_clip(index: int, frames: int = 49, size: tuple[int, int] = (270, 480)) -> LayeredClip:
    """Clip ``index`` of the ground truth; 24 in a row show each kind four times.

    Args:
        index: from 0 on.
        frames: of the clip.
        size: (H, W) in pixels.

    Returns:
        The addition of an object: ``source`` is the clean plate, ``edit`` and ``alpha`` the object with its
        shadow, ``mask`` the object alone, ``composite`` what the camera films. ``attributes`` has the kind, the
        noun and the background.
    """
    random = np.random.Generator(np.random.Philox(key=[18, index]))
    kind, turn = KINDS[index % len(KINDS)], index // len(KINDS)
    noun = NOUNS[kind][turn % 4]
    place = str(random.choice(PHOTOS if random.random() < 0.7 else LANDSCAPES))
    height, width = size
    travel = {"fast": 0.72, "blurred": 0.72}.get(kind, 0.45) * width
    direction = random.choice((-1.0, 1.0))
    pan = random.uniform(0.06, 0.1) * width * random.choice((-1.0, 1.0)) if kind == "pan" else 0.0
    side = random.uniform(0.34, 0.42) * height  # of the object
    y0, wave = random.uniform(0.45, 0.6) * height, random.uniform(0.04, 0.1) * height
    tilt, phase = random.uniform(0.05, 0.15), random.uniform(0, 2 * math.pi)

    def pose(moment: float) -> tuple[float, float, float]:
        """x and y of the object's centre in pixels, and its tilt, at a moment in [0, 1]."""
        x = width / 2 + direction * (moment - 0.5) * travel
        y = y0 + wave * math.sin(2 * math.pi * moment * (2 if kind == "fast" else 1) + phase)
        return x, y, tilt * math.sin(4 * math.pi * moment + phase)

    texture = _texture(noun, int(random.integers(len(COLOURS))))
    picture = _picture(place, int(width * 1.25), int(random.integers(4)))
    plates, layers, mattes = [], [], []
    for t in range(frames):
        moment = t / max(1, frames - 1)
        plates.append(_view(picture, pan * (moment - 0.5), size))
        moments = [moment]
        if kind == "blurred":
            moments = [moment + SHUTTER * (k / MOMENTS - 0.5) for k in range(MOMENTS)]
        drawn = torch.stack([_draw(texture, *pose(m), side, size) for m in moments])
        colour, each = drawn[:, :3], drawn[:, 3:4]
        alpha = matte = each.mean(0)
        colour = torch.where(matte > 0, (colour * each).mean(0) / matte.clamp_min(1e-6), colour.mean(0))
        if kind == "shadow":
            x, y, angle = pose(moment)
            shadow = SHADOW_STRENGTH * _draw(texture, x + 0.1 * side, y + 0.14 * side, angle, side, size)[4:]
            alpha = matte + (1 - matte) * shadow
            colour = colour * torch.where(alpha > 1e-3, matte / alpha.clamp_min(1e-3), 1.0)
        layers.append(torch.cat([colour, alpha]))
        mattes.append(matte)
    source, layer, matte = torch.stack(plates), torch.stack(layers), torch.stack(mattes)
    edit, alpha = layer[:, :3].clamp(0, 1), layer[:, 3:].clamp(0, 1)
    filmed = composite(edit, alpha, source)
    filmed = filmed + NOISE * torch.from_numpy(random.standard_normal(filmed.shape, dtype=np.float32))
    return LayeredClip(
        source=source,
        edit=edit,
        alpha=alpha,
        composite=to_float(to_uint8(filmed)),
        mask=(matte > 0.5).float(),
        instruction=f"Add a {noun}.",
        fps=16.0,
        attributes={"kind": kind, "noun": noun, "background": place},
    )


def _texture(noun: str, colour: int) -> Tensor:
    """Colour, matte and shadow of a noun, (5, side, side)."""
    sprites = textures(0.5)
    first = FIRST[noun]
    following = [start for start in FIRST.values() if start > first]
    count = min(following, default=len(sprites)) - first
    return sprites[first + colour % count]


def _draw(texture: Tensor, x: float, y: float, angle: float, side: float, size: tuple[int, int]) -> Tensor:
    """The texture with its centre at (x, y) in pixels, (5, H, W); 0 where it is not."""
    height, width = size
    rows = torch.arange(height)[:, None] - y
    columns = torch.arange(width)[None] - x
    scale = 2 / side * CELL / (CELL + 2 * MARGIN)
    cos, sin = math.cos(angle) * scale, math.sin(angle) * scale
    grid = torch.stack([columns * cos + rows * sin, rows * cos - columns * sin], -1)
    return F.grid_sample(texture[None], grid[None], mode="bicubic", align_corners=False)[0].clamp(0, 1)


def _picture(place: str, width: int, variant: int) -> Tensor:
    """A background (3, width, width) or of a photograph's own aspect, at least so wide, in [0, 1]."""
    if place in LANDSCAPES:
        return _landscape(place, variant, width)
    from skimage import data

    photo = torch.from_numpy(np.ascontiguousarray(getattr(data, place)())).float().permute(2, 0, 1) / 255
    height = round(photo.shape[1] * width / photo.shape[2])
    return F.interpolate(photo[None], (height, width), mode="bicubic", antialias=True)[0].clamp(0, 1)


def _view(picture: Tensor, dx: float, size: tuple[int, int]) -> Tensor:
    """The middle of a picture, moved ``dx`` pixels to the right: (3, H, W)."""
    height, width = size
    rows = (torch.arange(height) - (height - 1) / 2) * 2 / picture.shape[1]
    columns = (torch.arange(width) - (width - 1) / 2 + dx) * 2 / picture.shape[2]
    grid = torch.stack([columns.expand(height, width), rows[:, None].expand(height, width)], -1)
    return F.grid_sample(
        picture[None], grid[None], mode="bicubic", padding_mode="border", align_corners=False
    )[0].clamp(0, 1)
