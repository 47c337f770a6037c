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
    them); RANSAC leaves out those on moving things. All are the identity if the camera stands still, or if the
    background is too plain to tell.

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
    video: Tensor, cameras: np.ndarray, mask: Tensor | None = None, samples: int = 49, min_seen: int = 3
) -> tuple[Tensor, Tensor]:
    """What the registered frames show behind what moves: the median over frames, without the masked pixels.

    Args:
        video: (T, 3, H, W) in [0, 1].
        cameras: (T, 3, 3), from :func:`register`.
        mask: (T, 1, H, W), above 0 on what is to be left out; without one, whatever is there less than half
            of the time vanishes.
        samples: at most so many frames, evenly spread, enter the median.
        min_seen: in so many of them a pixel must be seen.

    Returns:
        The background in every frame's own view, (T, 3, H, W) in [0, 1], 0 where unseen; and where too few
        frames show it, (T, 1, H, W), 0 or 1.

    Raises:
        Rejected: ``camera_moves`` so far that the frames have no common view.
    """
    frames, _, height, width = video.shape
    chosen = sorted({round(i) for i in np.linspace(0, frames - 1, min(samples, frames))})
    hidden = torch.zeros(frames, 1, height, width) if mask is None else (mask > 0).float()
    pixels = torch.cat([video, hidden], 1)
    if is_still(cameras):
        plate, unseen = _masked_median(pixels[chosen], min_seen)
        return plate.expand(frames, -1, -1, -1), unseen.expand(frames, -1, -1, -1)
    # A canvas that holds every frame, in the middle frame's view.
    corners = np.float32([[[0, 0]], [[width, 0]], [[0, height]], [[width, height]]])
    seen = np.concatenate([cv2.perspectiveTransform(corners, h) for h in cameras])[:, 0]
    low, high = np.floor(seen.min(0)) - 1, np.ceil(seen.max(0)) + 1
    size = tuple(int(side) for side in high - low)
    if size[0] * size[1] > 4 * width * height:
        raise Rejected("camera_moves", "the camera moves too far for one background", canvas=list(size))
    to_canvas = np.array([[1, 0, -low[0]], [0, 1, -low[1]], [0, 0, 1]]) @ cameras
    warped = [_warp(pixels[t], to_canvas[t], size, hidden=1.0) for t in chosen]
    plate, unseen = _masked_median(torch.stack(warped), min_seen)
    canvas = torch.cat([plate, unseen], 1)[0]
    views = [_warp(canvas, np.linalg.inv(h), (width, height), hidden=1.0) for h in to_canvas]
    views = torch.stack(views)
    unseen = (views[:, 3:] > 1e-3).float()
    return (views[:, :3] * (1 - unseen)).clamp(0, 1), unseen


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


def _warp(pixels: Tensor, homography: np.ndarray, size: tuple[int, int], hidden: float) -> Tensor:
    """Colour and a mask, (4, H, W), seen otherwise; the mask is ``hidden`` where nothing was."""
    array = pixels.permute(1, 2, 0).numpy()
    colour = cv2.warpPerspective(
        array[..., :3], homography, size, flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE
    )
    mask = cv2.warpPerspective(np.ascontiguousarray(array[..., 3]), homography, size, borderValue=hidden)
    return torch.from_numpy(np.dstack([colour, mask])).permute(2, 0, 1)


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
