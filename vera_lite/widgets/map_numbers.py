"""Numbers about single maps: what the head atlas, the curve by layer and the line under the title show.

G = 1 + H (the mean over heads, then the heads), M tokens of the sequence that is looked at, N shown video
tokens among them.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from vera_lite.diagnostics.scores import entropy, jensen_shannon, mask_ratio
from vera_lite.diagnostics.token_grid import TokenGrid, VideoStream


class Stream(NamedTuple):
    """A stream that the explorer shows."""

    facts: dict  #: what the script knows of it.
    positions: Tensor  #: its tokens.


def shown_streams(grids: Mapping[str, TokenGrid], size: tuple) -> list[Stream]:
    """The streams on show; the positions of each start at ``facts["start"]`` of all of them.

    Args:
        grids: by side: "both", or "query" and "key".
        size: (T, H, W) of the clip; video streams of other sizes are not shown.
    """
    streams = []
    for side, grid in grids.items():
        for s in grid.streams:
            facts = {"name": s.name, "side": side, "start": sum(len(t.positions) for t in streams)}
            if not isinstance(s, VideoStream):
                facts |= {"words": list(s.words)}
            elif s.size == size:
                slots = grid.to_video(torch.arange(math.prod(s.cells)), s.name)[:, 0, 0]
                slots = (slots // math.prod(s.cells[1:])).tolist()
                facts |= {"cells": list(s.cells), "slots": slots}
            else:
                continue
            streams.append(Stream(facts, s.positions))
    if not any("cells" in s.facts for s in streams):
        raise ValueError(f"no video stream of the grid has the video's size {size} (T, H, W).")
    return streams


class Measures:
    """What is measured of every map, in the order of the numbers.

    Attributes:
        facts: for the script, the ``kind`` and ``label`` of each; of a ``stream`` also its number.
    """

    def __init__(self, streams: Sequence[Stream], has_mask: bool, has_sinks: bool, names: Sequence[str]):
        facts = [("mask", "mass in the mask"), ("mask without sinks", "")] if has_mask else []
        facts = [{"kind": kind, "label": label} for kind, label in facts]
        for number, stream in enumerate(streams):
            if sum(s.facts["side"] == stream.facts["side"] for s in streams) > 1:
                label = f"mass on {stream.facts['name']}"
                facts.append({"kind": "stream", "label": label, "stream": number})
        rest = {
            "entropy": "entropy over the clip",
            "patches": "distance in patches",
            "slots": "distance in time slots",
            "own slot": "mass in its own slot",
        }
        rest |= {"sinks": "mass on sinks"} if has_sinks else {}
        rest |= {"divergence": f"{names[0]} against {names[1]} (Jensen-Shannon)"} if len(names) > 1 else {}
        self.facts = facts + [{"kind": kind, "label": label} for kind, label in rest.items()]
        self.streams = streams

    def of(self, maps: Tensor, targets: "Targets", own_cells: Tensor | None, other: Tensor | None) -> Tensor:
        """Numbers (measures, G) of maps (G, M); nan where a measure means nothing.

        Args:
            maps: of one word.
            targets: of the maps' direction.
            own_cells: (tokens, 3) places of the word's own patches, if they are in the same grid.
            other: maps of the other run, if there is one.
        """
        video, nothing = maps[:, targets.video], torch.full((len(maps),), torch.nan)
        found = {"sinks": maps[:, targets.apart].sum(-1)}
        if targets.coverage is not None and len(targets.video):
            exclude = torch.isin(targets.video, targets.apart).nonzero()[:, 0]
            found["mask"] = mask_ratio(video, targets.coverage)
            found["mask without sinks"] = mask_ratio(video, targets.coverage, exclude)
        if video.shape[-1] > 1:
            found["entropy"] = entropy(video)
            if other is not None:
                found["divergence"] = jensen_shannon(video, other[:, targets.video])
        if own_cells is not None and video.numel():
            here = own_cells.mean(0)
            shares = video / video.sum(-1, keepdim=True)
            slots, rows, columns = (shares @ (targets.cells - here).abs()).unbind(-1)  # mean distances
            found |= {"patches": torch.hypot(rows, columns), "slots": slots}
            found["own slot"] = shares @ (targets.cells[:, 0] == here[0].round()).float()
        numbers = []
        for fact in self.facts:
            if fact["kind"] != "stream":
                numbers.append(found.get(fact["kind"], nothing))
            else:
                stream = self.streams[fact["stream"]]
                is_target = stream.facts["side"] in ("both", targets.side)
                numbers.append(maps[:, stream.positions].sum(-1) if is_target else nothing)
        return torch.stack([n.float() for n in numbers])


class Targets:
    """The shown tokens that are looked at, in one direction.

    Attributes:
        side: "key" where tokens look, "query" for who looks at them.
        video: (N,) tokens of the video streams.
        cells: (N, 3) their (t, y, x).
        coverage: (N,) how much of each the mask covers; None without a mask.
        area: mean of ``coverage``; None without a mask or a video.
        text: tokens of the text streams.
        apart: sinks among them.
    """

    def __init__(
        self, grid: TokenGrid, direction: str, size: tuple, mask: Tensor | None, sinks: Sequence[int]
    ):
        self.side = "key" if direction == "from" else "query"
        videos = [s for s in grid.streams if isinstance(s, VideoStream) and s.size == size]
        texts = [s.positions for s in grid.streams if not isinstance(s, VideoStream)]
        axes = [[torch.arange(float(n)) for n in s.cells] for s in videos]
        none = torch.empty(0, dtype=torch.long)
        self.video = torch.cat([none, *(s.positions for s in videos)])
        self.cells = torch.cat([torch.empty(0, 3), *(torch.cartesian_prod(*a).view(-1, 3) for a in axes)])
        self.text = torch.cat([none, *texts])
        self.coverage = self.area = None
        if mask is not None:
            self.coverage = torch.cat([torch.empty(0), *(grid.coverage(s.name, mask) for s in videos)])
            self.area = self.coverage.mean() if videos else None
        self.apart = torch.tensor(sinks if direction == "from" else [], dtype=torch.long)

    def tops(self, maps: Tensor) -> Tensor:
        """Highest values, [over video, over text][of the mean, of heads][all, no sinks]."""
        without = maps.index_fill(-1, self.apart, 0)
        tops = torch.zeros(2, 2, 2)
        for kind, shown in enumerate((self.video, self.text)):
            if len(shown):
                top = torch.stack([maps[:, shown].amax(-1), without[:, shown].amax(-1)], -1)
                tops[kind] = torch.stack([top[0], top[1:].amax(0)])
        return tops
