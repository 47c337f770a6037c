"""Write video files: lossless for results, H.264 for viewing.

A frame is a uint8 tensor ``(3, H, W)`` in RGB order, or ``(1, H, W)`` for masks and mattes.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from torch import Tensor

from vera_lite.errors import UserError
from vera_lite.media.files import replacing
from vera_lite.media.header import MATRICES, Colour, VideoInfo, sound_codec
from vera_lite.media.video import ACCURATE, frame_rate

_SUFFIXES = {"lossless": ".mkv", "preview": ".mp4"}
#: Sound that an .mp4 may hold and browsers play.
SOUND_IN_MP4 = ("aac", "mp3", "opus", "flac", "ac3", "eac3", "alac")


class VideoWriter:
    """Write a video file frame by frame; the whole file appears when the ``with`` block ends.

    If the block fails, nothing is left behind, and an older file of that name stays::

        with VideoWriter("out.mkv", fps=8, kind="lossless") as writer:
            for frame in frames:
                writer.write(frame)

    Args:
        path: where to write, in a folder that exists.
        fps: frames per second, 0.01 to 240.
        kind: ``"lossless"`` for FFV1 in ``.mkv``, which keeps every bit; ``"preview"`` for H.264 in ``.mp4``,
            which browsers play. H.264 needs even sizes, so a preview repeats the last row or column of an odd
            size.
        like: a video whose pixel aspect and colour coding are used. Without it pixels are square and colours
            BT.709.
        sound: a file whose sound tracks are copied into a preview; ``like`` describes it.
        share: another lossless writer of frames of this shape, whose encoder this one uses. An encoder takes
            65 bytes per pixel, and lossless frames do not depend on each other.

    Raises:
        UserError: there is no such folder, or the frame rate is out of range.
        ValueError: unknown kind, wrong ending of the file name, or no frame written.
    """

    def __init__(
        self,
        path: str | Path,
        fps: float | Fraction,
        kind: str,
        like: VideoInfo | None = None,
        sound: str | Path | None = None,
        share: VideoWriter | None = None,
    ):
        self.path, self.fps, self.kind = Path(path), frame_rate(fps), kind
        if self.path.suffix.lower() != _SUFFIXES.get(kind):
            raise ValueError(f"a {kind!r} video cannot be written to {path}; endings by kind: {_SUFFIXES}.")
        if not self.path.parent.is_dir() or self.path.is_dir():
            raise UserError(f"{path} cannot be written: give a file in an existing folder.")
        self._colour, self._aspect, self._start_time = Colour(), Fraction(1), Fraction(0)
        if like is not None:
            self._colour, self._aspect, self._start_time = like.colour, like.pixel_aspect, like.start
        self._sound_file, self._share = sound, share
        self._container: Any = None  # PyAV's, opened with the first frame
        self._shape = self._last = None
        self._count = 0

    def __enter__(self) -> VideoWriter:
        self._on_exit = ExitStack()
        self._temporary = self._on_exit.enter_context(replacing(self.path))
        self._on_exit.push(self._close)  # runs first, so a failure in it discards the file
        return self

    def __exit__(self, *error) -> None:
        self._on_exit.__exit__(*error)

    def write(self, frame: Tensor) -> None:
        """Append one uint8 frame, ``(3, H, W)`` in RGB order or ``(1, H, W)``.

        Raises:
            ValueError: another dtype, or not the shape of the first frame.
        """
        if frame.dtype != torch.uint8 or frame.ndim != 3 or len(frame) not in (1, 3):
            raise ValueError(
                f"a frame is {frame.dtype} {tuple(frame.shape)}; it must be uint8 (3 or 1, H, W)."
            )
        container = self._start(frame) if self._container is None else self._container
        if frame.shape != self._shape:
            raise ValueError(
                f"frame {self._count} is {tuple(frame.shape)}; it must have the first one's shape, "
                f"{tuple(self._shape)}."
            )
        if self.kind == "preview":
            container.mux(self._encode(frame))
        else:
            if self._last is None or not torch.equal(frame, self._last):
                self._last, self._bytes = frame.clone(), b"".join(map(bytes, self._encode(frame)))
            packet = av.Packet(self._bytes)  # the same picture is the same bytes
            packet.stream, packet.time_base = self._stream, 1 / self.fps
            packet.pts = packet.dts = self._count
            packet.duration, packet.is_keyframe = 1, True
            container.mux(packet)
        self._count += 1
        self._copy_sound(until=self._count / self.fps)

    def _encode(self, frame: Tensor) -> list[av.Packet]:
        picture = self._to_picture(frame.detach().cpu().numpy())
        picture.pts, picture.time_base = self._count, 1 / self.fps
        return self._encoder.encode(picture)

    def _start(self, frame: Tensor) -> Any:
        """Open PyAV's container, for frames of this shape."""
        self._shape = frame.shape
        channels, height, width = frame.shape
        lossless = self.kind == "lossless"
        if lossless:
            # The default number of slices depends on the machine's cores, and a file's bytes must not; FFV1
            # cannot cut tiny frames into four. Every frame is a keyframe (g), so that its bytes depend only
            # on its picture.
            encoder, options = "ffv1", {"slices": "4" if min(height, width) >= 16 else "1", "g": "1"}
        else:
            encoder, options = (
                "libx264",
                {"crf": "18", "preset": "veryfast", "x264-params": "rc-lookahead=4:sync-lookahead=0"},
            )
            height, width = height + height % 2, width + width % 2
        self._container = av.open(
            str(self._temporary.absolute()),
            "w",
            format="matroska" if lossless else "mp4",
            # bitexact leaves out dates and random ids: equal frames give equal files.
            container_options={"fflags": "+bitexact", "movflags": "+faststart"},
        )
        self._stream = self._container.add_stream(encoder, rate=self.fps, options=options)
        self._stream.width, self._stream.height = width, height
        self._stream.pix_fmt = ("bgr0" if channels == 3 else "gray") if lossless else "yuv420p"
        context, colour = self._stream.codec_context, self._colour
        context.sample_aspect_ratio = self._aspect
        if channels == 3:
            context.color_primaries, context.color_trc = colour.primaries, colour.transfer
        if not lossless:
            self._matrix = colour.matrix or 1
            context.colorspace, context.color_primaries, context.color_trc = (
                self._matrix,
                colour.primaries,
                colour.transfer,
            )
            context.color_range = 1  # limited, as players expect of H.264
            context.thread_count = 2  # fixed, because the bytes must not depend on the machine
        self._encoder = self._stream
        if lossless and self._share is not None and self._share._shape == self._shape:
            self._container.start_encoding()  # writes the file's header
            self._encoder = self._share._encoder
        self._open_sound()
        return self._container

    def _open_sound(self) -> None:
        """Prepare the sound tracks that the container may hold."""
        self._sound: list = []
        if self._sound_file is None or self.kind == "lossless":
            return
        source = self._on_exit.enter_context(av.open(str(Path(self._sound_file).absolute())))
        tracks = [s for s in source.streams.audio if sound_codec(s) in SOUND_IN_MP4]
        if tracks:
            copies = {track.index: self._container.add_stream_from_template(track) for track in tracks}
            packets = source.demux(*tracks)
            self._sound = [packets, copies, next(packets, None)]

    def _copy_sound(self, until: Fraction) -> None:
        """Copy the sound before a time of the result, so that sound and pictures are interleaved."""
        while self._sound and self._sound[2] is not None:
            packets, copies, packet = self._sound
            if packet.dts is not None and packet.pts is not None and packet.size:
                shift = round(self._start_time / packet.time_base)
                if (packet.dts - shift) * packet.time_base >= until:
                    return
                if packet.dts >= shift and not packet.is_discard:
                    copy = av.Packet(bytes(packet))
                    copy.stream, copy.time_base = copies[packet.stream_index], packet.time_base
                    copy.pts, copy.dts = packet.pts - shift, packet.dts - shift
                    copy.duration = packet.duration
                    self._container.mux(copy)
            self._sound[2] = next(packets, None)

    def _to_picture(self, pixels: np.ndarray) -> av.VideoFrame:
        lossless = self.kind == "lossless"
        if not lossless:
            height, width = pixels.shape[1:]
            if height % 2 or width % 2:
                pixels = np.pad(pixels, ((0, 0), (0, height % 2), (0, width % 2)), mode="edge")
        height, width = pixels.shape[1:]
        grey = lossless and len(pixels) == 1
        picture = av.VideoFrame(width, height, "gray" if grey else "gbrp")
        order = (0,) if grey else (1, 2, 0) if len(pixels) == 3 else (0, 0, 0)
        for plane, channel in zip(picture.planes, order, strict=True):
            np.frombuffer(memoryview(plane), np.uint8).reshape(height, -1)[:, :width] = pixels[channel]
        if grey:
            return picture
        if lossless:
            return picture.reformat(format="bgr0")
        # Players guess the colours of untagged video: the file names its matrix, and uses it.
        return picture.reformat(
            format="yuv420p",
            dst_colorspace=MATRICES[self._matrix],
            dst_color_range="MPEG",
            interpolation=ACCURATE,
        )

    def _close(self, error_type, error, traceback) -> None:
        if self._container is not None:
            with self._container:
                if error_type is None and self.kind == "preview":  # FFV1 keeps nothing back
                    self._container.mux(self._stream.encode(None))
        elif error_type is None:
            raise ValueError(f"no frame was written to {self.path}; give at least one.")


def write_video(path: str | Path, frames: Iterable[Tensor], fps: float | Fraction, kind: str) -> None:
    """Write frames, a uint8 tensor ``(T, C, H, W)`` or any iterable, as :class:`VideoWriter` does."""
    with VideoWriter(path, fps, kind) as writer:
        for frame in frames:
            writer.write(frame)
