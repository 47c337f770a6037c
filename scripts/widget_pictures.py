"""Take the README's pictures of the widgets in JupyterLab: `python scripts/widget_pictures.py [NAME ...]`.

A picture is the output of one cell, run in a real browser; nothing is drawn by hand.
"""

import argparse
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from lab import Lab, chromium
from nbformat.v4 import new_code_cell, new_notebook
from playwright.sync_api import Locator

OUT = Path(__file__).parents[1] / "docs" / "pictures"


@dataclass(frozen=True)
class Picture:
    """A cell that ends with a widget, the widget's root element, and what to do before the picture."""

    source: str
    root: str
    prepare: Callable[[Locator], None]


PICTURES = {
    "layer_viewer": Picture(
        """\
from vera_lite.evaluation.toy.layer_benchmark import TEST_SEED
from vera_lite.pipelines import VeraPipeline
from vera_lite.toy.world import render
from vera_lite.widgets.layer_viewer import LayerViewer

test = render(TEST_SEED, [37])
video, prompt = test.source[0], test.instruction[0]
result = VeraPipeline.from_pretrained()(video, prompt)
viewer = LayerViewer(result, source=video)
viewer.frame, viewer.wipe = 4, 0.3
viewer""",
        ".vera-layer-viewer",
        lambda widget: widget.locator(".vera-picture canvas").hover(),
    ),
    "explorer": Picture(
        """\
from vera_lite.diagnostics import CapturePlan, GroupMass, StoreQK, Tap, TokenGrid
from vera_lite.evaluation.toy.layer_benchmark import TEST_SEED
from vera_lite.pipelines import VeraPipeline
from vera_lite.systems.vera import LAYERS
from vera_lite.toy.world import render
from vera_lite.widgets.causal_lane import Interventions
from vera_lite.widgets.explorer import AttentionExplorer, GroupMatrix
from vera_lite.widgets.explorer_state import Denoising

test = render(TEST_SEED, [37])
video, prompt, mask = test.source[0], test.instruction[0], test.mask[0]
pipe, states = VeraPipeline.from_pretrained(), []
grid = TokenGrid.wan(9, 32, 32, LAYERS, spatial_stride=4)
labels, names = grid.groups("stream")
plan = CapturePlan([("attn1$", StoreQK(), "weights"), ("attn1$", GroupMass(labels, names), "mass")], 10**9)
with Tap(pipe.system, plan):
    pipe(video, prompt, callback=states.append)
y, x = mask[4, 0].nonzero().float().mean(0).tolist()
words = {f"the object in the {name} layer": [grid.index(name, 4, y, x)] for name in LAYERS}
explorer = AttentionExplorer(
    plan.captures["weights"],
    grid,
    video,
    words=words,
    mask=mask,
    matrix=GroupMatrix.of_group_mass(plan.captures["mass"], labels, names),
    denoising=Denoising.of(states, pipe.decode),
    interventions=Interventions(pipe.system, lambda: pipe(video, prompt).final),
)
matte, drawn = grid.tokens("alpha").tolist(), grid.tokens("composite").tolist()
explorer.cut(drawn, queries=matte, label="the matte cannot see the composite")
explorer.cut(matte, queries=drawn, label="the composite cannot see the matte")
explorer.step, explorer.layer, explorer.head, explorer.frame = 9, 2, 1, 4
explorer""",
        ".vera-explorer",
        lambda widget: widget.locator(".stage canvas").first.hover(),
    ),
    "path_editor": Picture(
        """\
from vera_lite.media.placement import centre_foreground
from vera_lite.toy.world import WorldConfig, render
from vera_lite.media.trajectory import Keyframe, Trajectory
from vera_lite.widgets.path_editor import PathEditor

world = WorldConfig(frames=25, height=128, width=128, distractor=0.0)
coffee, triangle = (render(77, [index], world).clip(0) for index in (7, 12))  # of data_samples
foreground = centre_foreground(triangle.source, triangle.mask)
keyframes = Keyframe(20, 100, 0.5), Keyframe(44, 42), Keyframe(84, 88), Keyframe(108, 36, 1.0)
PathEditor(coffee.source, foreground, Trajectory(keyframes, (128, 128), "constant_speed"))""",
        ".vera-path-editor",
        lambda widget: widget.get_by_role("button", name="keyframe 3 of").focus(),
    ),
    "rating": Picture(
        """\
from vera_lite.evaluation.toy.layer_benchmark import TEST_SEED
from vera_lite.pipelines import VeraPipeline
from vera_lite.toy.world import render
from vera_lite.widgets.rating import Pair, RatingPanel

test, pipe, pairs = render(TEST_SEED, [37, 0, 1]), VeraPipeline.from_pretrained(), []
for i in range(3):
    result = pipe(test.source[i], test.instruction[i])
    videos = result.final, result.composite
    pairs.append(Pair(f"clip {i}", ("layers", "drawn anew"), videos, test.instruction[i], test.source[i]))
RatingPanel(pairs, seed=1)""",
        ".vera-rating",
        lambda widget: widget.get_by_role("button", name="pause").click(),
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"default: all of {', '.join(PICTURES)}")
    names = parser.parse_args().names or list(PICTURES)
    OUT.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, chromium() as browser:
        lab = Lab(Path(folder))
        try:
            page = browser.new_page(viewport={"width": 1280, "height": 1400}, device_scale_factor=1.5)
            for name in names:
                picture = PICTURES[name]
                notebook = lab.open(page, new_notebook(cells=[new_code_cell(picture.source)]))
                page.evaluate("jupyterapp.shell.collapseLeft()")  # the whole width is the notebook's
                notebook.run_all()
                widget = page.locator(picture.root)
                picture.prepare(widget)
                widget.screenshot(path=OUT / f"{name}.png", animations="disabled")
                print(f"wrote {OUT / name}.png")
        finally:
            lab.close()


if __name__ == "__main__":
    main()
