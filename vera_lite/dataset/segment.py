"""Segmenters: which pixels are the subject. Each says when it is no good for a clip.

All are callables ``video (T, 3, H, W) in [0, 1] -> mask (T, 1, H, W), 0 or 1``. What they need differs:

| segmenter | finds | on |
|---|---|---|
| :class:`PersonSegmenter` | people | any clip with a person in it |
| :class:`MovingSegmenter` | what leaves its place | a camera that stands still or pans |
| :class:`BoxSegmenter` | what is in a box | a few frames |
| :class:`.Sam2Segmenter` | what is in a box or at a point, or what words name | any clip; needs weights |
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import cv2
import numpy as np
import torch
from torch import Tensor

from vera_lite.dataset.checks import Rejected, check_masks, clean, rgb8
from vera_lite.dataset.person import person_probability
from vera_lite.dataset.plate import background, is_still, register
from vera_lite.dataset.subject import Box, check_box, parse_subject
from vera_lite.dataset.weights import DETECTOR, SEGMENTER


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
    """What leaves its place: where a frame differs from what its pixels show early and late in the clip.

    The camera may move, see :func:`.register`. Whoever stands and waves loses all but the hands, as the rest
    is taken for background. Shadows come along; :func:`.split` takes them off.

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
        kernel, masks = np.ones((1, 1) if is_still(cameras) else (3, 3), np.uint8), []
        for frame, behind, blind in zip(rgb8(video), rgb8(plate), unseen[:, 0].numpy() > 0, strict=True):
            brighter = cv2.subtract(frame, cv2.dilate(behind, kernel))
            darker = cv2.subtract(cv2.erode(behind, kernel), frame)
            difference = cv2.max(brighter, darker).max(2).astype(np.float32) / 255
            difference = cv2.GaussianBlur(difference, (0, 0), 0.8) * ~blind
            masks.append(clean(_grown(difference > self.sure, difference > self.likely), width=3))
        mask = _masks(masks)
        x, y, w, h = self.box or (0, 0, *video.shape[:1:-1])
        if self.box is not None:
            mask = mask * torch.from_numpy(_inside(self.box, *video.shape[-2:]))
        check_masks(mask[..., y : y + h, x : x + w])
        return mask


@dataclass(frozen=True)
class BoxSegmenter:
    """What is in a box in the first frame, by GrabCut's colours (Rother et al., 2004), for a few frames.

    From one frame to the next the object may move by a tenth of its size. Over a whole clip the colours drift
    into the background, so longer clips are rejected.

    Attributes:
        box: x, y, width, height in pixels.
        max_frames: of a clip.
        max_drift: largest area over the smallest one.
    """

    box: Box
    max_frames: int = 16
    max_drift: float = 1.6

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
            cv2.grabCut(frame, state, (0, 0, 1, 1), *models, 4, cv2.GC_INIT_WITH_MASK)
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
        area = mask.mean((1, 2, 3))
        drift = float((area.max() / area.min().clamp_min(1e-9)).clamp_max(1e9))
        if drift > self.max_drift:
            raise Rejected("area_drifts", f"the mask's area changes {drift:.1f}-fold in all", drift=drift)
        return mask


def segmenter(
    subject: str,
    scale: float = 1.0,
    model: str | None = None,
    detector: str | None = None,
    download: bool = False,
) -> Segmenter:
    """The segmenter for what a person types, see :func:`.parse_subject`.

    Args:
        subject: see there.
        scale: of the video against the one in whose pixels the box is given.
        model, detector, download: of :class:`.Sam2Segmenter`; None: its own.

    Raises:
        UserError: it is nothing known.
    """
    kind, box = parse_subject(subject)
    if isinstance(box, tuple):
        box = tuple(round(scale * number) for number in box)
    if kind == "sam2":
        from vera_lite.dataset.sam2 import Sam2Segmenter

        return Sam2Segmenter(box, model or SEGMENTER, detector or DETECTOR, download=download)
    if kind == "person":
        return PersonSegmenter()
    return MovingSegmenter(box=box) if kind == "moving" else BoxSegmenter(box)


def _inside(box: Box, height: int, width: int) -> np.ndarray:
    """Boolean (H, W), true inside a box."""
    check_box(box, height, width)
    x, y, w, h = box
    inside = np.zeros((height, width), bool)
    inside[y : y + h, x : x + w] = True
    return inside


def _masks(masks: list[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.stack(masks)).float()[:, None]


def _grown(seeds: np.ndarray, likely: np.ndarray) -> np.ndarray:
    """The connected parts of ``likely`` (H, W) that hold a seed."""
    _, parts = cv2.connectedComponents(likely.astype(np.uint8))
    return np.isin(parts, np.unique(parts[seeds & likely])) & likely
