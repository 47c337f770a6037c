"""Which token is where: the one map between the tokens of a sequence and pixels or words.

A transformer sees a flat sequence. Here it is cut into streams: a video (or image) stream is a
(t, h, w) grid of tokens, each of which covers a box of pixels in one or more source frames; a text
stream has one piece of text a token. A stream need not be contiguous: Qwen3-VL writes a timestamp
between two temporal slots of one video, and vision towers order patches by merge blocks.

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

from vera_lite.errors import UserError


@dataclass(frozen=True)
class Token:
    """What one token stands for.

    Attributes:
        stream: name of its stream.
        word: its piece of text, or None.
        frames: source frames that it covers, or that a timestamp speaks of; () for other text.
        box: (top, left, bottom, right) in source pixels, or None. Not whole where a processor
            resized the clip; its resampling filter also reaches a little beyond the box.
        cell: (t, y, x) in the stream's grid of tokens, or None.
        position: ``cell`` plus the stream's rotary offset, or None.
    """

    stream: str
    word: str | None = None
    frames: tuple[int, ...] = ()
    box: tuple[float, float, float, float] | None = None
    cell: tuple[int, int, int] | None = None
    position: tuple[int, int, int] | None = None


@dataclass(frozen=True, eq=False)
class VideoStream:
    """A grid of tokens that tiles the frames of a video or image evenly.

    Attributes:
        name: of the stream.
        positions: (t * h * w,) place of each token in the sequence, in (t, h, w) order.
        frames: source frames that each of the t slots covers.
        grid: (h, w) tokens of a slot.
        size: (T, H, W) frames and pixels of the source.
        offset: (t, h, w) added to the rotary positions.
    """

    name: str
    positions: Tensor
    frames: tuple[tuple[int, ...], ...]
    grid: tuple[int, int]
    size: tuple[int, int, int]
    offset: tuple[int, int, int] = (0, 0, 0)

    @property
    def cells(self) -> tuple[int, int, int]:
        """Tokens along (t, h, w)."""
        return (len(self.frames), *self.grid)

    @cached_property
    def edges(self) -> tuple[list[float], list[float]]:
        """Where rows and columns of tokens begin and end, in pixels."""
        return tuple(
            [i * pixels / cells for i in range(cells + 1)]
            for pixels, cells in zip(self.size[1:], self.grid, strict=True)
        )

    def token(self, rank: int) -> Token:
        """The ``rank``-th token in (t, h, w) order."""
        _, h, w = self.cells
        t, y, x = cell = (rank // (h * w), rank // w % h, rank % w)
        rows, columns = self.edges
        box = (rows[y], columns[x], rows[y + 1], columns[x + 1])
        position = tuple(c + o for c, o in zip(cell, self.offset, strict=True))
        return Token(self.name, frames=self.frames[t], box=box, cell=cell, position=position)

    def parts(self) -> dict[str, Tensor]:
        """Tokens of each slot, named ``video[0]``, ``video[1]``, ..."""
        return {f"{self.name}[{t}]": p for t, p in enumerate(self.positions.view(len(self.frames), -1))}


@dataclass(frozen=True, eq=False)
class TextStream:
    """Tokens that are pieces of text.

    Attributes:
        name: of the stream.
        positions: (N,) place of each token in the sequence.
        words: the piece of text of each token.
        separator: what stands between two pieces: " " for whole words, "" for a tokenizer's pieces,
            which carry their own spaces.
        frames: source frames that each token speaks of (timestamps); empty for other text.
    """

    name: str
    positions: Tensor
    words: tuple[str, ...]
    separator: str = " "
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

    In cross-attention queries and keys are two sequences, and have a grid each.

    Attributes:
        streams: video and text streams, in any order.

    Raises:
        UserError: there is no stream, names repeat, a stream's lengths disagree, or the streams do not
            cover every token once.
    """

    streams: tuple[VideoStream | TextStream, ...]

    def __post_init__(self):
        names = [s.name for s in self.streams]
        if not names or len(set(names)) < len(names):
            raise UserError(f"a grid needs one or more streams of different names, got {names}.")
        for s in self.streams:
            tokens = math.prod(s.cells) if isinstance(s, VideoStream) else len(s.words)
            if len(s.positions) != tokens:
                raise UserError(f"stream {s.name!r} has {tokens} tokens but {len(s.positions)} positions.")
        positions = torch.cat([s.positions for s in self.streams])
        if not torch.equal(positions.sort().values, torch.arange(len(positions))):
            raise UserError(f"the streams must cover each of the tokens 0..{len(positions) - 1} once.")

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
        extended_rope: bool = False,
    ) -> "TokenGrid":
        """Video streams in a row: Wan's self-attention, or the branches of joint attention.

        Latent frame 0 holds frame 0 alone, latent frame j the frames 4 j - 3 .. 4 j.

        Args:
            frames: 1 + k * temporal_stride.
            height, width: of the source, in pixels.
            streams: names, in the order of the sequence.
            temporal_stride, spatial_stride: of the codec.
            patch: (t, h, w) latent cells in a token.
            extended_rope: ERoPE, as GenCompositor's paper has it (arXiv 2509.02460): each stream's rotary
                rows continue where those of the stream before end. Otherwise positions are shared.

        Raises:
            UserError: the clip does not fit strides and patches.
        """
        latents = _latent_frames(frames, temporal_stride)
        if len(latents) % patch[0]:
            raise UserError(f"{len(latents)} latent frames do not divide into patches of {patch[0]}.")
        slots = _merge(latents, patch[0])
        size = (frames, height, width)
        return cls(_in_a_row(streams, 0, slots, size, spatial_stride, patch[1:], extended_rope))

    @classmethod
    def cogvideox(
        cls,
        frames: int,
        height: int,
        width: int,
        words: Sequence[str],
        streams: Sequence[str] = ("video",),
        *,
        temporal_stride: int = 4,
        spatial_stride: int = 8,
        patch_size: int = 2,
        patch_size_t: int | None = None,
        extended_rope: bool = False,
        separator: str = " ",
    ) -> "TokenGrid":
        """CogVideoX: text first, then one video stream or, in GenCompositor, two.

        CogVideoX 1.5 (``patch_size_t`` = 2) fills an odd number of latent frames up at the front; the
        filling is cut off before decoding, so the first token of each place then covers frame 0 only.

        Args:
            words: one piece of text a token, padding included.
            patch_size, patch_size_t: as in the transformer's config.
            separator: see :meth:`text`.
            Others: see :meth:`wan`.

        Raises:
            UserError: the clip does not fit strides and patches.
        """
        latents, patch_t = _latent_frames(frames, temporal_stride), patch_size_t or 1
        slots = _merge([()] * (-len(latents) % patch_t) + latents, patch_t)
        size, patch = (frames, height, width), (patch_size, patch_size)
        videos = _in_a_row(streams, len(words), slots, size, spatial_stride, patch, extended_rope)
        return cls((TextStream("text", torch.arange(len(words)), tuple(words), separator), *videos))

    @classmethod
    def text(cls, words: Sequence[str], separator: str = " ") -> "TokenGrid":
        """Text alone, such as the keys of Wan's cross-attention.

        Args:
            words: one piece of text a token. Of T5's tokenizers:
                ``[piece.replace("\u2581", " ") for piece in tokenizer.convert_ids_to_tokens(ids)]``.
            separator: what stands between pieces: " ", or "" if they carry their own spaces, as T5's.
        """
        return cls((TextStream("text", torch.arange(len(words)), tuple(words), separator),))

    @classmethod
    def qwen_vl(
        cls,
        inputs: Mapping,
        processor,
        video_sizes: Sequence[tuple[int, int]] = (),
        image_sizes: Sequence[tuple[int, int]] = (),
    ) -> "TokenGrid":
        """The language sequence of Qwen2.5-VL, Qwen3-VL or GLM-4.6V.

        A video's tokens carry one name however many pieces the processor cut it into. Streams are
        "text"; "video" or, where there are several, "video 0", "video 1"; "image" likewise; and
        "video timestamps": the text ``<0.4 seconds>`` (GLM: ``0.4 seconds``) of each temporal slot.

        Args:
            inputs: what ``processor(..., return_metadata=True)`` returned, for one prompt. For
                generated tokens too, lengthen ``input_ids`` and, with zeros, ``mm_token_type_ids``.
            processor: with its tokenizer.
            video_sizes, image_sizes: (height, width) of each in source pixels, as they stand in the
                prompt.

        Raises:
            UserError: inputs are incomplete, hold several prompts or do not fit the sizes given.
        """
        ids, kinds = (_one_prompt(inputs, key) for key in ("input_ids", "mm_token_type_ids"))
        # mm_token_type_ids: 0 text, 1 image, 2 video.
        videos = _vision_streams("video", inputs, processor, video_sizes, (kinds == 2).nonzero()[:, 0])
        images = _vision_streams("image", inputs, processor, image_sizes, (kinds == 1).nonzero()[:, 0])
        words = [
            processor.tokenizer.decode([i]) if kind == 0 else _MARKS[kind]
            for i, kind in zip(ids.tolist(), kinds.tolist(), strict=True)
        ]
        stamps = _timestamps(words, videos)
        rest = [i for i, kind in enumerate(kinds.tolist()) if kind == 0 and all(i not in s for s in stamps)]
        # Most tokenizers' pieces carry their own spaces; those of whole words do not.
        whole = processor.tokenizer.decode(ids[rest].tolist()) == " ".join(words[i] for i in rest)
        separator = " " if whole else ""
        texts = []
        if rest:
            texts.append(TextStream("text", torch.tensor(rest), tuple(words[i] for i in rest), separator))
        for video, stamp in zip(videos, stamps, strict=True):
            if stamp:
                pieces, frames = tuple(words[i] for i in stamp), tuple(stamp.values())
                name, positions = f"{video.name} timestamps", torch.tensor(list(stamp))
                texts.append(TextStream(name, positions, pieces, separator, frames))
        return cls((*texts, *videos, *images))

    @classmethod
    def vision_tower(
        cls,
        inputs: Mapping,
        processor,
        video_sizes: Sequence[tuple[int, int]] = (),
        image_sizes: Sequence[tuple[int, int]] = (),
        window_size: int | None = None,
    ) -> "TokenGrid":
        """The patches of the vision tower of the same models, before 2 x 2 of them are merged.

        The tower attends within one temporal slot (Qwen2.5-VL's windowed layers: within one window),
        one call after the other; the calls of a layer, side by side, have the order of this grid.

        Args:
            inputs, processor: see :meth:`qwen_vl`.
            video_sizes or image_sizes: (height, width) of each in source pixels. Videos and images
                go through the tower in calls of their own, so give one of the two.
            window_size: pixels; Qwen2.5-VL's ``vision_config.window_size``. Its tower sorts patches
                by window; those of the other models do not.

        Raises:
            UserError: inputs are incomplete or do not fit the sizes given.
        """
        if bool(video_sizes) == bool(image_sizes):
            raise UserError("a vision tower sees videos or images: give video_sizes or image_sizes.")
        kind, sizes = ("video", video_sizes) if video_sizes else ("image", image_sizes)
        return cls(tuple(_vision_streams(kind, inputs, processor, sizes, None, window_size)))

    # --- tokens to places and words --------------------------------------------------------------

    @cached_property
    def _places(self) -> list[tuple[VideoStream | TextStream, int]]:
        places = [None] * sum(len(s.positions) for s in self.streams)
        for s in self.streams:
            for rank, position in enumerate(s.positions.tolist()):
                places[position] = (s, rank)
        return places

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[Token]:
        return (stream.token(rank) for stream, rank in self._places)

    def __getitem__(self, i: int) -> Token:
        """What token ``i`` stands for.

        Raises:
            UserError: not in 0 .. S - 1.
        """
        if not 0 <= i < len(self):
            raise UserError(f"token {i} is out of range: the sequence has tokens 0..{len(self) - 1}.")
        stream, rank = self._places[i]
        return stream.token(rank)

    def stream(self, name: str) -> VideoStream | TextStream:
        """The stream of that name; of a video, ``.frames`` lists the frames that each slot covers."""
        for s in self.streams:
            if s.name == name:
                return s
        raise UserError(f"no stream {name!r}: there are {', '.join(s.name for s in self.streams)}.")

    def _video(self, name: str) -> VideoStream:
        video = self.stream(name)
        if not isinstance(video, VideoStream):
            raise UserError(f"stream {name!r} is text; this needs a video or image.")
        return video

    # --- places and words to tokens --------------------------------------------------------------

    def tokens(self, stream: str) -> Tensor:
        """(N,) tokens of a stream, long; those of a video in (t, h, w) order."""
        return self.stream(stream).positions

    def index(self, stream: str, frame: int, y: float, x: float) -> int:
        """The token that covers a point of a source frame (the first, should two slots hold the frame).

        Args:
            stream: a video's name.
            frame: number of the frame in the source.
            y, x: in source pixels; the centre of the top left pixel is (0.5, 0.5).

        Raises:
            UserError: the point is outside, or the model was not shown this frame.
        """
        video = self._video(stream)
        _, height, width = video.size
        if not (0 <= y < height and 0 <= x < width):
            raise UserError(f"point ({y}, {x}) is outside: y is in [0, {height}) and x in [0, {width}).")
        slot = next((t for t, frames in enumerate(video.frames) if frame in frames), None)
        if slot is None:
            raise UserError(f"frame {frame} is not in {stream!r}, which holds {_listed(video.frames)}.")
        row, column = (bisect.bisect(e, p) - 1 for e, p in zip(video.edges, (y, x), strict=True))
        h, w = video.grid
        return int(video.positions[(slot * h + row) * w + column])

    def words(self, phrase: str, stream: str = "text") -> Tensor:
        """(N,) tokens of every occurrence of a word or phrase; case does not matter.

        Raises:
            UserError: the text does not contain it.
        """
        text = self.stream(stream)
        if not isinstance(text, TextStream):
            raise UserError(f"stream {stream!r} is not text; it has no words.")
        joined, owner = _join(text.words, text.separator)
        pattern = r"(?<!\w)" + r"\s+".join(map(re.escape, phrase.split())) + r"(?!\w)"
        found = re.finditer(pattern, joined, re.IGNORECASE) if phrase.strip() else ()
        ranks = sorted({i for match in found for i in owner[slice(*match.span())]})
        if not ranks:
            raise UserError(f"{phrase!r} is not in the text {joined!r}.")
        return text.positions[ranks]

    # --- values ----------------------------------------------------------------------------------

    def coverage(self, stream: str, mask: Tensor) -> Tensor:
        """Mean of a mask over each token's box and frames, exactly weighted by area.

        Args:
            stream: a video's name.
            mask: (T, H, W) or (T, 1, H, W) in [0, 1], at the size of the source.

        Returns:
            (t * h * w,) float32 in [0, 1].

        Raises:
            UserError: the mask is not of the source's size, or not in [0, 1].
        """
        video = self._video(stream)
        frames, height, width = video.size
        if tuple(mask.shape) not in (video.size, (frames, 1, height, width)):
            raise UserError(
                f"the mask is {tuple(mask.shape)}, the source of {stream!r} {video.size} (T, H, W)."
            )
        mask = mask.reshape(video.size).float()
        if not 0 <= mask.min() <= mask.max() <= 1:
            raise UserError(f"a mask is in [0, 1], this one in [{mask.min():g}, {mask.max():g}].")
        rows, columns = (_shares(e, n).to(mask) for e, n in zip(video.edges, (height, width), strict=True))
        per_frame = rows @ (mask @ columns.T)  # (T, h, w)
        covered = torch.stack([per_frame[list(f)].mean(0) for f in video.frames])
        return covered.flatten().clamp(0, 1)  # rounding may lift a sum of shares a hair above one

    def to_latent(self, values: Tensor, stream: str) -> Tensor:
        """Values (..., t * h * w) of a stream on its grid: (..., t, h, w)."""
        video = self._video(stream)
        if values.shape[-1] != len(video.positions):
            raise UserError(f"{stream!r} has {len(video.positions)} tokens, not {values.shape[-1]}.")
        return values.unflatten(-1, video.cells)

    def to_video(self, values: Tensor, stream: str) -> Tensor:
        """Values (..., t * h * w) of a stream painted onto source frames and pixels: (..., T, H, W).

        A pixel takes the value of the token at its centre; a frame that the model was not shown takes
        the values of the nearest one that it was.
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
            UserError: groups overlap or reach beyond the sequence.
        """
        if by == "stream":
            by = {s.name: s.positions for s in self.streams}
        elif by == "frame":
            by = {name: tokens for s in self.streams for name, tokens in s.parts().items()}
        elif not isinstance(by, Mapping):
            raise UserError(f"groups are by stream, by frame or a dictionary of tokens, not {by!r}.")
        labels = torch.full((len(self),), -1)
        for label, (name, positions) in enumerate(by.items()):
            if len(positions) and not 0 <= int(positions.min()) <= int(positions.max()) < len(self):
                raise UserError(f"group {name!r} reaches beyond the tokens 0..{len(self) - 1}.")
            if (labels[positions] >= 0).any():
                raise UserError(f"group {name!r} shares tokens with a group before it.")
            labels[positions] = label
        return labels, tuple(by)


# --- layouts -------------------------------------------------------------------------------------


def _latent_frames(frames: int, stride: int) -> list[tuple[int, ...]]:
    """Source frames of each latent frame of a codec that is causal in time."""
    if frames < 1 or (frames - 1) % stride:
        raise UserError(f"a clip has 1 + k * {stride} frames, not {frames}.")
    return [(0,), *(tuple(range(f, f + stride)) for f in range(1, frames, stride))]


def _merge(frames: Sequence[tuple[int, ...]], n: int) -> tuple[tuple[int, ...], ...]:
    """Join n neighbours; a frame that is repeated counts once."""
    return tuple(tuple(dict.fromkeys(sum(frames[i : i + n], ()))) for i in range(0, len(frames), n))


def _in_a_row(names, start, slots, size, stride, patch, extend) -> tuple[VideoStream, ...]:
    """Streams of equal size from token ``start`` on."""
    rows, columns = (stride * p for p in patch)
    if size[1] % rows or size[2] % columns or min(size) < 1:
        raise UserError(f"frames of {size[1]} x {size[2]} do not divide into tokens of {rows} x {columns}.")
    h, w = size[1] // rows, size[2] // columns
    tokens = torch.arange(len(slots) * h * w)
    return tuple(
        VideoStream(name, start + i * len(tokens) + tokens, slots, (h, w), size, (0, i * h * extend, 0))
        for i, name in enumerate(names)
    )


# --- vision language models ----------------------------------------------------------------------

_MARKS = {1: "\1", 2: "\2"}  # stand for an image's and a video's token in the joined text

# Qwen3-VL: <0.4 seconds><|vision_start|>VIDEO<|vision_end|>
# GLM-4.6V: <|begin_of_image|>VIDEO<|end_of_image|>0.4 seconds
# Pieces of a tokenizer of whole words carry no spaces.
_SLOT = re.compile(
    "(<[0-9.]+ ?seconds>)?(?:<[|]vision_start[|]>)?(\2+)(?:<[|]end_of_image[|]>([0-9.]+ ?seconds))?"
)


def _one_prompt(inputs: Mapping, key: str) -> Tensor:
    if key not in inputs:
        raise UserError(f"the inputs have no {key}: give all that the processor returned.")
    values = torch.as_tensor(inputs[key])
    if values.dim() != 2 or len(values) != 1:
        raise UserError(f"{key} of one prompt are (1, S), not {tuple(values.shape)}.")
    return values[0].cpu()


def _join(words: Sequence[str], separator: str) -> tuple[str, list[int]]:
    """The text, and for each of its characters the number of the word that it belongs to."""
    owner = [i for i, word in enumerate(words) for _ in word + separator]
    return separator.join(words), owner


def _timestamps(words: list[str], videos: list[VideoStream]) -> list[dict[int, tuple[int, ...]]]:
    """For each video its timestamp tokens, with the frames that they speak of."""
    slot_of = {
        position: (video, frames)
        for video, stream in enumerate(videos)
        for slot, frames in zip(stream.positions.view(len(stream.frames), -1), stream.frames, strict=True)
        for position in slot.tolist()
    }
    stamps = [{} for _ in videos]
    joined, owner = _join(words, "")
    for match in _SLOT.finditer(joined):
        video, frames = slot_of[owner[match.start(2)]]
        for group in (1, 3):
            if match[group]:
                stamps[video].update(dict.fromkeys(owner[slice(*match.span(group))], frames))
    return stamps


def _vision_streams(kind, inputs, processor, sizes, positions, window_size=None) -> list[VideoStream]:
    """Videos or images of a processor's output.

    Args:
        kind: "video" or "image".
        sizes: source (height, width) of each.
        positions: of their tokens in the language sequence; None for the vision tower's patches.
        window_size: see :meth:`TokenGrid.vision_tower`.
    """
    grids = inputs[f"{kind}_grid_thw"].tolist() if f"{kind}_grid_thw" in inputs else []
    if len(grids) != len(sizes):
        raise UserError(f"the prompt has {len(grids)} {kind}s, but {kind}_sizes has {len(sizes)}.")
    settings = processor.video_processor if kind == "video" else processor.image_processor
    merge = settings.merge_size
    if positions is not None and len(positions) * merge**2 != sum(map(math.prod, grids)):
        raise UserError(f"the prompt's {len(positions)} {kind} tokens do not fit grids {grids}.")
    streams, start = [], 0
    for i, ((t, h, w), (height, width)) in enumerate(zip(grids, sizes, strict=True)):
        frames, length = ((0,),) * t, 1
        if kind == "video":
            frames, length = _sampled_frames(inputs, i, t, settings.temporal_patch_size)
        if positions is None:
            grid = (h, w)
            window = (window_size or 0) // merge // settings.patch_size * merge
            order = start + _tower_order(t, h, w, merge, window)
        else:
            grid = (h // merge, w // merge)
            order = positions[start : start + t * math.prod(grid)]
        name = kind if len(grids) == 1 else f"{kind} {i}"
        streams.append(VideoStream(name, order, frames, grid, (length, height, width)))
        start += len(order)
    return streams


def _sampled_frames(inputs, video, slots, temporal_patch) -> tuple[tuple[tuple[int, ...], ...], int]:
    """Source frames of each slot, the last repeated to fill it; and how many the source has."""
    if "video_metadata" not in inputs:
        raise UserError(
            "which frames were sampled is not known: call the processor with return_metadata=True."
        )
    metadata = inputs["video_metadata"][video]
    indices = metadata.frames_indices
    # None: nothing was sampled, all frames were used.
    indices = range(metadata.total_num_frames) if indices is None else [int(i) for i in indices]
    if math.ceil(len(indices) / temporal_patch) != slots:
        raise UserError(f"{len(indices)} sampled frames do not fill {slots} slots of {temporal_patch}.")
    return _merge([(i,) for i in indices], temporal_patch), metadata.total_num_frames


def _tower_order(t: int, h: int, w: int, merge: int, window: int) -> Tensor:
    """(t * h * w,) place in the tower of each patch, patches counted in (t, h, w) order.

    The tower goes slot by slot, then (Qwen2.5-VL) window by window, then merge block by merge block.
    """
    slot, y, x = (c.flatten() for c in torch.meshgrid(*map(torch.arange, (t, h, w)), indexing="ij"))
    place = torch.zeros_like(slot)
    keys = [slot, y // window, x // window] if window else [slot]
    for key in (*keys, y // merge, x // merge, y, x):
        place = place * (int(key.max()) + 1) + key
    return place.argsort().argsort()


# --- small helpers -------------------------------------------------------------------------------


def _shares(edges: list[float], pixels: int) -> Tensor:
    """(cells, pixels) share of each pixel in the mean over each cell; rows add up to one."""
    edge = torch.tensor(edges, dtype=torch.float64)[:, None]
    pixel = torch.arange(pixels, dtype=torch.float64)
    overlap = (torch.minimum(edge[1:], pixel + 1) - torch.maximum(edge[:-1], pixel)).clamp_min(0)
    return overlap / overlap.sum(1, keepdim=True)


def _listed(frames: tuple[tuple[int, ...], ...]) -> str:
    held = sorted({f for slot in frames for f in slot})
    if held == list(range(held[0], held[-1] + 1)):
        return f"frames {held[0]}..{held[-1]}"
    return f"frames {', '.join(map(str, held))}"
