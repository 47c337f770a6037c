"""Read video files, and refuse the ones that would quietly spoil hours of work.

A frame is a uint8 tensor ``(3, H, W)`` in RGB order, or ``(1, H, W)`` for masks and mattes. The
models count frames and know no clock, so a file must be whole and have a constant frame rate.
"""

from __future__ import annotations

import shlex
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from numbers import Real
from pathlib import Path

import av
import torch
from av.stream import Disposition
from torch import Tensor

from vera_lite.errors import UserError

__all__ = [
    "VideoInfo",
    "VideoReader",
    "check_video",
    "frame_rate",
    "read_grey",
    "read_video",
]

_MILLISECOND = Fraction(1, 1000)


@dataclass(frozen=True)
class VideoInfo:
    """What a video file holds.

    Attributes:
        width: pixels, as displayed (after rotation).
        height: pixels, as displayed (after rotation).
        fps: frames per second.
        frames: how many frames the file holds.
        rotation: degrees that the reader turns every frame counter-clockwise: 0, 90, 180 or 270.
        has_alpha: whether the frames have an alpha channel.
    """

    width: int
    height: int
    fps: Fraction
    frames: int
    rotation: int = 0
    has_alpha: bool = False

    @property
    def duration(self) -> float:
        """Length in seconds."""
        return float(self.frames / self.fps)


def check_video(path: str | Path) -> VideoInfo:
    """Check a video from its packets' timestamps; only the first frame is decoded.

    Quick enough to run before hours of work. A file cut short is recognised where the container
    announces its length or the cut goes through a packet; the dump of a live stream that ends
    between two packets looks whole. What only decoding shows, ``VideoReader`` finds: a change of
    the frame size, and damage inside packets, as far as the decoder notices it.

    Raises:
        UserError: the file is missing, a folder, no video, empty, cut short, or has a variable
            frame rate.
    """
    path = Path(path)
    times, packets, first, others_end, corrupt = [], 0, None, Fraction(0), False
    with _open_video(path) as (container, stream):
        for packet in container.demux():
            if packet.stream_index != stream.index:
                if packet.pts is not None:
                    packet_end = (packet.pts + (packet.duration or 0)) * packet.time_base
                    others_end = max(others_end, packet_end)
                continue
            if first is None:
                first = next(iter(packet.decode()), None)
            if not packet.size:  # the empty packet that ends the stream
                continue
            packets += 1
            corrupt |= packet.is_corrupt
            if packet.pts is None:
                raise UserError(
                    f"{path} holds no timestamps; put it into a container with: "
                    f"{_ffmpeg(path, '-r 24 -i', '')}"
                )
            if not packet.is_discard:  # trimmed away by an edit list
                times.append(packet.pts)
        # The index, not stream.frames, which still counts what an edit list trims away.
        indexed, tick = len(stream.index_entries), stream.time_base
        announced_end, slack = _announced_end(container, stream)
        rates = (stream.average_rate, stream.guessed_rate)
        has_alpha = _alpha_decoder(stream) is not None

    if not times or first is None:
        raise UserError(f"{path} holds no frames: it is empty or cut short; export it again.")
    times.sort()  # packets come in decoding order
    fps = _frame_rate(times, tick, rates)
    end = times[-1] * tick + 1 / fps
    if slack:  # the announced end is that of the longest stream
        end = max(end, others_end)
    # Three quarters: one missing frame is noticed, and rounded or sloppy ends are not.
    is_short = end < announced_end - slack - Fraction(3, 4) / fps
    if corrupt or packets < indexed or is_short:
        raise _damaged(path)
    _check_constant_rate(path, times, tick)

    rotation = _rotation(path, first)
    width, height = first.width, first.height
    if rotation % 180:
        width, height = height, width
    has_alpha = has_alpha or any(component.is_alpha for component in first.format.components)
    return VideoInfo(width, height, fps, len(times), rotation, has_alpha)


class VideoReader:
    """The frames of a video file, one at a time, so that a long file never fills the memory.

    Iterating gives uint8 tensors ``(3, H, W)`` in RGB order, upright as a player shows them, and
    may be done again from the start. ``len(reader)`` is the number of frames, and ``reader.info``
    describes the file; both are known before the first frame is decoded.

    Args:
        path: the file.
        alpha: read frames ``(4, H, W)``, with the alpha channel as the last one (FFV1, ProRes 4444,
            QuickTime Animation, VP8, VP9 and others can hold one).

    Raises:
        UserError: on opening, as ``check_video``, and if there is no alpha to read; while iterating,
            as soon as a frame is damaged or its size changes, and at the end when frames are missing.
    """

    def __init__(self, path: str | Path, alpha: bool = False):
        self.path, self.alpha = Path(path), alpha
        self.info = check_video(self.path)
        if alpha and not self.info.has_alpha:
            raise UserError(f"{path} has no alpha channel; give a video that has one, or a mask.")

    def __len__(self) -> int:
        return self.info.frames

    def __iter__(self) -> Iterator[Tensor]:
        return _decode(self.path, self.info, "rgba" if self.alpha else "rgb24")


def read_video(path: str | Path) -> tuple[Tensor, VideoInfo]:
    """Read a colour video whole.

    Returns:
        uint8 frames ``(T, 3, H, W)`` in RGB order, and the description of the whole file.

    Raises:
        UserError: as ``VideoReader``.
    """
    info = check_video(path)
    return _gather(_decode(Path(path), info, "rgb24"), info, 3), info


def read_grey(path: str | Path) -> Tensor:
    """Read a video of masks or mattes; colour is turned into its luma.

    Returns:
        uint8 frames ``(T, 1, H, W)``.

    Raises:
        UserError: as ``VideoReader``.
    """
    info = check_video(path)
    return _gather(_decode(Path(path), info, "gray"), info, 1)


def frame_rate(fps: float | Fraction) -> Fraction:
    """The exact frame rate meant by ``fps``: 29.97002997... is 30000/1001.

    Raises:
        UserError: not a number from 0.01 to 240.
    """
    # Matroska counts milliseconds: far above 240 its frames could not be told apart.
    if not isinstance(fps, Real) or not 0.01 <= fps <= 240:  # also catches nan
        raise UserError(f"The frame rate is {fps!r}; it must be a number from 0.01 to 240.")
    return Fraction(float(fps)).limit_denominator(1001)


@contextmanager
def _open_video(path: Path) -> Iterator[tuple[av.container.InputContainer, av.VideoStream]]:
    """Open the file and its video stream; whatever FFmpeg cannot read becomes a UserError."""
    if path.is_dir():
        raise UserError(f"{path} is a folder; give the path of a video file.")
    if not path.exists():
        raise UserError(f"There is no file {path}; check the path.")
    try:
        # An absolute path cannot be taken for a URL, and FFmpeg lets no file lead to the network.
        with av.open(str(path.absolute()), metadata_errors="replace") as container:
            name = container.format.name
            if name in ("tty", "image2") or name.endswith("_pipe"):
                raise UserError(f"{path} is a picture or a text; give a video file.")
            stream = container.streams.best("video")
            if (
                stream is None
                or stream.codec_context is None
                or stream.disposition & Disposition.attached_pic  # a song's cover
            ):
                raise UserError(
                    f"{path} has no video that can be decoded: it is only sound, cut short or of "
                    "an unknown kind; give another file."
                )
            yield container, stream
    except av.FFmpegError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror}): it is damaged, cut short or not a video; "
            "copy or export it again."
        ) from error


def _announced_end(
    container: av.container.InputContainer, stream: av.VideoStream
) -> tuple[Fraction, Fraction]:
    """When the container says that the pictures end, and by how much it may overstate, in seconds.

    Only Matroska and WebM need it, as they index no frames; for others, and for live recordings,
    which announce nothing, the end is 0.
    """
    if "matroska" not in container.format.name:
        return Fraction(0), Fraction(0)
    try:
        hours, minutes, seconds = stream.metadata["DURATION"].split(":")
        return int(hours) * 3600 + int(minutes) * 60 + Fraction(seconds), Fraction(0)
    except (KeyError, ValueError):
        # All streams share the container's length, and sound is padded to whole blocks.
        slack = Fraction(1, 2) if len(container.streams) > 1 else Fraction(0)
        return Fraction(container.duration or 0, av.time_base), slack


def _decode(path: Path, info: VideoInfo, pixel_format: str) -> Iterator[Tensor]:
    """The frames of a checked file: uint8 ``(C, H, W)``, C as ``pixel_format`` has it."""
    count, size = 0, None
    with _open_video(path) as (container, stream):
        stream.thread_type = "AUTO"  # decode several frames at once
        frames, decoder = container.decode(stream), _alpha_decoder(stream)
        if pixel_format == "rgba" and decoder is not None:
            context = av.CodecContext.create(decoder, "r")
            frames = (f for packet in container.demux(stream) for f in context.decode(packet))
        for frame in frames:
            if frame.is_corrupt or count == info.frames:
                raise _damaged(path)
            size = size or (frame.width, frame.height)
            if (frame.width, frame.height) != size:
                raise UserError(
                    f"{path} changes its size at frame {count} from {size[0]}x{size[1]} to "
                    f"{frame.width}x{frame.height}; give it one size with: "
                    f"{_ffmpeg(path, '-i', f'-vf scale={size[0]}:{size[1]}')}"
                )
            pixels = torch.from_numpy(frame.to_ndarray(format=pixel_format))
            pixels = pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1)
            yield pixels.rot90(info.rotation // 90, (1, 2)).contiguous()
            count += 1
    if count < info.frames:
        raise _damaged(path)


def _alpha_decoder(stream: av.VideoStream) -> str | None:
    """For VP8 and VP9 with alpha, the decoder that gives it: FFmpeg's own drops it without a word."""
    decoder = {"vp8": "libvpx", "vp9": "libvpx-vp9"}.get(stream.codec_context.name)
    has_alpha = stream.metadata.get("alpha_mode") == "1" and decoder in av.codecs_available
    return decoder if has_alpha else None


def _gather(frames: Iterator[Tensor], info: VideoInfo, channels: int) -> Tensor:
    """Collect frames into one tensor; stacking a list would take the memory twice."""
    video = torch.empty((info.frames, channels, info.height, info.width), dtype=torch.uint8)
    for index, frame in enumerate(frames):
        video[index] = frame
    return video


def _check_constant_rate(path: Path, times: list[int], tick: Fraction) -> None:
    """Refuse sorted timestamps, counted in ``tick`` seconds, that no constant rate explains.

    Rounding to ticks moves a timestamp by less than a tick: 30 fps in milliseconds is 33, 33, 34.
    A file that came through Matroska on its way keeps that rounding, whatever its ticks are now.
    No allowance may hide a dropped frame, though, where ticks are as coarse as frames.
    """
    if len(times) < 2:
        return
    gaps = [after - before for before, after in zip(times, times[1:], strict=False)]
    mean_gap = Fraction(times[-1] - times[0], len(gaps))
    allowed = min(1 + _MILLISECOND / tick, Fraction(min(gaps), 2))
    drift = max(abs(time - times[0] - i * mean_gap) for i, time in enumerate(times))
    if min(gaps) <= 0 or max(gaps) - min(gaps) > allowed or drift > allowed:
        fps = max(round(1 / (mean_gap * tick)), 1) if mean_gap else 24
        raise UserError(
            f"{path} has a variable frame rate (frames last {_milliseconds(min(gaps) * tick)} to "
            f"{_milliseconds(max(gaps) * tick)} ms); make it constant with: "
            f"{_ffmpeg(path, '-i', f'-vf fps={fps}')}"
        )


def _frame_rate(times: list[int], tick: Fraction, announced: tuple[Fraction | None, ...]) -> Fraction:
    """The simplest frame rate that explains the timestamps; an announced one may be wrong."""
    steps, span = len(times) - 1, (times[-1] - times[0]) * tick
    if not span:
        return next(filter(None, announced), Fraction(1))
    for fps in (*announced, Fraction(round(steps / span))):
        if fps and abs(steps / fps - span) <= tick + _MILLISECOND:
            return fps
    return (steps / span).limit_denominator(1_000_000)


def _rotation(path: Path, frame: av.VideoFrame) -> int:
    """Counter-clockwise degrees that show the frame upright, from the display matrix."""
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is not None:
        a, b, _, c, d = struct.unpack("=5i", bytes(matrix)[:20])
        if a * d - b * c < 0:  # an angle cannot say this
            raise UserError(
                f"{path} is to be shown mirrored, which is not supported; re-encode it with: "
                f"{_ffmpeg(path, '-i', '')}"
            )
    return round(frame.rotation / 90) % 4 * 90


def _damaged(path: Path) -> UserError:
    return UserError(
        f"{path} is cut short or damaged: it does not hold the frames that it announces; copy or "
        "export it again."
    )


def _ffmpeg(path: Path, before: str, after: str) -> str:
    """A command that converts the file, to be pasted into a shell."""
    parts = ("ffmpeg", before, shlex.quote(str(path)), after, "converted.mp4")
    return " ".join(filter(None, parts))


def _milliseconds(seconds: Fraction) -> str:
    return f"{float(seconds * 1000):.4g}"
