"""Read video files, and refuse files that would spoil hours of work unnoticed.

A frame is a uint8 tensor ``(3, H, W)`` in RGB order, or ``(1, H, W)`` for masks and mattes.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import torch
from av.video.reformatter import Interpolation
from torch import Tensor

from vera_lite.errors import UserError
from vera_lite.media.header import (
    MATRICES,
    VideoInfo,
    alpha_decoder,
    check_video,
    damaged,
    ffmpeg,
    frame_rate,
    open_video,
)

__all__ = [
    "VideoInfo",
    "VideoReader",
    "check_video",
    "frame_rate",
    "read_grey",
    "read_video",
]

#: FFmpeg's default is faster, but one or two levels off and with coarse chroma.
ACCURATE = (
    Interpolation.BICUBIC
    | Interpolation.ACCURATE_RND
    | Interpolation.FULL_CHR_H_INT
    | Interpolation.FULL_CHR_H_INP
)
#: Planes in FFmpeg's order, by what is read.
_FORMATS = {"rgb": ("gbrp", (2, 0, 1)), "rgba": ("gbrap", (2, 0, 1, 3)), "grey": ("gray", (0,))}
_KEPT_BYTES = 2**25


class VideoReader:
    """The frames of a video file, one at a time, so that a long file does not fill the memory.

    Iterating yields uint8 tensors ``(3, H, W)`` in RGB order, upright as a player shows them; every iteration
    starts at the first frame. ``len(reader)`` is the number of frames, and ``reader.info`` describes the
    file; both are known before the first frame is decoded. A short video (up to 32 MB) stays in memory after
    the first iteration.

    Args:
        path: the file.
        kind: ``"rgb"``; ``"rgba"``, with alpha as the last channel (FFV1, ProRes 4444, QuickTime Animation,
            VP8, VP9 and others can have one); or ``"grey"``, only the luma.
        info: of the file, if it was checked already.

    Raises:
        UserError: on opening, as ``check_video``, and if there is no alpha to read; while iterating, if a
            frame is damaged or its size changes; at the end, if frames are missing.
    """

    def __init__(self, path: str | Path, kind: str = "rgb", info: VideoInfo | None = None):
        self.path, self.kind = Path(path), kind
        self.info = info or check_video(self.path)
        self._kept: list[av.VideoFrame] = []
        if kind == "rgba" and not self.info.has_alpha:
            raise UserError(f"{path} has no alpha channel; give a video that has one, or a mask.")

    def __len__(self) -> int:
        return self.info.frames

    def __iter__(self) -> Iterator[Tensor]:
        return map(self.to_tensor, self.decode())

    def decode(self) -> Iterator[av.VideoFrame]:
        """FFmpeg's frames, for :meth:`to_tensor`; frames that are not needed cost no conversion."""
        if len(self._kept) == len(self):
            yield from self._kept
            return
        kept, held = [], 0
        for frame in self._decode():
            held += sum(plane.buffer_size for plane in frame.planes)
            if held <= _KEPT_BYTES:
                kept.append(frame)
            else:
                kept.clear()
            yield frame
        self._kept = kept

    def _decode(self) -> Iterator[av.VideoFrame]:
        count, size = 0, None
        with open_video(self.path) as (container, stream):
            stream.thread_type = "AUTO"  # decode several frames at once,
            stream.codec_context.thread_count = 2  # but few: each thread holds frames, 1080p takes 3 MB each
            frames, decoder = container.decode(stream), alpha_decoder(stream)
            if self.kind == "rgba" and decoder is not None:
                context = av.CodecContext.create(decoder, "r")
                frames = (f for packet in container.demux(stream) for f in context.decode(packet))
            for frame in frames:
                if count == len(self) and self.info.left_out:
                    return
                if frame.is_corrupt or count == len(self):
                    raise damaged(self.path)
                size = size or (frame.width, frame.height)
                if (frame.width, frame.height) != size:
                    raise UserError(
                        f"{self.path} changes its size at frame {count} from {size[0]}x{size[1]} to "
                        f"{frame.width}x{frame.height}; give it one size with: "
                        f"{ffmpeg(self.path, '-i', f'-vf scale={size[0]}:{size[1]}')}"
                    )
                yield frame
                count += 1
        if count < len(self):
            raise damaged(self.path)

    def to_tensor(self, frame: av.VideoFrame) -> Tensor:
        """A frame as uint8 (3, 4 or 1, H, W), for the reader's kind."""
        name, planes = _FORMATS[self.kind]
        colour = self.info.colour
        frame = frame.reformat(
            format=name,
            src_colorspace=MATRICES.get(colour.matrix),
            src_color_range="JPEG" if colour.full_range or not colour.matrix else "MPEG",
            dst_color_range="JPEG",
            interpolation=ACCURATE,
        )
        shape = (frame.height, -1)
        rows = [np.frombuffer(frame.planes[i], np.uint8).reshape(shape)[:, : frame.width] for i in planes]
        pixels = torch.from_numpy(np.stack(rows))
        return pixels.rot90(self.info.rotation // 90, (1, 2)).contiguous()


def read_video(path: str | Path) -> tuple[Tensor, VideoInfo]:
    """Read a colour video whole.

    Returns:
        uint8 frames ``(T, 3, H, W)`` in RGB order, and the description of the whole file.

    Raises:
        UserError: as ``VideoReader``.
    """
    reader = VideoReader(path)
    return _gather(reader, 3), reader.info


def read_grey(path: str | Path) -> Tensor:
    """Read a video of masks or mattes; colour is turned into its luma.

    Returns:
        uint8 frames ``(T, 1, H, W)``.

    Raises:
        UserError: as ``VideoReader``.
    """
    return _gather(VideoReader(path, "grey"), 1)


def _gather(reader: VideoReader, channels: int) -> Tensor:
    """All frames in one tensor; stacking a list would need twice the memory."""
    info = reader.info
    video = torch.empty((info.frames, channels, info.height, info.width), dtype=torch.uint8)
    for index, frame in enumerate(reader):
        video[index] = frame
    return video
