"""Segmenters: which pixels are the subject. Each says when it is no good for a clip.

All are callables ``video (T, 3, H, W) in [0, 1] -> mask (T, 1, H, W), 0 or 1``. What they need differs:

| segmenter | finds | on |
|---|---|---|
| :class:`PersonSegmenter` | people | any clip with a person in it |
| :class:`MovingSegmenter` | what leaves its place | a camera that stands still, or pans over something flat or far |
| :class:`BoxSegmenter` | what is in a box | a few frames |
| :class:`.Sam2Segmenter` | what is in a box | any clip; needs weights |
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import cv2
import numpy as np
import torch
from torch import Tensor

from vera_lite.dataset.checks import Rejected, check_masks, rgb8
from vera_lite.dataset.person import person_probability
from vera_lite.dataset.plate import background, is_still, register
from vera_lite.errors import UserError


#: x, y, width and height in pixels.
Box = tuple[int, int, int, int]


class Segmenter(Protocol):
    def __call__(self, video: Tensor) -> Tensor:
        """
        Args:
            video: (T, 3, H, W) in [0, 1].

        Returns:
            (T, 1, H, W), 1 on the subject, else 0.

        Raises:
            Rejected: the segmenter has no use on this clip, or the masks show that it went wrong.
        """
        ...


@dataclass(frozen=True)
class PersonSegmenter:
    """People, by the shipped network, frame by frame, without what is small beside the largest one.

    It takes for granted that there is a person: it also finds half a one in a cup of coffee.

    Attributes:
        threshold: probability from which a pixel is a person.
    """

    threshold: float = 0.5

    def __call__(self, video: Tensor) -> Tensor:
        sure = person_probability(video) > self.threshold
        mask = _masks([clean(frame[0].numpy(), width=1) for frame in sure.byte()])
        check_masks(mask, max_jump=1.6)
        return mask


@dataclass(frozen=True)
class MovingSegmenter:
    """What leaves its place: where a frame differs from the median of all, after the camera's motion is undone.

    What stays where it is for half of the clip becomes background, so a person who stands and waves loses
    all but the hands. Shadows come along.

    Attributes:
        sure: difference of a colour channel that shows the object.
        likely: difference from which pixels beside sure ones belong to it.
        box: x, y, width, height in pixels; only what moves inside it counts.
    """

    sure: float = 0.1
    likely: float = 0.045
    box: Box | None = None

    def __call__(self, video: Tensor) -> Tensor:
        cameras = register(video)
        plate, unseen = background(video, cameras)
        # A background that was moved to a frame is off by a fraction of a pixel: edges need a tolerance.
        reach = 1 if is_still(cameras) else 3
        masks, counts = [], unseen[:, 0].numpy() == 0
        if self.box is not None:
            counts &= _inside(self.box, *video.shape[-2:])
        for frame, behind, here in zip(rgb8(video), rgb8(plate), counts, strict=True):
            kernel = np.ones((reach, reach), np.uint8)
            brighter = cv2.subtract(frame, cv2.dilate(behind, kernel))
            darker = cv2.subtract(cv2.erode(behind, kernel), frame)
            difference = cv2.max(brighter, darker).max(2) * here
            difference = cv2.GaussianBlur(difference.astype(np.float32) / 255, (0, 0), 0.8)
            masks.append(clean(_grown(difference > self.sure, difference > self.likely), width=3))
        mask = _masks(masks)
        check_masks(mask)
        return mask


@dataclass(frozen=True)
class BoxSegmenter:
    """What is in a box in the first frame, by GrabCut's colours (Rother et al., 2004), for a few frames.

    From one frame to the next the object may move by a tenth of its size. Over a whole clip the colours drift
    into the background, so longer clips are rejected.

    Attributes:
        box: x, y, width, height in pixels.
        max_frames: of a clip.
    """

    box: Box
    max_frames: int = 16

    def __call__(self, video: Tensor) -> Tensor:
        frames, _, height, width = video.shape
        if frames > self.max_frames:
            raise Rejected(
                "too_long", f"a box holds for {self.max_frames} frames, not for {frames}", frames=frames
            )
        state = np.where(_inside(self.box, height, width), cv2.GC_PR_FGD, cv2.GC_BGD).astype(np.uint8)
        models, masks = (np.zeros((1, 65)), np.zeros((1, 65))), []
        for frame in rgb8(video):
            outside = state == cv2.GC_BGD
            cv2.setRNGSeed(0)
            cv2.grabCut(frame, state, None, *models, 4, cv2.GC_INIT_WITH_MASK)
            mask = clean(np.isin(state, (cv2.GC_FGD, cv2.GC_PR_FGD)) & ~outside, width=3)
            masks.append(mask)
            reach = max(3, int(0.1 * mask.sum() ** 0.5)) * 2 + 1
            near = cv2.dilate(mask.astype(np.uint8), np.ones((reach, reach)))
            inside = cv2.erode(mask.astype(np.uint8), np.ones((reach, reach)))
            state = np.select(
                [inside > 0, mask, near > 0], [cv2.GC_FGD, cv2.GC_PR_FGD, cv2.GC_PR_BGD], cv2.GC_BGD
            )
            state = state.astype(np.uint8)
        mask = _masks(masks)
        check_masks(mask, max_jump=1.6)
        return mask


def segmenter(subject: str, scale: float = 1.0) -> Segmenter:
    """A segmenter by what a person types: "person", "moving", "moving:X,Y,W,H" (what moves in a box) or "X,Y,W,H"
    (what is in a box in the first frame).

    Args:
        subject: see above.
        scale: of the video against the one in whose pixels the box is given.

    Raises:
        UserError: it is none of these.
    """
    kind, _, numbers = subject.rpartition(":")
    if subject == "person":
        return PersonSegmenter()
    if subject == "moving":
        return MovingSegmenter()
    try:
        x, y, w, h = (round(scale * float(number)) for number in numbers.split(","))
    except ValueError:
        kind = "unknown"
    if kind not in ("", "moving"):
        raise UserError(
            f"the subject is person, moving, moving:X,Y,W,H or X,Y,W,H in pixels, not {subject!r}."
        )
    return MovingSegmenter(box=(x, y, w, h)) if kind else BoxSegmenter((x, y, w, h))


def _inside(box: Box, height: int, width: int) -> np.ndarray:
    """Boolean (H, W), true inside a box.

    Raises:
        UserError: it is no part of the frame.
    """
    x, y, w, h = box
    if min(x, y, w - 1, h - 1) < 0 or x + w > width or y + h > height or w * h == width * height:
        raise UserError(f"the box {x},{y},{w},{h} is no part of a frame of {width}x{height} pixels.")
    inside = np.zeros((height, width), bool)
    inside[y : y + h, x : x + w] = True
    return inside


def _masks(masks: list[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.stack(masks)).float()[:, None]


def _grown(seeds: np.ndarray, likely: np.ndarray) -> np.ndarray:
    """The connected parts of ``likely`` (H, W) that hold a seed."""
    _, parts = cv2.connectedComponents(likely.astype(np.uint8))
    return np.isin(parts, np.unique(parts[seeds & likely])) & likely


def clean(mask: np.ndarray, width: int, part: float = 0.05) -> np.ndarray:
    """A mask (H, W) without specks and holes.

    Args:
        mask: boolean, or 0 and 1.
        width: of the morphology, in pixels; 1 for none.
        part: parts smaller than this share of the largest one go, and holes so small are filled.
    """
    mask = mask.astype(np.uint8)
    if width > 1:
        kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (width, width))
        mask = cv2.morphologyEx(cv2.morphologyEx(mask, cv2.MORPH_CLOSE, kernel), cv2.MORPH_OPEN, kernel)
    for value in (1, 0):
        count, parts, stats, _ = cv2.connectedComponentsWithStats(
            (mask == value).astype(np.uint8), connectivity=8
        )
        sizes = stats[:, cv2.CC_STAT_AREA]
        if value == 1:
            largest = sizes[1:].max(initial=0)
        small = [i for i in range(1, count) if sizes[i] < part * largest]
        mask[np.isin(parts, small)] = 1 - value
    return mask > 0
