"""The map between the tokens of a sequence and pixels or words.

A transformer sees a flat sequence. Here it is divided into streams. A video (or image) stream is a (t, h, w)
grid of tokens; each covers a box of pixels in one or more source frames. A text stream has one piece of text
per token. A stream need not be contiguous: Qwen3-VL writes a timestamp between two temporal slots of a video.

Values of a stream (attention, coverage, ...) are always in (t, h, w) order:

    grid = TokenGrid.wan(frames=81, height=480, width=832)
    mass = attention[..., grid.tokens("video")]         (..., t * h * w)
    grid.to_video(mass, "video")                        (..., 81, 480, 832)
"""

import bisect
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor


@dataclass(frozen=True)
class Token:
    """What one token stands for."""

    stream: str
    word: str | None = None  #: its piece of text, or None.
    #: source frames that it covers, or that a timestamp names; () for other text.
    frames: tuple[int, ...] = ()
    #: (top, left, bottom, right) in source pixels, or None. Fractions if a processor resized the clip, whose
    #: resampling filter reaches a little beyond the box.
    box: tuple[float, float, float, float] | None = None
    cell: tuple[int, int, int] | None = None  #: (t, y, x) in the stream's grid of tokens, or None.


@dataclass(frozen=True, eq=False)
class VideoStream:
    """A grid of tokens that tiles the frames of a video or image evenly."""

    name: str
    positions: Tensor  #: (t * h * w,) place of each token in the sequence, in (t, h, w) order.
    frames: tuple[tuple[int, ...], ...]  #: source frames of each of the t slots.
    grid: tuple[int, int]  #: (h, w) tokens of a slot.
    size: tuple[int, int, int]  #: (T, H, W) frames and pixels of the source.

    @property
    def cells(self) -> tuple[int, int, int]:
        """Tokens along (t, h, w)."""
        return (len(self.frames), *self.grid)

    @cached_property
    def edges(self) -> tuple[list[float], list[float]]:
        """The borders of rows and columns of tokens, in pixels."""
        (_, height, width), (rows, columns) = self.size, self.grid
        return [i * height / rows for i in range(rows + 1)], [i * width / columns for i in range(columns + 1)]

    def token(self, rank: int) -> Token:
        """The ``rank``-th token in (t, h, w) order."""
        _, h, w = self.cells
        t, y, x = rank // (h * w), rank // w % h, rank % w
        rows, columns = self.edges
        box = (rows[y], columns[x], rows[y + 1], columns[x + 1])
        return Token(self.name, frames=self.frames[t], box=box, cell=(t, y, x))

    def parts(self) -> dict[str, Tensor]:
        """Tokens of each slot, named ``video[0]``, ``video[1]``, ..."""
        return {f"{self.name}[{t}]": p for t, p in enumerate(self.positions.view(len(self.frames), -1))}


@dataclass(frozen=True, eq=False)
class TextStream:
    """Tokens that are pieces of text."""

    name: str
    positions: Tensor  #: (N,) place of each token in the sequence.
    #: the piece of text of each token. For T5's tokenizers: ``[piece.replace("\u2581", " ") for piece in
    #: tokenizer.convert_ids_to_tokens(ids)]``.
    words: tuple[str, ...]
    #: text between two pieces: " " for whole words, "" for a tokenizer's pieces, which include their spaces.
    separator: str = " "
    #: source frames that each token names (timestamps); empty for other text.
    frames: tuple[tuple[int, ...], ...] = ()

    def token(self, rank: int) -> Token:
        """The ``rank``-th token."""
        return Token(self.name, self.words[rank], self.frames[rank] if self.frames else ())

    def parts(self) -> dict[str, Tensor]:
        """All tokens: text has no slots."""
        return {self.name: self.positions}


@dataclass(frozen=True, eq=False)
class TokenGrid:
    """The tokens 0 .. S - 1 of a sequence, each in exactly one stream.

    In cross-attention, queries and keys are two sequences with one grid each.

    Raises:
        ValueError: names repeat, the lengths of a stream disagree, or the streams do not cover every token
            once.
    """

    streams: tuple[VideoStream | TextStream, ...]  #: in any order.

    def __post_init__(self):
        names = [s.name for s in self.streams]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"a grid needs one or more streams of different names, got {names}.")
        for s in self.streams:
            tokens = math.prod(s.cells) if isinstance(s, VideoStream) else len(s.words)
            if len(s.positions) != tokens:
                raise ValueError(f"stream {s.name!r} has {tokens} tokens but {len(s.positions)} positions.")
        positions = torch.cat([s.positions for s in self.streams])
        if not torch.equal(positions.sort().values, torch.arange(len(positions))):
            raise ValueError(f"the streams must cover each of the tokens 0..{len(positions) - 1} once.")

    # --- from a model's layout -------------------------------------------------------------------

    @classmethod
    def wan(
        cls,
        frames: int,
        height: int,
        width: int,
        streams: Sequence[str] = ("video",),
        *,
        temporal_stride: int = 4,
        spatial_stride: int = 8,
        patch: tuple[int, int, int] = (1, 2, 2),
    ) -> "TokenGrid":
        """Video streams in a row: Wan's self-attention, or the branches of joint attention.

        Latent frame 0 holds frame 0 alone, latent frame j the frames 4 j - 3 .. 4 j.

        Args:
            frames: 1 + k * temporal_stride.
            height, width: of the source, in pixels.
            streams: names, in the order of the sequence.
            temporal_stride, spatial_stride: of the codec.
            patch: (t, h, w) latent cells in a token.

        Raises:
            ValueError: the clip does not fit strides and patches.
        """
        if frames < 1 or (frames - 1) % temporal_stride:
            raise ValueError(f"a clip has 1 + k * {temporal_stride} frames, not {frames}.")
        latents = [(0,), *(tuple(range(f, f + temporal_stride)) for f in range(1, frames, temporal_stride))]
        rows, columns = (spatial_stride * p for p in patch[1:])
        if len(latents) % patch[0] or height % rows or width % columns or min(height, width) < 1:
            raise ValueError(
                f"{len(latents)} latent frames of {height} x {width} pixels do not divide into tokens of "
                f"{patch[0]} frames of {rows} x {columns} pixels."
            )
        slots = merge_frames(latents, patch[0])
        grid, size = (height // rows, width // columns), (frames, height, width)
        tokens = torch.arange(len(slots) * math.prod(grid))
        placed = [(name, i * len(tokens) + tokens) for i, name in enumerate(streams)]
        return cls(tuple(VideoStream(name, positions, slots, grid, size) for name, positions in placed))

    # --- tokens to places and words --------------------------------------------------------------

    @cached_property
    def _places(self) -> list[tuple[VideoStream | TextStream, int]]:
        places = {
            position: (s, rank) for s in self.streams for rank, position in enumerate(s.positions.tolist())
        }
        return [places[position] for position in range(len(places))]

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[Token]:
        return (stream.token(rank) for stream, rank in self._places)

    def __getitem__(self, i: int) -> Token:
        """What token ``i`` stands for. ValueError unless it is in 0 .. S - 1."""
        if not 0 <= i < len(self):
            raise ValueError(f"token {i} is out of range: the sequence has tokens 0..{len(self) - 1}.")
        stream, rank = self._places[i]
        return stream.token(rank)

    def stream(self, name: str) -> VideoStream | TextStream:
        """The stream of that name. ValueError if there is none."""
        for s in self.streams:
            if s.name == name:
                return s
        raise ValueError(f"no stream {name!r}: there are {', '.join(s.name for s in self.streams)}.")

    def _video(self, name: str) -> VideoStream:
        video = self.stream(name)
        if not isinstance(video, VideoStream):
            raise ValueError(f"stream {name!r} is text; this needs a video or image.")
        return video

    # --- places and words to tokens --------------------------------------------------------------

    def tokens(self, stream: str) -> Tensor:
        """(N,) tokens of a stream, long; those of a video in (t, h, w) order."""
        return self.stream(stream).positions

    def index(self, stream: str, frame: int, y: float, x: float) -> int:
        """The token that covers a point of a source frame; the first one, if two slots hold the frame.

        y and x are in source pixels; the centre of the top left pixel is (0.5, 0.5). ValueError if the point
        is outside, or the model does not see this frame.
        """
        video = self._video(stream)
        _, height, width = video.size
        if not (0 <= y < height and 0 <= x < width):
            raise ValueError(f"point ({y}, {x}) is outside: y is in [0, {height}) and x in [0, {width}).")
        slot = next((t for t, frames in enumerate(video.frames) if frame in frames), None)
        if slot is None:
            raise ValueError(f"frame {frame} is not in {stream!r}, whose slots hold {video.frames}.")
        row, column = (bisect.bisect(e, p) - 1 for e, p in zip(video.edges, (y, x), strict=True))
        h, w = video.grid
        return int(video.positions[(slot * h + row) * w + column])

    def words(self, phrase: str, stream: str = "text") -> Tensor:
        """(N,) tokens of every occurrence of a word or phrase, in any case. ValueError if there is none."""
        text = self.stream(stream)
        if not isinstance(text, TextStream):
            raise ValueError(f"stream {stream!r} is not text; it has no words.")
        joined, owner = join_words(text.words, text.separator)
        pattern = r"(?<!\w)" + r"\s+".join(map(re.escape, phrase.split())) + r"(?!\w)"
        found = re.finditer(pattern, joined, re.IGNORECASE) if phrase.strip() else ()
        ranks = sorted({i for match in found for i in owner[slice(*match.span())]})
        if not ranks:
            raise ValueError(f"{phrase!r} is not in the text {joined!r}.")
        return text.positions[ranks]

    # --- values ----------------------------------------------------------------------------------

    def coverage(self, stream: str, mask: Tensor) -> Tensor:
        """Mean of a mask over each token's box and frames, weighted exactly by area: (t * h * w,) in [0, 1].

        The mask is (T, H, W) or (T, 1, H, W) in [0, 1] and has the size of the stream's source, or else
        ValueError.
        """
        video = self._video(stream)
        frames, height, width = video.size
        if tuple(mask.shape) not in (video.size, (frames, 1, height, width)):
            raise ValueError(
                f"the mask is {tuple(mask.shape)}, the source of {stream!r} {video.size} (T, H, W)."
            )
        mask = mask.reshape(video.size).float()
        if not 0 <= mask.min() <= mask.max() <= 1:
            raise ValueError(f"a mask is in [0, 1], this one in [{mask.min():g}, {mask.max():g}].")
        rows, columns = (_shares(e, n).to(mask) for e, n in zip(video.edges, (height, width), strict=True))
        per_frame = rows @ (mask @ columns.T)  # (T, h, w)
        covered = torch.stack([per_frame[list(f)].mean(0) for f in video.frames])
        return covered.flatten().clamp(0, 1)  # a sum of shares may be rounded to slightly above one

    def to_latent(self, values: Tensor, stream: str) -> Tensor:
        """Values (..., t * h * w) of a stream on its grid: (..., t, h, w)."""
        video = self._video(stream)
        if values.shape[-1] != len(video.positions):
            raise ValueError(f"{stream!r} has {len(video.positions)} tokens, not {values.shape[-1]}.")
        return values.unflatten(-1, video.cells)

    def to_video(self, values: Tensor, stream: str) -> Tensor:
        """Values (..., t * h * w) of a stream, painted onto source frames and pixels: (..., T, H, W).

        A pixel takes the value of the token at its centre. A frame that the model does not see takes the
        values of the nearest frame that it sees.
        """
        video = self._video(stream)
        frames, *pixels = video.size
        shown = torch.tensor([(f, slot) for slot, held in enumerate(video.frames) for f in held])
        nearest = (torch.arange(frames)[:, None] - shown[:, 0]).abs().argmin(1)
        painted = self.to_latent(values, stream).index_select(-3, shown[nearest, 1].to(values.device))
        for dim, edges, n in zip((-2, -1), video.edges, pixels, strict=True):
            centres = torch.arange(n, dtype=torch.float64) + 0.5
            cells = torch.bucketize(centres, torch.tensor(edges, dtype=torch.float64), right=True) - 1
            painted = painted.index_select(dim, cells.to(values.device))
        return painted

    def groups(
        self, by: Literal["stream", "frame"] | Mapping[str, Tensor] = "stream"
    ) -> tuple[Tensor, tuple[str, ...]]:
        """Tokens sorted into named groups.

        Args:
            by: "stream"; "frame": each slot of each video (``"video[0]"``, ``"video[1]"``, ...) and
                each text stream; or tokens by name, such as
                ``{"inside": tokens[coverage > 0.5], "ball": grid.words("ball")}``.

        Returns:
            Labels (S,), long, -1 for a token in no group; and the names of the groups 0, 1, ...

        Raises:
            ValueError: groups overlap or reach beyond the sequence.
        """
        if by == "stream":
            by = {s.name: s.positions for s in self.streams}
        elif by == "frame":
            by = {name: tokens for s in self.streams for name, tokens in s.parts().items()}
        elif not isinstance(by, Mapping):
            raise ValueError(f"groups are by stream, by frame or a dictionary of tokens, not {by!r}.")
        labels = torch.full((len(self),), -1)
        for label, (name, positions) in enumerate(by.items()):
            if len(positions) and not 0 <= int(positions.min()) <= int(positions.max()) < len(self):
                raise ValueError(f"group {name!r} reaches beyond the tokens 0..{len(self) - 1}.")
            if (labels[positions] >= 0).any():
                raise ValueError(f"group {name!r} shares tokens with a group before it.")
            labels[positions] = label
        return labels, tuple(by)


# --- small helpers -------------------------------------------------------------------------------


def merge_frames(frames: Sequence[tuple[int, ...]], n: int) -> tuple[tuple[int, ...], ...]:
    """Join n neighbours; a repeated frame counts once."""
    return tuple(tuple(dict.fromkeys(sum(frames[i : i + n], ()))) for i in range(0, len(frames), n))


def join_words(words: Sequence[str], separator: str) -> tuple[str, list[int]]:
    """The text, and for each of its characters the number of its word."""
    owner = [i for i, word in enumerate(words) for _ in word + separator]
    return separator.join(words), owner


def _shares(edges: list[float], pixels: int) -> Tensor:
    """(cells, pixels): the share of each pixel in the mean over each cell; rows add up to one."""
    edge = torch.tensor(edges, dtype=torch.float64)[:, None]
    pixel = torch.arange(pixels, dtype=torch.float64)
    overlap = (torch.minimum(edge[1:], pixel + 1) - torch.maximum(edge[:-1], pixel)).clamp_min(0)
    return overlap / overlap.sum(1, keepdim=True)
