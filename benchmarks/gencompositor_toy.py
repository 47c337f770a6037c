"""How well the shipped toy GenCompositor composes unseen clips.

python benchmarks/gencompositor_toy.py                     print the table (about 2 minutes)
python benchmarks/gencompositor_toy.py --json OUT          also write it
python benchmarks/gencompositor_toy.py --run RUN --card    also write the model card, with what the folder
                                                           of the training run says about the training
"""

from functools import partial

import torch
from _toy import CONFIGS, fit_commands, main, markdown, training_facts, training_sentence, weights
from torch import Tensor

from vera_lite.evaluation.toy.composition_benchmark import evaluate
from vera_lite.media.clip import composite
from vera_lite.media.placement import place
from vera_lite.pipelines import GenCompositorPipeline
from vera_lite.toy.compositions import ToyCompositions

CLIPS = 256
CONFIG = CONFIGS / "gencompositor_toy.yaml"


def cut_and_paste(batch: ToyCompositions) -> Tensor:
    """The result without a model: the foreground, scaled, laid over the background along the path."""
    results = []
    for i, trajectory in enumerate(batch.trajectories):
        positions, scales = trajectory.sample(batch.background.shape[1])
        size = tuple(batch.background.shape[-2:])
        colour, matte = place(batch.foreground[i], batch.alpha[i], positions, scales, size)
        results.append(composite(colour, matte, batch.background[i]))
    return torch.stack(results)


def codec_only(pipe: GenCompositorPipeline, batch: ToyCompositions) -> Tensor:
    """The true composite through the codec and back: the score of a perfect network."""
    return pipe.codec.decode(pipe.codec.encode(batch.composite))


def measure(pipe: GenCompositorPipeline) -> dict:
    """The model beside cutting and pasting, and beside its codec's limit."""
    rows = {
        "other light": evaluate(pipe, CLIPS),
        "same light": evaluate(pipe, CLIPS, relit=False),
        "cut and paste, other light": evaluate(pipe, CLIPS, draw=cut_and_paste),
        "codec alone": evaluate(pipe, CLIPS, draw=partial(codec_only, pipe)),
    }
    return {"clips": CLIPS, "rows": rows}


def lines_of(report: dict) -> list[list[str]]:
    """Lines of a table: a metric, then one cell for each row of the report."""
    rows = report["rows"].values()
    metrics = [metric for metric in report["rows"]["other light"] if metric != "clips"]
    return [[metric, *(f"{r[metric]:.3f}" if metric in r else "" for r in rows)] for metric in metrics]


def table(report: dict) -> str:
    """One line for each metric, one column for each row of the report."""
    lines = [f"{report['clips']} unseen clips, {report['sampler_steps']} steps"]
    for metric, *cells in (["", *report["rows"]], *lines_of(report)):
        lines.append(f"{metric:16}" + "".join(f"{cell:>28}" for cell in cells))
    return "\n".join(lines)


def card(report: dict) -> str:
    """The model card, all numbers from the report."""
    return f"""# Toy GenCompositor

Puts an object, given as a short clip, into a background of 9 frames at 32×32 pixels along a path. The object
gets the scene's light and casts a shadow. With a blank foreground the model fills a hole.

{weights(report)}
- **Data**: toy compositions, world seed 1, rendered on request; no clip is seen twice. Some backgrounds are
  photographs that come with scikit-image.
{training_sentence(report)}

  ```
{fit_commands(CONFIG.name, report["training"]["stages"])}
  vera-lite export runs/gencompositor_toy/last.ckpt --out vera_lite/assets/gencompositor_toy
  ```
- **Measured** on {report["date"]} by `python benchmarks/gencompositor_toy.py`: {report["clips"]} clips of a
  world that it never saw, {report["sampler_steps"]} steps (shift {report["shift"]:g}).

{markdown(["", *report["rows"]], lines_of(report))}

*other light*: the foreground was filmed in another light than the scene's, which is how such a model is
used; *same light*: the foreground was cut out of the scene itself, as in training. *cut and paste* scales the
foreground and lays it over the background: its shape is exact, its light is wrong and it has no shadow.
*codec alone* is the truth through the codec: the most that a network could reach.

*psnr, ssim*: whole frames against the truth. *object_psnr*: where the object is. *preserved_psnr*: where the
truth is the plain background, which the model redraws as well. *removal_psnr*: inside the mask with a blank
foreground. *colour*: share of clips with the foreground's hue. *shape*: overlap of the pixels that changed
with those that should. *texture*: correlation of grey values with the truth's inside the object, over all
frames. *brightness*: relative error of the object's mean. PSNRs pool the squared error over all clips.

**Limits**: only part of the texture arrives (compare *texture* with the codec's): stripes can be seen, dots
blur into dark patches, and outlines are soft. The model knows four shapes in six colours and three textures,
one object at a time, and 32×32 pixels at nine moments. On a real video its object is that coarse;
`--paste-back` keeps the rest as it was.
"""


if __name__ == "__main__":
    facts = partial(training_facts, shipped=CONFIG)
    load = GenCompositorPipeline.from_pretrained
    main(__doc__, "gencompositor_toy", load, measure, facts, table, card)
