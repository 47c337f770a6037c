"""How well the shipped toy GenCompositor composes clips that it never saw.

python benchmarks/gencompositor_toy.py                     print the table (about 2 minutes)
python benchmarks/gencompositor_toy.py --json OUT          also write it
python benchmarks/gencompositor_toy.py --run RUN --card    also write the model card, with what the folder
                                                           of the training run says about the training
"""

import time
from functools import partial
from pathlib import Path

import torch
from _harness import report_head
from _toy import fit_commands, main, training_facts
from torch import Tensor

from vera_lite.evaluation.toy.composition_benchmark import TEST_SEED, evaluate
from vera_lite.media.clip import composite
from vera_lite.media.placement import place
from vera_lite.pipelines import ASSETS, GenCompositorPipeline
from vera_lite.toy.compositions import ToyCompositions

CLIPS, STEPS = 256, 12
CONFIG = ASSETS.parent / "configs" / "gencompositor_toy.yaml"
UNITS = {"psnr": "dB", "object_psnr": "dB", "preserved_psnr": "dB", "removal_psnr": "dB"}


def cut_and_paste(batch: ToyCompositions) -> Tensor:
    """What one gets without a model: the foreground scaled, laid over the background where the path says."""
    results = []
    for i, trajectory in enumerate(batch.trajectories):
        positions, scales = trajectory.sample(batch.background.shape[1])
        size = tuple(batch.background.shape[-2:])
        colour, matte = place(batch.foreground[i], batch.alpha[i], positions, scales, size)
        results.append(composite(colour, matte, batch.background[i]))
    return torch.stack(results)


def codec_only(pipe: GenCompositorPipeline, batch: ToyCompositions) -> Tensor:
    """The true composite through the codec and back: what a perfect network would get."""
    return pipe.codec.decode(pipe.codec.encode(batch.composite))


def measure(folder: Path) -> dict:
    """The report: the model beside cutting and pasting, and beside its codec's limit."""
    pipe = GenCompositorPipeline.from_pretrained(folder)
    started = time.process_time()
    rows = {
        "other light": evaluate(pipe, CLIPS, steps=STEPS),
        "same light": evaluate(pipe, CLIPS, relit=False, steps=STEPS),
        "cut and paste, other light": evaluate(pipe, CLIPS, draw=cut_and_paste),
        "codec alone": evaluate(pipe, CLIPS, draw=partial(codec_only, pipe)),
    }
    return {
        **report_head("gencompositor_toy", "torch", "lightning", "diffusers"),
        "clips": CLIPS,
        "world_seed": TEST_SEED,
        "sampler_steps": STEPS,
        "shift": pipe.sampling.shift,
        "cpu_seconds": round(time.process_time() - started, 1),
        "parameters": sum(p.numel() for p in pipe.system.parameters()),
        "rows": rows,
    }


def table(report: dict) -> str:
    """One line a metric, one column a row of the report."""
    rows = report["rows"]
    lines = [f"{report['clips']} unseen clips, {report['sampler_steps']} steps"]
    lines.append(f"{'':16}" + "".join(f"{name:>28}" for name in rows))
    for metric in rows["other light"]:
        if metric != "clips":
            cells = [f"{r[metric]:.3f}" if metric in r else "" for r in rows.values()]
            lines.append(f"{metric:16}" + "".join(f"{cell:>28}" for cell in cells))
    return "\n".join(lines)


def card(report: dict) -> str:
    """The model card, all numbers from the report."""
    t, m, rows = report["training"], report["machine"], report["rows"]
    lines = "\n".join(
        f"| {metric} | " + " | ".join(f"{r[metric]:.3f}" if metric in r else "" for r in rows.values()) + " |"
        for metric in rows["other light"]
        if metric != "clips"
    )
    return f"""# Toy GenCompositor

Puts an object, given as a short clip, into a background of 9 frames at 32×32 pixels along a path, lit as the
scene is and with a shadow; with a blank foreground it fills a hole.

- **Weights**: `system.safetensors`, {report["parameters"] / 1e6:.2f} M parameters in float16, the
  exponential moving average of the training run; `codec.safetensors`, the patch codec. MIT licence.
- **Data**: toy compositions, world seed 1, rendered as they are needed; no clip is seen twice. Some
  backgrounds are photographs that come with scikit-image.
- **Training**: {t["steps"]:,} steps of {t["batch_size"]} clips = {t["samples"]:,} clips, {t["precision"]},
  {t["wall_minutes"]} minutes of wall time on {t["threads"]} thread of a {m["cores"]}-core CPU ({m["cpu"]})
  that other work shared. One seed.

  ```
{fit_commands("gencompositor_toy.yaml", t["stages"])}
  vera-lite export runs/gencompositor_toy/last.ckpt --out vera_lite/assets/gencompositor_toy
  ```
- **Measured** on {report["date"]} by `python benchmarks/gencompositor_toy.py`: {report["clips"]} clips of a
  world that it never saw, {report["sampler_steps"]} steps (shift {report["shift"]:g}).

| | {" | ".join(rows)} |
|---|{"---|" * len(rows)}
{lines}

*other light*: the foreground was filmed in a light that is not the scene's, which is how such a model is
used; *same light*: cut out of the scene itself, as in training. *cut and paste* scales the foreground and
lays it over the background; its shape is exact, its light is wrong and it has no shadow. *codec alone* is
the truth through the codec: the most that a network could reach.

*psnr, ssim*: whole frames against the truth. *object_psnr*: where the object is. *preserved_psnr*: where the
truth is the plain background, which the model redraws as well. *removal_psnr*: inside the mask with a blank
foreground. *colour*: share of clips with the foreground's hue. *shape*: overlap of the pixels that changed
with those that should. *texture*: correlation of gray values with the truth's inside the object, over all
frames. *brightness*: relative error of the object's mean. PSNRs pool the squared error over all clips.

**Limits**: texture arrives in part (*texture*, beside the codec's): stripes can be seen, dots blur into dark
patches, and outlines are soft. It knows four shapes in six colours and three textures, one object at a time,
and 32×32 pixels at nine moments. On a real video its object is that coarse; `--paste-back` keeps the rest as
it was.
"""


if __name__ == "__main__":
    main(
        __doc__,
        ASSETS / "gencompositor_toy",
        measure,
        lambda run: training_facts(run, CONFIG),
        table,
        card,
    )
