"""How well the shipped toy MiVE follows instructions and edited first frames that it never saw.

python benchmarks/mive_toy.py                     print the table (a few minutes)
python benchmarks/mive_toy.py --json OUT          also write it
python benchmarks/mive_toy.py --run RUN --card    also write the model card, with what the folder of the
                                                  training run says about the training
"""

import time
from functools import partial
from pathlib import Path

from _harness import report_head
from _toy import category_cells, category_table, fit_commands, main, training_facts
from torch import Tensor

from vera_lite.evaluation.toy.edit_benchmark import TEST_SEED, added_motion, evaluate, exchanged, redraw
from vera_lite.pipelines import ASSETS, MiVEPipeline
from vera_lite.toy.edits import ToyEdits
from vera_lite.toy.world import MOTIONS

CLIPS, STEPS = 128, 12  # CLIPS of each category
CONFIG = ASSETS.parent / "configs" / "mive_toy.yaml"


def other_sentence(pipe: MiVEPipeline, edits: ToyEdits) -> Tensor:
    """Each clip edited by the next clip's sentence: what the words are worth beside the reference."""
    return redraw(pipe, exchanged(edits), steps=STEPS)


def unedited_reference(pipe: MiVEPipeline, edits: ToyEdits) -> Tensor:
    """The source's own first frame as reference: what the reference is worth beside the words."""
    return pipe.generate(edits.source, edits.instruction, edits.source[:, 0], steps=STEPS).final


def still(edits: ToyEdits) -> Tensor:
    """The reference, held: no motion is followed."""
    return edits.target[:, :1].expand_as(edits.target)


def codec_only(pipe: MiVEPipeline, edits: ToyEdits) -> Tensor:
    """The true edit through the codec and back: what a perfect network would get."""
    return pipe.codec.decode(pipe.codec.encode(edits.target))


def measure(folder: Path) -> dict:
    """The report: the model beside what it does without words, without reference, and its limits."""
    pipe = MiVEPipeline.from_pretrained(folder)
    started = time.process_time()
    ways = {
        "MiVE": partial(redraw, pipe, steps=STEPS),
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
    return {
        **report_head("mive_toy", "torch", "lightning", "transformers", "diffusers"),
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
    }


def card(report: dict) -> str:
    """The model card, all numbers from the report."""
    t, m = report["training"], report["machine"]
    lines = "\n".join(f"| {label} | {' | '.join(values)} |" for label, values in category_cells(report))
    return f"""# Toy MiVE

Edits a clip of 9 frames at 32×32 pixels by a sentence and a picture of its first frame as it is to look:
recolours, reshapes, removes or adds an object, or puts the whole clip into another style. It draws every
frame anew.

- **Weights**: `system.safetensors`, {report["parameters"] / 1e6:.2f} M parameters in float16, transformer and
  adapter, the exponential moving average of the training run; `codec.safetensors`, the patch codec. The
  vision-language model is `vlm_toy`, which ships beside it, frozen. MIT licence.
- **Data**: toy edits, world seed 1, rendered as they are needed; no clip is seen twice. The reference is the
  first frame of the true edit. Objects begin at their place (`EditWorld(from_place=True)`): where paths have
  it in their middle, the first frame gives motions away.
- **Training**: {t["steps"]:,} steps of {t["batch_size"]} clips = {t["samples"]:,} clips, {t["precision"]},
  {t["wall_minutes"]} minutes of wall time on {t["threads"]} thread of a {m["cores"]}-core CPU ({m["cpu"]})
  that other work shared. One seed.

  ```
{fit_commands(CONFIG.name, t["stages"], worlds=t.get("worlds", ()))}
  vera-lite export runs/mive_toy/last.ckpt --out vera_lite/assets/mive_toy
  ```
- **Measured** on {report["date"]} by `python benchmarks/mive_toy.py`: {report["clips_per_category"]} clips
  of each category in a world that it never saw, {report["sampler_steps"]} steps (shift {report["shift"]:g}).

| | {" | ".join(report["rows"])} |
|---|{"---|" * len(report["rows"])}
{lines}

*instruction_compliance, content_fidelity, visual_quality*: from 1 to 100, read off the clips by
`evaluation.toy.edit_judge`; *score* is their mean. *psnr*: against the true edit, dB. *preserved_psnr*:
where the true edit changes nothing. PSNRs pool the squared error over clips. *motion*: of objects that are to
be added, the percentage that is there and moves as asked, which the reference does not show (chance:
{100 / len(MOTIONS):.0f}). *another clip's sentence* and *unedited first frame* show what words and reference
are worth; *first frame held* is the reference as a still; *source as it is* does nothing; *codec alone* is
the truth through the codec, the most that a network could reach.

**Limits**: the reference was always the true first frame in training; one from another editor, with flaws of
its own, is outside of what it knows. It knows the words of the toy vision-language model and these edits
alone. The toy's words are also summed into its time embedding, which the paper's are not. Every frame is
redrawn, so nothing stays as it was pixel by pixel. On a real video the result is 32×32 pixels, enlarged.
"""


if __name__ == "__main__":
    facts = partial(training_facts, shipped=CONFIG)
    main(__doc__, ASSETS / "mive_toy", measure, facts, category_table, card)
