"""Toy edits of things on places: :mod:`vera_lite.toy.edits` in the world of :mod:`vera_lite.toy.scenes`.

All nouns of a clip differ, so a noun names exactly one thing. A "local change" gives a thing another colour,
if its noun comes in colours, or turns it into another thing.
"""

from dataclasses import dataclass, replace

import torch

from vera_lite.toy.drawing import Draws
from vera_lite.toy.edits import CATEGORIES, STYLES, EditConfig, ToyEdits, told
from vera_lite.toy.scenes import PICTURES, backdrop, draw_view, name_thing, put_thing
from vera_lite.toy.sprites import NOUNS
from vera_lite.toy.things import choose, draw_thing, held_out
from vera_lite.toy.words import COLOURS


@dataclass(frozen=True)
class SceneEditConfig(EditConfig):
    """Content of the edits. Probabilities are per clip.

    Attributes:
        from_place: always true here: paths begin at their place.
        unseen: every edited thing shows one held-out pair (after a change); otherwise no thing does.
        shadow: probability that things cast soft shadows.
    """

    from_place: bool = True
    unseen: bool = False
    shadow: float = 0.5

    def render(self, seed: int, indices) -> ToyEdits:
        """Clips ``indices`` of the world ``seed``."""
        return render_scene_edits(seed, indices, self)


def render_scene_edits(seed: int, indices, config: SceneEditConfig = SceneEditConfig()) -> ToyEdits:  # noqa: B008
    """Render clips ``indices`` of the world ``seed``; facts as in :class:`~vera_lite.toy.edits.ToyEdits`, but
    things have a ``noun`` and backgrounds a ``name``."""
    indices = list(indices)
    draws, batch = Draws(seed, indices), len(indices)
    category = torch.tensor([CATEGORIES.index(c) for c in config.categories])
    category = category[draws.choice(len(config.categories))]
    change, remove, add, restyle = (category == k for k in range(4))

    recolour = change & draws.chance(0.5)
    renoun = change & ~recolour
    thing = draw_thing(draws, config, config.unseen, hued=recolour)  # after the edit, or removed by it
    other = draw_thing(draws, config, beside=thing)
    # Before a change it had another colour or was another thing, also without a held-out pair.
    pairs = held_out()
    nouns = ~(pairs["place"][:, thing.place] | pairs["motion"][:, thing.motion]).T
    nouns &= ~torch.eye(len(NOUNS), dtype=torch.bool)[torch.stack([thing.noun, other.noun])].any(0)
    noun = torch.where(renoun, choose(draws.take(1)[:, 0], nouns), thing.noun)
    colours = ~pairs["colour"][noun] & ~torch.eye(len(COLOURS), dtype=torch.bool)[thing.colour]
    colour = torch.where(change, choose(draws.take(1)[:, 0], colours), thing.colour)
    before = replace(thing, noun=noun, colour=colour)

    picture, style = draws.choice(len(PICTURES)), draws.choice(len(STYLES))
    has_other, has_shadow = draws.chance(config.distractor) | remove, draws.chance(config.shadow)
    make = draws.chance(0.5)  # which of the two ways to ask for a colour
    scene = backdrop(picture, *draw_view(draws), config)
    scene, _ = put_thing(other, has_other, scene, config, has_shadow)
    source, _ = put_thing(before, ~add, scene, config, has_shadow)
    target, _ = put_thing(thing, ~remove, scene, config, has_shadow)
    for k, restyled in enumerate(STYLES.values()):
        rows = restyle & (style == k)
        target[rows] = restyled(target[rows])

    befores, afters, others = name_thing(before), name_thing(thing), name_thing(other)
    attributes = [
        {
            "category": CATEGORIES[category[i]],
            "before": None if add[i] else befores[i],
            "after": None if remove[i] else afters[i],
            "other": others[i] if has_other[i] else None,
            "background": {"name": PICTURES[picture[i]]},
            "style": list(STYLES)[style[i]] if restyle[i] else None,
            "unseen": afters[i]["unseen"],
        }
        for i in range(batch)
    ]
    return told(source, target, attributes, make, scene)
