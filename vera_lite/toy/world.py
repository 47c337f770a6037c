"""A procedural world of layered clips with exact mattes: the toy data of every system.

Each clip is a pure function of ``(seed, index)``: a Philox generator keyed by the two draws one row
of uniform numbers, and everything in the scene is read off that row. Rendering is vectorised over
clips, and a clip does not depend on which others are rendered beside it.

Lengths are measured in half-frames: the frame spans [-1, 1] in x (right) and y (down), so the same
scene can be rendered at any size.

Tasks
    add         source = background (+ another object);  edit = the object, straight colour;
                alpha = object over soft shadow;  composite = alpha * edit + (1 - alpha) * source.
    background  source = subject over one background;  edit = a new full-frame background;
                alpha = 1 - matte of the subject;  composite = subject over the new background. At the
                soft edge alpha * edit + (1 - alpha) * source is *not* the composite: the source's own
                background bleeds in, as in Vera's setting.
    remove      source = scene with the object;  edit = the clean scene;  alpha covers object and
                shadow. Off by default.
"""

import functools
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from vera_lite.errors import UserError
from vera_lite.media.clip import LayeredClip
from vera_lite.media.clip import composite as composite_over

TASKS = ("add", "background", "remove")
SHAPES = ("circle", "square", "triangle", "ring")
COLOURS = {  # name -> (hue in degrees); far enough apart for a plain judge
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
PHOTOS = ("astronaut", "chelsea", "coffee", "rocket", "brick", "grass", "gravel", "hubble_deep_field")

PLACE_STEP = 0.42  # distance between the centres of neighbouring places
PATTERN_PERIOD = 0.5  # of stripes and checks: four periods a frame
DILATION = 0.19  # how far the edit layer's colour runs past the matte (3 px of 32)
SHADOW_STRENGTH = 0.45  # below 0.5, so that "alpha > 0.5" is the object and not its shadow


@dataclass(frozen=True)
class WorldConfig:
    """What the world contains. Probabilities are per clip.

    Attributes:
        frames, height, width: clip size; frames is 1 + 4n for a causal codec.
        tasks: the tasks drawn from, uniformly.
        distractor: chance of another object in the source of an "add" clip.
        behind: chance, given a distractor, that the added object passes behind it.
        shadow: chance of a soft shadow under an added object.
        photo: chance that a source background is a photograph.
    """

    frames: int = 9
    height: int = 32
    width: int = 32
    tasks: tuple[str, ...] = ("add", "background")
    distractor: float = 0.4
    behind: float = 0.25
    shadow: float = 0.4
    photo: float = 0.25

    def __post_init__(self):
        unknown = sorted(set(self.tasks) - set(TASKS))
        if unknown or not self.tasks:
            raise UserError(f"unknown task {unknown}: choose among {', '.join(TASKS)}.")
        if min(self.frames, self.height, self.width) < 1:
            raise UserError("frames, height and width of the toy world must be positive.")


@dataclass(frozen=True)
class ToyBatch:
    """Layers of B clips: tensors (B, T, C, H, W) in [0, 1], one instruction and attribute dict each."""

    source: Tensor
    edit: Tensor
    alpha: Tensor
    composite: Tensor
    mask: Tensor
    instruction: list[str]
    attributes: list[dict]

    def __len__(self) -> int:
        return len(self.instruction)

    def clip(self, i: int, fps: float = 8.0) -> LayeredClip:
        """The i-th clip as the project's unit of data."""
        layers = {k: getattr(self, k)[i] for k in ("source", "edit", "alpha", "composite", "mask")}
        return LayeredClip(**layers, instruction=self.instruction[i], fps=fps, attributes=self.attributes[i])


class Draws:
    """Uniform numbers of every clip, handed out column by column: (B,) tensors."""

    def __init__(self, seed: int, indices, columns: int = 160):
        rows = [np.random.Generator(np.random.Philox(key=[seed, int(i)])).random(columns) for i in indices]
        self.numbers = torch.from_numpy(np.stack(rows))
        self.used = 0

    def take(self, n: int) -> Tensor:
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


def hue_to_rgb(hue: Tensor, saturation: Tensor | float = 1.0, value: Tensor | float = 1.0) -> Tensor:
    """HSV with hue in degrees to RGB, (..., ) -> (..., 3) in [0, 1]."""
    hue, saturation, value = torch.broadcast_tensors(
        hue, torch.as_tensor(saturation, dtype=hue.dtype), torch.as_tensor(value, dtype=hue.dtype)
    )
    k = (torch.tensor([5.0, 3.0, 1.0], dtype=hue.dtype) + hue[..., None] / 60) % 6
    return value[..., None] * (1 - saturation[..., None] * torch.minimum(k, 4 - k).clamp(0, 1))


def _grid(config: WorldConfig) -> tuple[Tensor, Tensor]:
    """Pixel centres: x of shape (1, 1, 1, W) and y of shape (1, 1, H, 1), in half-frames."""
    x = (torch.arange(config.width) + 0.5) / config.width * 2 - 1
    y = (torch.arange(config.height) + 0.5) / config.height * 2 - 1
    return x.view(1, 1, 1, -1), y.view(1, 1, -1, 1)


def _time(config: WorldConfig) -> Tensor:
    """Time of each frame in [-1, 1], 0 at the middle frame: (1, T)."""
    return torch.linspace(-1, 1, config.frames).view(1, -1) if config.frames > 1 else torch.zeros(1, 1)


def _column(v: Tensor) -> Tensor:
    """(B,) or (B, T) -> (B, T or 1, 1, 1), to broadcast against the grid."""
    return v.reshape(v.shape[0], -1, 1, 1)


# --- sprites -------------------------------------------------------------------------------------


@dataclass
class Sprite:
    """Parameters of one object a clip; every field is (B,), the centre (B, T)."""

    shape: Tensor
    hue: Tensor
    texture: Tensor
    radius: Tensor
    tilt: Tensor
    cx: Tensor
    cy: Tensor


def draw_sprite(draws: Draws, config: WorldConfig, place: Tensor, motion: Tensor) -> Sprite:
    shape, colour, texture = draws.choice(len(SHAPES)), draws.choice(len(COLOURS)), draws.uniform()
    texture = torch.where(texture < 0.6, 0, torch.where(texture < 0.8, 1, 2))
    step = torch.tensor([[0, 0], [-1, 0], [1, 0], [0, -1], [0, 1]], dtype=torch.float32)[motion]
    travel = draws.uniform(0.15, 0.23)[:, None] * _time(config)  # +-: 5 to 7 px of 32 in all
    cx = (place % 3 - 1) * PLACE_STEP + draws.uniform(-0.06, 0.06)
    cy = torch.div(place, 3, rounding_mode="floor") * PLACE_STEP - PLACE_STEP + draws.uniform(-0.06, 0.06)
    return Sprite(
        shape=shape,
        hue=torch.tensor(list(COLOURS.values()))[colour] + draws.uniform(-8, 8),
        texture=texture,
        radius=draws.uniform(0.32, 0.42),
        tilt=draws.uniform(-0.24, 0.24),  # +-14 degrees
        cx=cx[:, None] + travel * step[:, :1],
        cy=cy[:, None] + travel * step[:, 1:],
    )


def signed_distance(sprite: Sprite, config: WorldConfig, dx: float = 0.0, dy: float = 0.0):
    """Signed distance to the outline, negative inside, and local coordinates; each (B, T, H, W)."""
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


def soft_coverage(distance: Tensor, config: WorldConfig) -> Tensor:
    """Antialiased matte with an edge two pixels wide."""
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
    """Parameters of one background a clip; (B,) each, ``noise`` (B, 1, 6, 6), ``photo`` -1 for none."""

    pattern: Tensor
    hue: Tensor
    saturation: Tensor
    phase_x: Tensor
    phase_y: Tensor
    noise: Tensor
    photo: Tensor


def draw_background(draws: Draws, config: WorldConfig, photo: float) -> Background:
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


def render_background(bg: Background, pan_x: Tensor, pan_y: Tensor, config: WorldConfig) -> Tensor:
    """A two-tone pattern, or a photograph, seen by a panning camera: (B, T, 3, H, W)."""
    x, y = _grid(config)
    shift = _time(config)
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

    x and y are separable, so two small matrix products do it; outside, the border repeats.
    """

    def weights(position: Tensor, n: int) -> Tensor:  # (B, T, P) -> (B, T, P, n): hat functions
        p = ((position + 1) * n / 2 - 0.5).clamp(0, n - 1)
        return (1 - (p[..., None] - torch.arange(n)).abs()).clamp_min(0)

    columns = weights(x[:, :, 0, :], images.shape[3])
    rows = weights(y[:, :, :, 0], images.shape[2])
    return torch.einsum("bthi,bcij,btwj->btchw", rows, images, columns)


# --- scenes --------------------------------------------------------------------------------------


def render(seed: int, indices, config: WorldConfig = WorldConfig()) -> ToyBatch:  # noqa: B008 (frozen)
    """Render clips ``indices`` of the world ``seed``.

    Args:
        seed: names the world; training, validation and test sets use different seeds.
        indices: integers, the clips wanted, in this order.
        config: see :class:`WorldConfig`.

    Returns:
        :class:`ToyBatch` with B = len(indices).
    """
    indices = list(indices)
    draws = Draws(seed, indices)
    batch = len(indices)

    task = torch.tensor([TASKS.index(t) for t in config.tasks])[draws.choice(len(config.tasks))]
    is_background = task == TASKS.index("background")
    place, motion = draws.choice(len(PLACES)), draws.choice(len(MOTIONS))
    thing = draw_sprite(draws, config, place, motion)  # what is added, removed or kept
    has_shadow = draws.chance(config.shadow) & ~is_background
    has_other = draws.chance(config.distractor) & ~is_background
    is_behind = draws.chance(config.behind) & has_other

    # The other object stands in a different place, unless the added one passes behind it: then it
    # covers part of its way.
    elsewhere = (place + 1 + draws.choice(len(PLACES) - 1)) % len(PLACES)
    other_place, other_motion = torch.where(is_behind, place, elsewhere), draws.choice(len(MOTIONS))
    other = draw_sprite(draws, config, other_place, other_motion)
    angle = draws.uniform(0, 2 * np.pi)
    other.cx = other.cx + (is_behind * torch.cos(angle) * 0.45)[:, None]
    other.cy = other.cy + (is_behind * torch.sin(angle) * 0.45)[:, None]

    pan_x, pan_y = draws.uniform(-0.12, 0.12), draws.uniform(-0.12, 0.12)
    old = draw_background(draws, config, config.photo)
    new = draw_background(draws, config, photo=0.0)
    scene = render_background(old, pan_x, pan_y, config)  # (B, T, 3, H, W)

    if has_other.any():
        rows = has_other
        cut = replace(other, **{k: v[rows] for k, v in vars(other).items()})
        distance, u, v = signed_distance(cut, config)
        cover = torch.zeros(batch, config.frames, config.height, config.width)
        cover[rows] = soft_coverage(distance, config)
        scene[rows] = composite_over(paint(cut, u, v), cover[rows][:, :, None], scene[rows])
        cover = cover * _column(is_behind)
    else:
        cover = torch.zeros(())

    distance, u, v = signed_distance(thing, config)
    matte = soft_coverage(distance, config)
    colour = paint(thing, u, v)

    # "add" and "remove": the object over its shadow, cut by whatever stands in front.
    shade_distance, _, _ = signed_distance(thing, config, dx=0.12, dy=0.16)
    shade = SHADOW_STRENGTH * torch.sigmoid(-shade_distance * 14) * _column(has_shadow)
    alpha = matte + (1 - matte) * shade
    # Straight colour of "object over black shadow"; past the matte the object's colour runs on for
    # a few pixels, or soft edges would show dark fringes after resampling.
    share = torch.where(alpha > 1e-3, matte / alpha.clamp_min(1e-3), (distance < DILATION).float())
    edit = colour * share[:, :, None]
    alpha = (alpha * (1 - cover))[:, :, None]
    mask = (matte * (1 - cover) > 0.5).float()[:, :, None]
    source = scene
    composite = composite_over(edit, alpha, source)

    rows = is_background
    if rows.any():
        cut = Background(**{k: v[rows] for k, v in vars(new).items()})
        backdrop = render_background(cut, pan_x[rows], pan_y[rows], config)
        subject = matte[rows][:, :, None]
        source, alpha, edit = source.clone(), alpha.clone(), edit.clone()
        source[rows] = composite_over(colour[rows], subject, scene[rows])
        composite[rows] = composite_over(colour[rows], subject, backdrop)
        edit[rows], alpha[rows] = backdrop, 1 - subject

    rows = task == TASKS.index("remove")
    if rows.any():
        source, edit, composite = source.clone(), edit.clone(), composite.clone()
        source[rows], edit[rows], composite[rows] = composite[rows], scene[rows], scene[rows]
        # Opaque wherever object or shadow changed a pixel, with a soft rim.
        alpha[rows] = (alpha[rows] * 20).clamp(0, 1)

    things, others = name_sprite(thing, place, motion), name_sprite(other, other_place, other_motion)
    old, new = name_background(old), name_background(new)
    attributes = [
        {
            "task": TASKS[task[i]],
            **things[i],
            "shadow": bool(has_shadow[i]),
            "behind": bool(is_behind[i]),
            "background_colour": new[i]["colour"],
            "background_pattern": new[i]["pattern"],
            "source_background": old[i],
            "other": others[i] if has_other[i] else None,
        }
        for i in range(batch)
    ]
    return ToyBatch(source, edit, alpha, composite, mask, [instruction(a) for a in attributes], attributes)


def nearest_colour(hue: Tensor) -> list[str]:
    """Names of hues (B,) in degrees."""
    distance = ((hue[:, None] - torch.tensor(list(COLOURS.values())) + 180) % 360 - 180).abs()
    return [list(COLOURS)[k] for k in distance.argmin(1).tolist()]


def name_sprite(sprite: Sprite, place: Tensor, motion: Tensor) -> list[dict]:
    """Words for each object, and where its centre is in the first and the last frame: [x, y] in [0, 1]."""
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


def name_background(bg: Background) -> list[dict]:
    """Colour and pattern of each background; of a photograph the pattern is "photograph"."""
    return [
        {"colour": colour, "pattern": PATTERNS[bg.pattern[i]] if bg.photo[i] < 0 else "photograph"}
        for i, colour in enumerate(nearest_colour(bg.hue))
    ]


def instruction(attributes: dict) -> str:
    """The sentence that orders the edit described by ``attributes``."""
    a = attributes
    texture = "" if a["texture"] == "plain" else a["texture"] + " "
    thing = f"{a['colour']} {texture}{a['shape']}"
    if a["task"] == "background":
        colour, pattern = a["background_colour"], a["background_pattern"]
        return "change the background to " + (
            f"plain {colour}" if pattern == "plain" else f"{colour} {pattern}"
        )
    if a["task"] == "remove":
        return f"remove the {thing}"
    motion = "standing still" if a["motion"] == "still" else f"moving {a['motion']}"
    sentence = f"add a {thing} at the {a['place']} {motion}"
    sentence += " with a shadow" if a["shadow"] else ""
    return sentence + (" behind the other object" if a["behind"] else "")
