"""What a model drew at its own size, shown on a video of any size and length."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

Layers = dict[str, Tensor]


class Drawing:
    """Layers at a model's size, shown one frame at a time on a video of any size and length.

    Args:
        pipe: a :class:`.Pipeline`; its ``read`` turns layers into a result.
        layers: (t, C, h, w) each.
        sampling: settings for ``read``.
        frames: T of the video.
        size: (H, W) of the video.
    """

    #: Whether all layers change with every frame, and a frame cannot be made row by row.
    whole_frames = False

    def __init__(self, pipe: Any, layers: Layers, sampling: Any, frames: int, size: Sequence[int]):
        self.pipe, self.layers, self.sampling = pipe, layers, sampling
        self.size = tuple(size)
        drawn = len(next(iter(layers.values())))
        #: Frames of the video that the model itself drew.
        self.exact_frames = tuple(sorted(set(frame_choice(frames, drawn))))
        #: For each frame of the video, the nearest drawn frame in time.
        self.nearest = frame_choice(drawn, frames)
        self._shown, self._large = None, {}

    def frame(self, t: int, source: Tensor, rows: slice = slice(None)):
        """Frame ``t``, given the source's (3, H, W) in [0, 1], or ``rows`` of it: tensors (C, H, W)."""
        if self.nearest[t] != self._shown:
            self._shown = self.nearest[t]
            self._large = {name: enlarge(v[self._shown], self.size) for name, v in self.layers.items()}
        layers = {name: v[:, rows].to(source) for name, v in self._large.items()}
        return self.pipe.read(layers, source, self.sampling)


def frame_choice(frames: int, wanted: int) -> list[int]:
    """Indices of ``wanted`` frames spread evenly over ``frames``, first and last included."""
    if frames == 1 or wanted == 1:
        return [0] * wanted
    return [round(i * (frames - 1) / (wanted - 1)) for i in range(wanted)]


def enlarge(picture: Tensor, size: Sequence[int]) -> Tensor:
    """A picture (C, h, w) in [0, 1] at another size, bicubic: (C, H, W)."""
    if tuple(size) == tuple(picture.shape[-2:]):
        return picture
    # Bicubic interpolation is linear in each axis: two matrix products, many times quicker.
    rows, columns = (_bicubic(a, b).to(picture) for a, b in zip(picture.shape[-2:], size, strict=True))
    return (rows @ picture @ columns.T).clamp_(0, 1)


def _bicubic(inputs: int, outputs: int) -> Tensor:
    """Bicubic interpolation along one axis, (outputs, inputs): what it makes of the identity."""
    eye = torch.eye(inputs)[None, None]
    return F.interpolate(eye, size=(outputs, inputs), mode="bicubic", antialias=False)[0, 0]
