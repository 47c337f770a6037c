"""RVEDiT's ablations: do routed tokens and an informed reference help the toy edit?

    python benchmarks/rvedit_ablation.py --report    print the committed tables
    python benchmarks/rvedit_ablation.py --run       measure what is missing, in one process or several

As in the paper, all start from a first stage that already follows instructions: X_e alone for every block,
no alignment. Every run sees the same clips in the same order for the same number of steps; the seed changes
noise, noise levels and aligned depths. All are judged on the same unseen clips, by category, on the paper's
scale of 1 to 100. One variant is a control that the paper lacks: every token for every block (L_s = 0).
"""

from dataclasses import replace
from pathlib import Path
from statistics import fmean

from _study import RESULTS, WINDOW, ahead, by_seed, cell, compare_with_all, main, train

from vera_lite.backbone import WanConfig
from vera_lite.conditioning.readings import Readings
from vera_lite.diffusion.flow_matching import FlowMatching
from vera_lite.evaluation.published import RVEDIT_ABLATION, RVEDIT_AXES
from vera_lite.evaluation.toy.edit_benchmark import attention_by_depth, evaluate
from vera_lite.pipelines import RVEDiTPipeline
from vera_lite.systems import RVEDiT, RVEDiTConfig
from vera_lite.toy.edits import CATEGORIES
from vera_lite.training import ToyEditData

STEPS, BATCH, TEST_CLIPS = 300, 16, 64  # TEST_CLIPS of each category
CLIPS_SEED = 2  # the first stage saw those of seed 1
FIRST_STAGE = RESULTS / "rvedit_first_stage"
#: Fixed here, so that the pipeline's defaults may change without the committed numbers.
SAMPLING = {"steps": 8, "shift": 3.0}
LAYERS = 6
FULL = RVEDiTConfig(
    backbone=WanConfig(
        patch_size=(1, 2, 2),
        num_attention_heads=4,
        attention_head_dim=32,
        in_channels=24,
        out_channels=24,
        text_dim=None,
        freq_dim=64,
        ffn_dim=384,
        num_layers=LAYERS,
        summed_text=True,
    ),
    objective=FlowMatching("x_0", shift=3.0, min_sigma_weight=0.25),
    vlm_dim=128,
    editing_tokens=8,
    text_tokens=48,
    routed_layers=LAYERS // 2,
    alignment_weight=0.1,
    changed_loss_weight=1.0,
)
ROUTED = (0, 2, LAYERS // 2, 4, LAYERS)
WEIGHTS = (0.0, 0.1, 0.25, 0.5, 0.75, 1.0)


def name_of(routed: int, weight: float) -> str:
    return f"L_s {routed}, lambda {weight:g}"


VARIANTS = {
    name_of(routed, weight): replace(FULL, routed_layers=routed, alignment_weight=weight)
    for routed, weight in [
        (FULL.routed_layers, FULL.alignment_weight),
        (LAYERS, FULL.alignment_weight),
        (FULL.routed_layers, 0.0),
        (LAYERS, 0.0),
        *((routed, FULL.alignment_weight) for routed in ROUTED),
        *((FULL.routed_layers, weight) for weight in WEIGHTS),
    ]
}
FULL_MODEL = name_of(FULL.routed_layers, FULL.alignment_weight)
OWN_NOISE = f"{FULL_MODEL}, own noise"  # of the reference pass
VARIANTS[OWN_NOISE] = replace(FULL, reference_noise="own")
#: The three tables: rows of (what the row is called, variant).
TABLES = {
    "components": {
        "full": FULL_MODEL,
        "without routing (L_s = L)": name_of(LAYERS, FULL.alignment_weight),
        "without alignment (lambda = 0)": name_of(FULL.routed_layers, 0.0),
        "without both": name_of(LAYERS, 0.0),
    },
    "routing depth": {f"L_s = {r}": name_of(r, FULL.alignment_weight) for r in ROUTED},
    "alignment weight": {f"lambda = {w:g}": name_of(FULL.routed_layers, w) for w in WEIGHTS},
    "reference noise": {"shared": FULL_MODEL, "own": OWN_NOISE},
}
AXES = {"instruction_compliance": "IC", "content_fidelity": "CF", "visual_quality": "VQ"}
#: Columns of the report: (heading, metric, digits).
COLUMNS = [
    ("score", "overall/score", 1),
    *((short, f"overall/{axis}", 1) for axis, short in AXES.items()),
    *((category, f"{category}/score", 1) for category in CATEGORIES),
    ("PSNR", "overall/psnr", 2),
    ("kept PSNR", "overall/preserved_psnr", 2),
]
ATTENTION = ("editing_mass", "spatial_entropy", "cosine", "divergence", "rank", "rank_other_noise")


def measure(variant: str, seed: int, folder: Path) -> dict:
    """Train one variant with one seed, or continue, and judge it."""
    system, data = RVEDiT(VARIANTS[variant]), ToyEditData(batch_size=BATCH, seed=CLIPS_SEED)
    system.load_state_dict(RVEDiTPipeline.from_pretrained(FIRST_STAGE).system.state_dict())
    system.readings = Readings(folder.parent / "readings")
    module, curve = train(system, data, STEPS, folder, seed, lr=1e-3, ema_decay=0.98)
    pipe = RVEDiTPipeline(module.ema, data.codec, **data.pipeline_settings)
    return {
        "parameters": sum(p.numel() for p in system.parameters() if p.requires_grad),
        "metrics": {
            f"{category}/{name}": value
            for category, row in evaluate(pipe, TEST_CLIPS, **SAMPLING).items()
            for name, value in row.items()
        },
        "attention": attention_by_depth(pipe),
        "loss_curve": curve.rounded(),
    }


def settings() -> dict:
    """What all rows share, and what a run's numbers depend on."""
    budget = {"steps": STEPS, "batch": BATCH, "test_clips_per_category": TEST_CLIPS}
    return budget | {"layers": LAYERS, "sampling": SAMPLING, "window": WINDOW}


def summarise(runs: list[dict]) -> list[dict]:
    """The full model against each variant, paired by seed; positive differences favour the full model."""
    metrics = [metric for _, metric, _ in COLUMNS]
    return compare_with_all(runs, FULL_MODEL, VARIANTS, metrics, claimed="overall/score")


def table(report: dict) -> str:
    """The committed numbers beside the paper's, and whether the direction of its claim holds."""
    verdicts = {result["case"]: result["gains"] for result in report["results"] if result["claimed"]}
    budget, unseen = f"{report['steps']} steps of {report['batch']} clips", report["test_clips_per_category"]
    lines = [
        f"{budget}; {unseen} unseen clips of each category, scores 1 to 100; mean +- half of the range",
        f"over seeds; better: seeds in which the full model ({FULL_MODEL}) has the higher score",
    ]
    for name, rows in TABLES.items():
        lines += ["", name, f"  {'':32}seeds" + "".join(f"{h:>15}" for h, *_ in COLUMNS) + f"{'better':>10}"]
        for label, variant in rows.items():
            metrics = by_seed(report["runs"], variant=variant).values()
            if not metrics:
                continue
            cells = (cell([m[metric] for m in metrics], digits) for _, metric, digits in COLUMNS)
            verdict = ahead(verdicts.get(f"{FULL_MODEL} against {variant}: overall/score", ()))
            lines.append(
                f"  {label:32}{len(metrics):>5}" + "".join(f"{c:>15}" for c in cells) + f"{verdict:>10}"
            )
    lines += ["", f"cross-attention by depth, blocks 1 to {LAYERS}, means over seeds"]
    for variant in VARIANTS:
        found = [run["attention"] for run in report["runs"] if run["variant"] == variant]
        for measure_name in ATTENTION if found else ():
            values = (fmean(block) for block in zip(*(f[measure_name] for f in found), strict=True))
            lines.append(f"  {variant:32}{measure_name:18}" + "".join(f"{v:>8.3f}" for v in values))
    lines += ["", "the paper's tables: score, IC, CF, VQ, " + ", ".join(CATEGORIES)]
    for label, (score, *categories) in RVEDIT_ABLATION.items():
        values = (score, *RVEDIT_AXES[label], *categories)
        lines.append(f"  {label:37}" + "".join(f"{v:>15.2f}" for v in values))
    return "\n".join(lines)


if __name__ == "__main__":
    main(
        __doc__, "rvedit_ablation", [{"variant": v} for v in VARIANTS], measure, settings(), summarise, table
    )
