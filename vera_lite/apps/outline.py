"""An edit that keeps a subject at the video's own size.

A model draws at its own size, so the outline of its alpha is as coarse as its pixels. Here the model only
says what happens on either side of the outline. Where the outline runs, the subject's matte says, frame by
frame.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from scipy.ndimage import distance_transform_edt
from torch import Tensor

from vera_lite.apps.files import shrunk
from vera_lite.apps.layers import enlarged, outline_width
from vera_lite.dataset.checks import grow
from vera_lite.dataset.matte import ClosedForm, foreground, trimap
from vera_lite.media.clip import composite
from vera_lite.pipelines import frame_choice
from vera_lite.pipelines.base import Drawing, EditResult


class OutlinedDrawing(Drawing):
    """A drawing of Vera with the outline of a subject.

    The side of the outline that the model leaves alone keeps the source bit for bit: with a new background
    that is the subject, with an object in the subject's shape all the rest. The other side takes the model's
    alpha, continued up to the outline. At the soft edge, the edit layer also takes away the colour that the
    source shows there from the edited side, so that the old background leaves no fringe.

    Args:
        drawing: of the model, with an alpha.
        masks: (T, 1, h, w), 0 or 1, of the subject in all frames, at any size.
    """

    whole_frames = True

    def __init__(self, drawing: Drawing, masks: Tensor):
        alpha = drawing.layers["alpha"]
        seen = shrunk(masks[frame_choice(len(masks), len(alpha))], alpha.shape[-2:])
        inside, outside = (alpha[part].mean() for part in (seen == 1, seen == 0))
        #: Whether the subject stays, and not what is around it.
        self.keeps_subject = not inside > outside  # also if either is nowhere
        kept = (seen if self.keeps_subject else 1 - seen) > 0
        layers = drawing.layers | {"alpha": continued(alpha, grow(kept.float(), 1) == 0)}
        super().__init__(drawing.pipe, layers, drawing.sampling, len(drawing.nearest), drawing.size)
        self.masks, self.width = masks, outline_width(drawing.size[0])

    def frame(self, t: int, source: Tensor, rows: slice = slice(None)) -> EditResult:
        """As :meth:`.Drawing.frame`; a matte needs whole frames."""
        result = super().frame(t, source, rows)
        mask = enlarged(self.masks[t : t + 1], self.size)
        matte = ClosedForm(3 * self.width)(source[None], trimap(mask, self.width))
        kept = matte if self.keeps_subject else 1 - matte
        alpha = ((1 - kept) * result.alpha)[0]
        behind = foreground(source[None], 1 - kept)[0]
        edit = torch.where(alpha > 0, result.edit + source - behind, result.edit).clamp(0, 1)
        return replace(result, final=composite(edit, alpha, source), edit=edit, alpha=alpha)


def continued(alpha: Tensor, sure: Tensor) -> Tensor:
    """Alpha (T, 1, H, W) whose pixels outside ``sure`` (boolean, of the same shape) take the value of the
    nearest one inside it. A frame without such pixels stays as it is."""
    found = alpha.clone()
    for out, known in zip(found[:, 0], sure[:, 0], strict=True):
        if known.any():
            nearest = distance_transform_edt(~known.cpu(), return_distances=False, return_indices=True)
            y, x = torch.from_numpy(np.asarray(nearest))
            out.copy_(out[y, x])
    return found
