"""How good the shipped toy Qwen3-VL is on unseen clips, against chance.

python benchmarks/vlm_toy.py                      print the table (about 2 minutes)
python benchmarks/vlm_toy.py --json OUT           also write it
python benchmarks/vlm_toy.py --run RUN --card     also write the model card, with what the folder
                                                  of the training run says about the training
"""

from functools import partial

from _toy import CONFIGS, RUN, listed, main, markdown, training_facts, training_sentence

from vera_lite.conditioning.vision_language import VisionLanguageModel
from vera_lite.evaluation.toy.dialogue_benchmark import score_dialogues
from vera_lite.toy.dialogues import KINDS
from vera_lite.training.toy.dialogues import DIALOGUE_WORLD

CLIPS = 256
CONFIG = CONFIGS / "vlm_toy.yaml"


def measure(vlm: VisionLanguageModel) -> dict:
    """Every number beside its chance: the same answers compared with other clips' truths."""
    return {"clips": CLIPS, "kinds": score_dialogues(vlm, DIALOGUE_WORLD, CLIPS)}


def rows(report: dict) -> list[tuple[str, str, float, float]]:
    """(kind, number, value, chance) for every kind of question."""
    return [
        (kind, name, value, scores[f"chance_{name}"])
        for kind, scores in report["kinds"].items()
        for name, value in scores.items()
        if not name.startswith("chance_")
    ]


def table(report: dict) -> str:
    """One line for each number."""
    lines = [f"{report['clips']} unseen clips", f"{'':12}{'':12}{'value':>8}{'chance':>8}"]
    return "\n".join(lines + [f"{k:12}{n:12}{v:8.3f}{c:8.3f}" for k, n, v, c in rows(report)])


def card(report: dict) -> str:
    """The model card, all numbers from the report."""
    examples = KINDS | {"edit": "make the blue square green -> everything, after the edit"}
    asked = "\n".join(f"- **{kind}**: {example}" for kind, example in examples.items())
    lines = ([kind, name, f"{v:.3f}", f"{c:.3f}"] for kind, name, v, c in rows(report))
    measured = (
        f"**Measured** on {report['date']} by `python benchmarks/vlm_toy.py`: {report['clips']} clips of a "
        "world that it never saw, every question about each, answered greedily."
    )
    return f"""# Toy Qwen3-VL

A `Qwen3VLForConditionalGeneration` of transformers with {report["parameters"] / 1e6:.2f} M parameters, which
answers questions about clips of the toy world. It is small enough to look into (notebook 01), and it reads
instructions for systems that need a vision-language model.

- **Weights**: float16, in transformers' own layout; MIT licence. A tokenizer of whole words.
- **Sees**: four frames of at most 32×32 pixels. A token is two frames of 4×4 pixels: 128 tokens per clip.
- **Data**: the procedural toy world, nothing else; clips are rendered on request and never repeat.
{training_sentence(report, "clips with five questions each")}
  In the second stage every other batch is of toy edits, styles included: the question is the bare
  instruction, the answer describes the edited clip.

  ```
{RUN}{CONFIG.name}
{RUN}{CONFIG.name} --data.init_args.edits true \\
      --trainer.max_steps {report["training"]["steps"]} --ckpt_path last --override
  vera-lite export runs/vlm_toy/last.ckpt --out vera_lite/assets/vlm_toy
  ```
{listed(measured)}

Its questions:

{asked}

{markdown(["question", "number", "value", "chance"], lines)}

*words*: share of the true answer's words that are at their place in the model's answer. *exact*: share of
answers that are right in every word. *cell_error*: distance between the named and the true place in cells of
an 8×8 grid, mean over first and last frame; *near*: share at most one cell off. *chance*: the same answers
compared with the truths of the other clips, which shows how often each answer is right anyway.

**Limits**: {len(examples)} kinds of questions in fixed wording; every other word is refused. It knows nothing
of real videos.
"""


if __name__ == "__main__":
    facts = partial(training_facts, shipped=CONFIG)
    main(__doc__, "vlm_toy", VisionLanguageModel.from_pretrained, measure, facts, table, card)
