"""A procedural world of layered clips with exact mattes: the toy data of every system.

Each clip is a pure function of ``(seed, index)``: everything in the scene is read off one row of random
numbers, see :class:`~vera_lite.toy.drawing.Draws`.

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

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vera_lite.errors import UserError
from vera_lite.media.clip import LayeredClip
from vera_lite.media.clip import composite as composite_over
from vera_lite.toy.drawing import (
    Background,
    ClipConfig,
    Draws,
    draw_background,
    draw_sprite,
    name_background,
    name_sprite,
    paint,
    put,
    render_background,
    signed_distance,
    soft_coverage,
    soft_shade,
)
from vera_lite.toy.words import MOTIONS, PLACES, instruction

TASKS = ("add", "background", "remove")

DILATION = 0.19  # how far the edit layer's colour runs past the matte (3 px of 32)


@dataclass(frozen=True)
class WorldConfig(ClipConfig):
    """What the world contains. Probabilities are per clip.

    Attributes:
        tasks: the tasks drawn from, uniformly.
        distractor: chance of another object in the source of an "add" clip.
        behind: chance, given a distractor, that the added object passes behind it.
        shadow: chance of a soft shadow under an added object.
        photo: chance that a source background is a photograph.
    """

    tasks: tuple[str, ...] = ("add", "background")
    distractor: float = 0.4
    behind: float = 0.25
    shadow: float = 0.4
    photo: float = 0.25

    def __post_init__(self):
        super().__post_init__()
        unknown = sorted(set(self.tasks) - set(TASKS))
        if unknown or not self.tasks:
            raise UserError(f"unknown task {unknown}: choose among {', '.join(TASKS)}.")

    def render(self, seed: int, indices) -> "ToyBatch":
        """Clips ``indices`` of the world ``seed``."""
        return render(seed, indices, self)


@dataclass(frozen=True)
class ToyBatch:
    """B clips: layers (B, T, C, H, W) in [0, 1], and for each clip an instruction and a dict of facts."""

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


def render(seed: int, indices, config: WorldConfig = WorldConfig()) -> ToyBatch:  # noqa: B008 (frozen)
    """Render clips ``indices`` of the world ``seed``.

    Args:
        seed: names the world; training, validation and test sets use different seeds.
        indices: integers, the clips wanted, in this order.
        config: what the world contains.
    """
    indices = list(indices)
    draws = Draws(seed, indices)

    task = torch.tensor([TASKS.index(t) for t in config.tasks])[draws.choice(len(config.tasks))]
    is_background = task == TASKS.index("background")
    place, motion = draws.choice(len(PLACES)), draws.choice(len(MOTIONS))
    thing = draw_sprite(draws, config, place, motion)  # what is added, removed or kept
    has_shadow = draws.chance(config.shadow) & ~is_background
    has_other = draws.chance(config.distractor) & ~is_background
    is_behind = draws.chance(config.behind) & has_other

    # The other object stands in a different place. If the added one passes behind it, it stands where it
    # covers a part of the way.
    elsewhere = (place + 1 + draws.choice(len(PLACES) - 1)) % len(PLACES)
    other_place, other_motion = torch.where(is_behind, place, elsewhere), draws.choice(len(MOTIONS))
    other = draw_sprite(draws, config, other_place, other_motion)
    angle = draws.uniform(0, 2 * np.pi)
    other.cx = other.cx + (is_behind * torch.cos(angle) * 0.45)[:, None]
    other.cy = other.cy + (is_behind * torch.sin(angle) * 0.45)[:, None]

    pan_x, pan_y = draws.uniform(-0.12, 0.12), draws.uniform(-0.12, 0.12)
    old = draw_background(draws, config.photo)
    new = draw_background(draws, photo=0.0)
    scene, cover = put(other, has_other, render_background(old, pan_x, pan_y, config), config)
    distance, u, v = signed_distance(thing, config)
    matte, colour = soft_coverage(distance, config)[:, :, None], paint(thing, u, v)

    # "add" and "remove": the object over its shadow, cut by whatever stands in front.
    shade = soft_shade(thing, config, dx=0.12, dy=0.16) * has_shadow.view(-1, 1, 1, 1, 1)
    alpha = matte + (1 - matte) * shade
    # Straight colour of "object over black shadow". Past the matte the object's colour runs on for a few
    # pixels, or soft edges would show dark fringes after resampling.
    near = (distance < DILATION).float()[:, :, None]
    edit = colour * torch.where(alpha > 1e-3, matte / alpha.clamp_min(1e-3), near)
    visible = 1 - cover * is_behind.view(-1, 1, 1, 1, 1)
    alpha = alpha * visible
    mask = (matte * visible > 0.5).float()
    source = scene
    composite = composite_over(edit, alpha, source)

    rows = is_background
    if rows.any():
        cut = Background(**{k: v[rows] for k, v in vars(new).items()})
        backdrop = render_background(cut, pan_x[rows], pan_y[rows], config)
        subject = matte[rows]
        source = scene.clone()
        source[rows] = composite_over(colour[rows], subject, scene[rows])
        composite[rows] = composite_over(colour[rows], subject, backdrop)
        edit[rows], alpha[rows] = backdrop, 1 - subject

    rows = task == TASKS.index("remove")
    if rows.any():
        source = source.clone()
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
        for i in range(len(indices))
    ]
    return ToyBatch(source, edit, alpha, composite, mask, [instruction(a) for a in attributes], attributes)
