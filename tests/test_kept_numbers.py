"""Kept numbers: cards and tables are made from the reports that lie beside them."""

import importlib
import json
from pathlib import Path

import pytest

from vera_lite import pipelines
from vera_lite.evaluation.published import GENCOMPOSITOR_ABLATION
from vera_lite.pipelines import ASSETS, GenCompositorPipeline, RVEDiTPipeline

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
RESULTS = BENCHMARKS / "results"
STUDIES = ["preservation", "gencompositor_ablation", "rvedit_ablation", "mive_ablation"]
PIPELINES = {
    "vera_toy": "VeraPipeline",
    "gencompositor_toy": "GenCompositorPipeline",
    "rvedit_toy": "RVEDiTPipeline",
    "mive_toy": "MiVEPipeline",
}


@pytest.fixture
def kept(monkeypatch):
    """A benchmark's module and its report, by name."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return lambda name: (
        importlib.import_module(name),
        json.loads((RESULTS / f"{name}.json").read_text()),
    )


# ---------------------------------------------------------------------- shipped models


@pytest.mark.parametrize("name", [*PIPELINES, "vlm_toy"])
def test_a_card_is_made_from_its_report(kept, name):
    script, report = kept(name)
    assert script.card(report) == (ASSETS / name / "README.md").read_text()


@pytest.mark.parametrize("name", PIPELINES)
def test_a_report_was_measured_as_the_pipeline_samples(kept, name):
    _, report = kept(name)
    sampling = getattr(pipelines, PIPELINES[name]).from_pretrained().sampling
    assert (report["sampler_steps"], report["shift"]) == (sampling.steps, sampling.shift)
    assert report.get("alpha_floor") == getattr(sampling, "alpha_floor", None)


@pytest.mark.parametrize("name", PIPELINES)
def test_a_shipped_model_is_small_and_safe(name):
    files = list((ASSETS / name).iterdir())
    assert {p.name for p in files} == {
        "README.md",
        "codec.safetensors",
        "pipeline.json",
        "system.safetensors",
    }
    assert sum(p.stat().st_size for p in files) <= 8e6


# ---------------------------------------------------------------------- studies


@pytest.mark.parametrize("name", STUDIES)
def test_a_kept_study_is_whole_and_adds_up(kept, name):
    script, report = kept(name)
    settings = json.loads(json.dumps(script.settings()))
    assert settings.items() <= report.items()
    cases = getattr(script, "CASES", None) or [{"variant": v} for v in script.VARIANTS]
    wanted = [(*case.values(), seed) for case in cases for seed in (0, 1, 2)]
    assert sorted((*(run[k] for k in cases[0]), run["seed"]) for run in report["runs"]) == sorted(wanted)
    assert report["results"] == script.summarise(report["runs"])
    printed = script.table(report)
    assert all(run["variant"] in printed for run in report["runs"])


def test_the_papers_numbers_stand_beside_ours(kept):
    script, report = kept("gencompositor_ablation")
    printed = script.table(report)
    assert all(printed.count(f"  {variant}") == 2 for variant in GENCOMPOSITOR_ABLATION)
    assert set(GENCOMPOSITOR_ABLATION) == set(script.STUDIES["parts"][2])


def test_curves_have_a_point_a_window_and_attention_one_a_block(kept):
    script, report = kept("mive_ablation")
    assert all(len(run["loss_curve"]) == script.STEPS // report["window"] for run in report["runs"])
    script, report = kept("rvedit_ablation")
    assert all(len(run["attention"]["rank"]) == script.LAYERS for run in report["runs"])


def test_the_first_stage_is_where_every_ablation_starts(kept):
    script, _ = kept("rvedit_ablation")
    first = RVEDiTPipeline.from_pretrained(RESULTS / "rvedit_first_stage").system
    assert first.config.alignment_weight == 0 and first.config.routed_layers == script.LAYERS
    for config in script.VARIANTS.values():
        assert config.backbone == first.config.backbone and config.objective == first.config.objective
    assert RVEDiTPipeline.from_pretrained().system.config == script.FULL


def test_the_models_that_notebook_03_looks_into_are_those_of_the_study(kept):
    script, _ = kept("gencompositor_ablation")
    variants = script.STUDIES["positions"][2]
    for folder, variant in (("erope", "ERoPE along h"), ("shared", "shared RoPE")):
        pipe = GenCompositorPipeline.from_pretrained(RESULTS / "gencompositor_positions" / folder)
        assert pipe.system.config == variants[variant][0]


def test_directions_respect_what_is_better(kept):
    script, _ = kept("gencompositor_ablation")

    def run(variant, seed, psnr, brightness):
        metrics = dict.fromkeys([m for m, _ in script.SHOWN["parts"]], 0.0)
        metrics |= {"psnr": psnr, "brightness": brightness}
        return {"study": "parts", "variant": variant, "seed": seed, "metrics": metrics}

    runs = [run("full", 0, 25, 0.1), run("full", 1, 26, 0.1)]
    runs += [run("no mask inflation", 0, 24, 0.2), run("no mask inflation", 1, 27, 0.3)]
    rows = {r["case"].rpartition(": ")[2]: r for r in script.summarise(runs)}
    assert rows["psnr"]["gains"] == [1, -1] and rows["psnr"]["claimed"]
    assert rows["brightness"]["gains"] == [0.1, 0.2] and rows["brightness"]["mean_gain"] == 0.15
