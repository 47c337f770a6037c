"""Things on places: the parts of a toy world of well-known things.

Objects are the sprites of :mod:`vera_lite.toy.sprites`, backgrounds are photographs and rendered landscapes.
Some pairs (noun, colour), (noun, place) and (noun, motion) are held out: training never shows them, so that a
model card can report them separately.
"""

import functools
import itertools
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from vera_lite.toy.drawing import SHADOW_STRENGTH, ClipConfig, Draws, _column, _grid, time_line
from vera_lite.toy.sprites import CELL, COLOURED, FIRST, MARGIN, NOUNS, textures
from vera_lite.toy.words import COLOURS, MOTIONS, PLACES

HELD_OUT = 8  # one pair in this many is held out
PLACE_STEP = 0.4  # distance between the centres of neighbouring places, in half-frames
SOFTNESS = 0.6  # standard deviation of the blur of a sprite, in pixels of the frame
#: Two things stand at opposite sides, or at the centre and in a corner: (places, places) boolean.
FAR = torch.tensor(
    [[max(abs(k % 3 - p % 3), abs(k // 3 - p // 3)) == 2 for k in range(9)] for p in range(4)]
    + [[k in (0, 2, 6, 8) for k in range(9)]]
    + [[max(abs(k % 3 - p % 3), abs(k // 3 - p // 3)) == 2 for k in range(9)] for p in range(5, 9)]
)
HUED = torch.tensor([name in COLOURED for name in NOUNS])
LANDSCAPES = ("a beach", "a meadow", "a desert", "snow", "a sunset", "a city")
VARIANTS = 4  # of each landscape


@functools.cache
def held_out() -> dict[str, Tensor]:
    """The pairs that training never shows: boolean (nouns, colours), (nouns, places), (nouns, motions)."""
    random = np.random.Generator(np.random.Philox(key=[16, 0]))
    found = {}
    for kind, words in (("colour", COLOURS), ("place", PLACES), ("motion", MOTIONS)):
        order = random.permuted(np.tile(np.arange(len(words)), (len(NOUNS), 1)), axis=1)
        share = max(1, round(len(words) / HELD_OUT))
        found[kind] = torch.from_numpy(order < share)
    return found


@functools.cache
def seen_words(kind: str, noun: str) -> list[str]:
    """The colours, places or motions (``kind``) that are not held out for a noun."""
    words = {"colour": COLOURS, "place": PLACES, "motion": MOTIONS}[kind]
    return list(itertools.compress(words, ~held_out()[kind][list(NOUNS).index(noun)]))


def choose(u: Tensor, allowed: Tensor) -> Tensor:
    """One of the allowed words (B, words, boolean) in each row, chosen by uniform numbers u (B,)."""
    count = allowed.sum(1)
    rank = (u * count).long().clamp_max(count - 1)
    return (allowed.long().cumsum(1) > rank[:, None]).long().argmax(1)


@dataclass
class Thing:
    """One object per clip: noun, colour, place and motion (B,), and where it is drawn (B, T)."""

    noun: Tensor
    colour: Tensor
    place: Tensor
    motion: Tensor
    radius: Tensor
    tilt: Tensor
    cx: Tensor
    cy: Tensor


def draw_thing(
    draws: Draws,
    config: ClipConfig,
    unseen: bool = False,
    beside: Thing | None = None,
    hued: Tensor | None = None,
) -> Thing:
    """Things that begin at their place.

    Args:
        draws, config: of the clips.
        unseen: each thing shows one held-out pair; otherwise none.
        beside: other things in the clips; the new ones have other nouns, at places far from them.
        hued: (B,), clips that need a noun that comes in colours. Half of the other clips have one.
    """
    batch = len(draws.numbers)
    wanted = draws.chance(0.5)
    nouns = HUED | ~(wanted if hued is None else wanted | hued)[:, None]
    places = torch.ones(batch, len(PLACES), dtype=torch.bool)
    if beside is not None:
        nouns = nouns & (torch.arange(len(NOUNS)) != beside.noun[:, None])
        places = FAR[beside.place]
    noun = choose(draws.take(1)[:, 0], nouns)
    kind = draws.choice(3)  # which pair is held out; a noun with its own colour has no pair with a colour
    kind = torch.where(HUED[noun], kind, 1 + kind % 2)
    picked = []
    for k, name in enumerate(("colour", "place", "motion")):
        mask = held_out()[name][noun]
        allowed = torch.where((kind == k)[:, None], mask, ~mask) if unseen else ~mask
        picked.append(choose(draws.take(1)[:, 0], allowed & places if name == "place" else allowed))
    colour, place, motion = picked
    time = (time_line(config) + 1) / 2  # 0 to 1
    step = torch.tensor([[0, 0], [-1, 0], [1, 0], [0, -1], [0, 1]], dtype=torch.float32)[motion]
    travel = draws.uniform(0.2, 0.28)[:, None] * time
    cx = (place % 3 - 1) * PLACE_STEP + draws.uniform(-0.05, 0.05)
    cy = torch.div(place, 3, rounding_mode="floor") * PLACE_STEP - PLACE_STEP + draws.uniform(-0.05, 0.05)
    grow = 1 + draws.uniform(-0.12, 0.12)[:, None] * time
    sway = draws.uniform(0.0, 0.15)[:, None] * torch.sin(2 * np.pi * (time + draws.uniform()[:, None]))
    return Thing(
        noun=noun,
        colour=colour,
        place=place,
        motion=motion,
        radius=draws.uniform(0.44, 0.56)[:, None] * grow,
        tilt=draws.uniform(-0.2, 0.2)[:, None] + sway,
        cx=cx[:, None] + travel * step[:, :1],
        cy=cy[:, None] + travel * step[:, 1:],
    )


def broken(thing: Thing) -> list[str | None]:
    """The held-out pair that each thing shows: "colour", "place", "motion" or None."""
    pairs = [
        held_out()["colour"][thing.noun, thing.colour] & HUED[thing.noun],
        held_out()["place"][thing.noun, thing.place],
        held_out()["motion"][thing.noun, thing.motion],
    ]
    rows = torch.stack(pairs, 1).tolist()
    return [
        next((k for k, odd in zip(("colour", "place", "motion"), r, strict=True) if odd), None) for r in rows
    ]


def look(thing: Thing, config: ClipConfig) -> tuple[Tensor, Tensor]:
    """Straight colour (B, T, 3, H, W) and matte (B, T, 1, H, W).

    Beyond the matte the colour continues for a few pixels, then it fades to black.
    """
    found = _sampled(thing, config, 0.0, 0.0, slice(0, 5))
    return found[:, :, :3] * (8 * found[:, :, 4:]).clamp(0, 1), found[:, :, 3:4]


def shade(thing: Thing, config: ClipConfig, dx: float = 0.08, dy: float = 0.12) -> Tensor:
    """The share of the light that the shadow takes, (B, T, 1, H, W)."""
    return SHADOW_STRENGTH * _sampled(thing, config, dx, dy, slice(4, 5))


def _sampled(thing: Thing, config: ClipConfig, dx: float, dy: float, channels: slice) -> Tensor:
    x, y = _grid(config)
    x, y = x - _column(thing.cx) - dx, y - _column(thing.cy) - dy
    cos, sin = _column(torch.cos(thing.tilt)), _column(torch.sin(thing.tilt))
    scale = CELL / (CELL + 2 * MARGIN) / _column(thing.radius)
    grid = torch.stack([(x * cos + y * sin) * scale, (y * cos - x * sin) * scale], -1)  # (B, T, H, W, 2)
    first = torch.tensor(list(FIRST.values()))[thing.noun]
    pixel = CELL / (0.5 * config.height)  # of a frame, in pixels of a typical sprite
    texture = textures(SOFTNESS * pixel)[first + HUED[thing.noun] * thing.colour, channels]
    if pixel > 2:
        texture = F.avg_pool2d(texture, 2)
    found = F.grid_sample(texture, grid.flatten(1, 2), align_corners=False)
    return found.unflatten(2, (config.frames, config.height)).movedim(2, 1)


# --- places --------------------------------------------------------------------------------------


def _ridge(random: np.random.Generator, width: int, rough: float) -> np.ndarray:
    """A fractal line in about [-1, 1], (width,)."""
    x, line = np.linspace(0, 1, width), np.zeros(width)
    for octave in range(5):
        knots = random.uniform(-1, 1, 2 + 2 * 2**octave)
        line += rough**octave * np.interp(x * (len(knots) - 1), np.arange(len(knots)), knots)
    return line / 1.6


def _noise(random: np.random.Generator, side: int, cells: tuple[int, int]) -> np.ndarray:
    """Smooth noise in [0, 1], (side, side), of ``cells`` rows and columns."""
    grid = torch.from_numpy(random.random((1, 1, *cells)))
    return F.interpolate(grid, (side, side), mode="bicubic").clamp(0, 1)[0, 0].numpy()


@functools.cache
def landscapes(side: int = 128) -> Tensor:
    """Rendered backgrounds, (len(LANDSCAPES) * VARIANTS, 3, side, side) in [0, 1]."""
    return torch.stack([_landscape(kind, v, side) for kind in LANDSCAPES for v in range(VARIANTS)])


def _landscape(kind: str, variant: int, side: int) -> Tensor:
    random = np.random.Generator(np.random.Philox(key=[LANDSCAPES.index(kind), variant]))
    y = np.linspace(0, 1, side)[:, None] * np.ones((1, side))

    def between(top, bottom, t):
        return np.array(top) + (np.array(bottom) - np.array(top)) * t[..., None]

    skies = {
        "a beach": ((0.25, 0.55, 0.9), (0.75, 0.9, 1.0)),
        "a meadow": ((0.35, 0.6, 0.95), (0.85, 0.93, 1.0)),
        "a desert": ((0.45, 0.65, 0.9), (0.98, 0.9, 0.75)),
        "snow": ((0.55, 0.68, 0.85), (0.9, 0.93, 0.97)),
        "a sunset": ((0.25, 0.15, 0.4), (1.0, 0.55, 0.2)),
        "a city": ((0.05, 0.07, 0.2), (0.25, 0.2, 0.4)),
    }
    picture = between(*skies[kind], np.clip(y / 0.55, 0, 1))
    cloud = np.clip(_noise(random, side, (9, 5)) * 1.8 - 1.0, 0, 1) * (y < 0.5)
    if kind in ("a beach", "a meadow", "snow"):
        picture += (1 - picture) * (cloud * 0.9)[..., None]

    def layer(height, rough, amount, top, bottom, grain=0.0):
        nonlocal picture
        line = height + amount * _ridge(random, side, rough)[None]
        cover = np.clip((y - line) * side / 2, 0, 1)[..., None]
        depth = np.clip((y - line) / max(1e-3, 1 - height), 0, 1)
        texture = 1 + grain * (_noise(random, side, (48, 32)) - 0.5)[..., None]
        picture = picture * (1 - cover) + cover * between(top, bottom, depth) * texture

    if kind == "a beach":
        layer(0.45, 0.3, 0.0, (0.1, 0.45, 0.7), (0.3, 0.75, 0.8), 0.25)
        layer(0.68, 0.4, 0.05, (0.98, 0.98, 0.95), (0.95, 0.95, 0.9))
        layer(0.71, 0.4, 0.05, (0.93, 0.83, 0.6), (0.85, 0.72, 0.48), 0.2)
    elif kind == "a meadow":
        layer(0.5, 0.5, 0.12, (0.35, 0.5, 0.55), (0.4, 0.6, 0.5))
        layer(0.6, 0.4, 0.06, (0.45, 0.7, 0.25), (0.2, 0.5, 0.12), 0.5)
    elif kind == "a desert":
        layer(0.5, 0.4, 0.12, (0.85, 0.55, 0.35), (0.9, 0.65, 0.4))
        layer(0.62, 0.3, 0.1, (0.95, 0.75, 0.45), (0.8, 0.55, 0.3), 0.15)
    elif kind == "snow":
        layer(0.42, 0.6, 0.2, (0.6, 0.68, 0.8), (0.8, 0.86, 0.93))
        layer(0.62, 0.4, 0.08, (0.97, 0.98, 1.0), (0.82, 0.88, 0.96), 0.08)
    elif kind == "a sunset":
        at = random.uniform(0.3, 0.7)
        x = np.linspace(0, 1, side)[None] * np.ones((side, 1))
        disc = np.clip((0.09 - np.hypot(x - at, y - 0.48)) * side / 2, 0, 1)[..., None]
        picture = picture * (1 - disc) + disc * np.array((1.0, 0.9, 0.55))
        layer(0.57, 0.3, 0.0, (0.75, 0.35, 0.25), (0.2, 0.1, 0.25), 0.35)
    else:  # a city at night
        for depth, (low, high) in enumerate(((0.25, 0.5), (0.4, 0.65))):
            left = 0
            while left < side:
                width, top = int(random.integers(10, 22)), int(side * random.uniform(low, high))
                tone = np.array((0.12, 0.12, 0.22)) * (1 + 0.6 * (1 - depth)) * random.uniform(0.8, 1.2)
                picture[top:, left : left + width] = tone
                for row in range(top + 3, side - 4, 7):
                    for column in range(left + 2, min(left + width, side) - 3, 5):
                        if random.random() < 0.5:
                            picture[row : row + 3, column : column + 2] = (1.0, 0.85, 0.45)
                left += width
    return torch.from_numpy(np.clip(picture, 0, 1)).float().permute(2, 0, 1)
