"""Vera's main comparison: does pasting layers over the source preserve it, and which part of Vera matters?

    python benchmarks/preservation.py --report      print the committed table
    python benchmarks/preservation.py --run         measure it anew (resumes where it was stopped)

Every system sees the same clips in the same order, with the same masks and prompts, for the same number of
steps; the seed changes weights, noise and dropped conditions. The baseline regenerates the whole frame with
about the same number of parameters; the report prints both counts and the FLOPs.
"""

from dataclasses import replace
from pathlib import Path
from statistics import fmean

import torch
from _study import by_seed, compare, main, train

from vera_lite.backbone import WanConfig
from vera_lite.diagnostics.flops import counted_flops
from vera_lite.diffusion.flow_matching import FlowMatching
from vera_lite.evaluation.toy.layer_benchmark import evaluate
from vera_lite.pipelines import VeraPipeline
from vera_lite.systems import Regeneration, RegenerationConfig, Vera, VeraConfig
from vera_lite.training import ToyWorldData

STEPS, BATCH, TEST_CLIPS = 600, 16, 128

BRANCH = WanConfig(
    num_attention_heads=4,
    attention_head_dim=32,
    in_channels=24,
    out_channels=24,
    text_dim=36,
    freq_dim=64,
    ffn_dim=384,
    num_layers=4,
    summed_text=True,
)
COMMON = {
    "objective": FlowMatching("x_0", shift=3.0),
    "mask_drop": 0.6,
    "text_drop": 0.05,
    "phrase_drop": 0.03,
}
VERA = VeraConfig(backbone=BRANCH, **COMMON)
VARIANTS = {
    "Vera": lambda: Vera(VERA),
    "shared weights instead of MoT": lambda: Vera(replace(VERA, mixture=False)),
    "separate attention": lambda: Vera(replace(VERA, joint_attention=False)),
    "no composite supervision": lambda: Vera(replace(VERA, composite_weight=0.0)),
    # One stream of 48 tokens in place of three: wider and deeper, so that parameters match.
    "full regeneration": lambda: Regeneration(
        RegenerationConfig(
            backbone=replace(BRANCH, num_attention_heads=6, num_layers=5, ffn_dim=480), **COMMON
        )
    ),
}
#: Fixed here, so that the pipeline's defaults may change without the committed numbers.
SAMPLING = {"steps": 12, "shift": 2.0, "alpha_floor": 0.05}
#: What the report shows: metric, unit, digits.
SHOWN = (
    ("preserved_psnr", "dB", 1),
    ("full_psnr", "dB", 1),
    ("satisfied", "share", 2),
    ("alpha_iou", "", 2),
)


def measure(variant: str, seed: int, folder: Path) -> dict:
    """Train one variant with one seed, or continue, and judge it with and without masks."""
    system = VARIANTS[variant]()
    data = ToyWorldData(clips=STEPS * BATCH, validation_clips=BATCH, batch_size=BATCH)
    module, _ = train(system, data, STEPS, folder, seed)
    pipe = VeraPipeline(module.ema, data.codec, **data.pipeline_settings)
    measured = {
        f"{task}, {'mask' if mask else 'no mask'}": row
        for mask in (True, False)
        for task, row in evaluate(pipe, TEST_CLIPS, mask, **SAMPLING).items()
    }
    return {"parameters": sum(p.numel() for p in system.parameters()), "metrics": measured}


def values_of(runs: list[dict], variant: str, case: str, metric: str) -> list[float]:
    """One value a seed; none where a variant has no such metric."""
    rows = [metrics[case] for metrics in by_seed(runs, variant=variant).values()]
    return [row[metric] for row in rows if metric in row]


def summarise(runs: list[dict]) -> list[dict]:
    """Vera against each variant, paired by seed; positive differences favour Vera."""
    results = []
    for case in runs[0]["metrics"]:
        by_variant = {
            variant: {seed: metrics[case] for seed, metrics in by_seed(runs, variant=variant).items()}
            for variant in VARIANTS
        }
        ours = by_variant.pop("Vera")
        for variant, theirs in by_variant.items():
            for metric, _, _ in SHOWN:
                paired = [seed for seed in ours.keys() & theirs.keys() if metric in theirs[seed]]
                if paired:
                    found = {seed: theirs[seed] for seed in paired}
                    results.append(compare(f"{case}: Vera against {variant}: {metric}", ours, found, metric))
    return results


def settings() -> dict:
    """What all rows of one table share."""
    return {"steps": STEPS, "batch": BATCH, "test_clips": TEST_CLIPS, "sampling": SAMPLING}


def _cell(values: list[float], digits: int, unit: str) -> str:
    if not values:
        return "-"
    numbers = f"{fmean(values):.{digits}f} ({min(values):.{digits}f} .. {max(values):.{digits}f})"
    return f"{numbers} {unit}" if unit == "dB" else numbers


def table(report: dict) -> str:
    """The committed numbers: mean over seeds, with lowest and highest."""
    runs = report["runs"]
    seeds = sorted({r["seed"] for r in runs})
    lines = [
        f"{report['steps']} steps of {report['batch']} clips, seeds {seeds}, "
        f"{report['test_clips']} unseen clips a row; mean (lowest .. highest)"
    ]
    for case in runs[0]["metrics"]:
        lines += ["", case, f"  {'':32}" + "".join(f"{m:>26}" for m, _, _ in SHOWN)]
        for variant in VARIANTS:
            cells = ""
            for metric, unit, digits in SHOWN:
                cells += f"{_cell(values_of(runs, variant, case, metric), digits, unit):>26}"
            lines.append(f"  {variant:32}{cells}")
    lines += ["", "size: parameters, and FLOPs of a forward pass for one clip"]
    sizes = {r["variant"]: r["parameters"] for r in runs}
    lines += [f"  {v:32}{n / 1e6:6.2f} M {forward_flops(v) / 1e6:8.0f} MFLOP" for v, n in sizes.items()]
    return "\n".join(lines)


def forward_flops(variant: str) -> int:
    """FLOPs of one pass for one clip of 9x32x32."""
    system = VARIANTS[variant]()
    z = torch.zeros(1, BRANCH.in_channels, 3, 8, 8)
    latents, text = z.expand(len(system.layers), *z.shape), torch.zeros(1, 10, BRANCH.text_dim)
    return counted_flops(lambda: system(latents, torch.zeros(1), text, z, z))


if __name__ == "__main__":
    cases = [{"variant": variant} for variant in VARIANTS]
    main(__doc__, "preservation", cases, measure, settings(), summarise, table)
