"""How good a toy model of the world of things on places is, on unseen clips.

python benchmarks/scenes_toy.py vera|gencompositor|rvedit|mive|vlm FOLDER [--clips N] [--json OUT]
                                [--run RUN --card]

FOLDER is the output of `vera-lite export` for a checkpoint. Held-out pairs (noun and colour, place or motion)
have their own rows, and so have trivial answers: codec alone, unedited source, frozen first frame. Intervals
are over clips, 95 %. `--card` writes the model card into FOLDER, with what the training's folder says.
"""

import argparse
import textwrap
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from _harness import meets, report_head, write_json
from _toy import CONFIGS, fit_commands, listed, markdown, sampling, training_facts, training_sentence, weights

from vera_lite.conditioning.vision_language import VisionLanguageModel
from vera_lite.evaluation.toy import composition_benchmark, edit_benchmark, layer_benchmark
from vera_lite.evaluation.toy.dialogue_benchmark import score_dialogues
from vera_lite.evaluation.toy.tally import Row
from vera_lite.media.files import replacing
from vera_lite.pipelines import GenCompositorPipeline, MiVEPipeline, RVEDiTPipeline, VeraPipeline
from vera_lite.toy.edits import CATEGORIES
from vera_lite.toy.scene_compositions import SceneCompositionConfig
from vera_lite.toy.scene_edits import SceneEditConfig
from vera_lite.toy.scenes import SceneConfig

Rows = dict[str, Row]
#: What a goal is about, what was found, and the goal.
Goal = tuple[str, float, str]


# --- rows ------------------------------------------------------------------------------------------


def vera(pipe: VeraPipeline, clips: int) -> Rows:
    """A row per task, with and without mask."""
    rows = {}
    for unseen in (False, True):
        for mask in (True, False):
            world = SceneConfig(*pipe.clip_size, unseen=unseen)
            found = layer_benchmark.evaluate(pipe, clips, mask, world=world)
            name = f"{'held-out' if unseen else 'seen'} pairs, {'with' if mask else 'no'} mask"
            rows |= {f"{task}, {name}": row for task, row in found.items()}
    return rows


def gencompositor(pipe: GenCompositorPipeline, clips: int) -> Rows:
    """A row for the model, the codec and the plain background."""
    codec, rows = pipe.codec, {}
    draws: dict[str, Callable | None] = {
        "model": None,
        "codec alone": lambda batch: codec.decode(codec.encode(batch.composite)),
        "background": lambda batch: batch.background,
    }
    for unseen in (False, True):
        world = SceneCompositionConfig(*pipe.clip_size, jitter=0.08, unseen=unseen)
        for name, draw in draws.items():
            pairs = "held-out" if unseen else "seen"
            found = composition_benchmark.evaluate(pipe, clips, world=world, draw=draw)
            rows[f"{name}, {pairs} colours"] = found
    return rows


def editor(pipe: RVEDiTPipeline | MiVEPipeline, clips: int) -> Rows:
    """A row per category, for the model and for trivial answers."""
    codec, rows = pipe.codec, {}
    draws: dict[str, Callable | None] = {
        "model": None,
        "codec alone": lambda edits: codec.decode(codec.encode(edits.target)),
        "source": lambda edits: edits.source,
        "first frame held": lambda edits: edits.target[:, :1].expand_as(edits.target),
        "another clip's sentence": lambda edits: edit_benchmark.redraw(pipe, edit_benchmark.exchanged(edits)),
    }
    for unseen in (False, True):
        world = SceneEditConfig(*pipe.clip_size, unseen=unseen)
        for name, draw in draws.items():
            found = edit_benchmark.evaluate(pipe, clips, world=world, draw=draw)
            found["local add"]["motion"] = edit_benchmark.added_motion(pipe, clips, world=world, draw=draw)
            pairs = "held-out" if unseen else "seen"
            rows |= {f"{name}, {pairs} pairs: {category}": row for category, row in found.items()}
    return rows


def vlm(model: VisionLanguageModel, clips: int) -> Rows:
    """A row per kind of question."""
    rows = {}
    for unseen in (False, True):
        found = score_dialogues(model, SceneConfig(behind=0, distractor=0.6, unseen=unseen), clips)
        pairs = "held-out" if unseen else "seen"
        rows |= {f"{kind}, {pairs} pairs": row for kind, row in found.items()}
    return rows


# --- goals -----------------------------------------------------------------------------------------


def vera_goals(rows: Rows) -> Iterator[Goal]:
    """With the mask the layer, without it the words."""
    masked = rows["add, seen pairs, with mask"]
    yield "add, with mask: preserved_psnr in dB", masked["preserved_psnr"], ">= 46"
    yield "add, with mask: alpha_iou", masked["alpha_iou"], ">= 0.95"
    for pairs, goal in (("seen", ">= 0.95"), ("held-out", ">= 0.85")):
        for word in ("noun", "colour", "place", "motion"):
            yield f"add, no mask, {pairs} pairs: {word}", rows[f"add, {pairs} pairs, no mask"][word], goal
    yield "add, no mask: alpha_iou", rows["add, seen pairs, no mask"]["alpha_iou"], ">= 0.85"
    yield "background, no mask: alpha_iou", rows["background, seen pairs, no mask"]["alpha_iou"], ">= 0.93"


def gencompositor_goals(rows: Rows) -> Iterator[Goal]:
    """How much is lost beside the codec's own loss."""
    model, codec = rows["model, seen colours"], rows["codec alone, seen colours"]
    yield "object, dB under the codec alone", codec["object_psnr"] - model["object_psnr"], "<= 2"
    yield "texture, share of the codec's", model["texture"] / codec["texture"], ">= 0.9"


def editor_goals(rows: Rows, mive: bool = False) -> Iterator[Goal]:
    """By category: what changes, what stays, and whether the sentence is followed."""
    model, codec, held = (
        {category: rows[f"{name}, seen pairs: {category}"] for category in CATEGORIES}
        for name in ("model", "codec alone", "first frame held")
    )
    for category in CATEGORIES:
        for region in ("changed_psnr", "preserved_psnr"):
            if region in model[category]:
                lost = codec[category][region] - model[category][region]
                yield f"{category}: {region}, dB under the codec alone", lost, "<= 3"
    compliance = rows["model, seen pairs: overall"]["instruction_compliance"]
    yield "instruction compliance", compliance, ">= 90"
    if mive:
        yield "added things that move as told", model["local add"]["motion"], ">= 0.9"
        ahead = [row[key] > held[name][key] for name, row in model.items() for key in row]
        yield "share of measures above the held first frame", sum(ahead) / len(ahead), ">= 1"


def vlm_goals(rows: Rows) -> Iterator[Goal]:
    yield "places within one cell", rows["locate, seen pairs"]["near"], ">= 0.97"
    yield "nouns", rows["what, seen pairs"]["noun"], ">= 0.95"
    yield "words of descriptions", rows["describe, seen pairs"]["words"], ">= 0.92"


#: Name: what loads it, its rows and its goals.
SYSTEMS = {
    "vera": (VeraPipeline, vera, vera_goals),
    "gencompositor": (GenCompositorPipeline, gencompositor, gencompositor_goals),
    "rvedit": (RVEDiTPipeline, editor, editor_goals),
    "mive": (MiVEPipeline, editor, partial(editor_goals, mive=True)),
    "vlm": (VisionLanguageModel, vlm, vlm_goals),
}


# --- report and card -------------------------------------------------------------------------------


def numbers(row: Row | dict) -> dict[str, float]:
    """A row without infinite numbers, which JSON cannot hold."""
    return {key: value for key, value in row.items() if abs(value) < float("inf")}


def measure(system: str, model, clips: int) -> dict:
    """The report of a model."""
    _, rows_of, goals_of = SYSTEMS[system]
    rows: Rows = rows_of(model, clips)
    goals = [
        {"goal": name, "value": value, "wanted": wanted, "met": meets(value, wanted)}
        for name, value, wanted in goals_of(rows)
    ]
    report = report_head(f"{system}_scenes", "torch", "transformers") | {"clips": clips} | sampling(model)
    report |= {"goals": goals, "rows": {name: numbers(row) for name, row in rows.items()}}
    intervals = {
        name: {key: list(ends) for key, ends in row.intervals.items() if max(map(abs, ends)) < float("inf")}
        for name, row in rows.items()
    }
    return report | {"intervals": intervals}


def cell(report: dict, name: str, key: str) -> str:
    """A value with its interval, for a table."""
    value = report["rows"][name].get(key)
    if value is None:
        return ""
    digits = 1 if abs(value) >= 5 else 3
    ends = report["intervals"][name].get(key)
    return f"{value:.{digits}f}" + (f" ({ends[0]:.{digits}f} to {ends[1]:.{digits}f})" if ends else "")


#: Name and use of each, for its card.
CARDS = {
    "vera": ("Vera", "Adds a thing to a clip or replaces the background, from a sentence and, if one likes, "
             "a mask. The result is an edit layer and a matte over the untouched source."),
    "gencompositor": ("GenCompositor", "Puts a thing from one clip into another, along a path, lit as the "
                      "scene is, with a shadow."),
    "rvedit": ("RVEDiT", "Edits a clip as a sentence says: another thing or colour, removal, addition, "
               "another style. A vision-language model reads clip and sentence."),
    "mive": ("MiVE", "Carries an edited first frame through the clip, as a sentence says. A vision-language "
             "model reads clip, frame and sentence."),
    "vlm": ("Qwen3-VL", "Answers questions about clips, and reads instructions for RVEDiT and MiVE. A "
            "`Qwen3VLForConditionalGeneration` of transformers with a tokenizer of whole words."),
}  # fmt: skip


def card(system: str, report: dict) -> str:
    """The model card; all numbers are the report's."""
    title, use = CARDS[system]
    goals = [
        [g["goal"], f"{g['value']:.3f}", g["wanted"], "yes" if g["met"] else "**no**"]
        for g in report["goals"]
    ]
    tables, heads = [], {}
    for name, row in report["rows"].items():  # one table for the rows that have the same numbers
        heads.setdefault(tuple(key for key in row if key != "clips"), []).append(name)
    for keys, names in heads.items():
        lines = ([name, *(cell(report, name, key) for key in keys)] for name in names)
        tables.append(markdown(["", *keys], lines))
    steps = f", {report['sampler_steps']} steps" if "sampler_steps" in report else ""
    measured = (
        f"**Measured** on {report['date']} by `python benchmarks/scenes_toy.py {system}`: {report['clips']} "
        f"clips of each row, of a world that it never saw{steps}; in brackets, 95 % intervals over clips. "
        "Held-out pairs of noun and colour, place or motion never appear in training."
    )
    clips = report["training"].get("clips_cached")
    shown = f"{clips:,} clips" if clips else "clips that never repeat"
    data = (
        f"**Data**: {shown} of the world of `vera_lite.toy.scenes`, and nothing else: sixty sprites of Noto "
        "Color Emoji (OFL-1.1) over photographs of scikit-image and drawn places."
    )
    files = (
        weights(report)
        if system != "vlm"
        else listed(f"**Weights**: {report['parameters'] / 1e6:.2f} M parameters in float16. MIT licence.")
    )
    commands = fit_commands(f"{system}_scenes.yaml", report["training"]["stages"])
    export = f"  vera-lite export runs/{system}_scenes/last.ckpt --out vera_lite/assets/{system}_toy"
    export += " --full" if system == "vlm" else ""
    return f"""# Toy {title}

{textwrap.fill(use + " Clips have 9 frames of 32×32 pixels.", 110)}

{files}
{listed(data)}
{training_sentence(report)}

  ```
{commands}
{export}
  ```
{listed(measured)}

{markdown(["goal", "found", "wanted", "met"], goals)}

{(chr(10) * 2).join(tables)}

PSNRs pool the squared error over all clips. What a thing is, its colour, place and motion are read off the
pixels by matching sprites (`vera_lite/evaluation/toy/thing_judge.py`).

**Limits**: the model knows sixty things, and no others. On a real video its results are as coarse as 32×32
pixels and nine moments allow.
"""


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("system", choices=SYSTEMS)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--clips", type=int, default=256, help="of each row (default 256)")
    parser.add_argument("--json", type=Path, help="also write the report to this file")
    parser.add_argument("--run", type=Path, help="folder of the training run")
    parser.add_argument("--card", action="store_true", help="write the model card; needs --run")
    options = parser.parse_args(arguments)
    if options.card and options.run is None:
        parser.error("--card needs --run")
    torch.set_num_threads(1)
    facts = {}
    if options.run is not None:  # may refuse: first
        facts = {"training": training_facts(options.run, CONFIGS / f"{options.system}_scenes.yaml")}
    model = SYSTEMS[options.system][0].from_pretrained(options.folder)
    report = measure(options.system, model, options.clips) | facts
    for name in report["rows"]:
        found = (f"{key} {cell(report, name, key)}" for key in report["rows"][name])
        print(name + ":", ", ".join(found))
    for g in report["goals"]:
        print(f"{g['goal']}: {g['value']:.3f}, wanted {g['wanted']}, {'met' if g['met'] else 'MISSED'}")
    if options.json:
        write_json(report, options.json)
    if options.card:
        with replacing(options.folder / "README.md") as path:
            path.write_text(card(options.system, report))


if __name__ == "__main__":
    main()
