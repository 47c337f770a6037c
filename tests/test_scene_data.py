"""Batches and configurations of the world of things on places."""

import json
import pickle
from collections import defaultdict
from pathlib import Path

import pytest
import torch
import yaml

from vera_lite.codecs import PatchCodec
from vera_lite.conditioning.phrases import PhraseEncoder
from vera_lite.evaluation.metrics import PooledPSNR
from vera_lite.evaluation.statistics import wilson
from vera_lite.evaluation.toy.tally import Row, Tally
from vera_lite.toy.phrases import SCENE_VOCABULARY
from vera_lite.toy.scene_compositions import SceneCompositionConfig
from vera_lite.toy.scene_edits import SceneEditConfig
from vera_lite.toy.scenes import SceneConfig, render_scenes
from vera_lite.toy.vlm import toy_vocabulary
from vera_lite.training import SceneCompositionData, SceneData, SceneEditData, ToyDialogues
from vera_lite.training.data import VALIDATION
from vera_lite.training.toy.layers import SCENE_CODEC

CONFIGS = Path(__file__).parents[1] / "vera_lite" / "configs"
NAMES = ("vera", "gencompositor", "rvedit", "mive", "vlm")


def module(name, **options):
    options |= {"batch_size": 4}
    if name == "vlm":
        return ToyDialogues(edits=True, scenes=True, **options)
    return {"vera": SceneData, "gencompositor": SceneCompositionData}.get(name, SceneEditData)(**options)


def same(a, b):
    if isinstance(a, torch.Tensor):
        torch.testing.assert_close(a, b)
    else:
        assert a == b


@pytest.mark.parametrize("name", ["vera", "gencompositor", "rvedit", "vlm"])
def test_batches_depend_on_seed_step_and_rank_alone_and_travel_to_workers(name):
    data = module(name)
    data.setup()
    batch, again = data.train[3], pickle.loads(pickle.dumps(data.train))[3]
    for key, value in batch.items():
        same(value, again[key])
    other = module(name, seed=2)
    other.setup()
    key = {"vlm": "pixel_values_videos", "gencompositor": "background"}.get(name, "source")
    assert not torch.equal(other.train[3][key], batch[key])
    assert not torch.equal(data.train[4][key][: len(batch[key])], batch[key])
    assert data.validation.seed == data.train.seed + VALIDATION


def test_two_ranks_see_what_one_would():
    one, (first, second) = SceneData(batch_size=4), (SceneData(batch_size=2), SceneData(batch_size=2))
    one.setup()
    parts = []
    for rank, data in enumerate((first, second)):
        data.setup()
        data.train.rank, data.train.world_size = rank, 2
        parts.append(data.train[5]["edit"])
    torch.testing.assert_close(torch.cat(parts), one.train[5]["edit"])


def test_a_sentence_is_its_phrases():
    data = SceneData(batch_size=8)
    data.setup()
    text, clips = data.train[0]["text"], render_scenes(1, range(8))
    encoder = PhraseEncoder(**SCENE_VOCABULARY)
    torch.testing.assert_close(text, encoder(clips.instruction))
    for row, facts in zip(text, clips.attributes, strict=True):
        said = [encoder.phrases[k] for k in row.argmax(1)[row.any(1)].tolist()]
        name = (
            facts["background"]["name"].removeprefix("a ") if facts["task"] == "background" else facts["noun"]
        )
        assert name in said


def test_the_codec_holds_sprites_at_32_db():
    codec, batch = PatchCodec.load(SCENE_CODEC), render_scenes(21, range(64))
    inside = batch.mask > 0.5
    for layer in (batch.composite, batch.edit):
        psnr = PooledPSNR()
        psnr.add(codec.decode(codec.encode(layer)), layer, inside)
        assert psnr.value() >= 32


@pytest.mark.parametrize("name", NAMES)
def test_configurations_fit_their_world(name):
    config = yaml.safe_load((CONFIGS / f"{name}_scenes.yaml").read_text())
    init, data = config["model"]["init_args"], config["data"]["init_args"]
    assert config["trainer"]["callbacks"][0]["init_args"]["every_n_train_steps"] <= 250
    if name == "vlm":
        assert init["scenes"] and data["scenes"] and len(toy_vocabulary(scenes=True)) == 231
        return
    system = init["system"]["init_args"]["config"]
    channels = PatchCodec.load(SCENE_CODEC).latent_channels
    assert system["backbone"]["out_channels"] == channels
    assert system["backbone"]["patch_size"] in ([1, 1, 1], 1)
    if name == "vera":
        assert system["backbone"]["text_dim"] == len(SCENE_VOCABULARY["phrases"])


@pytest.mark.parametrize("config", [SceneConfig, SceneEditConfig, SceneCompositionConfig])
def test_64_pixels_are_a_matter_of_configuration(config):
    batch = config(9, 64, 64).render(1, range(2))
    video = batch.target if hasattr(batch, "target") else batch.composite
    assert video.shape == (2, 9, 3, 64, 64)
    small = config(9, 32, 32).render(1, range(2))
    video = torch.nn.functional.avg_pool2d(video.flatten(0, 1), 2).unflatten(0, (2, 9))
    other = small.target if hasattr(small, "target") else small.composite
    assert (video - other).abs().mean() < 0.02  # the same scene


def test_the_benchmark_reports_held_out_pairs_apart(monkeypatch):
    monkeypatch.syspath_prepend(str(CONFIGS.parents[1] / "benchmarks"))
    import scenes_toy

    asked = []

    def evaluate(pipe, clips, mask, *, world):
        asked.append((mask, world.unseen))
        return {"add": {"noun": float(world.unseen)}}

    monkeypatch.setattr(scenes_toy.layer_benchmark, "evaluate", evaluate)
    rows = scenes_toy.vera(type("Pipe", (), {"clip_size": (9, 32, 32)})(), 4)
    assert sorted(asked) == [(False, False), (False, True), (True, False), (True, True)]
    assert all(row["noun"] == ("held-out" in name) for name, row in rows.items()) and len(rows) == 4


class AnyRow(Row):
    """Has every number, and the same one."""

    def __init__(self, value: float):
        super().__init__({"psnr": value})
        self.intervals["psnr"] = (value - 1, value + 1)

    def __missing__(self, key: str) -> float:
        return self["psnr"]


@pytest.mark.parametrize("system", ["vera", "gencompositor", "rvedit", "mive", "vlm"])
def test_a_card_says_which_goals_are_met(system, monkeypatch):
    monkeypatch.syspath_prepend(str(CONFIGS.parents[1] / "benchmarks"))
    import scenes_toy

    class AnyRows(defaultdict):
        def __missing__(self, name):
            trivial = name.startswith(("codec alone", "first frame held"))
            self[name] = AnyRow(60.0 if trivial else value)
            return self[name]

    load, _, goals_of = scenes_toy.SYSTEMS[system]
    monkeypatch.setattr(scenes_toy, "sampling", lambda model: {"parameters": 1e6, "sampler_steps": 12})
    verdicts = []
    for value in (0.5, 99.0):
        rows = AnyRows()
        list(goals_of(rows))
        rows["codec alone"] = Row({"psnr": float("inf")})
        entry = load, lambda model, clips, rows=rows: rows, goals_of
        monkeypatch.setitem(scenes_toy.SYSTEMS, system, entry)
        report = scenes_toy.measure(system, None, 4)
        json.dumps(report, allow_nan=False)
        training = {"stages": [[600, 600]], "steps": 600, "batch_size": 16, "samples": 9600, "threads": 1}
        report["training"] = training | {"precision": "bf16-mixed", "wall_minutes": 7}
        card = scenes_toy.card(system, report)
        assert f"{system}_scenes.yaml --trainer.max_steps 600" in card
        assert (f"{value:.1f}" if value > 5 else f"{value:.3f}") + " (" in card
        verdicts.append([goal["met"] for goal in report["goals"]])
    assert not all(verdicts[0])
    assert sum(verdicts[1]) > sum(verdicts[0])


def test_a_row_has_intervals_over_clips():
    generator = torch.Generator().manual_seed(0)
    a = torch.rand(40, 3, 3, 8, 8, generator=generator)
    errors = torch.rand(40, 1, 1, 1, 1, generator=generator) * 0.2
    b, where = a + errors, torch.rand(40, 3, 1, 8, 8, generator=generator) > 0.3
    whole, single, pooled = Tally(), Tally(), PooledPSNR()
    whole.psnr("psnr", a, b, where)
    for i in range(40):
        single.psnr("psnr", a[i], b[i], where[i])
        pooled.add(a[i], b[i], where[i])
    rows = whole.row(), single.row()
    assert rows[0] == rows[1] and rows[0].intervals == rows[1].intervals
    assert rows[0]["psnr"] == pytest.approx(pooled.value(), abs=1e-4)
    low, high = rows[0].intervals["psnr"]
    assert rows[0]["psnr"] - 3 < low < rows[0]["psnr"] - 0.3 and rows[0]["psnr"] + 0.3 < high
    shares = Tally()
    shares.add({"noun": [True] * 9 + [False], "fit": [0.1 * i for i in range(10)]})
    row = shares.row()
    assert row.intervals["noun"] == wilson(9, 10)
    assert 0.2 < row.intervals["fit"][0] < row["fit"] < row.intervals["fit"][1] < 0.7
