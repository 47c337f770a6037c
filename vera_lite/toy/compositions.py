"""Toy compositions: a background, a foreground, and how the foreground looks in the background.

The data of GenCompositor at toy scale, in the manner of :mod:`vera_lite.toy.world`: each clip is a pure
function of (seed, index).

* The foreground is a shape in the middle of its canvas. It may spin or pulse, but it does not travel.
* A :class:`~vera_lite.media.trajectory.Trajectory` says where it is in the background, and how large.
* The scene has a light. In the composite the object has the scene's light and casts a shadow, which reaches
  past its outline. The foreground video shows neither.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from vera_lite.media.clip import composite
from vera_lite.media.trajectory import Keyframe, Trajectory
from vera_lite.toy.drawing import (
    ClipConfig,
    Draws,
    Sprite,
    draw_background,
    draw_sprite,
    name_background,
    paint,
    put,
    render_background,
    signed_distance,
    soft_coverage,
    soft_shade,
)
from vera_lite.toy.words import COLOURS, MOTIONS, PLACES, SHAPES, TEXTURES, nearest_colour

DARKEST = 0.4  # light of the darkest scene; the brightest has 1


@dataclass(frozen=True)
class CompositionConfig(ClipConfig):
    """What the world contains. Probabilities are per clip.

    Attributes:
        distractor: chance of another object in the background.
        photo: chance that the background is a photograph.
        relit: the foreground has its own light, as a video from elsewhere does. Otherwise it has the
            scene's light, as if it were cut out of the composite: this is how training sets are made.
    """

    distractor: float = 0.4
    photo: float = 0.15
    relit: bool = False

    def render(self, seed: int, indices) -> "ToyCompositions":
        """Clips ``indices`` of the world ``seed``."""
        return render_compositions(seed, indices, self)


@dataclass(frozen=True)
class ToyCompositions:
    """B compositions: tensors (B, T, C, H, W) in [0, 1].

    Attributes:
        background: (B, T, 3, H, W).
        foreground: (B, T, 3, H, W), straight colour of the centred object.
        alpha: (B, T, 1, H, W), the foreground's matte.
        matte: (B, T, 1, H, W), the same at its place in the background; without the shadow.
        changed: (B, T, 1, H, W), object and shadow: 0 where the composite equals the background.
        composite: (B, T, 3, H, W), what the model should draw.
        trajectories: where the object goes.
        attributes: facts of each clip.
        mask: (B, T, 1, H, W), a rough one as a person draws it; None: the matte is the mask.
    """

    background: Tensor
    foreground: Tensor
    alpha: Tensor
    matte: Tensor
    changed: Tensor
    composite: Tensor
    trajectories: list[Trajectory]
    attributes: list[dict]
    mask: Tensor | None = None

    def __len__(self) -> int:
        return len(self.trajectories)


def render_compositions(
    seed: int,
    indices,
    world: CompositionConfig = CompositionConfig(),  # noqa: B008 (frozen)
) -> ToyCompositions:
    """Render clips ``indices`` of the world ``seed``."""
    indices = list(indices)
    draws, batch = Draws(seed, indices), len(indices)

    # The scene: a background with a camera pan, perhaps with an object in it, under its light.
    light, other_light = draws.uniform(DARKEST, 1), draws.uniform(DARKEST, 1)
    bg = draw_background(draws, world.photo)
    scene = render_background(bg, draws.uniform(-0.12, 0.12), draws.uniform(-0.12, 0.12), world)
    has_other = draws.chance(world.distractor)
    other = draw_sprite(draws, world, draws.choice(len(PLACES)), draws.choice(len(MOTIONS)))
    scene, _ = put(other, has_other, scene, world)
    lit = light.view(-1, 1, 1, 1, 1)
    background = lit * scene

    # The foreground: in the middle of its canvas, spinning and pulsing.
    time = torch.linspace(0, 1, world.frames)
    shape, colour = draws.choice(len(SHAPES)), draws.choice(len(COLOURS))
    texture = draws.choice(len(TEXTURES))
    spin = draws.uniform(-1, 1) * draws.chance(0.6) * np.pi / 2  # up to a quarter turn
    pulse = draws.uniform(0.1, 0.22) * draws.chance(0.4)
    beat = 1 + pulse[:, None] * torch.sin(2 * np.pi * (time + draws.uniform()[:, None]))
    zero = torch.zeros(batch, 1)
    thing = Sprite(
        shape=shape,
        hue=torch.tensor(list(COLOURS.values()))[colour] + draws.uniform(-8, 8),
        texture=texture,
        radius=draws.uniform(0.5, 0.66)[:, None] * beat,
        tilt=draws.uniform(-0.24, 0.24)[:, None] + spin[:, None] * time,
        cx=zero,
        cy=zero,
    )
    distance, u, v = signed_distance(thing, world)
    alpha, foreground = soft_coverage(distance, world)[:, :, None], paint(thing, u, v)
    foreground = foreground * (other_light if world.relit else light).view(-1, 1, 1, 1, 1)

    # The same object in the scene.
    trajectories = draw_trajectories(draws, world)
    positions, scales = (
        torch.stack(v) for v in zip(*(t.sample(world.frames) for t in trajectories), strict=True)
    )
    size = torch.tensor([world.width, world.height])
    centre = ((positions + 0.5) / size * 2 - 1).float()  # pixels to half-frames
    placed = replace(thing, radius=thing.radius * scales.float(), cx=centre[..., 0], cy=centre[..., 1])
    distance, u, v = signed_distance(placed, world)
    matte = soft_coverage(distance, world)[:, :, None]
    shade = (1 - matte) * soft_shade(placed, world, dx=0.1, dy=0.14)
    result = composite(
        lit * paint(placed, u, v), matte, background * (1 - shade / (1 - matte).clamp_min(1e-6))
    )

    names, scenes = nearest_colour(thing.hue), name_background(bg)
    attributes = [
        {
            "colour": names[i],
            "shape": SHAPES[shape[i]],
            "texture": TEXTURES[texture[i]],
            "spin": float(spin[i]),
            "pulse": float(pulse[i]),
            "light": float(light[i]),
            "foreground_light": float((other_light if world.relit else light)[i]),
            "background": scenes[i],
        }
        for i in range(batch)
    ]
    return ToyCompositions(
        background, foreground, alpha, matte, matte + shade, result, trajectories, attributes
    )


def draw_trajectories(draws: Draws, world: CompositionConfig) -> list[Trajectory]:
    """Paths of two or three keyframes, not too far from each other, each with its own scale."""
    turns = draws.chance(0.5).tolist()
    x, y = draws.uniform(0.2, 0.8), draws.uniform(0.2, 0.8)
    points = []
    for _ in range(3):
        points.append(torch.stack([x, y, draws.uniform(0.6, 0.95)], 1))
        angle, far = draws.uniform(0, 2 * np.pi), draws.uniform(0.1, 0.4)
        # A step that would leave the middle of the frame is taken backwards.
        x, y = (
            torch.where((v + s - 0.5).abs() > 0.33, (v - s).clamp(0.17, 0.83), v + s)
            for v, s in ((x, far * torch.cos(angle)), (y, far * torch.sin(angle)))
        )
    points = torch.stack(points, 1).double()  # (B, 3, [x, y, scale])
    points[..., 0] *= world.width - 1
    points[..., 1] *= world.height - 1
    return [
        Trajectory(tuple(Keyframe(*p) for p in path[: 3 if turn else 2]), (world.height, world.width))
        for path, turn in zip(points.tolist(), turns, strict=True)
    ]
