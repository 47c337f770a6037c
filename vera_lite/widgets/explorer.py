"""The attention explorer: where does this patch or word look, and who looks at it, in every layer.

    explorer = AttentionExplorer.of_stores({"block 0": store}, grid, video)
    explorer                       # click a patch, move the layer slider, brush the curve
    explorer.query, explorer.selected_layers, explorer.current_maps()

A map is one row of A (direction "from": what a token looks at) or one column ("to": who looks at it). The
maps of some named rows, the words, are saved with the widget, so a page without Python shows them; maps of
other tokens are computed when they are clicked.
"""

import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from traitlets import Bool, Bytes, Dict, Enum, Float, Int, List, validate

from vera_lite.diagnostics.call import Site
from vera_lite.diagnostics.ladder import Look
from vera_lite.diagnostics.measures import Interval, entropy, jensen_shannon, mask_ratio, sinks
from vera_lite.diagnostics.probes import AttentionStore, Capture
from vera_lite.diagnostics.token_grid import Token, TokenGrid, VideoStream
from vera_lite.errors import UserError
from vera_lite.widgets.base import Widget

DIRECTIONS = ("from", "to")
#: A token is listed as a sink if it gets this many times the uniform share.
SINK_FACTOR = 20
#: The strongest sinks, which are listed and can be left out; each costs four bytes a map.
SINK_COUNT = 8
#: Of each store, evenly spaced queries by which sinks are found.
SINK_QUERIES = 16


def quantise(maps: Tensor, apart: Sequence[int] = ()) -> tuple[Tensor, Tensor]:
    """Maps in 8 bits, each with a range of its own: value = zero + code / 255 * scale.

    Args:
        maps: (..., M), any range.
        apart: tokens whose values are kept as they are. A sink would stretch the range until all else
            shares one code.

    Returns:
        Codes (..., M), uint8, off by at most scale / 510, 0 for tokens apart; and (..., 2 + len(apart))
        float32: zero, scale and the values of the tokens apart.
    """
    apart = torch.as_tensor(apart, dtype=torch.long)
    others = torch.ones(maps.shape[-1], dtype=torch.bool).index_fill(0, apart, False)
    rest = maps[..., others]
    zero = rest.amin(-1, keepdim=True)
    scale = rest.amax(-1, keepdim=True) - zero
    codes = torch.zeros(maps.shape, dtype=torch.uint8)
    tiny = torch.finfo(torch.float32).tiny
    codes[..., others] = ((rest - zero) / scale.clamp_min(tiny) * 255).round().to(torch.uint8)
    return codes, torch.cat([zero, scale, maps[..., apart]], -1).float()


@dataclass(frozen=True, eq=False)
class GroupMatrix:
    """Attention from groups of queries to groups of keys, such as Vera's branch to branch.

    Attributes:
        values: (steps, layers, R, m), mean mass that a query of group R gives to group m, in [0, 1].
        rows, columns: names of the groups.
    """

    values: Tensor
    rows: tuple[str, ...]
    columns: tuple[str, ...]

    @classmethod
    def of_group_mass(
        cls, captures: Sequence[Capture], labels: Tensor, names: Sequence[str], sample: int = 0
    ) -> "GroupMatrix":
        """Means over heads and over the queries of each group.

        Args:
            captures: of :class:`vera_lite.diagnostics.probes.GroupMass`, one of every layer and step.
            labels: (Q,) group of each query, -1 for none, as :meth:`TokenGrid.groups` gives them.
            names: of these groups.
            sample: of the batch.

        Raises:
            UserError: captures do not make a table, or do not fit the labels.
        """
        _, _, table = _by_layer_and_step(captures)
        masses = torch.stack([torch.stack([c.values[sample].mean(0) for c in row]) for row in table])
        if masses.shape[-2] != len(labels):
            raise UserError(f"there are {masses.shape[-2]} queries but labels for {len(labels)}.")
        rows = [masses[..., labels == group, :].mean(-2) for group in range(len(names))]
        return cls(torch.stack(rows, -2), tuple(names), captures[0].names)


class AttentionExplorer(Widget):
    """Attention over a clip: layer, head, step, frame and word axes, and any patch on a click.

    Args:
        captures: of :class:`Rows` or another probe whose values are (B, H, R, K), which hold their rows and
            nothing else; or :class:`AttentionStore`, which answer clicks. One of every layer and step, as
            ``CapturePlan.captures`` lists them.
        grid: of the queries' sequence, and of the keys' unless ``key_grid`` is given (cross-attention).
        video: (T, 3, H, W) in [0, 1], of the size of the grid's video streams.
        key_grid: of the keys' sequence.
        words: name -> rows of the captures, or tokens of the stores, whose mean map is saved with the
            widget. By default every row of captures; of stores, the patch in the middle of the first
            video stream.
        direction: at the start; in cross-attention also that of the saved maps, and of the words' tokens:
            "from" means queries, "to" keys. Captures know only "from".
        compare: captures of a second run (B) with the same layers, steps, heads and tokens.
        names: of the two runs.
        mask: (T, 1, H, W) in [0, 1]; draws its mask ratio by layer, from every word, against uniform
            attention. The band spans the heads.
        curve: (L,) each; another curve by layer with its band, such as a bootstrap over clips.
        baselines: name -> (L,) or one number, drawn beside the curve.
        matrix: group to group, by layer and step.
        sinks: tokens among the keys to be listed; by default up to 8 that receive over 20 times the uniform
            share, averaged over heads and captured rows (of stores: 16 evenly spaced queries), in some layer.
        threshold: residual above which a map's dot is red. By default 1e-4, and 0.05 for stores in half
            precision, which is about the rounding of outputs of size 1 to 8.
        sample: of the batch.
        fps: frames a second when playing.
        max_side: pixels of a frame as it is shown.
        budget_bytes: of the saved state. Where the maps of single heads do not fit, means over heads are
            saved, and heads need Python.

    Beside its name each saved map says: its spatial entropy over the video, of 1; of a patch that looks at
    its own grid, how far away it looks on average; its kind; lift, its mask ratio over the mask's share of
    the area; with two runs, the Jensen-Shannon divergence between them in nats, of the mean of heads with
    the range over heads.
    Kinds: "mostly sinks" or "mostly text" if more than half of the mass goes there; else, of such a patch,
    "spatial" if more than half of what it sees of the video is in its own slot, "temporal" if not.

    Attributes:
        layer, step, word: place in the lists ``layers``, ``steps``, ``words``.
        head: place in ``heads``, or -1 for their mean.
        frame: of the video.
        stream: place in the list of video streams on show.
        run: whose thumbnails are shown: 0 is A, 1 is B, 2 their difference.
        query: token that was clicked, or -1: the word's map is shown.
        direction: "from": where it looks; "to": who looks at it.
        selected_layers: places in ``layers`` that were brushed in the curve.
        exclude_sinks: leave the listed sinks out of pictures, scales and mask ratios.
        locked_scale: one colour scale for all layers, steps and words, instead of one for each map.
        opacity: of the map over the video, in [0, 1].

    Raises:
        UserError: anything that does not fit together, or a state over budget.
    """

    _esm = Path(__file__).with_name("explorer.js")

    layer = Int(0).tag(sync=True)
    head = Int(-1).tag(sync=True)
    step = Int(0).tag(sync=True)
    frame = Int(0).tag(sync=True)
    word = Int(0).tag(sync=True)
    stream = Int(0).tag(sync=True)
    run = Int(0).tag(sync=True)
    query = Int(-1).tag(sync=True)
    direction = Enum(DIRECTIONS, "from").tag(sync=True)
    selected_layers = List(Int()).tag(sync=True)
    exclude_sinks = Bool(False).tag(sync=True)
    locked_scale = Bool(True).tag(sync=True)
    opacity = Float(0.6, min=0, max=1).tag(sync=True)
    height = Int(1150).tag(sync=True)

    # What the script draws from; see _state().
    _facts = Dict().tag(sync=True)
    _picture = Bytes().tag(sync=True)
    _positions = Bytes().tag(sync=True)
    _overview = Bytes().tag(sync=True)
    _ranges = Bytes().tag(sync=True)
    _ratios = Bytes().tag(sync=True)
    _curve = Bytes().tag(sync=True)
    _matrix = Bytes().tag(sync=True)

    def __init__(
        self,
        captures: Sequence[Capture | AttentionStore],
        grid: TokenGrid,
        video: Tensor,
        *,
        key_grid: TokenGrid | None = None,
        words: Mapping[str, Sequence[int]] | None = None,
        direction: str = "from",
        compare: Sequence[Capture | AttentionStore] | None = None,
        names: tuple[str, str] = ("A", "B"),
        mask: Tensor | None = None,
        curve: Interval | None = None,
        baselines: Mapping[str, Tensor | float] | None = None,
        matrix: GroupMatrix | None = None,
        sinks: Sequence[int] | None = None,
        threshold: float | None = None,
        sample: int = 0,
        fps: float = 8.0,
        max_side: int = 256,
        budget_bytes: int = 3_000_000,
    ):
        if video.ndim != 4 or video.shape[1] != 3:
            raise UserError(f"the video must be (T, 3, H, W), not {tuple(video.shape)}.")
        if direction not in DIRECTIONS:
            raise UserError(f'direction is "from" or "to", not {direction!r}.')
        self._grids = (grid, key_grid or grid)
        self._sample, self._is_square = sample, key_grid is None
        self._size = (len(video), *video.shape[2:])
        self.layers, self.steps, table = _by_layer_and_step(captures)
        self._tables = [table]
        if compare is not None:
            layers, steps, other = _by_layer_and_step(compare)
            if (len(layers), len(steps)) != (len(self.layers), len(self.steps)):
                raise UserError(
                    f"the two runs must have as many layers and steps: {len(self.layers)} and "
                    f"{len(self.steps)} against {len(layers)} and {len(steps)}."
                )
            self._tables.append(other)
        first = table[0][0]
        self.heads, self._has_stores = first.heads, isinstance(first, AttentionStore)
        self._check_sources()
        if direction == "to" and not self._has_stores:
            raise UserError('captured rows know direction "from" only; capture RandomAccess for "to".')
        # The saved maps; in cross-attention, words are tokens of one side.
        self._directions = DIRECTIONS if self._has_stores and self._is_square else (direction,)
        self.words = {n: [int(t) for t in tokens] for n, tokens in (words or self._default_words()).items()}
        self._check_words()
        self.sinks = self._find_sinks() if sinks is None else [int(s) for s in sinks]
        if not all(0 <= s < len(self._grids[1]) for s in self.sinks):
            raise UserError(f"sinks are tokens 0..{len(self._grids[1]) - 1}, got {self.sinks}.")
        if threshold is None:
            threshold = 0.05 if self._has_stores and first.query.dtype != torch.float32 else 1e-4
        state = self._state(video, mask, max_side)
        state["_facts"] |= {"runs": list(names[: len(self._tables)]), "threshold": threshold, "fps": fps}
        state |= self._beside(curve, baselines or {}, matrix, state["_facts"])
        self._fit(state, budget_bytes)
        self._counts = {
            "layer": len(self.layers),
            "head": len(self.heads),
            "step": len(self.steps),
            "frame": len(video),
            "word": len(self.words),
            "stream": sum("cells" in s for s in state["_facts"]["streams"]),
            "run": (1, 3)[len(self._tables) - 1],
            "query": max(map(len, self._grids)),
        }
        super().__init__(direction=direction, **state)
        self.on_msg(self._on_message)

    # --- other ways in -----------------------------------------------------------------------------

    @classmethod
    def of_stores(
        cls, stores: Mapping[str, AttentionStore], grid: TokenGrid, video: Tensor, **options
    ) -> "AttentionExplorer":
        """Layers by name, of one step each; options as for the class."""
        named = [replace(s, site=Site(name)) for name, s in stores.items()]
        return cls(named, grid, video, **options)

    @classmethod
    def of_look(cls, look: Look, clip: Tensor, phrase: str = "phrase", **options) -> "AttentionExplorer":
        """Where a phrase looks, layer by layer of a vision-language model.

        Args:
            look: of :func:`vera_lite.diagnostics.ladder.look`.
            clip: (T, 3, H, W) in [0, 1], the one that was looked at.
            phrase: its name.
            options: as for the class.
        """
        heads = tuple(range(look.attention.shape[1]))
        captures = [
            Capture(Site(f"layer {i}"), heads, attention[None, :, None], float(residual))
            for i, (attention, residual) in enumerate(zip(look.attention, look.residual, strict=True))
        ]
        return cls(captures, look.grid, clip, words={phrase: [0]}, **options)

    # --- what Python can ask -----------------------------------------------------------------------

    def current_maps(self) -> Tensor:
        """The maps on show, exact: (runs, H, M), M tokens of the sequence that is looked at.

        Raises:
            UserError: captures do not hold them.
        """
        return self._maps(self.layer, self.step, self.word, self.query, self.direction)

    @validate("layer", "head", "step", "frame", "word", "stream", "run", "query")
    def _check_trait(self, proposal):
        return self._in_range(proposal["trait"].name, proposal["value"])

    @validate("selected_layers")
    def _check_layers(self, proposal):
        return sorted({self._in_range("layer", layer) for layer in proposal["value"]})

    def _in_range(self, name: str, value: int) -> int:
        lowest, count = (-1 if name in ("head", "query") else 0), self._counts[name]
        if not isinstance(value, int) or not lowest <= value < count:
            raise UserError(f"{name} {value!r} is out of range: give a number in {lowest}..{count - 1}.")
        return value

    # --- answers to the browser --------------------------------------------------------------------

    def _on_message(self, _widget, content: dict, _buffers) -> None:
        """A map on demand, of the mean and all heads; the reply carries the request's number."""
        try:
            maps = self._maps(*(content.get(k) for k in ("layer", "step", "word", "query", "direction")))
            codes, ranges = self._packed(_with_mean(maps), content["direction"])
        except Exception:
            self.send({"id": content.get("id"), "failed": True})
            raise
        self.send({"id": content.get("id")}, [codes.numpy().tobytes(), _bytes(ranges)])
        self.error = ""

    def _maps(self, layer: int, step: int, word: int, query: int, direction: str) -> Tensor:
        for name, value in {"layer": layer, "step": step, "word": word, "query": query}.items():
            self._in_range(name, value)
        if direction not in (self._directions if query == -1 else DIRECTIONS):
            raise UserError(f"there is no map in direction {direction!r}; words have {self._directions}.")
        if query != -1 and not self._has_stores:
            raise UserError("captured rows cannot answer for other tokens; capture RandomAccess instead.")
        tokens = [query] if query != -1 else list(self.words.values())[word]
        return torch.stack([self._heads(table[step][layer], tokens, direction) for table in self._tables])

    def _heads(self, source: Capture | AttentionStore, tokens: list[int], direction: str) -> Tensor:
        """Mean map of some tokens (rows, of a capture), for each head: (H, M)."""
        if isinstance(source, Capture):
            maps = source.values[self._sample][:, tokens].mean(1)
        elif direction == "from":
            maps = source.rows(tokens)[self._sample].mean(1)
        else:
            maps = source.columns(tokens)[self._sample].mean(-1)
        if not maps.isfinite().all():
            raise UserError(f"{source.site.module} has weights that are not finite: mend the model's run.")
        return maps

    def _packed(self, maps: Tensor, direction: str) -> tuple[Tensor, Tensor]:
        """Quantised maps (..., M). Sinks are keys: columns of A have none."""
        codes, ranges = quantise(maps, self.sinks if direction == "from" else ())
        return codes, F.pad(ranges, (0, 2 + len(self.sinks) - ranges.shape[-1]))

    # --- what is saved -----------------------------------------------------------------------------

    def _check_sources(self) -> None:
        first = self._tables[0][0][0]
        queries = len(self._grids[0]) if self._has_stores else first.values.shape[-2]
        expected = (len(self.heads), queries, len(self._grids[1]))
        for source in (s for table in self._tables for row in table for s in row):
            name = f"{source.site.module}, step {source.site.step}"
            if type(source) is not type(first):
                raise UserError("give captures or stores, not both.")
            if source.heads != self.heads:
                raise UserError(f"{name} has heads {source.heads}, others {self.heads}; capture the same.")
            batch, *found = source.values.shape if not self._has_stores else source.query.shape[:3]
            found = (*found, source.key.shape[2]) if self._has_stores else tuple(found)
            if found != expected:
                raise UserError(
                    f"{name} has (heads, queries or rows, keys) {found}, but {expected} fit the token "
                    "grid and the other captures."
                )
            if not 0 <= self._sample < batch:
                raise UserError(f"sample {self._sample} is out of range: {name} has a batch of {batch}.")

    def _default_words(self) -> dict[str, list[int]]:
        if not self._has_stores:
            rows = self._tables[0][0][0].values.shape[2]
            return {f"row {i}": [i] for i in range(rows)}
        grid = self._grids[self._directions[0] == "to"]
        stream = next((s for s in grid.streams if isinstance(s, VideoStream)), None)
        if stream is None:
            return {repr(grid[0].word): [0]}
        t, h, w = stream.cells
        token = int(stream.positions[(t // 2 * h + h // 2) * w + w // 2])
        return {token_name(grid[token]): [token]}

    def _check_words(self) -> None:
        count = len(self._grids[self._directions[0] == "to"])
        if not self._has_stores:
            count = self._tables[0][0][0].values.shape[2]
        for name, tokens in self.words.items():
            if not tokens or not 0 <= min(tokens) <= max(tokens) < count:
                raise UserError(f"word {name!r} needs one or more of the rows or tokens 0..{count - 1}.")

    def _find_sinks(self) -> list[int]:
        keys = len(self._grids[1])
        if keys <= SINK_FACTOR:
            return []
        received = []
        for source in (s for table in self._tables for row in table for s in row):
            if self._has_stores:
                count = source.query.shape[2]
                queries = torch.linspace(0, count - 1, min(SINK_QUERIES, count)).round().long()
                received.append(source.rows(queries)[self._sample].mean((0, 1)))
            else:
                received.append(source.values[self._sample].mean((0, 1)))
        return sinks(torch.stack(received), SINK_FACTOR).indices[:SINK_COUNT].tolist()

    def _streams(self) -> tuple[list[dict], Tensor]:
        """What the script knows of tokens: streams, and the positions of all their tokens in a row."""
        sides = {"both": self._grids[0]}
        if not self._is_square:
            sides = dict(zip(("query", "key"), self._grids, strict=True))
        streams, positions = [], []
        for side, grid in sides.items():
            for s in grid.streams:
                facts = {"name": s.name, "side": side, "start": sum(map(len, positions))}
                if not isinstance(s, VideoStream):
                    streams.append(facts | {"words": list(s.words)})
                elif s.size == self._size:
                    slots = grid.to_video(torch.arange(math.prod(s.cells)), s.name)[:, 0, 0]
                    slots = (slots // math.prod(s.cells[1:])).tolist()
                    streams.append(facts | {"cells": list(s.cells), "slots": slots})
                else:
                    continue
                positions.append(s.positions)
        if not any("cells" in s for s in streams):
            raise UserError(
                f"the video is {self._size} (T, H, W) and no video stream of the grid is; "
                "give the clip that the grid was made for."
            )
        return streams, torch.cat(positions)

    @staticmethod
    def _targets(streams: list[dict], positions: Tensor, direction: str) -> list[Tensor]:
        """Tokens on show that are looked at: of videos, and of text."""
        sides = ("both", "key" if direction == "from" else "query")
        ends = [s["start"] for s in streams[1:]] + [len(positions)]
        parts = [(s, positions[s["start"] : end]) for s, end in zip(streams, ends, strict=True)]
        return [
            torch.cat([tokens for s, tokens in parts if kind in s and s["side"] in sides] or [positions[:0]])
            for kind in ("cells", "words")
        ]

    def _coverage(self, direction: str, mask: Tensor) -> Tensor:
        """What the mask covers of each video token on show that is looked at."""
        grid = self._grids[direction == "from"]
        names = [s.name for s in grid.streams if isinstance(s, VideoStream) and s.size == self._size]
        return torch.cat([grid.coverage(name, mask) for name in names] or [torch.empty(0)])

    def _state(self, video: Tensor, mask: Tensor | None, max_side: int) -> dict:
        """The data traits, C runs, S steps, L layers, W words, D directions, G = 1 + H mean and heads.

        _overview (C, S, L, W, D, G, M) codes and _ranges (C, S, L, W, D, G, 2 + sinks) of quantise();
        _ratios (2, C, S, L, W, D, G) mask ratios, with all tokens and without sinks; _positions (tokens,)
        int32; _picture: all frames in one image, row by row; _curve (3 + baselines, L); _matrix
        (S, L, R, m). Floats are float32. tops: the highest value by [direction][over video, over text]
        [mean, heads][all, no sinks]; a scale for both would show nothing of a video beside a strong word.
        """
        streams, positions = self._streams()
        targets = {d: self._targets(streams, positions, d) for d in self._directions}
        coverage = {} if mask is None else {d: self._coverage(d, mask) for d in self._directions}
        codes, ranges, ratios, notes, seen = [], [], [], [], []
        tops = torch.zeros(len(self._directions), 2, 2, 2)
        for source in (s for table in self._tables for row in table for s in row):
            for tokens in self.words.values():
                for d, direction in enumerate(self._directions):
                    maps = _with_mean(self._heads(source, tokens, direction))
                    for parts, packed in zip((codes, ranges), self._packed(maps, direction), strict=True):
                        parts.append(packed)
                    apart = torch.tensor(self.sinks if direction == "from" else [], dtype=torch.long)
                    without = maps.index_fill(-1, apart, 0)
                    for kind, shown in enumerate(targets[direction]):
                        if len(shown):
                            top = torch.stack([maps[:, shown].amax(-1), without[:, shown].amax(-1)], -1)
                            tops[d, kind] = tops[d, kind].maximum(torch.stack([top[0], top[1:].amax(0)]))
                    ratio = None
                    if mask is not None:
                        ratio = self._ratio(maps, targets[direction][0], coverage[direction], apart)
                        ratios.append(ratio)
                    over = maps[:, targets[direction][0]]
                    first = None
                    if len(self._tables) == 2:  # runs come one after the other: the first one is kept
                        half = len(self.steps) * len(self.layers) * len(self.words) * len(self._directions)
                        seen.append(over)
                        first = seen[len(seen) - 1 - half] if len(seen) > half else None
                    area = coverage[direction].mean() if ratio is not None else None
                    text = maps[:, targets[direction][1]].sum(-1)
                    notes += self._notes(maps, over, text, direction, tokens, apart, ratio, area, first)
        picture, columns = _sprite(video, max_side)
        facts = {
            "size": list(self._size),
            "columns": columns,
            "layers": self.layers,
            "steps": self.steps,
            "heads": list(self.heads),
            "words": list(self.words),
            "directions": list(self._directions),
            "streams": streams,
            "sinks": [{"token": s, "name": token_name(self._grids[1][s])} for s in self.sinks],
            # JSON has no nan.
            "residuals": [
                [[s.residual if math.isfinite(s.residual) else None for s in row] for row in table]
                for table in self._tables
            ],
            "tops": tops.tolist(),
            "area": {d: float(c.mean()) for d, c in coverage.items() if len(c)},
            "notes": notes,
            "clickable": self._has_stores,
            "square": self._is_square,
        }
        return {
            "_facts": facts,
            "_picture": picture,
            "_positions": positions.int().numpy().tobytes(),
            "_overview": torch.stack(codes),
            "_ranges": torch.stack(ranges),
            "_ratios": _bytes(torch.stack(ratios, 1)) if ratios else b"",
        }

    def _cells(self, direction: str) -> Tensor:
        """(t, y, x) of each video token on show that is looked at: (N, 3)."""
        grid = self._grids[direction == "from"]
        streams = [s for s in grid.streams if isinstance(s, VideoStream) and s.size == self._size]
        axes = [[torch.arange(float(n)) for n in s.cells] for s in streams]
        return torch.cat([torch.cartesian_prod(*a).view(-1, 3) for a in axes] or [torch.empty(0, 3)])

    def _notes(self, maps, video, text, direction, tokens, apart, ratio, area, first) -> list[str]:
        """A few words on each of the maps (1 + H, M); see the class for what they mean."""
        total, sink, same = maps.sum(-1), maps[:, apart].sum(-1), None
        parts = [[] for _ in maps]
        if video.shape[-1] > 1:
            parts = [[] if math.isnan(e) else [f"entropy {e:.2f}"] for e in entropy(video).tolist()]
        grid = self._grids[direction == "to"]
        own = [grid[t] for t in tokens] if self._has_stores else []
        # Cells of two grids have no distance from each other.
        one_grid = self._grids[0] == self._grids[1]
        if one_grid and own and video.numel() and all(t.cell is not None for t in own):
            cells, here = self._cells(direction), torch.tensor([t.cell for t in own]).float().mean(0)
            weights = video / video.sum(-1, keepdim=True)
            away = weights @ (cells - here).abs()  # mean distance in (slots, rows, columns)
            same = (weights @ (cells[:, 0] == here[0].round()).float()).tolist()
            for note, (slots, rows, columns) in zip(parts, away.tolist(), strict=True):
                note.append(f"{math.hypot(rows, columns):.1f} patches and {slots:.1f} slots away")
        for i, note in enumerate(parts):
            if sink[i] > total[i] / 2:
                note.append("mostly sinks")
            elif text[i] > total[i] / 2:
                note.append("mostly text")
            elif same is not None:
                note.append("spatial" if same[i] > 0.5 else "temporal")
            if ratio is not None and area:
                note.append(f"lift {ratio[0, i] / area:.1f}")
        if first is not None and video.numel():
            divergence = jensen_shannon(video, first)
            parts[0].append(
                f"Jensen-Shannon to the first run {divergence[0]:.3f} "
                f"(heads {divergence[1:].min():.3f} to {divergence[1:].max():.3f})"
            )
            for note, d in zip(parts[1:], divergence[1:].tolist(), strict=True):
                note.append(f"Jensen-Shannon to the first run {d:.3f}")
        return [", ".join(note) for note in parts]

    @staticmethod
    def _ratio(maps: Tensor, shown: Tensor, coverage: Tensor, apart: Tensor) -> Tensor:
        """(2, 1 + H): with all tokens, and without those apart."""
        if not len(shown):
            return torch.full((2, len(maps)), torch.nan)
        exclude = torch.isin(shown, apart).nonzero()[:, 0]
        return torch.stack([mask_ratio(maps[:, shown], coverage, e) for e in (None, exclude)])

    def _beside(
        self, curve: Interval | None, baselines: Mapping, matrix: GroupMatrix | None, facts: dict
    ) -> dict:
        """The other curve and the matrix."""
        steps, layers, state = len(self.steps), len(self.layers), {}
        if curve is not None:
            lines = [curve.mean, curve.low, curve.high, *baselines.values()]
            lines = [torch.as_tensor(line, dtype=torch.float64) for line in lines]
            if any(line.shape not in ((), (layers,)) for line in lines):
                raise UserError(f"the curve and its baselines need one number for each of {layers} layers.")
            state["_curve"] = _bytes(torch.stack([line.expand(layers) for line in lines]))
        elif baselines:
            raise UserError("baselines are drawn beside a curve: give curve= as well.")
        if matrix is not None:
            if matrix.values.shape[:2] != (steps, layers):
                raise UserError(
                    f"the matrix must be given for {steps} steps and {layers} layers, not for "
                    f"{tuple(matrix.values.shape[:2])}."
                )
            state["_matrix"] = _bytes(matrix.values)
        groups = matrix and {"rows": list(matrix.rows), "columns": list(matrix.columns)}
        facts |= {"baselines": list(baselines), "matrix": groups}
        return state

    def _fit(self, state: dict, budget: int) -> None:
        """Put the overview into bytes; single heads only where they fit."""
        codes, ranges = state["_overview"], state["_ranges"]
        groups = codes.shape[1]
        # Notebooks write bytes in base64, four letters for three.
        rest = 4 / 3 * sum(len(v) for v in state.values() if isinstance(v, bytes))
        rest += len(json.dumps(state["_facts"])) + len(json.dumps(str(self._esm)))
        maps = 4 / 3 * (codes.nbytes + ranges.nbytes)
        if rest + maps > budget:
            groups, maps = 1, maps / groups
        if rest + maps > budget:
            raise UserError(
                f"the explorer would save {(rest + maps) / 1e6:.2f} MB, over the budget of {budget / 1e6:g} "
                f"MB: {maps / 1e6:.2f} MB of maps ({len(self.layers)} layers, {len(self.steps)} steps, "
                f"{len(self.words)} words) and {4e-6 / 3 * len(state['_picture']):.2f} MB of frames; take "
                "fewer layers, steps, words or frames, or raise budget_bytes."
            )
        state["_overview"] = codes[:, :groups].contiguous().numpy().tobytes()
        state["_ranges"] = _bytes(ranges[:, :groups])
        state["_facts"]["groups"] = groups


def token_name(token: Token) -> str:
    """'ball' for a word, "video (0, 3, 4)" for the patch at (t, y, x)."""
    return repr(token.word) if token.cell is None else f"{token.stream} {token.cell}"


def _by_layer_and_step(sources: Sequence) -> tuple[list[str], list[int], list[list]]:
    """Names of layers, numbers of steps, and the table [step][layer]."""
    layers = list(dict.fromkeys(s.site.module for s in sources))
    steps = sorted({s.site.step for s in sources})
    cells = {(s.site.step, s.site.module): s for s in sources}
    if not layers or len(cells) != len(sources) or len(cells) != len(layers) * len(steps):
        raise UserError(
            f"give one capture of every layer and step: there are {len(sources)} for {len(layers)} layers "
            f"and {len(steps)} steps; of a layer that attends several times, keep one site.call."
        )
    return layers, steps, [[cells[step, layer] for layer in layers] for step in steps]


def _sprite(video: Tensor, max_side: int) -> tuple[bytes, int]:
    """All frames in one image file, row by row, and how many there are in a row."""
    scale = min(1, max_side / max(video.shape[2:]))
    height, width = (max(1, round(n * scale)) for n in video.shape[2:])
    frames = video.detach().float().cpu().clamp(0, 1)
    if scale < 1:
        frames = F.interpolate(frames, (height, width), mode="bilinear", antialias=True)
    columns = math.ceil(math.sqrt(len(frames)))
    frames = F.pad(frames, (0, 0, 0, 0, 0, 0, 0, -len(frames) % columns))
    sheet = (frames * 255).round().to(torch.uint8).unflatten(0, (-1, columns))  # (rows, columns, 3, h, w)
    sheet = sheet.permute(0, 3, 1, 4, 2).reshape(-1, columns * width, 3)
    image = Image.fromarray(sheet.contiguous().numpy())
    file = io.BytesIO()
    # Small clips keep every pixel; of large ones nobody sees the difference under a map.
    is_small = sheet.numel() <= 2**20
    image.save(file, **({"format": "PNG"} if is_small else {"format": "JPEG", "quality": 85}))
    return file.getvalue(), columns


def _with_mean(maps: Tensor) -> Tensor:
    """The mean of heads, then the heads: (..., H, M) -> (..., 1 + H, M)."""
    return torch.cat([maps.mean(-2, keepdim=True), maps], -2)


def _bytes(values: Tensor) -> bytes:
    return values.float().contiguous().numpy().tobytes()
