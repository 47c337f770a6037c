"""The shipped toy MiVE and its card."""

import json
from pathlib import Path

import torch

from vera_lite.evaluation.toy.edit_benchmark import evaluate
from vera_lite.pipelines import ASSETS, MiVEPipeline

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"
FOLDER = ASSETS / "mive_toy"


def test_the_shipped_checkpoint_is_small_and_safe():
    files = {p.name for p in FOLDER.iterdir()}
    assert files == {"README.md", "codec.safetensors", "pipeline.json", "system.safetensors"}
    assert sum(p.stat().st_size for p in FOLDER.iterdir()) <= 6e6


def test_the_shipped_checkpoint_follows_its_reference():
    """Floors well below the card's numbers (16 clips a category; the card has 128)."""
    pipe = MiVEPipeline.from_pretrained()

    def unedited(edits):
        noise = torch.Generator().manual_seed(0)
        return pipe.generate(
            edits.source, edits.instruction, edits.source[:, 0], steps=8, generator=noise
        ).final

    shown, not_shown = (evaluate(pipe, 16, steps=8, draw=d)["overall"] for d in (None, unedited))
    assert shown["instruction_compliance"] > not_shown["instruction_compliance"] + 10
    assert shown["psnr"] > not_shown["psnr"] + 1 and shown["preserved_psnr"] > 18


def test_the_card_and_the_report_agree():
    report = json.loads((RESULTS / "mive_toy.json").read_text())
    card = (FOLDER / "README.md").read_text()
    for category, measures in report["rows"]["MiVE"].items():
        for measure in measures:
            values = [row[category].get(measure) for row in report["rows"].values()]
            cells = ["" if v is None else f"{v:.1f}" for v in values]
            assert f"| {category}: {measure} | {' | '.join(cells)} |" in card
    assert f"{report['training']['steps']:,} steps" in card
    sampling = MiVEPipeline.from_pretrained().sampling
    assert report["shift"] == sampling.shift
    assert report["sampler_steps"] == sampling.steps


def test_the_kept_ablation_is_whole(monkeypatch):
    monkeypatch.syspath_prepend(str(RESULTS.parent))
    import mive_ablation

    report = json.loads((RESULTS / "mive_ablation.json").read_text())
    settings = json.loads(json.dumps(mive_ablation.settings()))
    assert {name: report[name] for name in settings} == settings
    found = {(r["variant"], r["seed"]) for r in report["runs"]}
    assert found == {(variant, seed) for variant in mive_ablation.VARIANTS for seed in (0, 1, 2)}
    points = mive_ablation.STEPS // report["window"]
    assert all(len(r["loss_curve"]) == points for r in report["runs"])
