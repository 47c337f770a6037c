"""The saved state of an attention explorer: maps in 8 bits, a note on each, curves, and the frames.

Axis letters: R runs, S steps, L layers, W words, D directions, G = 1 + H (the mean over heads, then the
heads), M tokens of the sequence that is looked at, N shown video tokens among them.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from vera_lite.diagnostics.scores import entropy, jensen_shannon, mask_ratio
from vera_lite.diagnostics.token_grid import TokenGrid, VideoStream
from vera_lite.media.clip import to_uint8
from vera_lite.widgets.attention_maps import GroupMatrix, MapSources, with_mean
from vera_lite.widgets.base import image_file

#: Pixels of the longer side of a saved frame.
MAX_SIDE = 256


class Band(Protocol):
    """A curve by layer and the band around it, (L,) each, such as an interval over clips."""

    mean: Tensor
    low: Tensor
    high: Tensor


def quantise(maps: Tensor, apart: Sequence[int] = ()) -> tuple[Tensor, Tensor]:
    """Maps (..., M) in 8 bits, each with its own range: value = zero + code / 255 * scale.

    Values of the tokens ``apart`` stay exact: a sink would stretch the range until all other tokens share
    one code.

    Returns:
        Codes (..., M), uint8, off by at most scale / 510, 0 for tokens apart; and (..., 2 + len(apart))
        float32: zero, scale and the values of the tokens apart.
    """
    exact = torch.as_tensor(apart, dtype=torch.long)
    others = torch.ones(maps.shape[-1], dtype=torch.bool).index_fill(0, exact, False)
    rest = maps[..., others]
    zero = rest.amin(-1, keepdim=True)
    scale = rest.amax(-1, keepdim=True) - zero
    codes = torch.zeros(maps.shape, dtype=torch.uint8)
    tiny = torch.finfo(torch.float32).tiny
    codes[..., others] = ((rest - zero) / scale.clamp_min(tiny) * 255).round().to(torch.uint8)
    return codes, torch.cat([zero, scale, maps[..., exact]], -1).float()


def packed(maps: Tensor, direction: str, sinks: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Quantised maps (..., M) and ranges (..., 2 + sinks). Sinks are keys, so columns of A have none."""
    codes, ranges = quantise(maps, sinks if direction == "from" else ())
    return codes, F.pad(ranges, (0, 2 + len(sinks) - ranges.shape[-1]))


def float_bytes(values: Tensor) -> bytes:
    """As float32."""
    return values.float().contiguous().numpy().tobytes()


class Targets:
    """The shown tokens that are looked at, in one direction.

    Attributes:
        grid: their sequence.
        video: (N,) tokens of the video streams with the clip's size.
        cells: (N, 3) their (t, y, x).
        coverage: (N,) how much of each the mask covers; None without a mask.
        area: mean of ``coverage``; None without a mask or a video.
        text: tokens of the text streams.
        apart: sinks among them.
    """

    def __init__(self, grids, direction: str, size: tuple, mask: Tensor | None, sinks: Sequence[int]):
        self.grid: TokenGrid = grids[direction == "from"]
        videos = [s for s in self.grid.streams if isinstance(s, VideoStream) and s.size == size]
        texts = [s.positions for s in self.grid.streams if not isinstance(s, VideoStream)]
        axes = [[torch.arange(float(n)) for n in s.cells] for s in videos]
        none = torch.empty(0, dtype=torch.long)
        self.video = torch.cat([none, *(s.positions for s in videos)])
        self.cells = torch.cat([torch.empty(0, 3), *(torch.cartesian_prod(*a).view(-1, 3) for a in axes)])
        self.text = torch.cat([none, *texts])
        self.coverage = self.area = None
        if mask is not None:
            self.coverage = torch.cat([torch.empty(0), *(self.grid.coverage(s.name, mask) for s in videos)])
            self.area = self.coverage.mean() if videos else None
        self.apart = torch.tensor(sinks if direction == "from" else [], dtype=torch.long)

    def mask_ratios(self, maps: Tensor) -> Tensor:
        """Mask ratios (2, G): with all tokens, and without sinks."""
        if not len(self.video):
            return torch.full((2, len(maps)), torch.nan)
        exclude = torch.isin(self.video, self.apart).nonzero()[:, 0]
        return torch.stack([mask_ratio(maps[:, self.video], self.coverage, e) for e in (None, exclude)])

    def tops(self, maps: Tensor) -> Tensor:
        """Highest values, [over video, over text][of the mean, of heads][all, no sinks]."""
        without = maps.index_fill(-1, self.apart, 0)
        tops = torch.zeros(2, 2, 2)
        for kind, shown in enumerate((self.video, self.text)):
            if len(shown):
                top = torch.stack([maps[:, shown].amax(-1), without[:, shown].amax(-1)], -1)
                tops[kind] = torch.stack([top[0], top[1:].amax(0)])
        return tops


def notes(
    maps: Tensor, targets: Targets, own_cells: Tensor | None, ratios: Tensor | None, other: Tensor | None
) -> list[str]:
    """A note on each of the maps (G, M).

    Args:
        maps: of one word.
        targets: of the maps' direction.
        own_cells: (tokens, 3) places of the word's own patches, if they are in the same grid.
        ratios: (2, G) mask ratios.
        other: the first run's maps (G, N) over the video, for comparison.
    """
    video = maps[:, targets.video]
    total, sink, text = maps.sum(-1), maps[:, targets.apart].sum(-1), maps[:, targets.text].sum(-1)
    parts, in_slot = [[] for _ in maps], None
    if video.shape[-1] > 1:
        parts = [[] if math.isnan(e) else [f"entropy {e:.2f}"] for e in entropy(video).tolist()]
    if own_cells is not None and video.numel():
        here = own_cells.mean(0)
        weights = video / video.sum(-1, keepdim=True)
        away = weights @ (targets.cells - here).abs()  # mean distance in (slots, rows, columns)
        in_slot = (weights @ (targets.cells[:, 0] == here[0].round()).float()).tolist()
        for part, (slots, rows, columns) in zip(parts, away.tolist(), strict=True):
            part.append(f"{math.hypot(rows, columns):.1f} patches and {slots:.1f} slots away")
    for i, part in enumerate(parts):
        if sink[i] > total[i] / 2:
            part.append("mostly sinks")
        elif text[i] > total[i] / 2:
            part.append("mostly text")
        elif in_slot is not None:
            part.append("spatial" if in_slot[i] > 0.5 else "temporal")
        if ratios is not None and targets.area:
            part.append(f"lift {ratios[0, i] / targets.area:.1f}")
    if other is not None and video.numel():
        divergence = jensen_shannon(video, other)
        for part, d in zip(parts, divergence.tolist(), strict=True):
            part.append(f"Jensen-Shannon to the first run {d:.3f}")
        parts[0][-1] += f" (heads {divergence[1:].min():.3f} to {divergence[1:].max():.3f})"
    return [", ".join(part) for part in parts]


@dataclass(frozen=True, eq=False)
class Overview:
    """The maps of all words, in the order (R, S, L, W, D)."""

    #: codes, ranges: (..., G, M) and (..., G, 2 + sinks), of :func:`quantise`.
    codes: Tensor
    ranges: Tensor
    ratios: Tensor | None  #: (2, ..., G) mask ratios, with all tokens and without sinks; None without a mask.
    #: the highest value by [direction][over video, over text][mean, heads][all, no sinks]. With one scale for
    #: video and text, a strong word would leave the video dark.
    tops: Tensor
    notes: list[str]  #: of each map, G per place.

    @classmethod
    def of(
        cls,
        sources: MapSources,
        words: Sequence[tuple[str, list[int]]],
        targets: Mapping[str, Targets],
        sinks: Sequence[int],
    ) -> "Overview":
        codes, ranges, ratios, lines, first_run = [], [], [], [], []
        tops = torch.zeros(len(targets), 2, 2, 2)
        has_places = sources.has_stores and sources.grids[0] == sources.grids[1]
        for run, table in enumerate(sources.tables):
            here = ((s, t, d) for row in table for s in row for _, t in words for d in enumerate(targets))
            for place, (source, tokens, (d, direction)) in enumerate(here):
                target = targets[direction]
                maps = with_mean(sources.maps(source, tokens, direction))
                for parts, part in zip((codes, ranges), packed(maps, direction, sinks), strict=True):
                    parts.append(part)
                tops[d] = tops[d].maximum(target.tops(maps))
                ratio = None
                if target.coverage is not None:
                    ratio = target.mask_ratios(maps)
                    ratios.append(ratio)
                # Cells of two grids have no distance from each other.
                cells = [sources.grids[0][t].cell for t in tokens] if has_places else [None]
                cells = None if None in cells else torch.tensor(cells).float()
                if run == 0:
                    first_run.append(maps[:, target.video])
                lines += notes(maps, target, cells, ratio, first_run[place] if run else None)
        stacked = torch.stack(ratios, 1) if ratios else None
        return cls(torch.stack(codes), torch.stack(ranges), stacked, tops, lines)


def streams_on_show(grids: Mapping[str, TokenGrid], size: tuple) -> tuple[list[dict], Tensor]:
    """The script's data on tokens: streams, and the positions of all their tokens, stream by stream.

    Args:
        grids: by side: "both", or "query" and "key".
        size: (T, H, W) of the clip; video streams of other sizes are not shown.
    """
    streams, positions = [], []
    for side, grid in grids.items():
        for s in grid.streams:
            facts = {"name": s.name, "side": side, "start": sum(map(len, positions))}
            if not isinstance(s, VideoStream):
                streams.append(facts | {"words": list(s.words)})
            elif s.size == size:
                slots = grid.to_video(torch.arange(math.prod(s.cells)), s.name)[:, 0, 0]
                slots = (slots // math.prod(s.cells[1:])).tolist()
                streams.append(facts | {"cells": list(s.cells), "slots": slots})
            else:
                continue
            positions.append(s.positions)
    if not any("cells" in s for s in streams):
        raise ValueError(f"no video stream of the grid has the video's size {size} (T, H, W).")
    return streams, torch.cat(positions)


def beside(
    curve: Band | None, baselines: Mapping, matrix: GroupMatrix | None, steps: int, layers: int
) -> tuple[dict, dict]:
    """The script's data on the other curve and the matrix, and their numbers as bytes."""
    state = {}
    if curve is not None:
        lines = [curve.mean, curve.low, curve.high, *baselines.values()]
        lines = [torch.as_tensor(line, dtype=torch.float64) for line in lines]
        if any(line.shape not in ((), (layers,)) for line in lines):
            raise ValueError(f"the curve and its baselines need one number for each of {layers} layers.")
        state["_curve"] = float_bytes(torch.stack([line.expand(layers) for line in lines]))
    elif baselines:
        raise ValueError("baselines are drawn beside a curve: give curve= as well.")
    if matrix is not None:
        if matrix.values.shape[:2] != (steps, layers):
            found = tuple(matrix.values.shape[:2])
            raise ValueError(f"the matrix has (steps, layers) {found}, the captures {(steps, layers)}.")
        state["_matrix"] = float_bytes(matrix.values)
    groups = matrix and {"rows": list(matrix.rows), "columns": list(matrix.columns)}
    return {"baselines": list(baselines), "matrix": groups}, state


def maps_within(state: dict, overview: Overview, budget: int, counts: str) -> tuple[int, dict]:
    """How many groups fit into a budget of saved bytes, G or 1 (the mean over heads); their maps as bytes.

    Args:
        state: the rest of the saved state.
        overview: the maps.
        budget: bytes.
        counts: how many maps there are, for the error.
    """
    codes, ranges = overview.codes, overview.ranges
    groups = codes.shape[1]
    # Notebooks store bytes in base64, four letters for three bytes.
    rest = sum(4 / 3 * len(v) if isinstance(v, bytes) else len(json.dumps(v)) for v in state.values())
    maps = 4 / 3 * (codes.nbytes + ranges.nbytes)
    if rest + maps > budget:
        groups, maps = 1, maps / groups
    if rest + maps > budget:
        raise ValueError(
            f"the explorer would save {(rest + maps) / 1e6:.2f} MB, over the budget of {budget / 1e6:g} "
            f"MB: {maps / 1e6:.2f} MB of maps ({counts}) and {4e-6 / 3 * len(state['_picture']):.2f} MB of "
            "frames; take fewer layers, steps, words or frames, or raise budget_bytes."
        )
    return groups, {
        "_overview": codes[:, :groups].contiguous().numpy().tobytes(),
        "_ranges": float_bytes(ranges[:, :groups]),
    }


def sprite(video: Tensor) -> tuple[bytes, int]:
    """All frames in one image file, row by row, and the number of frames per row."""
    scale = min(1, MAX_SIDE / max(video.shape[2:]))
    height, width = (max(1, round(n * scale)) for n in video.shape[2:])
    frames = video.float()
    if scale < 1:
        frames = F.interpolate(frames, (height, width), mode="bilinear", antialias=True)
    columns = math.ceil(math.sqrt(len(frames)))
    frames = F.pad(frames, (0, 0, 0, 0, 0, 0, 0, -len(frames) % columns))
    sheet = to_uint8(frames).unflatten(0, (-1, columns))  # (rows, columns, 3, h, w)
    sheet = sheet.permute(0, 3, 1, 4, 2).reshape(-1, columns * width, 3)
    # In large clips nobody sees the difference under a map.
    return image_file(Image.fromarray(sheet.contiguous().numpy()), sheet.numel() <= 2**20), columns
