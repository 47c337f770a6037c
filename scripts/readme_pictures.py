"""Make the README's picture of eight unseen edits: `python scripts/readme_pictures.py` (about 5 s).

The clips are the first four additions and the first four new backgrounds of the test world, not chosen
by how well they came out. No masks are given: the prompt alone decides.
"""

import textwrap
from pathlib import Path

import torch

from vera_lite import viz
from vera_lite.clip import composite
from vera_lite.evaluation.toy_benchmark import TEST_SEED
from vera_lite.pipelines import ALPHA_FLOOR, VeraPipeline, floored
from vera_lite.toyworld import render
from vera_lite.video import replacing

OUT = Path(__file__).parents[1] / "docs" / "edits.png"
FRAME = 4

world = render(TEST_SEED, range(40))
tasks = [a["task"] for a in world.attributes]
picks = [i for task in ("add", "background") for i in [k for k, t in enumerate(tasks) if t == task][:4]]
source, prompts = world.source[picks], [world.instruction[i] for i in picks]
layers = VeraPipeline.from_pretrained().generate(source, prompts, generator=torch.Generator().manual_seed(0))
alpha = floored(layers["alpha"], ALPHA_FLOOR)
final = composite(layers["edit"], alpha, source)
rows = {"source": source, "edit layer": layers["edit"], "alpha": alpha, "final": final}
figure = viz.contact_sheet(
    {name: [clip[FRAME] for clip in clips] for name, clips in rows.items()},
    [textwrap.fill(p, 19) for p in prompts],
    "Eight prompts over unseen clips, no masks: final = alpha · edit + (1 − alpha) · source",
    side=1.45,
)
OUT.parent.mkdir(exist_ok=True)
with replacing(OUT) as path:
    figure.savefig(path, format="png")
print(f"wrote {OUT}")
