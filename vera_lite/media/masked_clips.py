"""Clips with the masks that ``scripts/segment_clips.py`` writes."""

import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from vera_lite.errors import UserError
from vera_lite.media.clip import to_float
from vera_lite.media.video import VideoReader

_VIDEOS = {".avi", ".m4v", ".mkv", ".mov", ".mp4", ".webm"}


def read_masked_clips(
    folder: str | Path, masks: str | Path, frames: int = 16, size: tuple[int, int] = (704, 1280)
) -> Iterator[tuple[str, Tensor, Tensor, float]]:
    """Read the videos that have a mask, one at a time and all at one size, so that all have the same tokens.

    Args:
        folder: with videos such as ``NAME.mp4``.
        masks: folder with ``NAME.mask.mkv``, 255 on the thing; videos without a mask are skipped.
        frames: how many to take from each clip, evenly from its first frame on; a shorter clip repeats some.
        size: (H, W) in pixels. Frames are cropped to its aspect, equally on both sides.

    Yields:
        Name, clip (frames, 3, H, W) and mask (frames, 1, H, W), both in [0, 1], and frames per second of
        the sampled clip. Clips whose mask covers nothing or everything are left out; one warning at the end
        counts them.

    Raises:
        UserError: at once if there is no such folder or no video with a mask; while iterating if a
            mask has another length or size than its video, or a file is damaged.
    """
    folder, masks = Path(folder), Path(masks)
    for place in (folder, masks):
        if not place.is_dir():
            raise UserError(f"there is no folder {place}; check the path.")
    if frames < 1:
        raise UserError(f"a clip needs at least one frame, got {frames}.")
    videos = [path for path in sorted(folder.iterdir()) if path.suffix.lower() in _VIDEOS]
    pairs = [(path, masks / f"{path.stem}.mask.mkv") for path in videos]
    pairs = [(video, mask) for video, mask in pairs if mask.is_file()]
    if not pairs:
        raise UserError(
            f"no video in {folder} has its NAME.mask.mkv in {masks}: run scripts/segment_clips.py."
        )
    return _read(pairs, frames, size)


def _read(pairs, frames: int, size: tuple[int, int]) -> Iterator[tuple[str, Tensor, Tensor, float]]:
    left_out = 0
    for video_path, mask_path in pairs:
        video, mask = VideoReader(video_path), VideoReader(mask_path)
        shapes = [(r.info.frames, r.info.height, r.info.width) for r in (video, mask)]
        if shapes[0] != shapes[1]:
            raise UserError(
                f"{mask_path} is {shapes[1]} (frames, height, width), its video {shapes[0]}; make it again."
            )
        covered = _sample(mask, frames, size)[:, :1]  # grey: three equal channels
        if (covered == 0).all() or (covered == 255).all():
            left_out += 1
            continue
        clip = _sample(video, frames, size)
        yield video_path.stem, to_float(clip), to_float(covered), frames / video.info.duration
    if left_out:
        warnings.warn(
            f"{left_out} of {len(pairs)} clips left out: their masks cover nothing or everything.",
            stacklevel=2,
        )


def _sample(video: VideoReader, frames: int, size: tuple[int, int]) -> Tensor:
    """uint8 (frames, 3, H, W); all frames are decoded, so that damage is found."""
    count, (height, width) = len(video), (video.info.height, video.info.width)
    # Frame i is at i / frames of the duration, so the sampled rate gives true times.
    chosen = [i * count // frames for i in range(frames)]
    rows = min(height, round(width * size[0] / size[1]))
    columns = min(width, round(height * size[1] / size[0]))
    top, left = (height - rows) // 2, (width - columns) // 2
    kept = {}
    for t, frame in enumerate(video):
        if t in chosen:
            cut = frame[None, :, top : top + rows, left : left + columns]
            kept[t] = F.interpolate(cut, size, mode="bilinear", antialias=True)[0]
    return torch.stack([kept[t] for t in chosen])
