"""What is each part of Vera worth? Seven systems learn the same edits of things on places.

    python benchmarks/vera_ablation.py --report      print the kept table
    python benchmarks/vera_ablation.py --run         measure what is missing, in one process or several

Every system sees the same clips in the same order, with the same masks and prompts, for the same number of
steps; the seed changes clips, weights, noise and dropped conditions. Shared weights come twice: with Vera's
width, and wider, with as many parameters as Vera. The report prints parameters and FLOPs of each.
"""

from dataclasses import replace
from pathlib import Path

import torch
import yaml
from _study import by_seed, cell, compare, main, train
from _toy import CONFIGS

from vera_lite.backbone import WanConfig
from vera_lite.diagnostics.flops import counted_flops
from vera_lite.diffusion.flow_matching import FlowMatching
from vera_lite.evaluation.toy.layer_benchmark import evaluate
from vera_lite.pipelines import VeraPipeline
from vera_lite.systems import LayersInTime, Regeneration, RegenerationConfig, Vera, VeraConfig
from vera_lite.toy.scenes import SceneConfig
from vera_lite.training import SceneData

STEPS, BATCH, TEST_CLIPS = 6000, 16, 256
#: Smallest difference that would matter, stated before any run: metric -> how much, digits of the report.
SHOWN = {"satisfied": (0.05, 2), "full_psnr": (0.5, 1), "preserved_psnr": (0.5, 1), "alpha_iou": (0.02, 3)}
SAMPLING = {"steps": 12, "shift": 3.0, "alpha_floor": 0.1}

_shipped = yaml.safe_load((CONFIGS / "vera_scenes.yaml").read_text())
_shipped = dict(_shipped["model"]["init_args"]["system"]["init_args"]["config"])
BRANCH = WanConfig(**_shipped.pop("backbone") | {"patch_size": (1, 1, 1)})
COMMON = _shipped | {"objective": FlowMatching(**_shipped["objective"])}
VERA = VeraConfig(backbone=BRANCH, **COMMON)
#: One tower with as many parameters as Vera's three.
WIDE = replace(BRANCH, attention_head_dim=104, ffn_dim=512)
VARIANTS = {
    "Vera": lambda: Vera(VERA),
    "shared weights": lambda: Vera(replace(VERA, mixture=False)),
    "shared weights, wider": lambda: Vera(replace(VERA, mixture=False, backbone=WIDE)),
    "layers in time, wider": lambda: LayersInTime(RegenerationConfig(backbone=WIDE, **COMMON)),
    "separate attention": lambda: Vera(replace(VERA, joint_attention=False)),
    "no composite supervision": lambda: Vera(replace(VERA, composite_weight=0.0)),
    "full regeneration, wider": lambda: Regeneration(RegenerationConfig(backbone=WIDE, **COMMON)),
}


def measure(variant: str, seed: int, folder: Path) -> dict:
    """Train one variant with one seed, or continue, and judge it with and without masks."""
    torch.manual_seed(seed)
    system = VARIANTS[variant]()
    data = SceneData(batch_size=BATCH, validation_clips=BATCH, seed=10 + seed)
    module, curve = train(system, data, STEPS, folder, seed, ema_decay=0.998)
    pipe = VeraPipeline(module.ema, data.codec, **data.pipeline_settings)
    world = SceneConfig(*pipe.clip_size)
    measured = {
        f"{task}, {'mask' if mask else 'no mask'}": row
        for mask in (True, False)
        for task, row in evaluate(pipe, TEST_CLIPS, mask, world=world, **SAMPLING).items()
    }
    parameters = sum(p.numel() for p in system.parameters())
    return {"parameters": parameters, "metrics": measured, "loss_curve": curve.rounded()}


def summarise(runs: list[dict]) -> list[dict]:
    """Vera against each variant, paired by seed; positive differences favour Vera."""
    results = []
    for case in runs[0]["metrics"]:
        found = {variant: by_seed(runs, variant=variant) for variant in VARIANTS}
        rows = {variant: {seed: m[case] for seed, m in seeds.items()} for variant, seeds in found.items()}
        ours = rows.pop("Vera")
        for variant, theirs in rows.items():
            for metric, (smallest, _) in SHOWN.items():
                paired = {s: theirs[s] for s in ours.keys() & theirs.keys() if metric in theirs[s]}
                if paired:
                    name = f"{case}: Vera against {variant}: {metric}"
                    results.append(compare(name, ours, paired, metric, smallest_effect=smallest))
    return results


def settings() -> dict:
    """What all runs share."""
    return {"steps": STEPS, "batch": BATCH, "test_clips": TEST_CLIPS, "sampling": SAMPLING}


def table(report: dict) -> str:
    """Mean over seeds with half of the range, then the verdicts."""
    runs = report["runs"]
    lines = [f"{report['steps']} steps of {report['batch']} clips; {report['test_clips']} unseen clips a row"]
    for case in runs[0]["metrics"]:
        lines += ["", case, f"  {'':28}seeds" + "".join(f"{metric:>20}" for metric in SHOWN)]
        for variant in VARIANTS:
            rows = [metrics[case] for metrics in by_seed(runs, variant=variant).values()]
            if not rows:
                continue
            cells = [
                cell([row[metric] for row in rows], digits) if metric in rows[0] else "-"
                for metric, (_, digits) in SHOWN.items()
            ]
            lines.append(f"  {variant:28}{len(rows):>5}" + "".join(f"{c:>20}" for c in cells))
    lines += ["", "Vera is better by more than the smallest effect that matters:"]
    for row in report["results"]:
        interval = "one seed" if row["interval"] is None else "{} to {}".format(*row["interval"])
        lines.append(f"  {row['case']:75}{row['mean_gain']:>9.3f} ({interval}): {row['verdict']}")
    lines += ["", "size: parameters, and FLOPs of a forward pass for one clip"]
    for variant in VARIANTS:
        parameters, flops = size(variant)
        lines.append(f"  {variant:28}{parameters / 1e6:6.2f} M {flops / 1e6:8.0f} MFLOP")
    return "\n".join(lines)


def size(variant: str) -> tuple[int, int]:
    """Parameters, and FLOPs of one pass for one clip."""
    system = VARIANTS[variant]()
    z = torch.zeros(1, BRANCH.in_channels, 3, 8, 8)
    latents, text = z.expand(len(system.layers), *z.shape), torch.zeros(1, 10, BRANCH.text_dim)
    flops = counted_flops(lambda: system(latents, torch.zeros(1), text, z, z))
    return sum(p.numel() for p in system.parameters()), flops


if __name__ == "__main__":
    cases = [{"variant": variant} for variant in VARIANTS]
    main(__doc__, "vera_ablation", cases, measure, settings(), summarise, table)
