"""The shipped toy GenCompositor and its kept results."""

import json
from pathlib import Path

import pytest

from vera_lite.evaluation.published import GENCOMPOSITOR_ABLATION
from vera_lite.evaluation.toy.composition_benchmark import evaluate
from vera_lite.pipelines import ASSETS, GenCompositorPipeline

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
FOLDER = ASSETS / "gencompositor_toy"


@pytest.fixture
def ablation(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import gencompositor_ablation

    return gencompositor_ablation


def test_the_shipped_checkpoint_is_small_and_safe():
    files = {p.name for p in FOLDER.iterdir()}
    assert files == {"README.md", "codec.safetensors", "pipeline.json", "system.safetensors"}
    assert sum(p.stat().st_size for p in FOLDER.iterdir()) <= 6e6


def test_the_shipped_checkpoint_composes():
    """Floors well below the card's numbers (32 clips; the card has 256)."""
    pipe = GenCompositorPipeline.from_pretrained()
    row = evaluate(pipe, 32, steps=8)
    assert row["colour"] > 0.9 and row["shape"] > 0.6 and row["texture"] > 0.4
    assert row["psnr"] > 23 and row["preserved_psnr"] > 26 and row["removal_psnr"] > 20
    foreground_ignored = evaluate(pipe, 32, draw=lambda batch: batch.background)
    assert row["object_psnr"] > foreground_ignored["object_psnr"] + 3


def test_the_card_and_the_report_agree():
    report = json.loads((RESULTS / "gencompositor_toy.json").read_text())
    card = (FOLDER / "README.md").read_text()
    for metric in report["rows"]["other light"]:
        if metric != "clips":
            cells = [f"{r[metric]:.3f}" if metric in r else "" for r in report["rows"].values()]
            assert f"| {metric} | {' | '.join(cells)} |" in card
    assert f"{report['training']['steps']:,} steps" in card
    sampling = GenCompositorPipeline.from_pretrained().sampling
    assert report["shift"] == sampling.shift
    assert report["sampler_steps"] == sampling.steps


def test_kept_ablations_are_whole_and_add_up(ablation):
    report = json.loads((RESULTS / "gencompositor_ablation.json").read_text())
    assert {name: report[name] for name in ablation.settings()} == ablation.settings()
    found = {(r["study"], r["variant"], r["seed"]) for r in report["runs"]}
    wanted = {
        (study, variant, seed)
        for study, (_, _, variants) in ablation.STUDIES.items()
        for variant in variants
        for seed in ablation.SEEDS
    }
    assert found == wanted
    assert report["results"] == ablation.summarise(report["runs"])
    printed = ablation.table(report)
    for variant in GENCOMPOSITOR_ABLATION:
        assert printed.count(f"  {variant}") == 2  # ours, and the paper's
    assert set(GENCOMPOSITOR_ABLATION) == set(ablation.STUDIES["parts"][2])


def test_directions_respect_what_is_better(ablation):
    def run(variant, seed, psnr, brightness):
        metrics = dict.fromkeys([m for m, _ in ablation.SHOWN["parts"]], 0.0)
        return {
            "study": "parts",
            "variant": variant,
            "seed": seed,
            "metrics": metrics | {"psnr": psnr, "brightness": brightness},
        }

    runs = [run("full", 0, 25, 0.1), run("full", 1, 26, 0.1)]
    runs += [run("no mask inflation", 0, 24, 0.2), run("no mask inflation", 1, 27, 0.3)]
    rows = {r["case"].rpartition(": ")[2]: r for r in ablation.summarise(runs)}
    assert rows["psnr"]["gains"] == [1, -1] and not rows["psnr"]["holds"] and rows["psnr"]["claimed"]
    assert rows["brightness"]["gains"] == [0.1, 0.2] and rows["brightness"]["holds"]


def test_the_models_that_notebook_03_looks_into_are_those_of_the_study(ablation):
    variants = ablation.STUDIES["positions"][2]
    for folder, variant in (("erope", "ERoPE along h"), ("shared", "shared RoPE")):
        pipe = GenCompositorPipeline.from_pretrained(RESULTS / "gencompositor_positions" / folder)
        assert pipe.system.config == variants[variant][0]
