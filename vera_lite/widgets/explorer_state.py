"""The saved state of an attention explorer: maps in 8 bits, numbers about each, curves, and the frames.

Axis letters: R runs, S steps, L layers, W words, D directions, G = 1 + H (the mean over heads, then the
heads), M tokens of the sequence that is looked at.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from vera_lite.errors import check_tensor
from vera_lite.media.clip import to_uint8
from vera_lite.widgets.attention_maps import GroupMatrix, MapSources, with_mean
from vera_lite.widgets.base import checked_video, image_file
from vera_lite.widgets.map_numbers import Measures, Targets

#: Pixels of the longer side of a saved frame.
MAX_SIDE = 256


class Band(Protocol):
    """A curve by layer and the band around it, (L,) each, such as an interval over clips."""

    mean: Tensor
    low: Tensor
    high: Tensor


class Denoising(NamedTuple):
    """What a model had made of its clip after each captured step."""

    sigmas: Sequence[float]  #: noise level of each step: 1 is noise.
    #: name -> (S, T, 3 or 1, H, W) in [0, 1], of the clip's size; for instance the guess of each layer.
    films: Mapping[str, Tensor]

    @classmethod
    def of(cls, states: Sequence, decode: Callable[[Tensor], Mapping[str, Tensor]]) -> "Denoising":
        """From what a pipeline's ``callback`` got, step by step, and the pipeline's ``decode``."""
        guesses = [decode(state.x_0) for state in states]
        films = {name: torch.stack([g[name][0].clamp(0, 1) for g in guesses]) for name in guesses[0]}
        return cls([state.sigma for state in states], films)


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


class Numbers:
    """The measures of any map of an explorer's sources."""

    def __init__(self, sources: MapSources, measures: Measures, targets: Mapping[str, Targets]):
        self.sources, self.measures, self.targets = sources, measures, targets
        self._has_places = sources.grids[0] == sources.grids[1]

    def of(self, runs: Sequence[Tensor], tokens: Sequence[int], direction: str) -> Tensor:
        """Numbers (R, measures, G) of the maps (G, M) of each run; ``tokens``: whose they are, if known."""
        cells = [self.sources.grids[0][t].cell for t in tokens] if self._has_places else []
        cells = None if None in cells or not cells else torch.tensor(cells).float()
        others = reversed(runs) if len(runs) > 1 else [None]
        target = self.targets[direction]
        return torch.stack(
            [self.measures.of(m, target, cells, other) for m, other in zip(runs, others, strict=True)]
        )


@dataclass(frozen=True, eq=False)
class Overview:
    """The maps of all words, in the order (R, S, L, W, D)."""

    #: codes, ranges: (..., G, M) and (..., G, 2 + sinks), of :func:`quantise`.
    codes: Tensor
    ranges: Tensor
    numbers: Tensor  #: (..., measures, G), see :class:`Numbers`.
    #: the highest value by [direction][over video, over text][mean, heads][all, no sinks]. With one scale for
    #: video and text, a strong word would leave the video dark.
    tops: Tensor

    @classmethod
    def of(
        cls,
        numbers: Numbers,
        words: Sequence[tuple[str, list[int]]],
        tokens: Sequence[Sequence[int]],
        directions: Sequence[str],
        sinks: Sequence[int],
    ) -> "Overview":
        """``words``: names with their rows or tokens; ``tokens``: of each word, as far as they are known."""
        sources, codes, ranges, found = numbers.sources, [], [], []
        tops = torch.zeros(len(directions), 2, 2, 2)
        tables = sources.tables
        for step in range(len(sources.steps)):
            for layer in range(len(sources.layers)):
                for (_, rows), known in zip(words, tokens, strict=True):
                    for d, direction in enumerate(directions):
                        maps = [with_mean(sources.maps(t[step][layer], rows, direction)) for t in tables]
                        for parts, part in zip(
                            (codes, ranges), packed(torch.stack(maps), direction, sinks), strict=True
                        ):
                            parts.append(part)
                        for one in maps:
                            tops[d] = tops[d].maximum(numbers.targets[direction].tops(one))
                        found.append(numbers.of(maps, known, direction))
        codes, ranges, found = (torch.stack(parts, 1).flatten(0, 1) for parts in (codes, ranges, found))
        return cls(codes, ranges, found, tops)


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


def films(denoising: Denoising | None, steps: int, size: tuple) -> tuple[dict, dict]:
    """The script's data on denoising, and the films as image files by [film][step]."""
    if denoising is None:
        return {}, {}
    if len(denoising.sigmas) != steps or any(len(film) != steps for film in denoising.films.values()):
        raise ValueError(f"denoising needs one sigma and one film for each of {steps} captured steps.")
    files = []
    for name, film in denoising.films.items():
        check_tensor(f"the film {name!r}", film, "S", size[0], "C", *size[1:])
        clips = [checked_video(name, clip.expand(-1, 3, -1, -1), 3) for clip in film]
        files.append([sprite(clip, is_exact=False)[0] for clip in clips])
    return {"sigmas": list(map(float, denoising.sigmas)), "films": list(denoising.films)}, {"_films": files}


def saved_size(value) -> float:
    """Bytes that a notebook needs for a trait: bytes are stored in base64, four letters for three."""
    if isinstance(value, bytes):
        return 4 / 3 * len(value)
    if isinstance(value, list):
        return sum(map(saved_size, value))
    return len(json.dumps(value))


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
    rest = sum(map(saved_size, state.values()))
    maps = 4 / 3 * (codes.nbytes + ranges.nbytes)
    if rest + maps > budget:
        groups, maps = 1, maps / groups
    if rest + maps > budget:
        raise ValueError(
            f"the explorer would save {(rest + maps) / 1e6:.2f} MB, over the budget of {budget / 1e6:g} "
            f"MB: {maps / 1e6:.2f} MB of maps ({counts}) and {saved_size(state['_picture']) / 1e6:.2f} MB of "
            "frames; take fewer layers, steps, words or frames, or raise budget_bytes."
        )
    return groups, {
        "_overview": codes[:, :groups].contiguous().numpy().tobytes(),
        "_ranges": float_bytes(ranges[:, :groups]),
    }


def sprite(video: Tensor, is_exact: bool = True) -> tuple[bytes, int]:
    """All frames in one image file, row by row, and the number of frames per row.

    ``is_exact``: whether to keep every pixel of a small clip; in large ones nobody sees the difference.
    """
    scale = min(1, MAX_SIDE / max(video.shape[2:]))
    height, width = (max(1, round(n * scale)) for n in video.shape[2:])
    frames = video.float()
    if scale < 1:
        frames = F.interpolate(frames, (height, width), mode="bilinear", antialias=True)
    columns = math.ceil(math.sqrt(len(frames)))
    frames = F.pad(frames, (0, 0, 0, 0, 0, 0, 0, -len(frames) % columns))
    sheet = to_uint8(frames).unflatten(0, (-1, columns))  # (rows, columns, 3, h, w)
    sheet = sheet.permute(0, 3, 1, 4, 2).reshape(-1, columns * width, 3)
    is_small = sheet.numel() <= 2**20
    return image_file(Image.fromarray(sheet.contiguous().numpy()), is_exact and is_small), columns
