"""How well the shipped toy RVEDiT follows unseen instructions.

python benchmarks/rvedit_toy.py                     print the table (about 3 minutes)
python benchmarks/rvedit_toy.py --json OUT          also write it
python benchmarks/rvedit_toy.py --run RUN --card    also write the model card, with what the folder of the
                                                    training run says about the training
"""

from functools import partial
from pathlib import Path

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

from vera_lite.evaluation.toy.edit_benchmark import attention_by_depth, evaluate, exchanged, redraw
from vera_lite.pipelines import RVEDiTPipeline
from vera_lite.toy.edits import ToyEdits

CLIPS = 128  # of each category
VLM = "The vision-language model is `vlm_toy`, which ships beside it, frozen. "
FIRST = "rvedit_first_stage"


def facts(run: Path) -> dict:
    """What the files of both stages tell; the folder of the first is beside ``run``."""
    first = training_facts(run.parent / FIRST, CONFIGS / f"{FIRST}.yaml")
    second = training_facts(run, CONFIGS / "rvedit_toy.yaml")
    return second | {
        "first_stages": first["stages"],
        "wall_minutes": first["wall_minutes"] + second["wall_minutes"],
        "validation_loss": first["validation_loss"] + second["validation_loss"],
    }


def other_instruction(pipe: RVEDiTPipeline, edits: ToyEdits) -> Tensor:
    """Each clip edited by the next clip's sentence: the numbers of a model that ignores the words."""
    return redraw(pipe, exchanged(edits))


def measure(pipe: RVEDiTPipeline) -> dict:
    """The model beside its source, a wrong sentence, and its codec's limit."""
    rows = {
        "RVEDiT": evaluate(pipe, CLIPS),
        "another clip's sentence": evaluate(pipe, CLIPS, draw=partial(other_instruction, pipe)),
        "source as it is": evaluate(pipe, CLIPS, draw=lambda edits: edits.source),
        "codec alone": evaluate(pipe, CLIPS, draw=partial(codec_only, pipe)),
    }
    return {"clips_per_category": CLIPS, "rows": finite(rows), "attention": attention_by_depth(pipe)}


def card(report: dict) -> str:
    """The model card, all numbers from the report."""
    t = report["training"]
    return f"""# Toy RVEDiT

Edits a clip of 9 frames at 32×32 pixels by a sentence: recolours, reshapes, removes or adds an object, or
puts the whole clip into another style. It draws every frame anew.

{weights(report, "transformer, connectors and editing tokens, the", VLM)}
- **Data**: toy edits, world seed 1, rendered on request; no clip is seen twice.
{training_sentence(report)}
  There are two stages. In the first the model learns to follow instructions: editing tokens for every block,
  no alignment. Steps and minutes are those of both.

  ```
{fit_commands(f"{FIRST}.yaml", t["first_stages"])}
{fit_commands("rvedit_toy.yaml", t["stages"], f" --ckpt_path runs/{FIRST}/last.ckpt --override")}
  vera-lite export runs/rvedit_toy/last.ckpt --out vera_lite/assets/rvedit_toy
  ```
- **Measured** on {report["date"]} by `python benchmarks/rvedit_toy.py`: {report["clips_per_category"]} clips
  of each category in a world that it never saw, {report["sampler_steps"]} steps (shift {report["shift"]:g}).

{markdown(["", *report["rows"]], category_cells(report))}

*instruction_compliance, content_fidelity, visual_quality*: the paper's three axes from 1 to 100, read off the
clips by `vera_lite.evaluation.toy.edit_judge`; *score* is their mean. *psnr*: against the true edit, dB.
*preserved_psnr*: where the true edit changes nothing. PSNRs pool the squared error over clips. *another
clip's sentence* shows what the words add; *source as it is* does nothing; *codec alone* is the truth
through the codec, the most that a network could reach.

**Limits**: the model knows only the words of the toy vision-language model and these edits. It nearly always
follows removals, and other edits in part (*instruction_compliance*). Every frame is redrawn, so no pixel is
exactly the source's. On a real video the result is 32×32 pixels, enlarged.
"""


if __name__ == "__main__":
    main(__doc__, "rvedit_toy", RVEDiTPipeline.from_pretrained, measure, facts, category_table, card)
