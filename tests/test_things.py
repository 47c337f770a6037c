"""Things and places: held-out pairs, exact mattes, clips that depend on their number alone."""

import torch

from vera_lite.media.clip import composite
from vera_lite.toy.drawing import ClipConfig, Draws
from vera_lite.toy.scenes import SceneConfig, render_scenes
from vera_lite.toy.sprites import COLOURED, FIRST, NOUNS, SHEET, textures
from vera_lite.toy.things import LANDSCAPES, VARIANTS, draw_thing, held_out, landscapes, look, shade
from vera_lite.toy.words import COLOURS

CONFIG = ClipConfig()


def things(indices, unseen=False):
    draws = Draws(4, indices)
    return draw_thing(draws, CONFIG, torch.full((len(indices),), unseen), draws.choice(3))


def broken(thing):
    """Which pairs of each thing are held out: (B, 3)."""
    words = zip(("colour", "place", "motion"), (thing.colour, thing.place, thing.motion), strict=True)
    return torch.stack([held_out()[name][thing.noun, word] for name, word in words], 1)


def test_sixty_sprites_are_small_and_have_their_licence_beside_them():
    assert len(NOUNS) == 60 and SHEET.stat().st_size <= 300_000
    assert "SIL OPEN FONT LICENSE" in SHEET.with_name("OFL.txt").read_text()
    assert len(textures()) == len(NOUNS) + len(COLOURED) * (len(COLOURS) - 1) == FIRST["fish"] + len(COLOURS)


def test_seen_worlds_show_no_held_out_pair_and_unseen_ones_exactly_one():
    assert not broken(things(range(500))).any()
    assert (broken(things(range(500), unseen=True)).sum(1) == 1).all()
    for mask in held_out().values():
        assert mask.any(1).all() and mask.float().mean() < 0.25


def test_a_thing_depends_on_its_number_alone_also_under_autocast():
    together, alone = things(range(6)), things([4])
    with torch.autocast("cpu", torch.bfloat16):
        colour, matte = look(together, CONFIG)
        shadow = shade(together, CONFIG)
    expected = (*look(alone, CONFIG), shade(alone, CONFIG))
    for found, wanted in zip((colour, matte, shadow), expected, strict=True):
        torch.testing.assert_close(found[4:5], wanted)
    assert colour.min() >= 0 and colour.max() <= 1 and 0 < matte.mean() < 0.5


def test_paths_begin_at_their_place():
    thing = things(range(300))
    column = (thing.cx[:, 0] / 0.36).round().long() + 1
    assert (column == thing.place % 3).all()


def test_landscapes_are_pictures():
    pictures = landscapes()
    assert len(pictures) == len(LANDSCAPES) * VARIANTS and pictures.min() >= 0 and pictures.max() <= 1
    assert pictures.flatten(1).std(1).min() > 0.1


def test_layers_compose_exactly_and_two_things_are_never_one():
    batch = render_scenes(5, range(64), SceneConfig(tasks=("add",), distractor=1))
    again = composite(batch.edit, batch.alpha, batch.source)
    torch.testing.assert_close(again, batch.composite)
    for facts in batch.attributes:
        assert facts["noun"] != facts["other"]["noun"] and facts["place"] != facts["other"]["place"]


def test_a_scene_depends_on_its_seed_and_number_alone():
    for config in (SceneConfig(), SceneConfig(5, 24, 40, unseen=True)):
        together, alone = render_scenes(7, range(8), config), render_scenes(7, [5], config)
        assert together.source.shape[1:] == (config.frames, 3, config.height, config.width)
        torch.testing.assert_close(together.composite[5:6], alone.composite)
        assert together.instruction[5:6] == alone.instruction
