"""Layered clips of things on places: the world of :mod:`vera_lite.toy.world` that people recognise."""

from dataclasses import dataclass

import torch
from torch import Tensor

from vera_lite.errors import UserError
from vera_lite.media.clip import composite
from vera_lite.toy.drawing import PHOTOS, ClipConfig, Draws, _column, _grid, _photo_atlas, _sample, time_line
from vera_lite.toy.sprites import COLOURED, NOUNS
from vera_lite.toy.things import LANDSCAPES, VARIANTS, Thing, draw_thing, landscapes, look, shade
from vera_lite.toy.words import COLOURS, MOTIONS, PLACES, describe_motion
from vera_lite.toy.world import TASKS, ToyBatch

PHOTO_WORDS = {"bricks": "brick", "space": "hubble_deep_field"}
#: Backgrounds that a sentence can ask for, and where their pictures begin and end among all.
NAMED = {
    **{word: (PHOTOS.index(p), PHOTOS.index(p) + 1) for word, p in PHOTO_WORDS.items()},
    **{
        word: (len(PHOTOS) + VARIANTS * k, len(PHOTOS) + VARIANTS * (k + 1))
        for k, word in enumerate(LANDSCAPES)
    },
}


@dataclass(frozen=True)
class SceneConfig(ClipConfig):
    """What the scenes contain. Probabilities are per clip.

    Attributes:
        tasks: the tasks drawn from, uniformly.
        unseen: every clip shows one held-out pair; otherwise none does.
        distractor: chance of another thing in the source.
        behind: chance, given another thing, that the added one passes behind it.
        shadow: chance of a soft shadow under an added thing.
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


def render_scenes(seed: int, indices, config: SceneConfig = SceneConfig()) -> ToyBatch:  # noqa: B008 (frozen)
    """Render clips ``indices`` of the scenes ``seed``; layers as in :func:`vera_lite.toy.world.render`."""
    indices = list(indices)
    draws, batch = Draws(seed, indices), len(indices)

    def rows(v: Tensor) -> Tensor:
        return v.view(-1, 1, 1, 1, 1)

    task = torch.tensor([TASKS.index(t) for t in config.tasks])[draws.choice(len(config.tasks))]
    is_background, is_removal = task == TASKS.index("background"), task == TASKS.index("remove")
    never, unseen = torch.zeros(batch, dtype=torch.bool), torch.full((batch,), config.unseen)
    thing = draw_thing(draws, config, unseen, draws.choice(3))
    other = draw_thing(draws, config, never, draws.choice(3), beside=thing)
    has_shadow = draws.chance(config.shadow) & ~is_background
    has_other = draws.chance(config.distractor) & ~is_background
    is_behind = draws.chance(config.behind) & has_other
    # If the added thing passes behind the other one, that one stands near the middle of its way.
    middle = config.frames // 2
    away = torch.stack([draws.uniform(-0.5, 0.5), draws.uniform(-0.5, 0.5)])
    for axis, name in enumerate(("cx", "cy")):
        path = getattr(other, name)
        at = getattr(thing, name)[:, middle : middle + 1] + 0.6 * away[axis][:, None]
        setattr(other, name, torch.where(is_behind[:, None], path - path[:, :1] + at, path))

    old = draws.choice(len(PHOTOS) + VARIANTS * len(LANDSCAPES))
    named = draws.choice(len(NAMED))
    first, last = torch.tensor(list(NAMED.values()))[named].unbind(1)
    new = first + (draws.uniform() * (last - first)).long().clamp_max(last - first - 1)
    view = [draws.uniform(-reach, reach) for reach in (0.25, 0.2, 0.1, 0.06)]
    scene, backdrop = (_backdrop(picture, *view, config) for picture in (old, new))

    colour, cover = look(other, config)
    cover = cover * rows(has_other)
    shadow = shade(other, config) * rows(has_other & has_shadow)
    scene = composite(colour, cover, scene * (1 - shadow))
    cover = cover * rows(is_behind)

    colour, matte = look(thing, config)
    alpha = matte + (1 - matte) * shade(thing, config) * rows(has_shadow)
    edit = colour * torch.where(alpha > 1e-3, matte / alpha.clamp_min(1e-3), 1.0)
    alpha, mask = alpha * (1 - cover), (matte * (1 - cover) > 0.5).float()
    added = composite(edit, alpha, scene)

    source = torch.where(rows(is_background), composite(colour, matte, scene), scene)
    result = torch.where(rows(is_background), composite(colour, matte, backdrop), added)
    source = torch.where(rows(is_removal), added, source)
    result = torch.where(rows(is_removal), scene, result)
    edit = torch.where(rows(is_background), backdrop, torch.where(rows(is_removal), scene, edit))
    alpha = torch.where(rows(is_removal), (alpha * 20).clamp(0, 1), alpha)
    alpha = torch.where(rows(is_background), 1 - matte, alpha)

    things, others = name_thing(thing), name_thing(other)
    attributes = [
        {
            "task": TASKS[task[i]],
            **things[i],
            "shadow": bool(has_shadow[i]),
            "behind": bool(is_behind[i]),
            "background": list(NAMED)[named[i]],
            "other": others[i] if has_other[i] else None,
        }
        for i in range(batch)
    ]
    return ToyBatch(source, edit, alpha, result, mask, [sentence(a) for a in attributes], attributes)


def _backdrop(
    picture: Tensor, x0: Tensor, y0: Tensor, pan_x: Tensor, pan_y: Tensor, config: ClipConfig
) -> Tensor:
    """Three fifths of each picture (B,), seen by a panning camera: (B, T, 3, H, W)."""
    x, y = _grid(config)
    time = time_line(config)
    x = 0.6 * x + _column(x0[:, None] + pan_x[:, None] * time)
    y = 0.6 * y + _column(y0[:, None] + pan_y[:, None] * time)
    pictures = torch.cat([_photo_atlas(), landscapes()])[picture]
    return _sample(pictures, x, y, smooth=True)


def name_thing(thing: Thing) -> list[dict]:
    """Facts of each thing; its ``colour`` is None if the noun has its own."""
    centre = torch.stack([thing.cx, thing.cy], -1)[:, [0, -1]] / 2 + 0.5
    nouns = [list(NOUNS)[k] for k in thing.noun.tolist()]
    return [
        {
            "noun": noun,
            "colour": list(COLOURS)[thing.colour[i]] if noun in COLOURED else None,
            "place": PLACES[thing.place[i]],
            "motion": MOTIONS[thing.motion[i]],
            "path": centre[i].tolist(),
        }
        for i, noun in enumerate(nouns)
    ]


def sentence(facts: dict) -> str:
    """The sentence that asks for the edit."""
    if facts["task"] == "background":
        return f"change the background to {facts['background']}"
    name = " ".join(filter(None, (facts["colour"], facts["noun"])))
    if facts["task"] == "remove":
        return f"remove the {name}"
    said = f"add a {name} at the {facts['place']} {describe_motion(facts)}"
    said += " with a shadow" if facts["shadow"] else ""
    return said + (" behind the other object" if facts["behind"] else "")
