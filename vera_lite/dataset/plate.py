"""Clean plates: what is behind an object, taken from the frames that show it.

Frames are registered to the middle one, not each to the one before: summed steps drift by up to two pixels
within 48 frames. What no frame shows is reported, and never invented unasked.
"""

from __future__ import annotations

import cv2
import numpy as np
import torch
from torch import Tensor

from vera_lite.dataset.checks import Rejected, rgb8
from vera_lite.errors import check_tensor

#: A camera that moves less than this, in pixels, stands still.
STILL = 0.2
FEW_CORNERS = 12


def register(video: Tensor, min_inliers: float = 0.15) -> np.ndarray:
    """Homographies (T, 3, 3) that map each frame's pixels to the middle frame's.

    Corners of the middle frame are looked for in every frame (Lucas-Kanade, from where the frame before had
    them); RANSAC leaves out those on moving things. All are the identity if the camera stands still, or if
    the background is too plain to tell.

    Args:
        video: (T, 3, H, W) in [0, 1].
        min_inliers: share of the corners that has to agree on how the camera moved.

    Raises:
        Rejected: ``camera_moves``, in a way that cannot be followed.
    """
    check_tensor("the video", video, "T", 3, "H", "W")
    grey = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in rgb8(video)]
    height, width = grey[0].shape
    key, found = len(grey) // 2, np.tile(np.eye(3), (len(grey), 1, 1))
    corners = _corners(grey[key])
    frame_corners = np.float32([[[0, 0]], [[width, 0]], [[0, height]], [[width, height]]])
    moved = False
    for frames in (range(key + 1, len(grey)), range(key - 1, -1, -1)):
        guess = np.eye(3)  # from the middle frame to this one
        for t in frames:
            guess, share, explained = _follow(grey[key], grey[t], corners, guess)
            if share < min_inliers <= explained:
                guess = np.eye(3)
            elif share < min_inliers and len(corners) >= FEW_CORNERS:
                raise Rejected("camera_moves", f"the camera cannot be followed at frame {t}", inliers=share)
            shift = cv2.perspectiveTransform(frame_corners, guess) - frame_corners
            # A motion that explains hardly more corners than standing still is noise.
            moved |= bool(np.abs(shift).max() > STILL) and explained < 0.8 * share
            found[t] = np.linalg.inv(guess)
    return found if moved else np.tile(np.eye(3), (len(grey), 1, 1))


def _follow(key, frame, corners, guess) -> tuple[np.ndarray, float, float]:
    """The homography from the key frame to a frame, near a guess; and the shares of corners that it and the
    identity explain to a pixel and a half."""
    if len(corners) < FEW_CORNERS:
        return np.eye(3), 0.0, 1.0
    start = cv2.perspectiveTransform(corners, guess)
    options = {"winSize": (21, 21), "flags": cv2.OPTFLOW_USE_INITIAL_FLOW}
    there, ok, _ = cv2.calcOpticalFlowPyrLK(key, frame, corners, start.copy(), **options)
    explained = float(((np.linalg.norm(there - corners, axis=2) < 1.5) & (ok > 0)).mean())
    here, there = corners[ok[:, 0] > 0], there[ok[:, 0] > 0]
    # A shift, turn and zoom needs two good corners, so it is found among many bad ones.
    similarity, good = cv2.estimateAffinePartial2D(here, there, None, cv2.RANSAC, 1.5, 2000)
    if similarity is None:
        return guess, 0.0, explained
    found, good = np.vstack([similarity, [0, 0, 1]]), good[:, 0] > 0
    share = float(good.sum() / len(corners))
    if good.sum() >= 4 * FEW_CORNERS:  # enough for perspective
        found = cv2.findHomography(here[good], there[good])[0]
    return found, share, explained


def _corners(grey: np.ndarray, cells: tuple[int, int] = (8, 14), per_cell: int = 4) -> np.ndarray:
    """Corners (N, 1, 2) of a picture, the best of each cell, so that no object has most of them."""
    height, width = grey.shape
    found = cv2.goodFeaturesToTrack(grey, 0, 5e-4, max(3, width // 100))
    if found is None:
        return np.zeros((0, 1, 2), np.float32)
    x, y = found[:, 0].T  # best first
    cell = (y * cells[0] // height) * cells[1] + x * cells[1] // width
    rank = np.array([(cell[:i] == cell[i]).sum() for i in range(len(cell))])
    return found[rank < per_cell]


def is_still(cameras: np.ndarray) -> bool:
    """Whether :func:`register` found that the camera does not move."""
    return bool((cameras == np.eye(3)).all())


def background(
    video: Tensor, cameras: np.ndarray, mask: Tensor | None = None, samples: int = 49
) -> tuple[Tensor, Tensor]:
    """What the registered frames show behind what moves.

    With a mask it is the median of the frames, without what is masked. Without one it is what a pixel shows
    early and late, even if something stands there for half of the clip.

    Args:
        video: (T, 3, H, W) in [0, 1].
        cameras: (T, 3, 3), from :func:`register`.
        mask: (T, 1, H, W), above 0 on what is to be left out.
        samples: at most so many frames, evenly spread, enter the median.

    Returns:
        The background in every frame's own view, (T, 3, H, W) in [0, 1], 0 where unseen; and where too few
        frames show it, (T, 1, H, W), 0 or 1.

    Raises:
        Rejected: ``camera_moves`` so far that the frames have no common view.
    """
    chosen = spread(len(video), samples)
    canvas = Canvas(video[chosen], None if mask is None else mask[chosen], chosen, cameras)
    views = [canvas.view(t) for t in range(len(video))]
    return tuple(torch.stack(pictures) for pictures in zip(*views, strict=True))


def spread(frames: int, samples: int) -> list[int]:
    """At most ``samples`` of so many frames, evenly spread."""
    return sorted({round(i) for i in np.linspace(0, frames - 1, min(samples, frames))})


class Canvas:
    """A background that holds the view of every frame; see :func:`background`.

    Args:
        frames: (S, 3, H, W) in [0, 1], some frames of a clip of T frames.
        hidden: (S, 1, H, W), above 0 on what is not background; None: unknown.
        chosen: which frames they are.
        cameras: (T, 3, 3), of all frames.
        min_seen: in so many of ``frames`` a pixel must be seen.

    Raises:
        Rejected: as :func:`background`.
    """

    def __init__(
        self, frames: Tensor, hidden: Tensor | None, chosen: list[int], cameras: np.ndarray, min_seen: int = 3
    ):
        masked = torch.zeros_like(frames[:, :1]) if hidden is None else (hidden > 0).float()
        pixels = torch.cat([frames, masked], 1)
        height, width = frames.shape[-2:]
        self.size, self.to_canvas = (width, height), cameras
        self.is_still = is_still(cameras)
        if not self.is_still:
            corners = np.float32([[[0, 0]], [[width, 0]], [[0, height]], [[width, height]]])
            seen = np.concatenate([cv2.perspectiveTransform(corners, h) for h in cameras])[:, 0]
            low, high = np.floor(seen.min(0)) - 1, np.ceil(seen.max(0)) + 1
            size = tuple(int(side) for side in high - low)
            if size[0] * size[1] > 4 * width * height:
                raise Rejected(
                    "camera_moves", "the camera moves too far for one background", canvas=list(size)
                )
            self.to_canvas = np.array([[1, 0, -low[0]], [0, 1, -low[1]], [0, 0, 1]]) @ cameras
            pixels = torch.stack(
                [_warp(p, self.to_canvas[t], size) for t, p in zip(chosen, pixels, strict=True)]
            )
        if hidden is None:
            pixels = _without_passers(pixels)
        self.pixels = torch.cat(_masked_median(pixels, min_seen), 1)[0]

    def view(self, t: int) -> tuple[Tensor, Tensor]:
        """The background as frame ``t`` sees it, (3, H, W), and where it is unknown, (1, H, W)."""
        view = self.pixels
        if not self.is_still:
            view = _warp(view, np.linalg.inv(self.to_canvas[t]), self.size)
        unseen = (view[3:] > 1e-3).float()
        return (view[:3] * (1 - unseen)).clamp(0, 1), unseen


def fill(video: Tensor, holes: Tensor, radius: int = 3) -> Tensor:
    """Inpaint small holes from their rims (Telea, 2004); what it makes up is a smear.

    Args:
        video: (T, 3, H, W) in [0, 1].
        holes: (T, 1, H, W), above 0 on what is unknown.
        radius: in pixels, of what is looked at.
    """
    filled = video.clone()
    for frame, hole, out in zip(rgb8(video), holes[:, 0].numpy() > 0, filled, strict=True):
        if hole.any():
            made = cv2.inpaint(np.ascontiguousarray(frame), hole.astype(np.uint8), radius, cv2.INPAINT_TELEA)
            out[:, hole] = torch.from_numpy(made[hole]).float().T / 255
    return filled


def _warp(pixels: Tensor, homography: np.ndarray, size: tuple[int, int]) -> Tensor:
    """Colour and a mask, (4, H, W), seen otherwise; the mask is 1 where nothing was."""
    array = pixels.permute(1, 2, 0).numpy()
    colour = cv2.warpPerspective(
        array[..., :3], homography, size, flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE
    )
    mask = cv2.warpPerspective(np.ascontiguousarray(array[..., 3]), homography, size, borderValue=1.0)
    return torch.from_numpy(np.dstack([colour, mask])).permute(2, 0, 1)


def _without_passers(pixels: Tensor, tolerance: float = 0.06) -> Tensor:
    """Mask, in frames with masks (S, 4, H, W), what is not background.

    Of the medians of the beginning, the middle, the end and all frames, a pixel's background is the one that
    it shows often, and at times that lie far apart.
    """
    frames, times = len(pixels), torch.linspace(-1, 1, len(pixels)).view(-1, 1, 1, 1)
    third = max(1, frames // 3)
    parts = (pixels, pixels[:third], pixels[third : frames - third], pixels[frames - third :])
    best, masked = torch.full_like(pixels[:1, :1], -1), pixels[:, 3:]
    for part in parts:
        guess = _masked_median(part, 1)[0] if len(part) else pixels[:1, :3]
        shown = ((pixels[:, :3] - guess).abs().amax(1, keepdim=True) < tolerance) & (pixels[:, 3:] == 0)
        count = shown.sum(0, keepdim=True).clamp_min(1)
        mean = (times * shown).sum(0, keepdim=True) / count
        spread = ((times - mean).square() * shown).sum(0, keepdim=True) / count
        score = (spread * count).sqrt()
        masked = torch.where(score > best, (~shown).float(), masked)
        best = torch.maximum(best, score)
    return torch.cat([pixels[:, :3], masked], 1)


def _masked_median(pixels: Tensor, min_seen: int) -> tuple[Tensor, Tensor]:
    """Of colour and mask (T, 4, H, W): the median (1, 3, H, W) of what is not masked, and where less than
    ``min_seen`` frames are not, (1, 1, H, W)."""
    plates, unseen = [], []
    for band in pixels.split(32, dim=2):  # a sort of everything at once takes three times the memory
        colour, hidden = band[:, :3], band[:, 3:] > 1e-3
        count = (~hidden).sum(0, keepdim=True)
        # Hidden values go last. Of an even number of values the lower middle one is taken.
        ordered = colour.masked_fill(hidden, torch.inf).sort(0).values
        middle = ((count - 1) // 2).clamp_min(0).expand(1, 3, -1, -1)
        few = count < min_seen
        plates.append(ordered.gather(0, middle).masked_fill(few, 0))
        unseen.append(few.float())
    return torch.cat(plates, 2).clamp(0, 1), torch.cat(unseen, 2)
