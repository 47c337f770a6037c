"""Make the README's pictures of unseen results: `python scripts/readme_pictures.py` (about 15 s).

The clips are the first ones of the test worlds (for Vera, four additions and four new backgrounds), not the
best results. Vera gets no masks, only the prompt.
"""

import textwrap
from pathlib import Path

import torch
from matplotlib.figure import Figure

from vera_lite import viz
from vera_lite.evaluation.toy import composition_benchmark, edit_benchmark
from vera_lite.evaluation.toy import layer_benchmark as toy_benchmark
from vera_lite.evaluation.toy.edit_benchmark import redraw
from vera_lite.media.files import replacing
from vera_lite.pipelines import GenCompositorPipeline, MiVEPipeline, RVEDiTPipeline, VeraPipeline
from vera_lite.toy.edits import CATEGORIES, EditConfig, ToyEdits, render_edits
from vera_lite.toy.world import render

DOCS = Path(__file__).parents[1] / "docs"
FRAME = 4


def edits() -> Figure:
    """Eight edits of the toy Vera."""
    world = render(toy_benchmark.TEST_SEED, range(40))
    tasks = [a["task"] for a in world.attributes]
    picks = [i for task in ("add", "background") for i in [k for k, t in enumerate(tasks) if t == task][:4]]
    source, prompts = world.source[picks], [world.instruction[i] for i in picks]
    generator = torch.Generator().manual_seed(0)
    result = VeraPipeline.from_pretrained().generate(source, prompts, generator=generator)
    rows = {"source": source, "edit layer": result.edit, "alpha": result.alpha, "final": result.final}
    columns = [textwrap.fill(p, 19) for p in prompts]
    title = "Eight prompts over unseen clips, no masks: final = alpha · edit + (1 − alpha) · source"
    return sheet(rows, columns, title)


def compositions() -> Figure:
    """Eight compositions of the toy GenCompositor."""
    pipe = GenCompositorPipeline.from_pretrained()
    batch, foreground, mask = composition_benchmark.compositions(pipe, range(8))
    generator = torch.Generator().manual_seed(0)
    drawn = pipe.generate(batch.background, foreground, mask, generator=generator).final
    rows = {
        "background": batch.background,
        "foreground": foreground,
        "GenCompositor": drawn,
        "the truth": batch.composite,
    }
    columns = [f"{a['texture']} {a['colour']} {a['shape']}" for a in batch.attributes]
    title = "Eight unseen compositions: the foreground, at its place, in the light of the scene"
    return sheet(rows, [textwrap.fill(c, 16) for c in columns], title)


def instructions() -> Figure:
    """Eight edits of the toy RVEDiT, two of each category."""
    clips = _two_of_each_category(EditConfig())
    drawn = redraw(RVEDiTPipeline.from_pretrained(), clips, generator=torch.Generator().manual_seed(0))
    rows = {"source": clips.source, "RVEDiT": drawn, "the truth": clips.target}
    title = "Eight sentences about unseen clips, two of each kind of edit"
    return sheet(rows, [textwrap.fill(p, 19) for p in clips.instruction], title)


def references() -> Figure:
    """Such edits by the toy MiVE, which is also given the edited first frame; the last frame of each."""
    clips = _two_of_each_category(EditConfig(from_place=True))
    drawn = redraw(MiVEPipeline.from_pretrained(), clips, generator=torch.Generator().manual_seed(0))
    rows = {
        "source,\nfirst frame": clips.source[:, 0],
        "reference": clips.target[:, 0],
        "source,\nlast frame": clips.source[:, -1],
        "MiVE,\nlast frame": drawn[:, -1],
        "the truth,\nlast frame": clips.target[:, -1],
    }
    title = "The edited first frame is given: does the edit reach the last frame?"
    return viz.contact_sheet(rows, [textwrap.fill(p, 19) for p in clips.instruction], title, side=1.45)


def _two_of_each_category(world: EditConfig) -> ToyEdits:
    clips = render_edits(edit_benchmark.TEST_SEED, range(40), world)
    kinds = [a["category"] for a in clips.attributes]
    picks = [i for kind in CATEGORIES for i in [k for k, c in enumerate(kinds) if c == kind][:2]]
    return render_edits(edit_benchmark.TEST_SEED, picks, world)


def sheet(rows: dict, columns: list[str], title: str) -> Figure:
    frames = {name: [clip[FRAME] for clip in clips] for name, clips in rows.items()}
    return viz.contact_sheet(frames, columns, title, side=1.45)


if __name__ == "__main__":
    DOCS.mkdir(exist_ok=True)
    for make in (edits, compositions, instructions, references):
        with replacing(DOCS / f"{make.__name__}.png") as path:
            make().savefig(path, format="png")
        print(f"wrote {DOCS / make.__name__}.png")
