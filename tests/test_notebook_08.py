"""Notebook 08: its measures say what they claim."""

import re
from types import SimpleNamespace

import pytest
import torch
from notebook_cells import BOOKS
from torch.testing import assert_close

from vera_lite.toy.edits import EditConfig
from vera_lite.toy.words import MOTIONS


@pytest.fixture
def book():
    return BOOKS["08_multiscale_conditioning"].definitions()


def test_a_probe_finds_what_is_there_and_nothing_else(book):
    numbers = torch.Generator().manual_seed(0)
    facts = torch.randint(3, (300,), generator=numbers)
    features = torch.randn(300, 8, generator=numbers)
    train = torch.arange(300) < 200
    assert abs(book["probe"](features, facts, train)) < 0.25  # nothing to be found
    features[torch.arange(300), facts] += 8
    assert book["probe"](features, facts, train) > 0.95
    # Read as an offset and a scale away, it is the same fact.
    assert book["probe"](100 * features - 7, facts, train) > 0.95
    # What is true of the fitted clips alone is no skill.
    facts[200:] = facts[200:].flip(0)
    assert book["probe"](features, facts, train) < 0.4


def test_tokens_are_counted_from_the_end_of_each_prompt(book):
    text = torch.tensor([[1, 0, 1, 1], [1, 1, 0, 0]]).bool()
    visual = torch.tensor([[0, 1, 0, 0], [0, 0, 0, 0]]).bool()
    layers = torch.arange(8.0).view(2, 4, 1), 10 + torch.arange(8.0).view(2, 4, 1)
    found = [book["Reading"](layers, text, visual)] * 2
    assert book["from_the_end"](found, 0, 1)[:, 0].tolist() == [3, 5, 3, 5]
    assert book["from_the_end"](found, 1, 2)[:, 0].tolist() == [12, 14, 12, 14]


def test_facts_and_objects_are_where_they_are_drawn(book):
    assert book["number"](MOTIONS, ["up", "still"]).tolist() == [3, 0]
    named, other = book["object_masks"](5, range(6))
    assert named.shape == other.shape == (6, 64)
    assert 0 < float(named.mean()) < 0.3 and ((named > 0.5) & (other > 0.5)).float().mean() < 0.02
    removed = book["render_edits"](5, range(6), EditConfig(from_place=True, categories=("local remove",)))
    for mask, facts in zip(named.view(6, 8, 8), removed.attributes, strict=True):
        x, y = facts["before"]["path"][0]
        rows, columns = (mask.sum(axis) @ (torch.arange(8) + 0.5) / mask.sum() / 8 for axis in (1, 0))
        assert abs(float(columns) - x) < 0.2 and abs(float(rows) - y) < 0.2


def test_the_leak_is_where_it_is_said_to_be(book):
    guessed = book["guessed_motion"]
    assert guessed(EditConfig(), 300, 100) > 0.5 > 0.35 > guessed(EditConfig(from_place=True), 300, 100)


def test_another_motion_is_said(book):
    say = book["with_motion"]
    assert say("add a red ring moving up", "up", "still") == "add a red ring standing still"
    assert say("add a red ring standing still", "still", "left") == "add a red ring moving left"
    with pytest.raises(AssertionError):
        say("add a red ring moving up", "down", "left")


def test_the_best_layer_and_the_peak(book):
    book["skill"] = {"a": {0: [0.1, 0.3], 1: [0.4, 0.2], 2: [0.0, 0.5]}}
    assert book["best_layer"]("a") == 1
    book["lifts"] = {"words": {1: [3.0, 1.0], 2: [1.0, 1.0]}}
    assert book["peak"]("words") == (1, 2.0)


def test_motion_is_counted_of_what_is_there(book, monkeypatch):
    seen = iter(["up", None, "left", "up", None, "left"])
    book["seen_motion"] = lambda video, colour: next(seen)
    book["goals"] = [{"colour": "red", "motion": m} for m in ("up", "up", "right")]
    assert book["moves_as_told"]([0, 1, 2]) == pytest.approx(1 / 3)
    assert book["still_there"]([0, 1, 2]) == pytest.approx(2 / 3)


def test_errors_are_in_per_cent(book):
    assert book["error"](torch.full((2, 3), 0.5), torch.full((2, 3), 0.25)) == pytest.approx(25)


def test_cuts_name_their_blocks(book, monkeypatch):
    cuts = []

    class Cut:
        def __init__(self, system, keys, where, queries):
            cuts.append((keys, where, queries))

        def __enter__(self):
            return self

        def __exit__(self, *_):
            return None

    book |= {
        "KnockOut": Cut,
        "system": None,
        "sources": 1,
        "orders": ["a"],
        "firsts": 2,
        "cut_steps": 3,
        "seed": 0,
    }
    book["pipe"] = SimpleNamespace(
        generate=lambda *given, **options: SimpleNamespace(final=(given, options["steps"]))
    )
    edit_with = book["edit_with"]
    assert edit_with(("keys", "queries", [1, 3])) == ((1, ["a"], 2), 3)
    [(keys, where, queries)] = cuts
    assert (keys, queries) == ("keys", "queries")
    blocks = [b for b in range(12) if re.search(where, f"transformer.blocks.{b}.attn1")]
    assert blocks == [0, 2]
    assert edit_with(sentences=["b"]) == ((1, ["b"], 2), 3) and len(cuts) == 1


def test_claims_are_judged_by_the_interval_over_seeds(book):
    values = {"self": (3, 3, 3), "first layer": (1, 1.1, 0.9), "decoupled": (4, 2, 2)}
    book["report"] = {
        "runs": [
            {"variant": v, "seed": s, "metrics": {"m": x, "added_motion": x / 10, "added_unheard": 0.25}}
            for v, seeds in values.items()
            for s, x in reversed(list(enumerate(seeds)))
        ]
    }
    assert book["of_seeds"]("decoupled", "m") == [4, 2, 2]
    assert book["of_seeds"]("decoupled", "added_motion") == [40, 20, 20]
    judged = book["judged"]
    found = [judged("self", peer, "m") for peer in ("first layer", "decoupled")]
    found += [judged("first layer", "self", "m")]
    found += [judged("decoupled", "decoupled", "added_motion", "added_unheard")]
    assert [verdict for *_, verdict in found] == ["supported", "undecided", "not supported", "undecided"]
    assert found[0][0] == pytest.approx(2) and found[3][0] == pytest.approx(80 / 3 - 25)


def test_every_token_of_the_sequence_has_its_place():
    names = BOOKS["08_multiscale_conditioning"].definitions(per_frame=16)
    system = names["MiVEPipeline"].from_pretrained().system
    names["vlm"] = system.vlm
    edits = names["render_edits"](3, [0])
    grid = names["sequence_grid"](edits.instruction[0], edits.source[0], edits.target[0, 0])
    reading = system.read(edits.source, edits.instruction, edits.target[:, 0])
    context = reading.text.shape[1]
    assert len(grid) == context + 16 + 48
    visual = torch.cat([grid.tokens("VLM: reference"), grid.tokens("VLM: source")]).sort().values
    assert torch.equal(visual, reading.visual[0].nonzero()[:, 0])
    assert grid.tokens("reference").tolist() == list(range(context, context + 16))
    assert grid.tokens("drawn video").tolist() == list(range(context + 16, context + 64))
    assert grid.stream("VLM: source").frames == ((0, 8),)
    said = [grid[int(i)].word for i in grid.tokens("text")]
    assert " ".join(said).count(edits.instruction[0]) == 1
    assert_close(grid.stream("drawn video").cells, (3, 4, 4))
