"""Toy compositions of things on places: :mod:`vera_lite.toy.compositions` in the world of
:mod:`vera_lite.toy.scenes`.

The foreground is a thing in the middle of its canvas, in its own light; a path leads it through a scene.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch

from vera_lite.media.clip import composite
from vera_lite.toy.compositions import DARKEST, CompositionConfig, ToyCompositions, draw_trajectories
from vera_lite.toy.drawing import Draws
from vera_lite.toy.scenes import PICTURES, backdrop, draw_view, name_thing, put_thing
from vera_lite.toy.things import choose, draw_thing, held_out, look, shade


@dataclass(frozen=True)
class SceneCompositionConfig(CompositionConfig):
    """Content of the compositions.

    Attributes:
        unseen: every foreground shows a held-out pair (noun, colour); otherwise none does.
        jitter: masks are as rough as a person's: the object's matte, moved by up to this many half-frames and
            scaled by up to this share; 0: exact.
    """

    unseen: bool = False
    jitter: float = 0.0

    def render(self, seed: int, indices) -> ToyCompositions:
        """Clips ``indices`` of the world ``seed``."""
        return render_scene_compositions(seed, indices, self)


def render_scene_compositions(
    seed: int,
    indices,
    config: SceneCompositionConfig = SceneCompositionConfig(),  # noqa: B008 (frozen)
) -> ToyCompositions:
    """Render clips ``indices`` of the world ``seed``."""
    indices = list(indices)
    draws, batch = Draws(seed, indices), len(indices)
    thing = draw_thing(draws, config, hued=torch.full((batch,), config.unseen))
    if config.unseen:
        thing.colour = choose(draws.take(1)[:, 0], held_out()["colour"][thing.noun])
    other = draw_thing(draws, config, beside=thing)
    light, other_light = draws.uniform(DARKEST, 1), draws.uniform(DARKEST, 1)
    foreground_light = other_light if config.relit else light
    picture = draws.choice(len(PICTURES))
    scene = backdrop(picture, *draw_view(draws), config)
    scene, _ = put_thing(other, draws.chance(config.distractor), scene, config, draws.chance(0.5))
    lit, foreground_lit = (v.view(-1, 1, 1, 1, 1) for v in (light, foreground_light))
    background = lit * scene

    # The foreground: in the middle of its canvas, rocking and pulsing.
    time = torch.linspace(0, 1, config.frames)
    wave = torch.sin(2 * np.pi * (time + draws.uniform()[:, None]))
    rock, pulse = draws.uniform(0, 0.4) * draws.chance(0.6), draws.uniform(0.08, 0.18) * draws.chance(0.4)
    middle = torch.zeros(batch, config.frames)
    thing = replace(
        thing,
        radius=draws.uniform(0.7, 0.82)[:, None] * (1 + pulse[:, None] * wave),
        tilt=draws.uniform(-0.2, 0.2)[:, None] + rock[:, None] * wave,
        cx=middle,
        cy=middle,
    )
    colour, alpha = look(thing, config)

    # The same object in the scene.
    trajectories = draw_trajectories(draws, config)
    sampled = zip(*(t.sample(config.frames) for t in trajectories), strict=True)
    positions, scales = (torch.stack(v).float() for v in sampled)
    centre = (positions + 0.5) / torch.tensor([config.width, config.height]) * 2 - 1  # pixels to half-frames
    placed = replace(thing, radius=thing.radius * scales, cx=centre[..., 0], cy=centre[..., 1])
    placed_colour, matte = look(placed, config)
    shadow = (1 - matte) * shade(placed, config)
    result = composite(lit * placed_colour, matte, background * (1 - shadow / (1 - matte).clamp_min(1e-6)))
    away = [config.jitter * draws.uniform(-1, 1)[:, None] for _ in range(3)]
    rough = replace(
        placed, radius=placed.radius * (1 + away[0]), cx=placed.cx + away[1], cy=placed.cy + away[2]
    )

    attributes = [
        {
            **facts,
            "rock": float(rock[i]),
            "pulse": float(pulse[i]),
            "light": float(light[i]),
            "foreground_light": float(foreground_light[i]),
            "background": {"name": PICTURES[picture[i]]},
        }
        for i, facts in enumerate(name_thing(thing))
    ]
    return ToyCompositions(
        background, foreground_lit * colour, alpha, matte, matte + shadow, result, trajectories, attributes,
        mask=look(rough, config)[1] if config.jitter else None,
    )  # fmt: skip
