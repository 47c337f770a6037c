"""The attention explorer: how long a click takes, and how many bytes a notebook saves.

In Python, a click is answered as in a notebook: the request arrives at the widget, which computes a row or
column of A of every head, quantises it and makes a message. The peer is the least work for any answer: the
product of one token's query (or key) with all keys (or queries) of every head in float32. The stored layer
has the size of Wan2.1-1.3B at 480p, 81 frames. Its numbers are random, and so are maximum and total; the time
does not depend on them.

In JupyterLab, a click lasts from the pointer to the drawn map, in a toy's explorer. The peer is a message
without content to the kernel and back. Both are wall clock, in turns; without Chromium this part is left out.
"""

import json
import sys
import tempfile
from itertools import cycle
from pathlib import Path
from statistics import median

import nbformat
import torch
from _harness import Report, cpu_seconds, main
from ipywidgets import Widget

from vera_lite.diagnostics import AttentionStore, CallSite, Capture, TokenGrid
from vera_lite.toy.world import render
from vera_lite.widgets.explorer import AttentionExplorer

sys.path.append(str(Path(__file__).parents[1] / "scripts"))
import lab

HEADS, HEAD_DIM, LAYERS = 12, 128, 30
NOTEBOOK_BYTES = 3_000_000  # the default budget, which a notebook may save per explorer


def video(frames: int, height: int, width: int) -> torch.Tensor:
    """A toy clip, repeated and enlarged."""
    clip = render(0, [0]).source[0]
    clip = clip[torch.arange(frames) * len(clip) // frames]
    return torch.nn.functional.interpolate(clip, (height, width), mode="bilinear")


def made_up_store(tokens: int) -> AttentionStore:
    query, key = (torch.randn(1, HEADS, tokens, HEAD_DIM).bfloat16() for _ in range(2))
    maximum = torch.full((1, HEADS, tokens, 1), 5.0)
    return AttentionStore(
        site=CallSite("blocks.0.attn1"),
        heads=tuple(range(HEADS)),
        key_heads=tuple(range(HEADS)),
        query=query,
        key=key,
        mask=None,
        is_causal=False,
        scale=HEAD_DIM**-0.5,
        maximum=maximum,
        total=torch.full_like(maximum, tokens / 100),
        residual=0.0,
    )


def rows(grid: TokenGrid, layers: int, heads: int) -> list[Capture]:
    """Captured rows of one query in every layer, random."""
    weights = torch.randn(layers, 1, heads, 1, len(grid)).softmax(-1)
    return [Capture(CallSite(f"blocks.{i}"), tuple(range(heads)), w, 1e-6) for i, w in enumerate(weights)]


def saved_bytes(explorer: AttentionExplorer) -> int:
    return len(json.dumps(Widget.get_manager_state(widgets=[explorer])["state"][explorer.model_id]))


CELLS = (
    """\
import anywidget, torch
from torch.nn import functional as F
from vera_lite.diagnostics import AttentionCall, CallSite, StoreQK, TokenGrid
from vera_lite.widgets.explorer import AttentionExplorer

class Echo(anywidget.AnyWidget):
    _esm = \"\"\"export default { render({ model }) {
        globalThis.echo = () => new Promise((done) => {
            const start = performance.now();
            const answer = () => { model.off("msg:custom", answer); done(performance.now() - start); };
            model.on("msg:custom", answer);
            model.send({});
        });
    } }\"\"\"

echo = Echo()
echo.on_msg(lambda *_: echo.send({}))
echo""",
    """\
grid = TokenGrid.wan(9, 32, 32, ("edit", "alpha", "composite"), spatial_stride=4)
def store():
    q, k, v = torch.randn(3, 1, 4, len(grid), 32)
    output = F.scaled_dot_product_attention(q, k, v)
    return StoreQK()(AttentionCall(CallSite(""), q, k, v, None, False, 32**-0.5, output))
AttentionExplorer.of_stores({f"block {i}": store() for i in range(4)}, grid, torch.rand(9, 3, 32, 32))""",
)
CLICK = """async (cell) => {
    const root = document.querySelector(".vera-explorer");
    const canvas = root.querySelector(".stage canvas");
    const box = canvas.getBoundingClientRect();
    const [x, y] = [cell % 4, Math.floor(cell / 4) % 4].map((i) => (i + 0.5) / 4);
    const [clientX, clientY] = [box.left + box.width * x, box.top + box.height * y];
    const start = performance.now();
    canvas.dispatchEvent(new MouseEvent("click", { clientX, clientY, bubbles: true }));
    await Promise.resolve();
    while (root.querySelector(".said").textContent.includes("computing")) {
        await new Promise((next) => setTimeout(next));
    }
    return performance.now() - start;
}"""


def in_jupyterlab(report: Report, rounds: int) -> None:
    """Add the time from a click to the drawn map."""
    with tempfile.TemporaryDirectory() as folder, lab.chromium() as browser:
        server = lab.Lab(Path(folder))
        try:
            page = browser.new_page(viewport={"width": 1280, "height": 900})
            cells = [nbformat.v4.new_code_cell(source) for source in CELLS]
            server.open(page, nbformat.v4.new_notebook(cells=cells)).run_all()
            page.locator(".vera-explorer[data-alive=true]").wait_for()
            times = {"click": [], "empty": []}
            for i in range(rounds + 1):
                # 16 patches in each of three slots: every click asks anew.
                page.get_by_label("frame", exact=True).fill(str((0, 1, 5)[i // 16 % 3]))
                page.wait_for_timeout(200)
                empty = page.evaluate("echo()")
                click = page.evaluate(CLICK, i)
                page.wait_for_timeout(200)  # the atlas arrives
                if i:  # the first warms up
                    times["click"].append(click)
                    times["empty"].append(empty)
        finally:
            server.close()
    report.add(
        "a click in JupyterLab, toy",
        median(times["click"]),
        "ms",
        peer="empty round trip",
        peer_value=median(times["empty"]),
        goal="<= 3",
        ratios=[a / b for a, b in zip(times["click"], times["empty"], strict=True)],
    )


def measure(report: Report, rounds: int) -> None:
    """Fill the report."""
    if lab.CHROMIUM:
        in_jupyterlab(report, rounds)
    grid = TokenGrid.wan(81, 480, 832)
    clip = video(81, 480, 832)
    store = made_up_store(len(grid))
    explorer = AttentionExplorer([store], grid, clip)
    sizes = []
    explorer.send = lambda content, buffers: sizes.append(sum(map(len, buffers)))
    request = {"id": 1, "layer": 0, "step": 0, "word": 0}
    clicks = cycle(range(0, len(grid), 97))  # every click somewhere else

    def click(direction: str) -> None:
        explorer._handle_custom_msg(request | {"query": next(clicks), "direction": direction}, [])

    def product(one: torch.Tensor, others: torch.Tensor) -> None:
        token = next(clicks)
        for head in range(HEADS):  # head by head, as memory allows for longer videos
            one[:, head, token : token + 1].float() @ others[:, head].float().mT

    functions = {
        "where it looks": lambda: click("from"),
        "product with keys": lambda: product(store.query, store.key),
        "who looks at it": lambda: click("to"),
        "product with queries": lambda: product(store.key, store.query),
    }
    seconds = cpu_seconds(functions, rounds)
    case = f"{len(grid):,} tokens, {HEADS} heads, "
    report.add_times(case + "where it looks", seconds, "where it looks", "product with keys", "<= 2")
    report.add_times(case + "who looks at it", seconds, "who looks at it", "product with queries", "<= 2")
    report.add(case + "message", sizes[-1], "bytes")

    toy = TokenGrid.wan(9, 32, 32, ("background", "foreground", "alpha"), spatial_stride=4)
    examples = {
        "stored layer": explorer,
        f"Wan 480p, {LAYERS} layers": AttentionExplorer(rows(grid, LAYERS, HEADS), grid, clip),
        "toy Vera, 4 layers": AttentionExplorer(rows(toy, 4, 4), toy, video(9, 32, 32)),
    }
    for name, example in examples.items():
        kind = "with heads" if example._facts["groups"] > 1 else "means of heads"
        size = saved_bytes(example)
        report.add(
            f"saved, {name}, {kind}", size, "bytes", peer="budget", peer_value=NOTEBOOK_BYTES, goal="<= 1"
        )


if __name__ == "__main__":
    main("explorer", measure, rounds=15)
