"""Edits, compositions and dialogues of things on places."""

from collections import Counter
from dataclasses import replace

import pytest
import torch

from vera_lite.media.clip import composite
from vera_lite.toy.dialogues import KINDS, ask, talk
from vera_lite.toy.edits import CATEGORIES, STYLES
from vera_lite.toy.scene_compositions import SceneCompositionConfig, render_scene_compositions
from vera_lite.toy.scene_edits import SceneEditConfig, render_scene_edits
from vera_lite.toy.scenes import SceneConfig, render_scenes
from vera_lite.toy.things import seen_words
from vera_lite.toy.vlm import toy_processor, toy_vocabulary


def assert_seen(thing):
    for kind in ("colour", "place", "motion"):
        assert thing[kind] is None or thing[kind] in seen_words(kind, thing["noun"]), thing


@pytest.fixture(scope="module")
def edits():
    return {c: render_scene_edits(3, range(96), SceneEditConfig(categories=(c,))) for c in CATEGORIES}


def test_each_category_changes_what_it_says(edits):
    for category, batch in edits.items():
        for i, facts in enumerate(batch.attributes):
            before, after = facts["before"], facts["after"]
            assert facts["category"] == category and batch.changed[i].any()
            if category == "local change":
                keys = [k for k in ("noun", "colour") if before[k] != after[k]]
                assert keys == ["colour"] or keys[0] == "noun"
                assert (before["place"], before["motion"]) == (after["place"], after["motion"])
            elif category == "local add":
                assert before is None and torch.equal(batch.source[i], batch.scene[i])
            elif category == "local remove":
                assert after is None and torch.equal(batch.target[i], batch.scene[i]) and facts["other"]
            else:
                torch.testing.assert_close(batch.target[i], STYLES[facts["style"]](batch.source[i]))


def test_nouns_of_a_clip_differ_and_no_pair_is_held_out(edits):
    for batch in edits.values():
        for facts in batch.attributes:
            things = [thing for key in ("before", "after", "other") if (thing := facts[key])]
            nouns = Counter(thing["noun"] for thing in things)
            assert facts["other"] is None or nouns[facts["other"]["noun"]] == 1
            for thing in things:
                assert_seen(thing)


def test_unseen_edits_show_a_held_out_pair_after_the_edit():
    config = SceneEditConfig(unseen=True, categories=CATEGORIES[:3])
    kinds = Counter(facts["unseen"] for facts in render_scene_edits(3, range(128), config).attributes)
    assert set(kinds) == {"colour", "place", "motion"}


def test_sentences_say_what_happens(edits):
    words = {w for batch in edits.values() for s in batch.instruction for w in s.split()[:1]}
    assert words == {"change", "make", "remove", "add"}
    added = edits["local add"]
    rows = zip(added.attributes, added.instruction, added.target_caption, strict=True)
    for facts, order, caption in rows:
        assert facts["after"]["noun"] in order and f"on {facts['background']['name']}" in caption
        assert " a apple" not in order and " a owl" not in order


def test_the_toy_model_has_a_word_for_everything(edits):
    tokenizer = toy_processor(scenes=True).tokenizer
    texts = [t for batch in edits.values() for t in (*batch.instruction, *batch.target_caption)]
    scenes = render_scenes(3, range(96), SceneConfig(behind=0))
    texts += [turn for dialogue in talk(scenes, 3, range(96)) for pair in dialogue for turn in pair]
    assert all(tokenizer.unk_token_id not in ids for ids in tokenizer(texts)["input_ids"])
    old, new = toy_vocabulary(), toy_vocabulary(scenes=True)
    assert list(new.items())[: len(old)] == list(old.items())


def test_an_edit_depends_on_its_seed_and_number_alone():
    for config in (SceneEditConfig(), SceneEditConfig(9, 64, 64)):
        together, alone = render_scene_edits(7, range(6), config), render_scene_edits(7, [4], config)
        torch.testing.assert_close(together.target[4:5], alone.target)
        assert together.instruction[4] == alone.instruction[0]


# --- compositions --------------------------------------------------------------------------------


def test_a_composite_is_the_foreground_in_the_light_of_the_scene():
    batch = render_scene_compositions(3, range(24), SceneCompositionConfig(relit=True))
    untouched = batch.changed < 1e-4
    assert ((batch.composite - batch.background).abs() * untouched).max() < 1e-3
    for i, facts in enumerate(batch.attributes):
        own = facts["light"] / facts["foreground_light"]
        body = batch.matte[i] > 0.99
        seen = (batch.composite[i] * body).sum() / body.sum()
        given = (batch.foreground[i] * (batch.alpha[i] > 0.99)).sum() / (batch.alpha[i] > 0.99).sum()
        assert seen == pytest.approx(float(given * own), rel=0.25)
    outside = composite(batch.foreground, batch.alpha, torch.ones_like(batch.foreground))[..., 0, 0]
    assert outside.min() > 0.9  # the object is in the middle


def test_rough_masks_are_about_the_matte():
    exact = render_scene_compositions(3, range(24), SceneCompositionConfig())
    rough = render_scene_compositions(3, range(24), SceneCompositionConfig(jitter=0.1))
    assert exact.mask is None and torch.equal(exact.composite, rough.composite)
    inside = torch.minimum(rough.mask, rough.matte).sum((1, 2, 3, 4)) / rough.matte.sum((1, 2, 3, 4))
    assert 0.6 < inside.min() < 0.95 < inside.max()


def test_training_compositions_show_no_held_out_colour_and_unseen_ones_do():
    for facts in render_scene_compositions(3, range(256), SceneCompositionConfig()).attributes:
        assert_seen(facts)
    facts = render_scene_compositions(3, range(64), SceneCompositionConfig(unseen=True)).attributes
    assert {f["unseen"] for f in facts} == {"colour"}


# --- dialogues -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def scenes():
    return render_scenes(3, range(64), SceneConfig(behind=0, distractor=0.6))


def test_answers_follow_the_facts(scenes):
    answers = {kind: ask(scenes, kind, 3, range(64)) for kind in KINDS}
    for i, facts in enumerate(scenes.attributes):
        background = facts["background" if facts["task"] == "background" else "source_background"]["name"]
        assert answers["background"][i].answer == background
        assert answers["where"][i].answer.startswith(f"at the {facts['place']} ")
        assert facts["noun"] in answers["what"][i].answer and facts["noun"] in answers["where"][i].question
        assert answers["describe"][i].answer.endswith(f" on {background}")
        if facts["other"]:
            assert facts["other"]["noun"] in answers["describe"][i].answer
    at = [int(w[1:]) for w in answers["locate"][0].answer.split() if w[0] in "xy"]
    centre = [min(7, int(8 * c)) for point in scenes.attributes[0]["path"] for c in point]
    assert at == centre


def test_instructions_make_no_held_out_pair(scenes):
    orders = {d.question.split(" : ")[1].split()[0] for d in ask(scenes, "instruct", 3, range(64))}
    assert orders == {"add", "change", "remove"}
    for dialogue in ask(replace(scenes), "instruct", 4, range(64)):
        for said in dialogue.answer.partition(" on ")[0].split(" and "):
            if said == "no object":
                continue
            name, _, rest = said.partition(" at the ")
            noun = name.split()[-1]
            place, motion = rest.replace("standing still", "moving still").split(" moving ")
            assert place in seen_words("place", noun) and motion in seen_words("motion", noun)
