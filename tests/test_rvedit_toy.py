"""The shipped toy RVEDiT, its first stage, and its kept results."""

import json
from pathlib import Path

import pytest
import torch

from vera_lite.evaluation.toy.edit_benchmark import evaluate, exchanged, redraw
from vera_lite.pipelines import ASSETS, RVEDiTPipeline
from vera_lite.toy.edits import CATEGORIES

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
FOLDER = ASSETS / "rvedit_toy"


@pytest.fixture
def ablation(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import rvedit_ablation

    return rvedit_ablation


def test_the_shipped_checkpoint_is_small_and_safe():
    files = {p.name for p in FOLDER.iterdir()}
    assert files == {"README.md", "codec.safetensors", "pipeline.json", "system.safetensors"}
    assert sum(p.stat().st_size for p in FOLDER.iterdir()) <= 8e6


def test_the_shipped_checkpoint_hears_its_instruction():
    """Floors well below the card's numbers (16 clips a category; the card has 128)."""
    pipe = RVEDiTPipeline.from_pretrained()
    rows = evaluate(pipe, 16, steps=8)
    heard = {category: rows[category]["instruction_compliance"] for category in CATEGORIES}

    def unheard(edits):
        noise = torch.Generator().manual_seed(0)
        return redraw(pipe, exchanged(edits), steps=8, generator=noise)

    others = evaluate(pipe, 16, draw=unheard)
    assert rows["overall"]["instruction_compliance"] > others["overall"]["instruction_compliance"] + 15
    assert heard["local remove"] > 80 and rows["overall"]["preserved_psnr"] > 18


def test_the_card_and_the_report_agree():
    report = json.loads((RESULTS / "rvedit_toy.json").read_text())
    card = (FOLDER / "README.md").read_text()
    for category, measures in report["rows"]["RVEDiT"].items():
        for measure in measures:
            values = [row[category].get(measure) for row in report["rows"].values()]
            cells = ["" if v is None else f"{v:.1f}" for v in values]
            assert f"| {category}: {measure} | {' | '.join(cells)} |" in card
    assert f"{report['training']['steps']:,} steps" in card
    sampling = RVEDiTPipeline.from_pretrained().sampling
    assert report["shift"] == sampling.shift
    assert report["sampler_steps"] == sampling.steps


def test_the_kept_first_stage_is_where_every_ablation_starts(ablation):
    first = RVEDiTPipeline.from_pretrained(RESULTS / "rvedit_first_stage").system
    assert first.config.alignment_weight == 0 and first.config.routed_layers == ablation.LAYERS
    for config in ablation.VARIANTS.values():
        assert config.backbone == first.config.backbone and config.objective == first.config.objective
    assert RVEDiTPipeline.from_pretrained().system.config == ablation.FULL


def test_kept_ablations_are_whole(ablation):
    report = json.loads((RESULTS / "rvedit_ablation.json").read_text())
    assert {name: report[name] for name in ablation.settings()} == json.loads(json.dumps(ablation.settings()))
    found = {(r["variant"], r["seed"]) for r in report["runs"]}
    assert found == {(variant, seed) for variant in ablation.VARIANTS for seed in (0, 1, 2)}
    assert all(len(r["attention"]["rank"]) == ablation.LAYERS for r in report["runs"])
