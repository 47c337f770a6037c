"""How good a toy model of the world of things on places is, on unseen clips.

python benchmarks/scenes_toy.py vera|gencompositor|rvedit|mive|vlm FOLDER [--clips N] [--json OUT]

FOLDER is the output of `vera-lite export` for a checkpoint. Held-out pairs (noun and colour, place or motion)
have their own rows, and so have trivial answers: codec alone, unedited source, frozen first frame.
"""

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path

from _harness import report_head, write_json

from vera_lite.conditioning.vision_language import VisionLanguageModel
from vera_lite.evaluation.toy import composition_benchmark, edit_benchmark, layer_benchmark
from vera_lite.evaluation.toy.dialogue_benchmark import score_dialogues
from vera_lite.pipelines import GenCompositorPipeline, MiVEPipeline, RVEDiTPipeline, VeraPipeline
from vera_lite.toy.scene_compositions import SceneCompositionConfig
from vera_lite.toy.scene_edits import SceneEditConfig
from vera_lite.toy.scenes import SceneConfig

Rows = dict[str, dict[str, float]]


def vera(folder: Path, clips: int) -> Rows:
    """A row per task, with and without mask."""
    pipe, rows = VeraPipeline.from_pretrained(folder), {}
    for unseen in (False, True):
        for mask in (True, False):
            world = SceneConfig(*pipe.clip_size, unseen=unseen)
            found = layer_benchmark.evaluate(pipe, clips, mask, world=world)
            name = f"{'held-out' if unseen else 'seen'} pairs, {'with' if mask else 'no'} mask"
            rows |= {f"{task}, {name}": row for task, row in found.items()}
    return rows


def gencompositor(folder: Path, clips: int) -> Rows:
    """A row for the model, the codec and the plain background."""
    pipe, rows = GenCompositorPipeline.from_pretrained(folder), {}
    codec = pipe.codec
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


def editor(kind: type, folder: Path, clips: int) -> Rows:
    """A row per category, for the model and for trivial answers."""
    pipe, rows = kind.from_pretrained(folder), {}
    codec = pipe.codec
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


def vlm(folder: Path, clips: int) -> Rows:
    """A row per kind of question."""
    model, rows = VisionLanguageModel.from_pretrained(folder), {}
    for unseen in (False, True):
        found = score_dialogues(model, SceneConfig(behind=0, distractor=0.6, unseen=unseen), clips)
        pairs = "held-out" if unseen else "seen"
        for kind, row in found.items():
            chance = {f"chance_{k}": v for k, v in row.pop("chance").items()}
            rows[f"{kind}, {pairs} pairs"] = row | chance
    return rows


SYSTEMS = {
    "vera": vera,
    "gencompositor": gencompositor,
    "rvedit": partial(editor, RVEDiTPipeline),
    "mive": partial(editor, MiVEPipeline),
    "vlm": vlm,
}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("system", choices=SYSTEMS)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--clips", type=int, default=256, help="of each row (default 256)")
    parser.add_argument("--json", type=Path, help="also write the report to this file")
    options = parser.parse_args(arguments)
    rows = SYSTEMS[options.system](options.folder, options.clips)
    for name, row in rows.items():
        print(name + ":", ", ".join(f"{key} {value:.3f}" for key, value in row.items()))
    if options.json:
        head = report_head(f"{options.system}_scenes", "torch", "transformers")
        write_json(head | {"clips": options.clips, "rows": rows}, options.json)


if __name__ == "__main__":
    main()
