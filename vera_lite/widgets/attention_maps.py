"""The maps that an explorer shows: rows or columns of A, in every layer, step and run.

A map in direction "from" is a row of A (where a token looks); in direction "to" it is a column (who looks at
it). Axis letters: B batch, H heads, L layers, M tokens of the sequence that is looked at, m groups.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vera_lite.diagnostics.call import Capture
from vera_lite.diagnostics.scores import sinks
from vera_lite.diagnostics.store import AttentionStore
from vera_lite.diagnostics.token_grid import Token, TokenGrid, VideoStream

DIRECTIONS = ("from", "to")
#: A token is listed as a sink if it gets more than this many times the uniform share.
SINK_FACTOR = 20
#: How many of the strongest sinks are listed; each costs four bytes per map.
SINK_COUNT = 8
#: How many evenly spaced queries of a store are searched for sinks.
SINK_QUERIES = 16


class MapSources:
    """Captures, or stores, of one or two runs as a table; only the first sample of a batch is shown.

    Args:
        runs: for each run, one source per layer and step, as in ``CapturePlan.captures``.
        grids: of the queries and of the keys.

    Attributes:
        layers, steps: names of layers, numbers of steps.
        heads: numbers of the heads.
        tables: sources by [run][step][layer].
        has_stores: whether the sources are stores, which have the maps of all tokens.

    Raises:
        ValueError: sources do not fit together, or not the grids.
    """

    def __init__(
        self,
        runs: Sequence[Sequence[Capture | AttentionStore]],
        grids: tuple[TokenGrid, TokenGrid],
    ):
        tables = [by_layer_and_step(run) for run in runs]
        self.layers, self.steps, _ = tables[0]
        self.tables = [table for _, _, table in tables]
        self.grids = grids
        for layers, steps, _ in tables[1:]:
            if (len(layers), len(steps)) != (len(self.layers), len(self.steps)):
                raise ValueError("the two runs must have as many layers and steps.")
        first = next(iter(self))
        self.heads, self.has_stores = first.heads, isinstance(first, AttentionStore)
        queries = len(grids[0]) if self.has_stores else self.rows
        expected = (type(first).__name__, self.heads, queries, len(grids[1]))
        for source in self:
            if isinstance(source, AttentionStore):
                tokens = source.query.shape[2], source.key.shape[2]
            else:
                tokens = source.values.shape[2:]
            found = (type(source).__name__, source.heads, *tokens)
            if found != expected:
                raise ValueError(
                    f"{source.site.module}, step {source.site.step}, has {found} (kind, heads, queries or "
                    f"rows, keys); the token grid and the other captures have {expected}."
                )

    def __iter__(self) -> Iterator[Capture | AttentionStore]:
        """All sources: run by run, step by step, layer by layer."""
        return (source for table in self.tables for row in table for source in row)

    @property
    def rows(self) -> int:
        """Rows of each capture."""
        return self.tables[0][0][0].values.shape[2]

    def maps(self, source: Capture | AttentionStore, tokens: list[int], direction: str) -> Tensor:
        """The mean map of some tokens (for a capture: some rows) per head, (H, M)."""
        if isinstance(source, Capture):
            maps = source.values[0][:, tokens].mean(1)
        elif direction == "from":
            maps = source.rows(tokens)[0].mean(1)
        else:
            maps = source.columns(tokens)[0].mean(-1)
        if not maps.isfinite().all():
            raise ValueError(f"{source.site.module} has weights that are not finite.")
        return maps

    def default_words(self, direction: str) -> dict[str, list[int]]:
        """Every row of captures; for stores, the middle patch of the first video stream."""
        if not self.has_stores:
            queries = next(iter(self)).queries
            singles = {token_name(self.grids[0][q[0]]): [i] for i, q in enumerate(queries) if len(q) == 1}
            return singles if len(singles) == self.rows else {f"row {i}": [i] for i in range(self.rows)}
        grid = self.grids[direction == "to"]
        stream = next((s for s in grid.streams if isinstance(s, VideoStream)), None)
        if stream is None:
            return {token_name(grid[0]): [0]}
        t, h, w = stream.cells
        token = int(stream.positions[(t // 2 * h + h // 2) * w + w // 2])
        return {token_name(grid[token]): [token]}

    def find_sinks(self) -> list[int]:
        """The strongest sinks in any layer, step or run, by the mean over heads and rows."""
        if len(self.grids[1]) <= SINK_FACTOR:
            return []
        received = []
        for source in self:
            if isinstance(source, Capture):
                received.append(source.values[0].mean((0, 1)))
            else:
                count = source.query.shape[2]
                queries = torch.linspace(0, count - 1, min(SINK_QUERIES, count)).round().long()
                received.append(source.rows(queries)[0].mean((0, 1)))
        return sinks(torch.stack(received), SINK_FACTOR).indices[:SINK_COUNT].tolist()


@dataclass(frozen=True, eq=False)
class GroupMatrix:
    """Attention from groups of queries to groups of keys, such as Vera's branch to branch."""

    values: Tensor  #: (steps, L, R, m), mean mass that a query of group R gives to group m, in [0, 1].
    #: rows, columns: names of the groups.
    rows: tuple[str, ...]
    columns: tuple[str, ...]

    @classmethod
    def of_group_mass(
        cls, captures: Sequence[Capture], labels: Tensor, names: Sequence[str]
    ) -> "GroupMatrix":
        """Means over heads and over the queries of each group.

        Args:
            captures: of :class:`vera_lite.diagnostics.GroupMass`, one per layer and step.
            labels: (Q,) group of each query, -1 for none, see :meth:`TokenGrid.groups`.
            names: of these groups.

        Raises:
            ValueError: a layer or step is missing, or the labels do not fit.
        """
        _, _, table = by_layer_and_step(captures)
        masses = torch.stack([torch.stack([c.values[0].mean(0) for c in row]) for row in table])
        if masses.shape[-2] != len(labels):
            raise ValueError(f"there are {masses.shape[-2]} queries but labels for {len(labels)}.")
        rows = [masses[..., labels == group, :].mean(-2) for group in range(len(names))]
        return cls(torch.stack(rows, -2), tuple(names), captures[0].names)


def by_layer_and_step(sources: Sequence) -> tuple[list[str], list[int], list[list]]:
    """Names of layers, numbers of steps, and the table [step][layer]."""
    layers = list(dict.fromkeys(s.site.module for s in sources))
    steps = sorted({s.site.step for s in sources})
    cells = {(s.site.step, s.site.module): s for s in sources}
    if not layers or len(cells) != len(sources) or len(cells) != len(layers) * len(steps):
        raise ValueError(
            f"give one capture per layer and step, not {len(sources)} for {len(layers)} layers and "
            f"{len(steps)} steps; if a layer attends several times, keep one site.call."
        )
    return layers, steps, [[cells[step, layer] for layer in layers] for step in steps]


def token_name(token: Token) -> str:
    """'ball' for a word, "video (0, 3, 4)" for the patch at (t, y, x)."""
    return repr(token.word) if token.cell is None else f"{token.stream} {token.cell}"


def with_mean(maps: Tensor) -> Tensor:
    """The mean over heads, then the heads: (..., H, M) -> (..., 1 + H, M)."""
    return torch.cat([maps.mean(-2, keepdim=True), maps], -2)
