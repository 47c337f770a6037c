"""How well the shipped toy RVEDiT follows instructions that it never saw.

python benchmarks/rvedit_toy.py                     print the table (about 3 minutes)
python benchmarks/rvedit_toy.py --json OUT          also write it
python benchmarks/rvedit_toy.py --run RUN --card    also write the model card, with what the folder of the
                                                    training run says about the training
"""

import time
from functools import partial
from pathlib import Path

from _harness import report_head
from _toy import category_cells, category_table, fit_commands, main, training_facts
from torch import Tensor

from vera_lite.evaluation.toy.edit_benchmark import (
    TEST_SEED,
    attention_by_depth,
    evaluate,
    exchanged,
    redraw,
)
from vera_lite.pipelines import ASSETS, RVEDiTPipeline
from vera_lite.toy.edits import ToyEdits

CLIPS, STEPS = 128, 12  # CLIPS of each category
CONFIGS = ASSETS.parent / "configs"
FIRST = "rvedit_first_stage"


def facts(run: Path) -> dict:
    """What the files of both stages say; the first lies beside ``run``."""
    first = training_facts(run.parent / FIRST, CONFIGS / f"{FIRST}.yaml")
    second = training_facts(run, CONFIGS / "rvedit_toy.yaml")
    return second | {
        "first_stages": first["stages"],
        "wall_minutes": first["wall_minutes"] + second["wall_minutes"],
        "validation_loss": first["validation_loss"] + second["validation_loss"],
    }


def codec_only(pipe: RVEDiTPipeline, edits: ToyEdits) -> Tensor:
    """The true edit through the codec and back: what a perfect network would get."""
    return pipe.codec.decode(pipe.codec.encode(edits.target))


def other_instruction(pipe: RVEDiTPipeline, edits: ToyEdits) -> Tensor:
    """Each clip edited by the next clip's sentence: what the numbers say if the words are not heard."""
    return redraw(pipe, exchanged(edits), steps=STEPS)


def measure(folder: Path) -> dict:
    """The report: the model beside its source, a wrong sentence, and its codec's limit."""
    pipe = RVEDiTPipeline.from_pretrained(folder)
    started = time.process_time()
    rows = {
        "RVEDiT": evaluate(pipe, CLIPS, steps=STEPS),
        "another clip's sentence": evaluate(pipe, CLIPS, draw=partial(other_instruction, pipe)),
        "source as it is": evaluate(pipe, CLIPS, draw=lambda edits: edits.source),
        "codec alone": evaluate(pipe, CLIPS, draw=partial(codec_only, pipe)),
    }
    return {
        **report_head("rvedit_toy", "torch", "lightning", "transformers", "diffusers"),
        "clips_per_category": CLIPS,
        "world_seed": TEST_SEED,
        "sampler_steps": STEPS,
        "shift": pipe.sampling.shift,
        "cpu_seconds": round(time.process_time() - started, 1),
        "parameters": sum(p.numel() for p in pipe.system.parameters()),
        "rows": {
            row: {
                category: {k: v for k, v in found.items() if v != float("inf")}
                for category, found in r.items()
            }
            for row, r in rows.items()
        },
        "attention": attention_by_depth(pipe),
    }


def card(report: dict) -> str:
    """The model card, all numbers from the report."""
    t, m = report["training"], report["machine"]
    lines = "\n".join(f"| {label} | {' | '.join(values)} |" for label, values in category_cells(report))
    return f"""# Toy RVEDiT

Edits a clip of 9 frames at 32×32 pixels by a sentence: recolours, reshapes, removes or adds an object, or
puts the whole clip into another style. It draws every frame anew.

- **Weights**: `system.safetensors`, {report["parameters"] / 1e6:.2f} M parameters in float16, transformer,
  connectors and editing tokens, the exponential moving average of the training run; `codec.safetensors`, the
  patch codec. The vision-language model is `vlm_toy`, which ships beside it. MIT licence.
- **Data**: toy edits, world seed 1, rendered as they are needed; no clip is seen twice.
- **Training**: in two stages (the first learns to hear: editing tokens for every block, no alignment), in all
  {t["steps"]:,} steps of {t["batch_size"]} clips = {t["samples"]:,} clips, {t["precision"]},
  {t["wall_minutes"]} minutes of wall time on {t["threads"]} thread of a {m["cores"]}-core CPU ({m["cpu"]})
  that other work shared. One seed.

  ```
{fit_commands(f"{FIRST}.yaml", t["first_stages"])}
{fit_commands("rvedit_toy.yaml", t["stages"], f" --ckpt_path runs/{FIRST}/last.ckpt")}
  vera-lite export runs/rvedit_toy/last.ckpt --out vera_lite/assets/rvedit_toy
  ```
- **Measured** on {report["date"]} by `python benchmarks/rvedit_toy.py`: {report["clips_per_category"]} clips
  of each category in a world that it never saw, {report["sampler_steps"]} steps (shift {report["shift"]:g}).

| | {" | ".join(report["rows"])} |
|---|{"---|" * len(report["rows"])}
{lines}

*instruction_compliance, content_fidelity, visual_quality*: the paper's three axes from 1 to 100, read off the
clips by `vera_lite.evaluation.toy.edit_judge`; *score* is their mean. *psnr*: against the true edit, dB.
*preserved_psnr*: where the true edit changes nothing. PSNRs pool the squared error over clips. *another
clip's sentence* shows what the words are worth; *source as it is* does nothing; *codec alone* is the truth
through the codec, the most that a network could reach.

**Limits**: it knows the words of the toy vision-language model and these edits alone. Removals are nearly
always followed, other edits in part (*instruction_compliance*). Every frame is redrawn, so nothing stays as
it was pixel by pixel. On a real video the result is 32×32 pixels, enlarged.
"""


if __name__ == "__main__":
    main(__doc__, ASSETS / "rvedit_toy", measure, facts, category_table, card)
