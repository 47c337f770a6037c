"""Soft mattes from hard masks, and the colours of the foreground without what shines through from behind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import cv2
import numpy as np
import torch
from torch import Tensor

from vera_lite.dataset.checks import clean, rgb8
from vera_lite.errors import check_tensor
from vera_lite.media.clip import composite


class Matter(Protocol):
    def __call__(self, video: Tensor, trimap: Tensor) -> Tensor:
        """
        Args:
            video: (T, 3, H, W) in [0, 1].
            trimap: (T, 1, H, W): 1 foreground, 0 background, 0.5 unknown.

        Returns:
            Alpha (T, 1, H, W) in [0, 1], as the trimap where that is 0 or 1.
        """
        ...


def trimap(mask: Tensor, inside: int, outside: int | None = None) -> Tensor:
    """Foreground, background and the unknown band around a mask's outline.

    Args:
        mask: (T, 1, H, W), 0 or 1.
        inside, outside: how many pixels of the mask and around it are unknown; outside as inside by default.
            Where the object is thinner, its middle line stays foreground.

    Returns:
        (T, 1, H, W): 1, 0 and 0.5.
    """
    check_tensor("the mask", mask, "T", 1, "H", "W")
    found = []
    for frame in mask[:, 0].byte().numpy():
        depth = cv2.distanceTransform(frame, cv2.DIST_L2, 5)
        ridge = (depth > 0) & (depth >= cv2.dilate(depth, np.ones((3, 3))))
        height = cv2.distanceTransform(1 - frame, cv2.DIST_L2, 5)
        sure = (depth > inside) | ridge & (depth > 1)
        near = height <= (inside if outside is None else outside)
        found.append(np.where(sure, 1.0, np.where(near, 0.5, 0.0)).astype(np.float32))
    return torch.from_numpy(np.stack(found))[:, None]


@dataclass(frozen=True)
class ClosedForm:
    """Closed-form matting (Levin, Lischinski and Weiss, 2008), frame by frame, around the unknown pixels.

    Attributes:
        margin: pixels around the unknown ones that are looked at.
    """

    margin: int = 8

    def __call__(self, video: Tensor, trimap: Tensor) -> Tensor:
        import pymatting  # takes seconds

        alpha = trimap.clone()
        for frame, known, out in zip(rgb8(video), trimap[:, 0].numpy(), alpha[:, 0].numpy(), strict=True):
            box = _box(known == 0.5, self.margin)
            if box is None or known[box].max() < 1:
                out[known == 0.5] = 0
                continue
            picture = np.ascontiguousarray(frame[box]).astype(np.float64) / 255
            solved = pymatting.estimate_alpha_cf(picture, known[box].astype(np.float64))
            out[box] = np.where(known[box] == 0.5, solved, known[box])
        return alpha.clamp_(0, 1)


def foreground(video: Tensor, alpha: Tensor) -> Tensor:
    """The straight colour of what ``alpha`` shows, (T, 3, H, W) (Germer et al., arXiv 2006.14970).

    Soft pixels lose the background's share. Around the object its colour is continued.

    Args:
        video: (T, 3, H, W) in [0, 1].
        alpha: (T, 1, H, W) in [0, 1].
    """
    import pymatting

    edit = video.clone()
    for frame, matte, out in zip(rgb8(video), alpha[:, 0].numpy(), edit, strict=True):
        box = _box(matte > 0, 16)
        if box is None:
            continue
        picture = np.ascontiguousarray(frame[box]).astype(np.float64) / 255
        colour = pymatting.estimate_foreground_ml(picture, matte[box].astype(np.float64))
        out[:, box[0], box[1]] = torch.from_numpy(colour).permute(2, 0, 1).float()
    return torch.where(alpha == 1, video, edit.clamp_(0, 1))


def split(
    video: Tensor, mask: Tensor, plate: Tensor | None, width: int, matter: Matter
) -> tuple[Tensor, Tensor, Tensor]:
    """Take a hard mask of an object with its shadow apart.

    Args:
        video: (T, 3, H, W) in [0, 1].
        mask: (T, 1, H, W), 0 or 1.
        plate: (T, 3, H, W), what is behind; None: no shadow can be told.
        width: of the unknown band, as for :func:`trimap`.
        matter: solves the band.

    Returns:
        The mask of the object alone, its matte and its shadow, each (T, 1, H, W).
    """
    shade = torch.zeros_like(mask) if plate is None else shadow(video, plate, mask)
    if shade.any():
        parts = [clean(((m > 0) & (s == 0))[0].numpy(), width=3) for m, s in zip(mask, shade, strict=True)]
        mask = torch.from_numpy(np.stack(parts)).float()[:, None]
    return mask, matter(video, trimap(mask, width)), shade


def with_shadow(colour: Tensor, alpha: Tensor, shade: Tensor) -> tuple[Tensor, Tensor]:
    """An object's layer and its shadow, which is a black layer below, as one: straight colour and alpha."""
    whole = alpha + (1 - alpha) * shade
    return colour * (alpha / whole.clamp_min(1e-4)).clamp_max(1), whole


def shadow(video: Tensor, plate: Tensor, mask: Tensor, tolerance: float = 0.045) -> Tensor:
    """How much of the background's light is missing where a mask lies on nothing but the object's shadow.

    A shadow makes the background darker and changes nothing else, so there ``video = (1 - shadow) * plate``.

    Args:
        video, plate: (T, 3, H, W) in [0, 1], the clip and what is behind the object.
        mask: (T, 1, H, W), 0 or 1, the object with its shadow.
        tolerance: largest error of that equation.

    Returns:
        (T, 1, H, W) in [0, 0.65]; 0 on the object and outside the mask.
    """
    smooth = torch.stack([_blurred(frame) for frame in video])
    light = (smooth * plate).sum(1, keepdim=True) / (plate * plate).sum(1, keepdim=True).clamp_min(1e-3)
    error = (smooth - light * plate).abs().amax(1, keepdim=True)
    fits = (light > 0.35) & (light < 0.97) & (error < tolerance * light.clamp_min(0.3))
    return (1 - light) * fits * (mask > 0)


def misfit(video: Tensor, plate: Tensor, mask: Tensor, alphas: Sequence[Tensor], width: int) -> list[float]:
    """How badly each of several mattes explains the clip where they are unsure; the lowest is the best one.

    The object's colours are taken from its inside alone and continued outwards, so a matte cannot hide its
    errors in them.

    Args:
        video, plate: (T, 3, H, W), the clip and what is behind the object.
        mask: (T, 1, H, W), the hard mask.
        alphas: mattes (T, 1, H, W).
        width: of the unknown band, as for :func:`trimap`.

    Returns:
        Mean absolute errors over the band, of values in [0, 1].
    """
    known = trimap(mask, width)
    inner, band = foreground(video, (known == 1).float()), known == 0.5
    if not band.any():
        return [0.0] * len(alphas)
    errors = ((composite(inner, alpha, plate) - video).abs().mean(1, keepdim=True) for alpha in alphas)
    return [float(error[band].mean()) for error in errors]


def _blurred(frame: Tensor, deviation: float = 1.2) -> Tensor:
    """A frame (3, H, W) without its noise."""
    smooth = cv2.GaussianBlur(frame.permute(1, 2, 0).numpy(), (0, 0), deviation)
    return torch.from_numpy(smooth).permute(2, 0, 1)


def _box(where: np.ndarray, margin: int) -> tuple[slice, slice] | None:
    """The rectangle around the true pixels of (H, W), a margin wider."""
    if not where.any():
        return None
    rows, columns = (np.flatnonzero(where.any(axis)) for axis in (1, 0))
    return (
        slice(max(0, int(rows[0]) - margin), int(rows[-1]) + margin + 1),
        slice(max(0, int(columns[0]) - margin), int(columns[-1]) + margin + 1),
    )
