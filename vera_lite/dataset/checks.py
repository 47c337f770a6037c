"""What makes a clip unfit for a stage, and the checks of masks that all segmenters share."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from vera_lite.errors import UserError


class Rejected(UserError):
    """A whole clip that a stage can do nothing good with.

    Attributes:
        reason: one word or a few, joined by underscores, which the ledger counts.
        facts: what was measured, in JSON values.
    """

    def __init__(self, reason: str, sentence: str, **facts: Any):
        super().__init__(sentence)
        self.reason, self.facts = reason, facts


def rgb8(video: Tensor) -> np.ndarray:
    """(T, 3, H, W) in [0, 1] as uint8 (T, H, W, 3), which OpenCV and pymatting read."""
    return np.ascontiguousarray((video * 255).round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy())


def check_masks(
    mask: Tensor,
    *,
    min_area: float = 5e-4,
    max_area: float = 0.8,
    max_jump: float = 2.0,
    max_border: float = 0.2,
) -> None:
    """Reject masks that a segmenter got wrong, as far as the masks alone show it.

    Args:
        mask: (T, 1, H, W), 0 or 1.
        min_area, max_area: how much of a frame an object covers. It may be missing in up to half the frames.
        max_jump: by how much the area of what is wholly in view may change from frame to frame, as a factor.
        max_border: how much of the frame's border the mask may cover in any frame.

    Raises:
        Rejected: ``nothing_found``, ``covers_everything``, ``area_jumps`` or ``touches_border``.
    """
    area = mask.float().mean((1, 2, 3))
    there = area >= min_area
    if there.float().mean() < 0.5:
        frames = int(there.sum())
        raise Rejected(
            "nothing_found", f"the subject is seen in {frames} of {len(mask)} frames", frames=frames
        )
    if (largest := area.max().item()) > max_area:
        raise Rejected("covers_everything", f"the mask covers {largest:.0%} of a frame", area=largest)
    border = on_border(mask)
    whole = there & (border == 0)  # what enters or leaves the frame grows and shrinks fast
    both = whole[1:] & whole[:-1]
    step = (area[1:] / area[:-1].clamp_min(1e-9))[both]
    jump = max(step.max().item(), 1 / step.min().item()) if len(step) else 1.0
    if jump > max_jump:
        raise Rejected(
            "area_jumps", f"the mask's area changes {jump:.1f}-fold from frame to frame", jump=jump
        )
    border = border.max().item()
    if border > max_border:
        raise Rejected("touches_border", f"the mask covers {border:.0%} of the frame's border", border=border)


def on_border(mask: Tensor) -> Tensor:
    """How much of the frame's border a mask (T, 1, H, W) covers, (T,) in [0, 1]."""
    sides = (mask[..., 0, :], mask[..., -1, :], mask[..., 0], mask[..., -1])
    return sum(side.float().sum((1, 2)) for side in sides) / (2 * sum(mask.shape[-2:]))
