"""How well the shipped toy MiVE follows unseen instructions and edited first frames.

python benchmarks/mive_toy.py                     print the table (a few minutes)
python benchmarks/mive_toy.py --json OUT          also write it
python benchmarks/mive_toy.py --run RUN --card    also write the model card, with what the folder of the
                                                  training run says about the training
"""

from functools import partial

from _toy import (
    CONFIGS,
    category_cells,
    category_table,
    codec_only,
    finite,
    fit_commands,
    main,
    markdown,
    training_facts,
    training_sentence,
    weights,
)
from torch import Tensor

from vera_lite.evaluation.toy.edit_benchmark import added_motion, evaluate, exchanged, redraw
from vera_lite.pipelines import MiVEPipeline
from vera_lite.toy.edits import ToyEdits
from vera_lite.toy.words import MOTIONS

CLIPS = 128  # of each category
VLM = "The vision-language model is `vlm_toy`, which ships beside it, frozen. "
CONFIG = CONFIGS / "mive_toy.yaml"


def other_sentence(pipe: MiVEPipeline, edits: ToyEdits) -> Tensor:
    """Each clip edited by the next clip's sentence, to measure the effect of the words."""
    return redraw(pipe, exchanged(edits))


def unedited_reference(pipe: MiVEPipeline, edits: ToyEdits) -> Tensor:
    """The source's own first frame as reference, to measure the effect of the reference."""
    return pipe.generate(edits.source, edits.instruction, edits.source[:, 0]).final


def still(edits: ToyEdits) -> Tensor:
    """The reference in every frame, without any motion."""
    return edits.target[:, :1].expand_as(edits.target)


def measure(pipe: MiVEPipeline) -> dict:
    """The model, the model without words or reference, and its limits."""
    ways = {
        "MiVE": partial(redraw, pipe),
        "another clip's sentence": partial(other_sentence, pipe),
        "unedited first frame": partial(unedited_reference, pipe),
        "first frame held": still,
        "source as it is": lambda edits: edits.source,
        "codec alone": partial(codec_only, pipe),
    }
    rows = {}
    for name, draw in ways.items():
        rows[name] = evaluate(pipe, CLIPS, draw=draw)
        rows[name]["local add"]["motion"] = 100 * added_motion(pipe, CLIPS, draw=draw)
    return {"clips_per_category": CLIPS, "rows": finite(rows)}


def card(report: dict) -> str:
    """The model card, all numbers from the report."""
    t = report["training"]
    return f"""# Toy MiVE

Edits a clip of 9 frames at 32×32 pixels, given a sentence and its edited first frame: recolours, reshapes,
removes or adds an object, or puts the whole clip into another style. It draws every frame anew.

{weights(report, "transformer and adapter, the", VLM)}
- **Data**: toy edits, world seed 1, rendered on request; no clip is seen twice. The reference is the first
  frame of the true edit. Objects begin at their place (`EditConfig(from_place=True)`): if the place were the
  middle of their path, the first frame would give their motion away.
{training_sentence(report)}

  ```
{fit_commands(CONFIG.name, t["stages"], worlds=t.get("worlds", ()))}
  vera-lite export runs/mive_toy/last.ckpt --out vera_lite/assets/mive_toy
  ```
- **Measured** on {report["date"]} by `python benchmarks/mive_toy.py`: {report["clips_per_category"]} clips
  of each category in a world that it never saw, {report["sampler_steps"]} steps (shift {report["shift"]:g}).

{markdown(["", *report["rows"]], category_cells(report))}

*instruction_compliance, content_fidelity, visual_quality*: from 1 to 100, read off the clips by
`vera_lite.evaluation.toy.edit_judge`; *score* is their mean. *psnr*: against the true edit, dB.
*preserved_psnr*: where the true edit changes nothing. PSNRs pool the squared error over clips. *motion*: the
percentage of added objects that are there and move as asked, which the reference does not show (chance:
{100 / len(MOTIONS):.0f}). *another clip's sentence* and *unedited first frame* show what words and reference
add; *first frame held* is the reference as a still; *source as it is* does nothing; *codec alone* is the
truth through the codec, the most that a network could reach.

**Limits**: in training the reference was always the true first frame; the model has not seen the flaws that
another editor's frame would have. It knows only the words of the toy vision-language model and these edits.
Unlike in the paper, words are also summed into the time embedding. Every frame is redrawn, so no pixel is
exactly the source's. On a real video the result is 32×32 pixels, enlarged.
"""


if __name__ == "__main__":
    facts = partial(training_facts, shipped=CONFIG)
    main(__doc__, "mive_toy", MiVEPipeline.from_pretrained, measure, facts, category_table, card)
