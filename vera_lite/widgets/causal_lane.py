"""The causal lane: what a model makes when connections of its attention are cut, against what was looked at.

A map shows where a model looks. That it needs what it looks at is another claim, which only a cut can test.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import cached_property

import torch
from torch import Tensor, nn

from vera_lite.diagnostics.call import Capture
from vera_lite.diagnostics.tap import KnockOut
from vera_lite.widgets.attention_maps import MapSources, token_name
from vera_lite.widgets.base import checked_video
from vera_lite.widgets.explorer_state import sprite

#: Columns of a store that are computed at a time.
CHUNK = 64


class Interventions:
    """A model that can be run again and again with parts of its attention cut.

    Args:
        model: whose attention was captured; not compiled.
        edit: runs the whole pipeline, always with the same noise; returns the video (T, 3, H, W) in [0, 1].
        modules: qualified name of the attention module of each layer; by default the layers' own names.
    """

    def __init__(self, model: nn.Module, edit: Callable[[], Tensor], modules: Sequence[str] | None = None):
        self.model, self.edit, self.modules = model, edit, modules

    @cached_property
    def intact(self) -> Tensor:
        """What the model makes without a cut."""
        return checked_video("the edited video", self.edit(), 3)

    def cut(self, modules: dict[str, list[int]], keys: Tensor | None, queries: Tensor | None) -> Tensor:
        """What the model makes when some heads of some modules lose keys, bool; see :class:`KnockOut`."""
        with ExitStack() as cuts:
            for module, heads in modules.items():
                where = f"^{re.escape(module)}$"
                cuts.enter_context(KnockOut(self.model, keys, where, queries, torch.tensor(heads)))
            return checked_video("the edited video", self.edit(), 3)


def lane_entry(
    interventions: Interventions,
    sources: MapSources,
    keys: Sequence[int] | None,
    cells: Sequence[tuple[int, int]] | None,
    queries: Sequence[int] | None,
    label: str | None,
) -> tuple[Tensor, list[dict]]:
    """The video that a cut makes; and for the script, the entries of the run without a cut and of this one.

    An entry has a ``label``; ``looked``, the share of all attention of all captured layers, heads and steps
    that was cut; ``lost``, the mean absolute change of the video, in [0, 1]; and the ``film``.

    Raises:
        ValueError: tokens, layers or heads are out of range, or nothing is chosen.
    """
    layers, heads = range(len(sources.layers)), range(len(sources.heads))
    if keys is None and cells is None:
        raise ValueError("a cut needs keys, cells of the atlas, or both.")
    cells = [(x, y) for x in layers for y in heads] if cells is None else [tuple(cell) for cell in cells]
    if not cells or any(x not in layers or y not in heads for x, y in cells):
        raise ValueError(f"cells are places of {len(layers)} layers and {len(heads)} heads, got {cells}.")
    flags = [
        None if chosen is None else _flags(name, chosen, len(grid))
        for name, chosen, grid in (("keys", keys, sources.grids[1]), ("queries", queries, sources.grids[0]))
    ]
    names = interventions.modules or sources.layers
    modules = defaultdict(list)
    for layer, head in cells:
        modules[names[layer]].append(sources.heads[head])
    film = interventions.cut(modules, *flags)
    intact = interventions.intact
    if film.shape != intact.shape:
        raise ValueError(f"the cut video is {tuple(film.shape)}, the intact one {tuple(intact.shape)}.")
    entry = {
        "label": label or _describe(sources, keys, cells, queries),
        "looked": _looked_at(sources, cells, *flags),
        "lost": float((film - intact).abs().mean()),
        "film": sprite(film)[0],
    }
    return film, [{"label": "nothing cut", "looked": 0.0, "lost": 0.0, "film": sprite(intact)[0]}, entry]


def _flags(name: str, chosen: Sequence[int], count: int) -> Tensor:
    if not len(chosen) or not all(isinstance(i, int) and 0 <= i < count for i in chosen):
        raise ValueError(f"{name} of a cut are one or more of the tokens 0..{count - 1}, got {list(chosen)}.")
    return torch.zeros(count, dtype=torch.bool).index_fill(0, torch.tensor(chosen), True)


def _looked_at(
    sources: MapSources, cells: Sequence[tuple[int, int]], keys: Tensor | None, queries: Tensor | None
) -> float:
    """Share of all captured attention that the cut removes; of captured rows instead of all queries."""
    total = 0.0
    for row in sources.tables[0]:
        for layer, source in enumerate(row):
            heads = [head for x, head in cells if x == layer]
            if heads:
                total += float(_mass(source, keys, queries)[heads].sum())
    return total / (len(sources.steps) * len(sources.layers) * len(sources.heads))


def _mass(source, keys: Tensor | None, queries: Tensor | None) -> Tensor:
    """(H,) mass that an average query gives to the keys, 0 for queries that are not cut."""
    if isinstance(source, Capture):
        values = source.values[0]
        return (values if keys is None else values[..., keys]).sum(-1).mean(-1)
    if keys is None:
        mass = torch.ones(source.query.shape[1:3])
    else:
        chunks = keys.nonzero()[:, 0].split(CHUNK)
        mass = sum(source.columns(chunk)[0].sum(-1) for chunk in chunks)  # (H, Q)
    return (mass if queries is None else mass * queries).mean(-1)


def _describe(sources: MapSources, keys, cells, queries) -> str:
    """'red', 6 patches in 2 of 16 heads."""
    count = len(sources.layers) * len(sources.heads)
    heads = f"{len(cells)} of {count} heads"
    if keys is None:
        return f"{heads} silenced"
    tokens = [sources.grids[1][k] for k in keys]
    words = [token_name(t) for t in tokens if t.cell is None]
    patches = len(tokens) - len(words)
    parts = words if len(words) < 4 else [f"{len(words)} words"]
    parts += [f"{patches} patch{'es' * (patches > 1)}"] if patches else []
    what = ", ".join(parts)
    what += f" hidden from {len(queries)} token{'s' * (len(queries) > 1)}" if queries is not None else ""
    return what + (f" in {heads}" if len(cells) < count else "")
