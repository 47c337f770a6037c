"""Layered clips of things on places, with the tasks of :mod:`vera_lite.toy.world`."""

from dataclasses import dataclass

import torch
from torch import Tensor

from vera_lite.errors import UserError
from vera_lite.media.clip import composite
from vera_lite.toy.drawing import ClipConfig, Draws, _column, _grid, _photo_atlas, _sample, time_line
from vera_lite.toy.sprites import COLOURED, NOUNS
from vera_lite.toy.things import (
    LANDSCAPES,
    PLACE_STEP,
    VARIANTS,
    Thing,
    broken,
    choose,
    draw_thing,
    held_out,
    landscapes,
    look,
    shade,
)
from vera_lite.toy.words import COLOURS, MOTIONS, PLACES, instruction
from vera_lite.toy.world import TASKS, ToyBatch

#: Names of the photographs, in the order of PHOTOS.
PHOTO_NAMES = ("an astronaut", "fur", "coffee", "a launch", "bricks", "grass", "gravel", "space")
#: Names of all background pictures, as :func:`_backdrop` counts them.
PICTURES = (*PHOTO_NAMES, *(word for word in LANDSCAPES for _ in range(VARIANTS)))
#: Backgrounds that a sentence can ask for.
NAMED = ("bricks", "space", *LANDSCAPES)


@dataclass(frozen=True)
class SceneConfig(ClipConfig):
    """Content of the scenes. Probabilities are per clip.

    Attributes:
        tasks: each clip has one of these, drawn uniformly.
        unseen: every clip shows one held-out pair; otherwise none does.
        distractor: probability of another thing in the source.
        behind: probability, given another thing, that the added thing passes behind it.
        shadow: probability of a soft shadow under an added thing.
    """

    tasks: tuple[str, ...] = ("add", "background")
    unseen: bool = False
    distractor: float = 0.4
    behind: float = 0.25
    shadow: float = 0.5

    def __post_init__(self):
        super().__post_init__()
        unknown = sorted(set(self.tasks) - set(TASKS))
        if unknown or not self.tasks:
            raise UserError(f"unknown task {unknown}: choose among {', '.join(TASKS)}.")

    def render(self, seed: int, indices) -> ToyBatch:
        """Clips ``indices`` of the world ``seed``."""
        return render_scenes(seed, indices, self)


def render_scenes(seed: int, indices, config: SceneConfig = SceneConfig()) -> ToyBatch:  # noqa: B008 (frozen)
    """Render clips ``indices`` of the scenes ``seed``; layers as in :func:`vera_lite.toy.world.render`."""
    indices = list(indices)
    draws, batch = Draws(seed, indices), len(indices)

    def rows(v: Tensor) -> Tensor:
        return v.view(-1, 1, 1, 1, 1)

    task = torch.tensor([TASKS.index(t) for t in config.tasks])[draws.choice(len(config.tasks))]
    is_background, is_removal = task == TASKS.index("background"), task == TASKS.index("remove")
    thing = draw_thing(draws, config, config.unseen)
    other = draw_thing(draws, config, beside=thing)
    has_shadow = draws.chance(config.shadow) & ~is_background
    has_other = draws.chance(config.distractor) & ~is_background
    is_behind = draws.chance(config.behind) & has_other
    # If the added thing passes behind the other one, the other one is near the middle of its path, unless it
    # would show a held-out pair there.
    middle = config.frames // 2
    near = [path[:, middle] + 0.6 * draws.uniform(-0.5, 0.5) for path in (thing.cx, thing.cy)]
    column, row = ((at / PLACE_STEP).round().long().clamp(-1, 1) + 1 for at in near)
    place = 3 * row + column
    is_behind = is_behind & ~held_out()["place"][other.noun, place]
    other.place = torch.where(is_behind, place, other.place)
    for at, name in zip(near, ("cx", "cy"), strict=True):
        path = getattr(other, name)
        setattr(other, name, torch.where(is_behind[:, None], path - path[:, :1] + at[:, None], path))

    old = draws.choice(len(PICTURES))
    new = draws.choice(len(NAMED))
    pictures = torch.tensor([[p == word for p in PICTURES] for word in NAMED])[new]
    new = choose(draws.take(1)[:, 0], pictures)
    view = draw_view(draws)
    scene, new_scene = (backdrop(picture, *view, config) for picture in (old, new))

    scene, cover = put_thing(other, has_other, scene, config, has_shadow)
    cover = cover * rows(is_behind)

    colour, matte = look(thing, config)
    alpha = matte + (1 - matte) * shade(thing, config) * rows(has_shadow)
    edit = colour * torch.where(alpha > 1e-3, matte / alpha.clamp_min(1e-3), 1.0)
    alpha, mask = alpha * (1 - cover), (matte * (1 - cover) > 0.5).float()
    added = composite(edit, alpha, scene)

    source = torch.where(rows(is_background), composite(colour, matte, scene), scene)
    result = torch.where(rows(is_background), composite(colour, matte, new_scene), added)
    source = torch.where(rows(is_removal), added, source)
    result = torch.where(rows(is_removal), scene, result)
    edit = torch.where(rows(is_background), new_scene, torch.where(rows(is_removal), scene, edit))
    alpha = torch.where(rows(is_removal), (alpha * 20).clamp(0, 1), alpha)
    alpha = torch.where(rows(is_background), 1 - matte, alpha)

    things, others = name_thing(thing), name_thing(other)
    attributes = [
        {
            "task": TASKS[task[i]],
            **things[i],
            "shadow": bool(has_shadow[i]),
            "behind": bool(is_behind[i]),
            "background": {"name": PICTURES[new[i]]},
            "source_background": {"name": PICTURES[old[i]]},
            "other": others[i] if has_other[i] else None,
        }
        for i in range(batch)
    ]
    return ToyBatch(source, edit, alpha, result, mask, [instruction(a) for a in attributes], attributes)


def draw_view(draws: Draws) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Where the camera looks, and how far it pans: x, y and x, y, (B,) each, in halves of a picture."""
    x, y, pan_x, pan_y = (draws.uniform(-reach, reach) for reach in (0.25, 0.2, 0.1, 0.06))
    return x, y, pan_x, pan_y


def backdrop(
    picture: Tensor, x0: Tensor, y0: Tensor, pan_x: Tensor, pan_y: Tensor, config: ClipConfig
) -> Tensor:
    """Three fifths of each picture (B,), seen by a panning camera: (B, T, 3, H, W)."""
    x, y = _grid(config)
    time = time_line(config)
    x = 0.6 * x + _column(x0[:, None] + pan_x[:, None] * time)
    y = 0.6 * y + _column(y0[:, None] + pan_y[:, None] * time)
    pictures = torch.cat([_photo_atlas(), landscapes()])[picture]
    return _sample(pictures, x, y, smooth=True)


def put_thing(
    thing: Thing, shown: Tensor, scene: Tensor, config: ClipConfig, shadow: Tensor
) -> tuple[Tensor, Tensor]:
    """Put things in front of ``scene`` (B, T, 3, H, W) where ``shown`` (B,), some with a ``shadow`` (B,).

    Returns:
        The new scene and the thing's matte (B, T, 1, H, W), 0 where it is not shown.
    """
    colour, matte = look(thing, config)
    matte, shadow = (
        v * w.view(-1, 1, 1, 1, 1) for v, w in ((matte, shown), (shade(thing, config), shown & shadow))
    )
    return composite(colour, matte, scene * (1 - shadow)), matte


def name_thing(thing: Thing) -> list[dict]:
    """Facts of each thing. ``colour`` is None if the noun has its own; ``unseen`` names the held-out pair
    that it shows, or is None."""
    centre = torch.stack([thing.cx, thing.cy], -1)[:, [0, -1]] / 2 + 0.5
    nouns = [list(NOUNS)[k] for k in thing.noun.tolist()]
    return [
        {
            "noun": noun,
            "colour": list(COLOURS)[thing.colour[i]] if noun in COLOURED else None,
            "place": PLACES[thing.place[i]],
            "motion": MOTIONS[thing.motion[i]],
            "path": centre[i].tolist(),
            "unseen": odd,
        }
        for i, (noun, odd) in enumerate(zip(nouns, broken(thing), strict=True))
    ]
