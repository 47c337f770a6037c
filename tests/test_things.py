"""Things and places: held-out pairs, exact mattes, and clips that depend only on their number."""

import pytest
import torch

from vera_lite.media.clip import composite
from vera_lite.toy.drawing import PHOTOS, ClipConfig, Draws
from vera_lite.toy.phrases import PHRASES, SCENE_VOCABULARY
from vera_lite.toy.scenes import NAMED, PHOTO_NAMES, PICTURES, SceneConfig, render_scenes
from vera_lite.toy.sprites import COLOURED, FIRST, NOUNS, SHEET, textures
from vera_lite.toy.things import (
    FAR,
    LANDSCAPES,
    PLACE_STEP,
    VARIANTS,
    broken,
    draw_thing,
    held_out,
    landscapes,
    look,
    seen_words,
    shade,
)
from vera_lite.toy.words import COLOURS, PLACES

CONFIG = ClipConfig()


def things(indices, unseen=False, **options):
    return draw_thing(Draws(4, indices), CONFIG, unseen, **options)


def test_sixty_sprites_are_small_and_have_their_licence_beside_them():
    assert len(NOUNS) == 60 and SHEET.stat().st_size <= 300_000
    assert "SIL OPEN FONT LICENSE" in SHEET.with_name("OFL.txt").read_text()
    sprites = len(NOUNS) + len(COLOURED) * (len(COLOURS) - 1)
    assert len(textures(1.0)) == sprites == FIRST["fish"] + len(COLOURS)


def test_every_photograph_has_a_name_and_a_licence():
    page = (SHEET.parents[1] / "README.md").read_text()
    assert len(PHOTOS) == len(PHOTO_NAMES) and all(f"`{name}`" in page for name in PHOTOS)
    assert len(PICTURES) == len(PHOTOS) + VARIANTS * len(LANDSCAPES) and set(NAMED) < set(PICTURES)


def test_seen_things_show_no_held_out_pair_and_unseen_ones_exactly_one():
    assert set(broken(things(range(500)))) == {None}
    kinds = broken(things(range(500), unseen=True))
    assert set(kinds) == {"colour", "place", "motion"}
    for kind, pairs in held_out().items():
        assert pairs.any(1).all() and pairs.float().mean() < 0.25
        assert len(seen_words(kind, "car")) == len(pairs[0]) - int(pairs.sum(1)[0])
    named = seen_words("place", "dog")
    assert len(named) == 8 and not held_out()["place"][0][[PLACES.index(p) for p in named]].any()


def test_two_things_stand_far_from_each_other():
    first = things(range(300))
    second = draw_thing(Draws(5, range(300)), CONFIG, beside=first)
    assert (first.noun != second.noun).all() and FAR[first.place, second.place].all()
    distance = torch.hypot(first.cx[:, 0] - second.cx[:, 0], first.cy[:, 0] - second.cy[:, 0])
    assert distance.min() > 1.1 * PLACE_STEP


def test_a_clip_that_needs_a_colour_gets_a_noun_that_has_it():
    wanted = torch.arange(200) % 2 == 0
    nouns = [list(NOUNS)[k] in COLOURED for k in things(range(200), hued=wanted).noun.tolist()]
    assert all(nouns[::2]) and 0.3 < sum(nouns[1::2]) / 100 < 0.9


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
    column = (thing.cx[:, 0] / PLACE_STEP).round().long() + 1
    row = (thing.cy[:, 0] / PLACE_STEP).round().long() + 1
    assert (3 * row + column == thing.place).all()


def test_landscapes_are_pictures():
    pictures = landscapes()
    assert len(pictures) == len(LANDSCAPES) * VARIANTS and pictures.min() >= 0 and pictures.max() <= 1
    assert pictures.flatten(1).std(1).min() > 0.1


def test_layers_compose_exactly_and_two_things_are_never_one():
    batch = render_scenes(5, range(64), SceneConfig(tasks=("add",), distractor=1))
    again = composite(batch.edit, batch.alpha, batch.source)
    torch.testing.assert_close(again, batch.composite)
    assert any(facts["behind"] for facts in batch.attributes)
    for facts in batch.attributes:
        assert facts["noun"] != facts["other"]["noun"]


@pytest.mark.parametrize("task", ["background", "remove"])
def test_other_tasks_keep_and_remove_what_they_should(task):
    batch = render_scenes(5, range(16), SceneConfig(tasks=(task,)))
    outside = (batch.alpha < 0.001) if task == "remove" else (batch.alpha < 0.001) & (batch.mask > 0.5)
    assert outside.any()
    difference = (batch.composite - batch.source).abs() * outside
    assert difference.max() < 1 / 255
    inside = batch.mask > 0.5 if task == "remove" else batch.alpha > 0.999
    assert ((batch.composite - batch.edit).abs() * inside).max() < 2 / 255


def test_no_training_clip_shows_a_held_out_pair_and_every_unseen_one_does():
    for start in range(0, 2048, 256):
        for facts in render_scenes(1, range(start, start + 256), SceneConfig(behind=1)).attributes:
            for thing in filter(None, (facts, facts["other"])):
                assert_seen(thing)
    for facts in render_scenes(1, range(256), SceneConfig(unseen=True)).attributes:
        assert facts["unseen"] and (facts["other"] is None or facts["other"]["unseen"] is None)
        with pytest.raises(AssertionError):
            assert_seen(facts)


def assert_seen(thing):
    for kind in ("colour", "place", "motion"):
        assert thing[kind] is None or thing[kind] in seen_words(kind, thing["noun"]), thing


def test_a_scene_depends_on_its_seed_and_number_alone():
    for config in (SceneConfig(), SceneConfig(5, 24, 40, unseen=True), SceneConfig(9, 64, 64)):
        together, alone = render_scenes(7, range(8), config), render_scenes(7, [5], config)
        assert together.source.shape[1:] == (config.frames, 3, config.height, config.width)
        torch.testing.assert_close(together.composite[5:6], alone.composite)
        assert together.instruction[5:6] == alone.instruction


def test_the_vocabulary_grows_at_its_end():
    phrases = SCENE_VOCABULARY["phrases"]
    assert phrases[: len(PHRASES)] == list(PHRASES) and len(set(phrases)) == len(phrases) == 104
