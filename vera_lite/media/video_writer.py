"""Write video files: lossless for results, H.264 to look at.

A frame is a uint8 tensor ``(3, H, W)`` in RGB order, or ``(1, H, W)`` for masks and mattes.
"""

from __future__ import annotations

import warnings
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

# Best first. All three play in browsers; only the first is sure to be in PyAV's own wheels.
_PREVIEW_ENCODERS = {
    "libx264": {"crf": "18"},
    "libopenh264": {"b": "8M"},
    "libvpx-vp9": {"crf": "24", "b": "0"},
}
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
        self.path = Path(path)
        self.fps = frame_rate(fps)
        self.kind = kind
        if kind not in _SUFFIXES:
            raise ValueError(f"Unknown kind of video {kind!r}; use 'lossless' or 'preview'.")
        _check_target(self.path, _SUFFIXES[kind])
        self._shape = None
        self._container = None
        self._stream = None
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
                f"A frame must be uint8 of shape (3, H, W) or (1, H, W), not {frame.dtype} of "
                f"shape {tuple(frame.shape)}; convert floats in [0, 1] with clip.to_uint8."
            )
        if self._container is None:
            self._start(frame)
        if frame.shape != self._shape:
            raise ValueError(
                f"Frame {self._count} has shape {tuple(frame.shape)}, but the first one "
                f"{tuple(self._shape)}; all frames of a file must have the same shape."
            )
        picture = self._to_picture(frame)
        picture.pts = self._count
        picture.time_base = 1 / self.fps
        self._container.mux(self._stream.encode(picture))
        self._count += 1

    def _start(self, frame: Tensor) -> None:
        self._shape = frame.shape
        channels, height, width = frame.shape
        if self.kind == "lossless":
            encoder, container_format = "ffv1", "matroska"
            pixel_format = "bgr0" if channels == 3 else "gray"
            # The default depends on the machine's cores, and the bytes of a file must not;
            # FFV1 cannot cut tiny frames into four.
            options = {"slices": "4" if min(height, width) >= 16 else "1"}
        else:
            encoder, container_format, pixel_format = _preview_encoder(), "mp4", "yuv420p"
            options = _PREVIEW_ENCODERS[encoder]
            height, width = height + height % 2, width + width % 2
        self._container = av.open(
            str(self._temporary.absolute()),
            "w",
            format=container_format,
            # bitexact leaves out dates and random ids: equal frames give equal files.
            container_options={"fflags": "+bitexact", "movflags": "+faststart"},
        )
        self._stream = self._container.add_stream(encoder, rate=self.fps, options=options)
        self._stream.width, self._stream.height = width, height
        self._stream.pix_fmt = pixel_format
        if self.kind == "preview":
            context = self._stream.codec_context
            context.colorspace = context.color_primaries = context.color_trc = _BT709
            context.color_range = 1  # limited, as players expect of H.264

    def _to_picture(self, frame: Tensor) -> av.VideoFrame:
        pixels = frame.detach().cpu().numpy()
        if self.kind == "lossless":
            if len(pixels) == 1:
                return av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels[0]), "gray")
            rgb = np.ascontiguousarray(pixels.transpose(1, 2, 0))
            return av.VideoFrame.from_ndarray(rgb, "rgb24").reformat(format="bgr0")
        height, width = pixels.shape[1:]
        rgb = np.broadcast_to(pixels, (3, height, width)).transpose(1, 2, 0)
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
            raise ValueError(f"No frame was written to {self.path}; give at least one.")


def write_video(path: str | Path, frames: Iterable[Tensor], fps: float | Fraction, kind: str) -> None:
    """Write frames, a uint8 tensor ``(T, C, H, W)`` or any iterable, as ``VideoWriter`` does."""
    with VideoWriter(path, fps, kind) as writer:
        for frame in frames:
            writer.write(frame)


def _preview_encoder() -> str:
    """The best encoder for previews in this build of PyAV."""
    for encoder in _PREVIEW_ENCODERS:
        if encoder in av.codecs_available:
            if encoder != "libx264":
                warnings.warn(
                    f"This build of PyAV has no libx264; previews are written with {encoder}.",
                    stacklevel=4,
                )
            return encoder
    raise UserError(
        "This build of PyAV has no encoder for previews (libx264); install it with: "
        "pip install --only-binary av av"
    )


def _check_target(path: Path, suffix: str) -> None:
    if path.suffix.lower() != suffix:
        raise ValueError(f"{path} should end in {suffix}; rename it.")
    if not path.parent.is_dir():
        raise UserError(f"There is no folder {path.parent}; create it first.")
    if path.is_dir():
        raise UserError(f"{path} is a folder; give the path of a file.")
