"""How good the shipped toy Qwen3-VL is at clips that it never saw, against chance.

python benchmarks/vlm_toy.py                      print the table (about 2 minutes)
python benchmarks/vlm_toy.py --json OUT           also write it
python benchmarks/vlm_toy.py --run RUN --card     also write the model card, with what the folder
                                                  of the training run says about the training
"""

import csv
import time
from pathlib import Path

import torch
import yaml
from _harness import report_head
from _toy import log_versions, main

from vera_lite.conditioning.vision_language import TOY_VLM, VisionLanguageModel
from vera_lite.evaluation.toy.dialogue_benchmark import TEST_SEED, score_dialogues
from vera_lite.toy.dialogues import KINDS
from vera_lite.training.toy.dialogues import DIALOGUE_WORLD

CLIPS = 256


def measure(folder: Path) -> dict:
    """The report; every value stands beside the same for answers held against other clips' truths."""
    vlm = VisionLanguageModel.from_pretrained(folder)
    started = time.process_time()
    return {
        **report_head("vlm_toy", "torch", "transformers"),
        "clips": CLIPS,
        "world_seed": TEST_SEED,
        "parameters": sum(p.numel() for p in vlm.model.parameters()),
        "kinds": score_dialogues(vlm, DIALOGUE_WORLD, CLIPS),
        "cpu_seconds": round(time.process_time() - started, 1),
    }


def training_facts(run: Path) -> dict:
    """What a finished run's files say."""
    versions = log_versions(run)
    config = yaml.safe_load((versions[0] / "config.yaml").read_text())
    saved = torch.load(run / "last.ckpt", weights_only=True, map_location="cpu")
    rows = [r for v in versions for r in csv.DictReader((v / "metrics.csv").open()) if r.get("val")]
    seconds = [(v / "metrics.csv").stat().st_mtime - (v / "config.yaml").stat().st_mtime for v in versions]
    batch_size = config["data"]["init_args"]["batch_size"]
    return {
        "seed": config["seed_everything"],
        "world_seed": config["data"]["init_args"]["seed"],
        "steps": saved["global_step"],
        "batch_size": batch_size,
        "clips": saved["global_step"] * batch_size,
        "wall_minutes": round(sum(seconds) / 60),
        "precision": config["trainer"]["precision"],
        "validation": [
            {
                "step": int(r["step"]) + 1,
                "loss": round(float(r["val"]), 4),
                "word_accuracy": round(float(r["val/word_accuracy"]), 4),
            }
            for r in rows
        ],
    }


def rows(report: dict) -> list[tuple[str, str, float, float]]:
    """(kind, number, value, chance) for every kind of question."""
    return [
        (kind, name, value, scores["chance"][name])
        for kind, scores in report["kinds"].items()
        for name, value in scores.items()
        if name != "chance"
    ]


def table(report: dict) -> str:
    """One line a number."""
    lines = [f"{report['clips']} unseen clips", f"{'':12}{'':12}{'value':>8}{'chance':>8}"]
    return "\n".join(lines + [f"{k:12}{n:12}{v:8.3f}{c:8.3f}" for k, n, v, c in rows(report)])


def card(report: dict) -> str:
    """The model card, all numbers from the report."""
    t, m = report["training"], report["machine"]
    examples = KINDS | {"edit": "make the blue square green -> everything, after the edit"}
    asked = "\n".join(f"- **{kind}**: {example}" for kind, example in examples.items())
    lines = "\n".join(f"| {kind} | {name} | {v:.3f} | {c:.3f} |" for kind, name, v, c in rows(report))
    return f"""# Toy Qwen3-VL

A `Qwen3VLForConditionalGeneration` of transformers with {report["parameters"] / 1e6:.2f} M parameters, which
answers questions about clips of the toy world. It is there to be looked into (notebook 01), and to read
instructions for systems that need a vision-language model.

- **Weights**: float16, in transformers' own layout; MIT licence. A tokenizer of whole words.
- **Sees**: four frames of at most 32×32 pixels, two frames and 4×4 pixels a token: 128 tokens a clip.
- **Data**: the procedural toy world, nothing else; clips are rendered as they are needed and never repeat.
- **Training**: {t["steps"]:,} steps of {t["batch_size"]} clips = {t["clips"]:,} clips with five questions
  each, {t["precision"]}, {t["wall_minutes"]} minutes of wall time on one thread of a {m["cores"]}-core CPU
  ({m["cpu"]}) that other work shared. In the second stage every other batch is of toy edits, styles included:
  the sentence alone is said, and what it leads to is the answer.

  ```
  vera-lite fit --config vera_lite/configs/vlm_toy.yaml
  vera-lite fit --config vera_lite/configs/vlm_toy.yaml --data.init_args.edits true \\
      --trainer.max_steps {t["steps"]} --ckpt_path last
  vera-lite export runs/vlm_toy/last.ckpt --out vera_lite/assets/vlm_toy
  ```
- **Measured** on {report["date"]} by `python benchmarks/vlm_toy.py`: {report["clips"]} clips of a world that
  it never saw, each asked every question, answered greedily. One training seed.

What it is asked:

{asked}

| question | number | value | chance |
|---|---|---|---|
{lines}

*words*: share of the true answer's words that stand at their place in the model's answer. *exact*: answers
right in every word. *cell_error*: distance of the place named from the true one, in cells of an 8×8 grid,
mean over first and last frame; *near*: share at most one cell off. *chance*: the same answers held against
the truths of the other clips, so it knows how often each answer is right anyway.

**Limits**: {len(examples)} kinds of questions in fixed wording; every other word is refused.
Nothing of real videos.
"""


if __name__ == "__main__":
    main(__doc__, TOY_VLM, measure, training_facts, table, card)
