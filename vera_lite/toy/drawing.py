"""What the toy worlds are drawn with: random numbers per clip, objects, backgrounds.

Everything is vectorised over B clips, and a clip does not depend on which others are drawn beside it.
Lengths are measured in half-frames: the frame spans [-1, 1] in x (right) and y (down), so that a scene can be
drawn at any size.
"""

import functools
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vera_lite.errors import UserError
from vera_lite.media.clip import composite
from vera_lite.toy.words import COLOURS, MOTIONS, PATTERNS, PLACES, SHAPES, TEXTURES, nearest_colour

PHOTOS = ("astronaut", "chelsea", "coffee", "rocket", "brick", "grass", "gravel", "hubble_deep_field")

PLACE_STEP = 0.42  # distance between the centres of neighbouring places
PATTERN_PERIOD = 0.5  # of stripes and checks: four periods per frame
SHADOW_STRENGTH = 0.45  # below 0.5, so that "alpha > 0.5" is the object and not its shadow


@dataclass(frozen=True)
class ClipConfig:
    """Size of a toy clip, which every toy world has.

    Attributes:
        frames, height, width: frames is 1 + 4n for a causal codec.
    """

    frames: int = 9
    height: int = 32
    width: int = 32

    def __post_init__(self):
        if min(self.size) < 1:
            raise UserError("frames, height and width of a toy clip must be positive.")

    @property
    def size(self) -> tuple[int, int, int]:
        """(frames, height, width)."""
        return self.frames, self.height, self.width


class Draws:
    """Random numbers of B clips, handed out column by column as (B,) tensors.

    Each clip has a row of uniform numbers from a generator keyed by (seed, index), so it is a pure function
    of the two.

    Args:
        seed: of the world.
        indices: numbers of the clips.
        columns: numbers per clip.
    """

    def __init__(self, seed: int, indices, columns: int = 160):
        rows = [np.random.Generator(np.random.Philox(key=[seed, int(i)])).random(columns) for i in indices]
        self.numbers = torch.from_numpy(np.stack(rows))
        self.used = 0

    def take(self, n: int) -> Tensor:
        """The next n columns, (B, n) in [0, 1), float64."""
        self.used += n
        if self.used > self.numbers.shape[1]:
            raise RuntimeError("the toy world drew more numbers than a row holds")
        return self.numbers[:, self.used - n : self.used]

    def uniform(self, low: float = 0.0, high: float = 1.0) -> Tensor:
        return (low + (high - low) * self.take(1)[:, 0]).float()

    def choice(self, n: int) -> Tensor:
        return (self.take(1)[:, 0] * n).long().clamp_max(n - 1)

    def chance(self, p: float) -> Tensor:
        return self.take(1)[:, 0] < p


# --- colours and coordinates ---------------------------------------------------------------------


def time_line(config: ClipConfig) -> Tensor:
    """Time of each frame in [-1, 1], 0 at the middle frame: (1, T)."""
    return torch.linspace(-1, 1, config.frames).view(1, -1) if config.frames > 1 else torch.zeros(1, 1)


def hue_to_rgb(hue: Tensor, saturation: Tensor | float = 1.0, value: Tensor | float = 1.0) -> Tensor:
    """HSV with hue in degrees to RGB, (..., ) -> (..., 3) in [0, 1]."""
    whites = (torch.as_tensor(x, dtype=hue.dtype) for x in (saturation, value))
    hue, chroma, bright = torch.broadcast_tensors(hue, *whites)
    k = (torch.tensor([5.0, 3.0, 1.0], dtype=hue.dtype) + hue[..., None] / 60) % 6
    return bright[..., None] * (1 - chroma[..., None] * torch.minimum(k, 4 - k).clamp(0, 1))


def _grid(config: ClipConfig) -> tuple[Tensor, Tensor]:
    """Pixel centres: x of shape (1, 1, 1, W) and y of shape (1, 1, H, 1), in half-frames."""
    x = (torch.arange(config.width) + 0.5) / config.width * 2 - 1
    y = (torch.arange(config.height) + 0.5) / config.height * 2 - 1
    return x.view(1, 1, 1, -1), y.view(1, 1, -1, 1)


def _column(v: Tensor) -> Tensor:
    """(B,) or (B, T) -> (B, T or 1, 1, 1), to broadcast against the grid."""
    return v.reshape(v.shape[0], -1, 1, 1)


# --- sprites -------------------------------------------------------------------------------------


@dataclass
class Sprite:
    """One object per clip. Every field is (B,); centre, radius and tilt may be (B, T)."""

    shape: Tensor
    hue: Tensor
    texture: Tensor
    radius: Tensor
    tilt: Tensor
    cx: Tensor
    cy: Tensor


def draw_sprite(draws: Draws, config: ClipConfig, place: Tensor, motion: Tensor) -> Sprite:
    """Objects at places and with motions, (B,) indices of ``PLACES`` and ``MOTIONS``."""
    shape, colour, texture = draws.choice(len(SHAPES)), draws.choice(len(COLOURS)), draws.uniform()
    texture = torch.where(texture < 0.6, 0, torch.where(texture < 0.8, 1, 2))
    step = torch.tensor([[0, 0], [-1, 0], [1, 0], [0, -1], [0, 1]], dtype=torch.float32)[motion]
    travel = draws.uniform(0.15, 0.23)[:, None] * time_line(config)  # 5 to 7 px of 32 in all
    cx = (place % 3 - 1) * PLACE_STEP + draws.uniform(-0.06, 0.06)
    cy = torch.div(place, 3, rounding_mode="floor") * PLACE_STEP - PLACE_STEP + draws.uniform(-0.06, 0.06)
    return Sprite(
        shape=shape,
        hue=torch.tensor(list(COLOURS.values()))[colour] + draws.uniform(-8, 8),
        texture=texture,
        radius=draws.uniform(0.32, 0.42),
        tilt=draws.uniform(-0.24, 0.24),  # up to 14 degrees
        cx=cx[:, None] + travel * step[:, :1],
        cy=cy[:, None] + travel * step[:, 1:],
    )


def signed_distance(sprite: Sprite, config: ClipConfig, dx: float = 0.0, dy: float = 0.0):
    """Signed distance to the outline (negative inside) of objects moved by (dx, dy), and the object's own
    coordinates u, v of every pixel; each (B, T, H, W), in half-frames."""
    x, y = _grid(config)
    x, y = x - _column(sprite.cx) - dx, y - _column(sprite.cy) - dy
    cos, sin = _column(torch.cos(sprite.tilt)), _column(torch.sin(sprite.tilt))
    u, v = x * cos + y * sin, y * cos - x * sin
    r = _column(sprite.radius)
    distance = torch.empty(torch.broadcast_shapes(u.shape, r.shape))
    for k in range(len(SHAPES)):
        rows = sprite.shape == k
        if not rows.any():
            continue
        a, b, s = u[rows], v[rows], r[rows]
        if k == 1:  # square
            d = torch.maximum(a.abs(), b.abs()) - 0.86 * s
        elif k == 2:  # triangle, point up: a floor and two slanted sides
            d = torch.maximum(b - 0.7 * s, 0.866 * a.abs() - 0.5 * b - 0.55 * s)
        else:
            d = torch.sqrt(a * a + b * b)
            d = (d - 0.70 * s).abs() - 0.28 * s if k == 3 else d - s
        distance[rows] = d
    return distance, u, v


def soft_coverage(distance: Tensor, config: ClipConfig) -> Tensor:
    """Antialiased matte with an edge two pixels wide, (B, T, H, W)."""
    return (0.5 - distance * min(config.height, config.width) / 4).clamp(0, 1)


def paint(sprite: Sprite, u: Tensor, v: Tensor) -> Tensor:
    """Straight colour of the sprite everywhere, lit from the top left: (B, T, 3, H, W)."""
    r = _column(sprite.radius)
    light = 0.82 - 0.16 * (u + v) / r
    wave = 2 * np.pi * 1.5 / r
    striped = 1 - 0.45 * (torch.sin(wave * u) > 0)
    dotted = 1 - 0.45 * ((torch.sin(wave * u) > 0) & (torch.sin(wave * v) > 0))
    texture = _column(sprite.texture)
    light = light * torch.where(texture == 1, striped, torch.where(texture == 2, dotted, 1.0))
    rgb = hue_to_rgb(sprite.hue, 0.85)[:, None, :, None, None]
    return (rgb * light[:, :, None]).clamp(0, 1)


def soft_shade(sprite: Sprite, config: ClipConfig, dx: float, dy: float) -> Tensor:
    """How much of the light the object's shadow takes, at (dx, dy) from it: (B, T, 1, H, W)."""
    distance, _, _ = signed_distance(sprite, config, dx, dy)
    return (SHADOW_STRENGTH * torch.sigmoid(-distance * 14))[:, :, None]


def put(sprite: Sprite, shown: Tensor, scene: Tensor, config: ClipConfig) -> tuple[Tensor, Tensor]:
    """Put the object in front of ``scene`` (B, T, 3, H, W) in clips where ``shown`` (B,) holds.

    Returns:
        The new scene and the object's matte (B, T, 1, H, W), 0 where it is not shown.
    """
    distance, u, v = signed_distance(sprite, config)
    alpha = (soft_coverage(distance, config) * _column(shown))[:, :, None]
    return composite(paint(sprite, u, v), alpha, scene), alpha


def name_sprite(sprite: Sprite, place: Tensor, motion: Tensor) -> list[dict]:
    """Facts of each object; ``path`` is its centre in the first and the last frame, [x, y] in [0, 1]."""
    centre = torch.stack([sprite.cx, sprite.cy], -1)[:, [0, -1]] / 2 + 0.5  # (B, 2, 2)
    return [
        {
            "colour": colour,
            "texture": TEXTURES[sprite.texture[i]],
            "shape": SHAPES[sprite.shape[i]],
            "place": PLACES[place[i]],
            "motion": MOTIONS[motion[i]],
            "path": centre[i].tolist(),
        }
        for i, colour in enumerate(nearest_colour(sprite.hue))
    ]


# --- backgrounds ---------------------------------------------------------------------------------


@functools.cache
def _photo_atlas() -> Tensor:
    """The photographs bundled with scikit-image as (P, 3, 128, 128), none of them downloaded."""
    from skimage import data
    from skimage.transform import resize

    photos = []
    for name in PHOTOS:
        image = np.atleast_3d(getattr(data, name)())[..., :3]
        image = np.broadcast_to(image, (*image.shape[:2], 3))
        side = min(image.shape[:2])
        top, left = (image.shape[0] - side) // 2, (image.shape[1] - side) // 2
        image = resize(image[top : top + side, left : left + side], (128, 128), anti_aliasing=True)
        photos.append(torch.from_numpy(image).float().permute(2, 0, 1))
    return torch.stack(photos)


@dataclass
class Background:
    """One background per clip: every field (B,), ``noise`` (B, 1, 6, 6); ``photo`` is -1 for none."""

    pattern: Tensor
    hue: Tensor
    saturation: Tensor
    phase_x: Tensor
    phase_y: Tensor
    noise: Tensor
    photo: Tensor


def draw_background(draws: Draws, photo: float) -> Background:
    """Backgrounds, with the probability ``photo`` a photograph."""
    colour = draws.choice(len(COLOURS))
    return Background(
        pattern=draws.choice(len(PATTERNS)),
        hue=torch.tensor(list(COLOURS.values()))[colour] + draws.uniform(-8, 8),
        saturation=draws.uniform(0.5, 0.7),
        phase_x=draws.uniform(-0.1, 0.1),
        phase_y=draws.uniform(-0.1, 0.1),
        noise=draws.take(36).float().view(-1, 1, 6, 6),
        photo=torch.where(draws.chance(photo), draws.choice(len(PHOTOS)), -1),
    )


def render_background(bg: Background, pan_x: Tensor, pan_y: Tensor, config: ClipConfig) -> Tensor:
    """A two-tone pattern, or a photograph, seen by a panning camera: (B, T, 3, H, W)."""
    x, y = _grid(config)
    shift = time_line(config)
    x = x + _column(bg.phase_x[:, None] + pan_x[:, None] * shift)  # (B, T, 1, W)
    y = y + _column(bg.phase_y[:, None] + pan_y[:, None] * shift)  # (B, T, H, 1)
    size = (len(bg.pattern), config.frames, config.height, config.width)
    tone = torch.empty(size)
    sharp = 3.0  # stripes with edges about a pixel wide
    for k in range(len(PATTERNS)):
        rows = (bg.pattern == k) & (bg.photo < 0)
        if not rows.any():
            continue
        wave_x, wave_y = (torch.sin(2 * np.pi / PATTERN_PERIOD * c[rows]) for c in (x, y))
        if k == 0:  # plain, a little lighter towards the top
            t = 0.5 - 0.25 * y[rows]
        elif k == 1:
            t = torch.sigmoid(sharp * wave_x)
        elif k == 2:
            t = torch.sigmoid(sharp * wave_y)
        elif k == 3:
            t = torch.sigmoid(sharp * wave_x * wave_y * 1.5)
        else:
            t = _sample(bg.noise[rows], x[rows] / 1.4, y[rows] / 1.4)[:, :, 0]
        tone[rows] = t.expand(int(rows.sum()), *size[1:])
    dark = hue_to_rgb(bg.hue, bg.saturation, 0.45)[:, None, :, None, None]
    bright = hue_to_rgb(bg.hue, bg.saturation * 0.7, 0.95)[:, None, :, None, None]
    image = dark + (bright - dark) * tone[:, :, None]
    rows = bg.photo >= 0
    if rows.any():  # a quarter of the photograph, so that a pan stays inside
        zoom = 0.5
        at_x = zoom * x[rows] + 3 * _column(bg.phase_x[rows])
        at_y = zoom * y[rows] + 3 * _column(bg.phase_y[rows])
        image[rows] = _sample(_photo_atlas()[bg.photo[rows]], at_x, at_y)
    return image


def _sample(images: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Bilinear look-up of (B, C, h, w) at x (B, T, 1, W), y (B, T, H, 1): (B, T, C, H, W).

    x and y are separable, so two small matrix products do it; outside, the border repeats. They stay in
    float32 under autocast, as all other drawing does.
    """

    def weights(position: Tensor, n: int) -> Tensor:  # (B, T, P) -> (B, T, P, n): hat functions
        p = ((position + 1) * n / 2 - 0.5).clamp(0, n - 1)
        return (1 - (p[..., None] - torch.arange(n)).abs()).clamp_min(0)

    columns = weights(x[:, :, 0, :], images.shape[3])
    rows = weights(y[:, :, :, 0], images.shape[2])
    with torch.autocast(images.device.type, enabled=False):
        return torch.einsum("bthi,bcij,btwj->btchw", rows, images, columns)


def name_background(bg: Background) -> list[dict]:
    """Facts of each background; the pattern of a photograph is "photograph"."""
    return [
        {"colour": colour, "pattern": PATTERNS[bg.pattern[i]] if bg.photo[i] < 0 else "photograph"}
        for i, colour in enumerate(nearest_colour(bg.hue))
    ]
