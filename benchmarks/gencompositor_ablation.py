"""GenCompositor's ablations: which parts does the toy need, and do positions distinguish two videos?

    python benchmarks/gencompositor_ablation.py --report    print the committed tables
    python benchmarks/gencompositor_ablation.py --run       measure them anew (resumes where it was stopped)

There are two studies. "parts" removes one part at a time, as the paper's table does. "positions" compares
readings of ERoPE in a model where only the position shows which video a token belongs to: both videos have
one input projection, there is no background branch, and a token is one latent cell. Within a study every run
sees the same clips in the same order for the same number of steps; the seed changes weights and noise. All
are judged on the same unseen clips, whose foregrounds have their own light.
"""

from dataclasses import replace
from pathlib import Path

from _study import WINDOW, ahead, by_seed, cell, compare_with_all, main, train

from vera_lite.backbone import CogVideoXConfig
from vera_lite.diffusion.flow_matching import FlowMatching
from vera_lite.evaluation.published import GENCOMPOSITOR_ABLATION
from vera_lite.evaluation.toy.composition_benchmark import evaluate, position_leakage
from vera_lite.pipelines import GenCompositorPipeline
from vera_lite.systems import GenCompositor, GenCompositorConfig
from vera_lite.training import ToyCompositionData

TEST_CLIPS = 128
#: Fixed here, so that the pipeline's defaults may change without the committed numbers.
SAMPLING = {"steps": 8, "shift": 3.0}

COARSE = CogVideoXConfig(
    num_attention_heads=4,
    attention_head_dim=32,
    in_channels=48,
    out_channels=24,
    time_embed_dim=64,
    text_embed_dim=None,
    num_layers=4,
    patch_size=2,
    use_learned_positional_embeddings=False,
    sample_frames=9,
    sample_height=8,
    sample_width=8,
)
FULL = GenCompositorConfig(
    backbone=COARSE,
    objective=FlowMatching("x_0", shift=3.0),
    mask_loss_weight=5.0,  # the released code's; the object is where the variants can differ
    branch_layers=1,
)
FINE = replace(
    FULL,
    backbone=replace(COARSE, num_attention_heads=2, patch_size=1),
    shared_projection=True,
    branch_layers=0,
)
STUDIES = {  # study -> (steps, batch, {variant: (system config, data options)})
    "parts": (
        1500,
        16,
        {
            "full": (FULL, {}),
            "cross-attention": (replace(FULL, fusion="cross"), {}),
            "no background branch": (replace(FULL, branch_layers=0), {}),
            "no luminance augmentation": (FULL, {"luminance_gamma": None}),
            "no mask inflation": (FULL, {"mask_sigma": None}),
        },
    ),
    "positions": (
        1200,
        16,
        {
            "ERoPE along h": (FINE, {}),
            "ERoPE along t": (replace(FINE, rope_axis="t"), {}),
            "ERoPE along w": (replace(FINE, rope_axis="w"), {}),
            "released folding": (replace(FINE, rope="released"), {}),
            "shared RoPE": (replace(FINE, rope="shared"), {}),
        },
    ),
}
#: What the report shows of each study: metric, digits.
SHOWN = {
    "parts": (
        ("psnr", 1),
        ("ssim", 3),
        ("object_psnr", 1),
        ("preserved_psnr", 1),
        ("removal_psnr", 1),
        ("colour", 2),
        ("shape", 2),
        ("texture", 2),
        ("brightness", 3),
    ),
    "positions": (
        ("loss", 3),
        ("psnr", 1),
        ("object_psnr", 1),
        ("colour", 2),
        ("shape", 2),
        ("texture", 2),
        ("same_index", 2),
        ("foreground", 2),
    ),
}
LOWER_IS_BETTER = {"loss", "brightness"}
#: The variant that stands for the paper's choice, and the metric that its claim is about.
CLAIMS = {"parts": ("full", "psnr"), "positions": ("ERoPE along h", "loss")}
CASES = [{"study": s, "variant": v} for s, (_, _, variants) in STUDIES.items() for v in variants]


def measure(study: str, variant: str, seed: int, folder: Path) -> dict:
    """Train one variant with one seed, or continue, and judge it."""
    steps, batch, variants = STUDIES[study]
    config, options = variants[variant]
    system, data = GenCompositor(config), ToyCompositionData(batch_size=batch, **options)
    module, curve = train(system, data, steps, folder, seed)
    pipe = GenCompositorPipeline(module.ema, data.codec, **data.pipeline_settings)
    metrics = evaluate(pipe, TEST_CLIPS, **SAMPLING)
    if study == "positions":  # where a token looks
        metrics |= position_leakage(pipe, **SAMPLING)
    return {
        "parameters": sum(p.numel() for p in system.parameters()),
        "metrics": metrics | {"loss": curve.end()},
        "loss_curve": curve.rounded(),
    }


def settings() -> dict:
    """What all rows share, and what a run's numbers depend on."""
    studies = {name: {"steps": s, "batch": b} for name, (s, b, _) in STUDIES.items()}
    return {"studies": studies, "test_clips": TEST_CLIPS, "sampling": SAMPLING, "window": WINDOW}


def summarise(runs: list[dict]) -> list[dict]:
    """The paper's choice against each variant, paired by seed; positive differences favour the paper."""
    results = []
    for study, (best, claimed) in CLAIMS.items():
        metrics = [metric for metric, _ in SHOWN[study]]
        variants = STUDIES[study][2]
        results += compare_with_all(runs, best, variants, metrics, claimed, LOWER_IS_BETTER, study=study)
    return results


def table(report: dict) -> str:
    """The committed numbers: mean over seeds with half the range, and whether the paper's direction holds."""
    lines, results = [], {r["case"]: r["gains"] for r in report["results"]}
    for study, shown in SHOWN.items():
        best, claimed = CLAIMS[study]
        budget, unseen = report["studies"][study], report["test_clips"]
        lines += [
            f"{study}: {budget['steps']} steps of {budget['batch']} clips; {unseen} unseen ones,",
            "whose foregrounds have their own light; mean +- half of the range over seeds",
            f"  {'':28}{'seeds':>6}" + "".join(f"{metric:>16}" for metric, _ in shown) + f"{'holds':>12}",
        ]
        for variant in STUDIES[study][2]:
            runs = by_seed(report["runs"], study=study, variant=variant).values()
            if not runs:
                continue
            cells = "".join(f"{cell([r[metric] for r in runs], digits):>16}" for metric, digits in shown)
            verdict = ahead(results.get(f"{study}: {best} against {variant}: {claimed}", ()))
            lines.append(f"  {variant:28}{len(runs):>6}{cells}{verdict:>12}")
        lines += [f"  holds: seeds in which '{best}' is better in {claimed}", ""]
    lines.append(
        "the paper's table: PSNR, SSIM, CLIP, LPIPS (HYouTube); subject, background, motion, aesthetics"
    )
    lines += [
        f"  {name:28}" + "".join(f"{v:>10g}" for v in row) for name, row in GENCOMPOSITOR_ABLATION.items()
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main(__doc__, "gencompositor_ablation", CASES, measure, settings(), summarise, table)
