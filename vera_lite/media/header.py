"""The facts of a video file, checked from its packets before any work.

Nothing here needs torch, so that an unusable file is refused at once. The models count frames and know no
time, so a file must be whole and have a constant frame rate.
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
from statistics import median
from typing import Any

import av
from av.stream import Disposition

from vera_lite.errors import UserError

_MILLISECOND = Fraction(1, 1000)
_RATES = [Fraction(n) for n in (8, 10, 12, 15, 16, 24, 25, 30, 48, 50, 60, 90, 100, 120)]
_RATES += [Fraction(1000 * n, 1001) for n in (24, 30, 48, 60, 120)]
#: The YUV matrices that FFmpeg's scaler knows, by their H.273 code.
MATRICES = {1: "ITU709", 4: "FCC", 5: "ITU601", 6: "ITU601", 7: "SMPTE240M", 9: "BT2020"}
_HDR = {16: "PQ", 18: "HLG"}
_TONE_MAP = '-vf "zscale=t=linear:npl=100,tonemap=hable,zscale=p=bt709:t=bt709:m=bt709:r=tv,format=yuv420p"'


@dataclass(frozen=True)
class Colour:
    """How a file codes its colours, as codes of ITU-T H.273; the default is BT.709.

    Attributes:
        matrix: RGB to YUV; 0: the file holds RGB.
        primaries, transfer: of the colours.
        full_range: black is 0 and white 255, not 16 and 235.
    """

    matrix: int = 1
    primaries: int = 1
    transfer: int = 1
    full_range: bool = False


@dataclass(frozen=True)
class VideoInfo:
    """What a video file holds.

    Attributes:
        width, height: pixels, after rotation.
        fps: frames per second.
        frames: how many frames are read.
        left_out: frames at the end that are not read, because a cut left gaps between them.
        rotation: degrees by which the reader turns every frame counter-clockwise: 0, 90, 180 or 270.
        has_alpha: whether the frames have an alpha channel.
        pixel_aspect: width of a pixel / its height, after rotation.
        colour: how colours are coded. If the file does not say, it is read as players do: BT.709 from 1280
            columns or 577 rows on, else BT.601.
        start: time of the first frame in seconds.
        sound: names of the codecs of all sound tracks.
        notes: how the frames read differ from what a player shows, one sentence each.
    """

    width: int
    height: int
    fps: Fraction
    frames: int
    rotation: int = 0
    has_alpha: bool = False
    pixel_aspect: Fraction = Fraction(1)
    colour: Colour = Colour()
    start: Fraction = Fraction(0)
    left_out: int = 0
    sound: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def duration(self) -> float:
        """Length in seconds."""
        return float(self.frames / self.fps)


def check_video(path: str | Path) -> VideoInfo:
    """Check a video from its packets' timestamps; only the first frame is decoded.

    It is quick enough to run before hours of work. It recognises a file that was cut short if the container
    announces its length or the cut goes through a packet; a recorded live stream that ends between two
    packets looks whole. ``VideoReader`` finds what only decoding shows: a change of the frame size, and
    damage inside packets that the decoder notices.

    Raises:
        UserError: the file is missing, a folder, no video, empty, cut short, HDR, or has a variable
            frame rate.
    """
    path = Path(path)
    times, packets, first, others_end, corrupt = [], 0, None, Fraction(0), False
    with open_video(path) as (container, stream):
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
                    f"{ffmpeg(path, '-r 24 -i', '')}"
                )
            if not packet.is_discard:  # trimmed away by an edit list
                times.append(packet.pts)
        # The index, because stream.frames also counts frames that an edit list trims away.
        indexed, tick = len(stream.index_entries), stream.time_base
        announced_end, slack = _announced_end(container, stream)
        rates = (stream.average_rate, stream.guessed_rate)
        has_alpha = alpha_decoder(stream) is not None
        reordered = stream.codec_context.reorder_depth
        aspect = stream.sample_aspect_ratio or Fraction(1)
        sound = tuple(map(sound_codec, container.streams.audio))

    if not times or first is None:
        raise UserError(f"{path} holds no frames: it is empty or cut short; export it again.")
    times.sort()  # packets come in decoding order
    fps = _frame_rate(times, tick, rates)
    end = times[-1] * tick + 1 / fps
    if slack:  # the announced end is that of the longest stream
        end = max(end, others_end)
    # Three quarters of a frame: one missing frame counts, a rounded or inaccurate end does not.
    is_short = end < announced_end - slack - Fraction(3, 4) / fps
    if corrupt or packets < indexed or is_short:
        raise damaged(path)
    notes = _notes(first)
    left_out = _ragged_end(times, reordered)
    if left_out:
        notes.append(f"its last frames ({left_out}) are left out, because the file was cut among them")
        times = times[:-left_out]
        fps = _frame_rate(times, tick, rates)
    _check_constant_rate(path, times, tick, rates)

    rotation = _rotation(path, first)
    width, height = first.width, first.height
    colour = _colour(path, first)
    if rotation % 180:
        width, height, aspect = height, width, 1 / aspect
    has_alpha = has_alpha or any(component.is_alpha for component in first.format.components)
    return VideoInfo(
        width,
        height,
        fps,
        len(times),
        rotation,
        has_alpha,
        aspect,
        colour,
        start=times[0] * tick,
        left_out=left_out,
        sound=sound,
        notes=tuple(notes),
    )


def frame_rate(fps: float | Fraction) -> Fraction:
    """The exact frame rate meant by ``fps``: 29.97002997... is 30000/1001.

    Raises:
        UserError: not a number from 0.01 to 240.
    """
    # Matroska counts milliseconds: far above 240 two frames would have one time.
    if not isinstance(fps, Real) or not 0.01 <= fps <= 240:  # also catches nan
        raise UserError(f"The frame rate is {fps!r}; it must be a number from 0.01 to 240.")
    return Fraction(float(fps)).limit_denominator(1001)


@contextmanager
def open_video(path: Path) -> Iterator[tuple[Any, Any]]:
    """PyAV's container and its video stream; UserError for everything that FFmpeg cannot read."""
    if path.is_dir():
        raise UserError(f"{path} is a folder; give the path of a video file.")
    if not path.exists():
        raise UserError(f"There is no file {path}; check the path.")
    try:
        # An absolute path is never a URL, and FFmpeg does not follow links from a file to the network.
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
                    f"{path} has no video that can be decoded: it is only sound, cut short or unknown; "
                    "give another file."
                )
            yield container, stream
    except av.error.FFmpegError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror}): it is damaged, cut short or not a video; "
            "copy or export it again."
        ) from error


def _announced_end(
    container: av.container.InputContainer, stream: av.VideoStream
) -> tuple[Fraction, Fraction]:
    """The end of the pictures that the container announces, and by how much it may be too late, in seconds.

    Only Matroska and WebM need it, because they index no frames. For others, and for live recordings, which
    announce nothing, the end is 0.
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


def sound_codec(stream: av.AudioStream) -> str:
    """The name of a sound track's codec, not of its decoder ("mp3", not "mp3float")."""
    context = stream.codec_context
    return "unknown" if context is None else context.codec.canonical_name


def alpha_decoder(stream: av.VideoStream) -> str | None:
    """The decoder that reads alpha in VP8 and VP9; FFmpeg's own decoders drop it silently."""
    decoder = {"vp8": "libvpx", "vp9": "libvpx-vp9"}.get(stream.codec_context.name)
    has_alpha = stream.metadata.get("alpha_mode") == "1" and decoder in av.codecs_available
    return decoder if has_alpha else None


def _colour(path: Path, frame: av.VideoFrame) -> Colour:
    """How the colours of a file are coded; the size decides what the file does not say."""
    transfer = int(frame.color_trc)
    if transfer in _HDR:
        raise UserError(
            f"{path} is HDR ({_HDR[transfer]}); tone-map it with: {ffmpeg(path, '-i', _TONE_MAP)}"
        )
    is_rgb = frame.format.is_rgb
    usual = 1 if is_rgb or frame.width >= 1280 or frame.height > 576 else 6
    matrix, primaries = int(frame.colorspace), int(frame.color_primaries)
    matrix = 0 if is_rgb else matrix if matrix not in (0, 2, 3) else usual
    if matrix and matrix not in MATRICES:
        raise UserError(
            f"{path} has an unsupported colour coding (matrix {matrix}); convert it with: "
            f"{ffmpeg(path, '-i', '-vf zscale=m=bt709')}"
        )
    primaries, transfer = (value if value not in (0, 2, 3) else usual for value in (primaries, transfer))
    return Colour(matrix, primaries, transfer, int(frame.color_range) == 2 or "yuvj" in frame.format.name)


def _notes(frame: av.VideoFrame) -> list[str]:
    notes = []
    if frame.interlaced_frame:
        notes.append("it is interlaced, and read as it is; deinterlace it first with ffmpeg's -vf bwdif")
    bits = max(component.bits for component in frame.format.components)
    if bits > 8:
        notes.append(f"its {bits} bits per colour are read as 8")
    return notes


def _ragged_end(times: list[int], most: int) -> int:
    """How many of the last ``most`` sorted timestamps come after a gap.

    A cut without re-encoding ends in decoding order: frames that are shown before the last ones may be
    missing.
    """
    gaps = [after - before for before, after in zip(times, times[1:], strict=False)]
    wide = [i for i in range(1, min(most + 1, len(gaps))) if gaps[-i] > 1.5 * median(gaps)]
    return max(wide, default=0)


def _check_constant_rate(path: Path, times: list[int], tick: Fraction, announced: tuple) -> None:
    """Raise UserError for sorted timestamps, counted in ``tick`` seconds, that fit no constant rate.

    A frame may be early or late by less than half a frame, because of rounding to milliseconds or an
    inaccurate recorder. A dropped frame is a larger gap.
    """
    if len(times) < 2:
        return
    gaps = [after - before for before, after in zip(times, times[1:], strict=False)]
    usual = median(gaps)
    steps = len(gaps)
    # Differences from an even pace, in ticks * steps, so that all numbers are whole.
    drift = [steps * (time - times[0]) - i * (times[-1] - times[0]) for i, time in enumerate(times)]
    is_even = 2 * max(abs(d) for d in drift) < usual * steps
    if not (is_even and min(gaps) > 0 and 0.5 * usual < min(gaps) and max(gaps) < 1.5 * usual):
        fps = _nominal_rate(usual * tick, tick, announced)
        raise UserError(
            f"{path} has a variable frame rate (frames last {_milliseconds(min(gaps) * tick)} to "
            f"{_milliseconds(max(gaps) * tick)} ms); make it constant with: "
            f"{ffmpeg(path, '-i', f'-vf fps={fps}')}"
        )


def _nominal_rate(gap: Fraction | float, tick: Fraction, announced: tuple) -> Fraction:
    """The intended frame rate if most frames last ``gap`` seconds."""
    if not gap:
        return Fraction(24)
    near = [fps for fps in (*announced, *_RATES) if fps and abs(1 / fps - gap) <= tick + _MILLISECOND / 2]
    return min(near or [Fraction(round(1 / gap) or 1)], key=lambda fps: abs(1 / fps - gap))


def _frame_rate(times: list[int], tick: Fraction, announced: tuple[Fraction | None, ...]) -> Fraction:
    """The simplest frame rate that fits the timestamps; an announced rate may be wrong."""
    steps, span = len(times) - 1, (times[-1] - times[0]) * tick
    if not span:
        return next(filter(None, announced), Fraction(1))
    for fps in (*announced, *_RATES, Fraction(round(steps / span))):
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
                f"{path} is a mirrored video, which is not supported; re-encode it with: "
                f"{ffmpeg(path, '-i', '')}"
            )
    return round(frame.rotation / 90) % 4 * 90


def damaged(path: Path) -> UserError:
    return UserError(f"{path} is cut short or damaged: frames are missing; copy or export it again.")


def ffmpeg(path: Path, before: str, after: str) -> str:
    """A shell command that converts the file."""
    parts = ("ffmpeg", before, shlex.quote(str(path)), after, "converted.mp4")
    return " ".join(filter(None, parts))


def _milliseconds(seconds: Fraction) -> str:
    return f"{float(seconds * 1000):.4g}"
