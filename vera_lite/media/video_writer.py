"""Write video files: lossless for results, H.264 to look at.

A frame is a uint8 tensor ``(3, H, W)`` in RGB order, or ``(1, H, W)`` for masks and mattes.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch
from torch import Tensor

from vera_lite.errors import UserError
from vera_lite.media.files import replacing
from vera_lite.media.video import frame_rate

_SUFFIXES = {"lossless": ".mkv", "preview": ".mp4"}
_BT709 = 1  # H.273 code, the same for primaries, transfer curve and matrix


class VideoWriter:
    """Writes a video file frame by frame; the file appears, whole, when the ``with`` block ends.

    If the block fails, nothing is left behind and an older file of that name stays as it was::

        with VideoWriter("out.mkv", fps=8, kind="lossless") as writer:
            for frame in frames:
                writer.write(frame)

    Args:
        path: where to write, in a folder that exists.
        fps: frames per second, 0.01 to 240.
        kind: ``"lossless"`` for FFV1 in ``.mkv``, bit for bit what was written; ``"preview"`` for
            H.264 in ``.mp4``, which browsers play. H.264 wants even sizes, so a preview repeats
            the last row or column of an odd size.

    Raises:
        UserError: there is no such folder, or the frame rate is out of range.
        ValueError: unknown kind, wrong ending of the file name, or no frame written.
    """

    def __init__(self, path: str | Path, fps: float | Fraction, kind: str):
        self.path, self.fps, self.kind = Path(path), frame_rate(fps), kind
        if self.path.suffix.lower() != _SUFFIXES.get(kind):
            raise ValueError(f"a {kind!r} video cannot be written to {path}; endings by kind: {_SUFFIXES}.")
        if not self.path.parent.is_dir() or self.path.is_dir():
            raise UserError(f"{path} cannot be written: give a file in a folder that exists.")
        self._shape = self._container = None
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
        if self._container is None:
            self._start(frame)
        if frame.shape != self._shape:
            raise ValueError(
                f"frame {self._count} is {tuple(frame.shape)}; it must have the first one's shape, "
                f"{tuple(self._shape)}."
            )
        picture = self._to_picture(frame.detach().cpu().numpy())
        picture.pts, picture.time_base = self._count, 1 / self.fps
        self._container.mux(self._stream.encode(picture))
        self._count += 1

    def _start(self, frame: Tensor) -> None:
        self._shape = frame.shape
        channels, height, width = frame.shape
        lossless = self.kind == "lossless"
        if lossless:
            # The default number of slices depends on the machine's cores, and the bytes of a file must not;
            # FFV1 cannot cut tiny frames into four.
            encoder, options = "ffv1", {"slices": "4" if min(height, width) >= 16 else "1"}
        else:
            encoder, options = "libx264", {"crf": "18"}
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
        if not lossless:
            context = self._stream.codec_context
            context.colorspace = context.color_primaries = context.color_trc = _BT709
            context.color_range = 1  # limited, as players expect of H.264

    def _to_picture(self, pixels: np.ndarray) -> av.VideoFrame:
        if self.kind == "lossless" and len(pixels) == 1:
            return av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels[0]), "gray")
        height, width = pixels.shape[1:]
        rgb = np.broadcast_to(pixels, (3, height, width)).transpose(1, 2, 0)
        if self.kind == "lossless":
            return av.VideoFrame.from_ndarray(np.ascontiguousarray(rgb), "rgb24").reformat(format="bgr0")
        rgb = np.pad(rgb, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        # Players take untagged video for BT.601 or BT.709 as they please; say which, and use it.
        return av.VideoFrame.from_ndarray(np.ascontiguousarray(rgb), "rgb24").reformat(
            format="yuv420p", dst_colorspace="ITU709", dst_color_range="MPEG"
        )

    def _close(self, error_type, error, traceback) -> None:
        if self._container is not None:
            with self._container:
                if error_type is None:
                    self._container.mux(self._stream.encode(None))
        elif error_type is None:
            raise ValueError(f"no frame was written to {self.path}; give at least one.")


def write_video(path: str | Path, frames: Iterable[Tensor], fps: float | Fraction, kind: str) -> None:
    """Write frames, a uint8 tensor ``(T, C, H, W)`` or any iterable, as :class:`VideoWriter` does."""
    with VideoWriter(path, fps, kind) as writer:
        for frame in frames:
            writer.write(frame)
