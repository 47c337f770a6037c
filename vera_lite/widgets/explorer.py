"""The attention explorer: where does this patch or word look, and who looks at it, in every layer.

    explorer = AttentionExplorer.of_stores({"block 0": store}, grid, video)
    explorer                       # click a patch, move the layer slider, brush the curve
    explorer.query, explorer.selected_layers, explorer.current_maps()

A map is one row of A (direction "from": where a token looks) or one column ("to": who looks at it). The maps
of some named tokens, the words, are saved with the widget, so that a page without Python shows them. Maps of
other tokens are computed on a click.

The head atlas shows one number of every head in every layer. With ``denoising=`` the explorer plays the steps
of a run; with ``interventions=`` it cuts attention and shows what the model then makes: the causal lane.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from traitlets import Bool, Bytes, Dict, Enum, Float, Int, List, validate

from vera_lite.diagnostics.call import CallSite, Capture
from vera_lite.diagnostics.layer_attention import LayerAttention
from vera_lite.diagnostics.store import AttentionStore
from vera_lite.diagnostics.token_grid import TokenGrid
from vera_lite.widgets.attention_maps import DIRECTIONS, GroupMatrix, MapSources, token_name, with_mean
from vera_lite.widgets.base import Widget, checked_video, script
from vera_lite.widgets.causal_lane import Interventions, lane_entry
from vera_lite.widgets.explorer_state import (
    Band,
    Denoising,
    Numbers,
    Overview,
    beside,
    films,
    float_bytes,
    maps_within,
    packed,
    sprite,
)
from vera_lite.widgets.map_numbers import Measures, Targets, shown_streams

#: The parts of the script, in order.
SCRIPTS = ("model", "drawing", "atlas", "lane", "files")


class AttentionExplorer(Widget):
    """Attention over a clip: layer, head, step, frame and word axes, and any patch on a click.

    Args:
        captures: one per layer and step, as in ``CapturePlan.captures``. Either captures of :class:`Rows` or
            another measurement with values (B, H, R, K), which have the maps of their rows only; or
            :class:`AttentionStore`, which answer clicks.
        grid: of the queries' sequence, and also of the keys' unless there is a ``key_grid``.
        video: (T, 3, H, W) in [0, 1], of the size of the grid's video streams.
        key_grid: of the keys' sequence, for cross-attention.
        words: name -> rows of the captures, or tokens of the stores; their mean map is saved with the widget.
            Or a list of (name, rows or tokens), if two have the same name. By default every row of captures;
            for stores, the middle patch of the first video stream.
        direction: at the start. In cross-attention also that of the saved maps, and of the words' tokens:
            "from" means queries, "to" keys. Captures have only "from".
        compare: captures of a second run (B) with the same layers, steps, heads and tokens.
        names: of the two runs.
        mask: (T, 1, H, W) in [0, 1]; how much attention falls into it is the first measure of the atlas.
        curve: (L,) each; another curve by layer with its band, such as a bootstrap over clips, drawn with the
            first measure.
        baselines: name -> (L,) or one number, drawn beside the curve.
        matrix: group to group, by layer and step.
        denoising: what the model had made after each captured step.
        interventions: runs the model with connections cut, for the causal lane.
        sinks: tokens of the keys to list. By default up to 8 tokens that receive more than 20 times the
            uniform share in some layer, averaged over heads and captured rows (for stores: over 16 evenly
            spaced queries).
        fps: frames per second when playing.
        budget_bytes: of the saved state. If the maps of single heads do not fit, only means over heads are
            saved, and heads need Python.

    The head atlas and the curve by layer show one measure of the map of each head, see :class:`.Measures`;
    the line under the title tells some of the map on show. A map is "mostly sinks" or "mostly text" if more
    than half of its mass goes there. Otherwise, if a patch looks at its own grid, it is "spatial" if more
    than half of its mass on the video is in the patch's own time slot, and "temporal" if not.

    Attributes:
        layer, step, word: place in the lists ``layers``, ``steps``, ``words``.

    Raises:
        ValueError: anything that does not fit together, or a state over budget.
    """

    _esm = script("helpers", *(f"explorer_{part}" for part in SCRIPTS), "explorer")
    _css = Path(__file__).with_name("explorer.css")

    layer = Int(0).tag(sync=True)
    head = Int(-1).tag(sync=True)  #: place in ``heads``, or -1 for their mean.
    step = Int(0).tag(sync=True)
    frame = Int(0).tag(sync=True)  #: of the video.
    word = Int(0).tag(sync=True)
    stream = Int(0).tag(sync=True)  #: place in the list of shown video streams.
    run = Int(0).tag(sync=True)  #: which run's thumbnails are shown: 0 is A, 1 is B, 2 their difference.
    query = Int(-1).tag(sync=True)  #: the clicked token; -1 shows the map of the word.
    direction = Enum(DIRECTIONS, "from").tag(sync=True)  #: "from": where it looks; "to": who looks at it.
    selected_layers = List(Int()).tag(sync=True)  #: places in ``layers`` that are brushed in the curve.
    measure = Int(0).tag(sync=True)  #: of the atlas, place in the list of measures.
    #: leave the listed sinks out of pictures, scales and mask ratios.
    exclude_sinks = Bool(False).tag(sync=True)
    #: one colour scale for all layers, steps and words, instead of one for each map.
    locked_scale = Bool(False).tag(sync=True)
    opacity = Float(0.75, min=0, max=1).tag(sync=True)  #: of the map over the video, in [0, 1].
    #: the map is clear where it is below this share of the scale, in [0, 1].
    threshold = Float(0.0, min=0, max=1).tag(sync=True)
    height = Int(760).tag(sync=True)

    # Data of the script. Axis letters as in explorer_state; floats are float32.
    _facts = Dict().tag(sync=True)  # everything except arrays
    _picture = Bytes().tag(sync=True)  # all frames in one image file, row by row
    _positions = Bytes().tag(sync=True)  # int32, tokens of all streams, one stream after the other
    _overview = Bytes().tag(sync=True)  # uint8 codes (R, S, L, W, D, G or 1, M)
    _ranges = Bytes().tag(sync=True)  # (R, S, L, W, D, G or 1, 2 + sinks)
    _numbers = Bytes().tag(sync=True)  # (R, S, L, W, D, measures, G)
    _curve = Bytes().tag(sync=True)  # (3 + baselines, L)
    _matrix = Bytes().tag(sync=True)  # (S, L, groups of queries, groups of keys)
    _films = List().tag(sync=True)  # image files like the picture, by [film][step]
    _cuts = List().tag(sync=True)  # of the causal lane, see lane_entry

    def __init__(
        self,
        captures: Sequence[Capture | AttentionStore],
        grid: TokenGrid,
        video: Tensor,
        *,
        key_grid: TokenGrid | None = None,
        words: Mapping[str, Sequence[int]] | Sequence[tuple[str, Sequence[int]]] | None = None,
        direction: str = "from",
        compare: Sequence[Capture | AttentionStore] | None = None,
        names: tuple[str, str] = ("A", "B"),
        mask: Tensor | None = None,
        curve: Band | None = None,
        baselines: Mapping[str, Tensor | float] | None = None,
        matrix: GroupMatrix | None = None,
        denoising: Denoising | None = None,
        interventions: Interventions | None = None,
        sinks: Sequence[int] | None = None,
        fps: float = 8.0,
        budget_bytes: int = 3_000_000,
    ):
        video = checked_video("the video", video, channels=3)
        if direction not in DIRECTIONS:
            raise ValueError(f'direction is "from" or "to", not {direction!r}.')
        is_square = key_grid is None
        runs = [captures] if compare is None else [captures, compare]
        sources = self._sources = MapSources(runs, (grid, grid if is_square else key_grid))
        self.layers, self.steps, self.heads = sources.layers, sources.steps, sources.heads
        if direction == "to" and not sources.has_stores:
            raise ValueError('captured rows have only direction "from"; capture StoreQK for "to".')
        # Directions of the saved maps; in cross-attention, words are tokens of one side.
        self._directions = DIRECTIONS if sources.has_stores and is_square else (direction,)
        self.words = self._checked_words(words)
        self.sinks = sources.find_sinks() if sinks is None else [int(s) for s in sinks]
        if not all(0 <= s < len(sources.grids[1]) for s in self.sinks):
            raise ValueError(f"sinks are tokens 0..{len(sources.grids[1]) - 1}, got {self.sinks}.")
        is_half = sources.has_stores and next(iter(sources)).query.dtype != torch.float32

        size = (len(video), *video.shape[2:])
        sides = {"both": grid} if is_square else dict(zip(("query", "key"), sources.grids, strict=True))
        streams = shown_streams(sides, size)
        known = self._known_tokens()
        measures = Measures(streams, mask is not None, bool(self.sinks), names[: len(runs)])
        targets = {d: Targets(sources.grids[d == "from"], d, size, mask, self.sinks) for d in DIRECTIONS}
        self._numbers_of = Numbers(sources, measures, targets)
        overview = Overview.of(self._numbers_of, self.words, known, self._directions, self.sinks)
        picture, columns = sprite(video)
        groups, others = beside(curve, baselines or {}, matrix, len(self.steps), len(self.layers))
        steps_made, film_files = films(denoising, len(self.steps), size)
        facts = {
            "size": list(size),
            "columns": columns,
            "layers": self.layers,
            "steps": self.steps,
            "heads": list(self.heads),
            "words": [name for name, _ in self.words],
            "tokens": known,
            "measures": measures.facts,
            "directions": list(self._directions),
            "streams": [stream.facts for stream in streams],
            "sinks": [{"token": s, "name": token_name(sources.grids[1][s])} for s in self.sinks],
            # JSON has no nan.
            "residuals": [
                [[s.residual if math.isfinite(s.residual) else None for s in row] for row in table]
                for table in sources.tables
            ],
            "tops": overview.tops.tolist(),
            "area": {d: float(t.area) for d, t in targets.items() if t.area is not None},
            "clickable": sources.has_stores,
            "square": is_square,
            "runs": list(names[: len(runs)]),
            "threshold": 0.05 if is_half else 1e-4,  # residuals above it are marked
            "fps": fps,
            "cuttable": interventions is not None,
            **groups,
            **steps_made,
        }
        state = {
            "_facts": facts,
            "_picture": picture,
            "_positions": torch.cat([s.positions for s in streams]).int().numpy().tobytes(),
            "_numbers": float_bytes(overview.numbers),
            **others,
            **film_files,
        }
        code = {"_esm": str(self._esm), "_css": str(self._css)}
        counts = f"{len(self.layers)} layers, {len(self.steps)} steps, {len(self.words)} words"
        facts["groups"], maps = maps_within(state | code, overview, budget_bytes, counts)
        self._counts = {
            "layer": len(self.layers),
            "head": len(self.heads),
            "step": len(self.steps),
            "frame": len(video),
            "word": len(self.words),
            "stream": sum("cells" in s.facts for s in streams),
            "measure": max(len(measures.facts), 1),
            "run": (1, 3)[len(runs) - 1],
            "query": max(map(len, sources.grids)),
        }
        self._interventions = interventions
        # At first, the video that is looked at.
        videos = [s.facts["side"] for s in streams if "cells" in s.facts]
        side = targets[direction].side
        stream = next((i for i, s in enumerate(videos) if s in ("both", side)), 0)
        super().__init__(direction=direction, stream=stream, **state, **maps)
        self.on_msg(self._on_message)

    def _checked_words(self, words) -> list[tuple[str, list[int]]]:
        words = words or self._sources.default_words(self._directions[0])
        pairs = words.items() if isinstance(words, Mapping) else words
        pairs = [(name, [int(token) for token in tokens]) for name, tokens in pairs]
        has_stores, grids = self._sources.has_stores, self._sources.grids
        count = len(grids[self._directions[0] == "to"]) if has_stores else self._sources.rows
        for name, tokens in pairs:
            if not tokens or not 0 <= min(tokens) <= max(tokens) < count:
                raise ValueError(f"word {name!r} needs one or more of the rows or tokens 0..{count - 1}.")
        return pairs

    def _known_tokens(self) -> list[list[int]]:
        """The tokens of each word, [] for a row whose queries are not known."""
        if self._sources.has_stores:
            return [tokens for _, tokens in self.words]
        rows = next(iter(self._sources)).queries
        return [sorted({q for r in chosen for q in rows[r]}) if rows else [] for _, chosen in self.words]

    # --- other ways in -----------------------------------------------------------------------------

    @classmethod
    def of_stores(
        cls, stores: Mapping[str, AttentionStore], grid: TokenGrid, video: Tensor, **options
    ) -> "AttentionExplorer":
        """An explorer of stores by layer name, one step each; options as for the class."""
        named = [replace(s, site=CallSite(name)) for name, s in stores.items()]
        return cls(named, grid, video, **options)

    @classmethod
    def of_layer_attention(
        cls, found: LayerAttention, clip: Tensor, phrase: str = "phrase", **options
    ) -> "AttentionExplorer":
        """An explorer of where a phrase looks, layer by layer of a vision-language model.

        Args:
            found: of :func:`vera_lite.diagnostics.attention_by_layer`.
            clip: (T, 3, H, W) in [0, 1], the clip of ``found``.
            phrase: its name.
            options: as for the class.
        """
        heads = tuple(range(found.attention.shape[1]))
        captures = [
            Capture(
                CallSite(f"layer {i}"),
                heads,
                attention[None, :, None],
                float(residual),
                queries=(tuple(found.queries.tolist()),),
            )
            for i, (attention, residual) in enumerate(zip(found.attention, found.residual, strict=True))
        ]
        return cls(captures, found.grid, clip, words={phrase: [0]}, **options)

    # --- what Python can ask -----------------------------------------------------------------------

    def current_maps(self) -> Tensor:
        """The exact values of the shown maps: (runs, H, M), M tokens of the sequence that is looked at."""
        return self._maps(self.layer, self.step, self.word, self.query, self.direction)

    def cut(
        self,
        keys: Sequence[int] | None = None,
        cells: Sequence[tuple[int, int]] | None = None,
        queries: Sequence[int] | None = None,
        label: str | None = None,
    ) -> Tensor:
        """Cut attention, run the model again, and add what it makes to the causal lane.

        Args:
            keys: tokens that cannot be looked at; None silences whole heads, the given ``cells``.
            cells: places of (layer, head) where the cut is made; all of them by default.
            queries: tokens that lose the keys; all of them by default.
            label: what the lane calls the cut; by default a description of it.

        Returns:
            The video that the model made, (T, 3, H, W).

        Raises:
            ValueError: there are no interventions, or the cut is out of range or leaves a query without keys.
        """
        if self._interventions is None:
            raise ValueError("this explorer has no model to cut: give interventions=.")
        video, entries = lane_entry(self._interventions, self._sources, keys, cells, queries, label)
        self._cuts = [*(self._cuts or entries[:1]), entries[1]]
        return video

    @validate("layer", "head", "step", "frame", "word", "stream", "run", "query", "measure")
    def _check_trait(self, proposal):
        return self._in_range(proposal["trait"].name, proposal["value"])

    @validate("selected_layers")
    def _check_layers(self, proposal):
        return sorted({self._in_range("layer", layer) for layer in proposal["value"]})

    def _in_range(self, name: str, value: int) -> int:
        lowest, count = (-1 if name in ("head", "query") else 0), self._counts[name]
        if not isinstance(value, int) or not lowest <= value < count:
            raise ValueError(f"{name} {value!r} is out of range: give a number in {lowest}..{count - 1}.")
        return value

    # --- answers to the browser --------------------------------------------------------------------

    def _on_message(self, _widget, content: dict, _buffers) -> None:
        """Answer a request; the reply has the request's id.

        A request is for a map of one layer (the mean and all heads), for the atlas of a token, which has the
        numbers of all layers, or for a cut.
        """
        try:
            buffers = self._answer(content)
        except Exception:
            self.send({"id": content.get("id"), "failed": True})
            raise
        self.send({"id": content.get("id")}, buffers)
        self.error = ""

    def _answer(self, content: dict) -> list[bytes]:
        if "cut" in content:
            self.cut(**content["cut"])
            return []
        layer, *rest = (content.get(k) for k in ("layer", "step", "word", "query", "direction"))
        direction = content["direction"]
        if layer == "all":
            numbers = []
            for one in range(len(self.layers)):
                maps = [with_mean(m) for m in self._maps(one, *rest)]
                numbers.append(self._numbers_of.of(maps, [content["query"]], direction))
            return [float_bytes(torch.stack(numbers, 1))]  # (R, L, measures, G)
        codes, ranges = packed(with_mean(self._maps(layer, *rest)), direction, self.sinks)
        return [codes.numpy().tobytes(), float_bytes(ranges)]

    def _maps(self, layer: int, step: int, word: int, query: int, direction: str) -> Tensor:
        for name, value in {"layer": layer, "step": step, "word": word, "query": query}.items():
            self._in_range(name, value)
        if direction not in (self._directions if query == -1 else DIRECTIONS):
            raise ValueError(f"there is no map in direction {direction!r}; words have {self._directions}.")
        if query != -1 and not self._sources.has_stores:
            raise ValueError("captured rows have no maps of other tokens; capture StoreQK instead.")
        tokens = [query] if query != -1 else self.words[word][1]
        maps = [self._sources.maps(t[step][layer], tokens, direction) for t in self._sources.tables]
        return torch.stack(maps)
