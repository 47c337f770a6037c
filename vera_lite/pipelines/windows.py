"""Videos that are longer than a model's clips, drawn in windows that overlap in time.

All windows are denoised together (MultiDiffusion, arXiv 2302.08113, along time). Latent frame 0 of a clip
codes one frame, each further one ``stride`` frames. Windows start at multiples of the stride. So in an
overlap their latents code the same frames, except for the first latent of each window, which is its own. In
every step the network's outputs for one latent are averaged over the windows that hold it. So windows agree
before anything is decoded, and each of them is a clip as in training.
"""

import math

import torch
from torch import Tensor


class Windows:
    """Where the windows lie.

    Args:
        frames: of the video.
        size: of a window, the frames of a model's clip.
        overlap: frames that neighbours share at least.
        stride: temporal stride of the codec.

    Raises:
        ValueError: the overlap leaves a window nothing of its own.

    Attributes:
        frames: that the windows cover, at most ``stride - 1`` fewer than the video has.
        starts: first frame of each window.
    """

    def __init__(self, frames: int, size: int, overlap: int, stride: int):
        groups = (size - 1) // stride  # latent frames of a window after its first
        advance = groups - math.ceil(overlap / stride)
        if overlap < 1 or advance < 1:
            raise ValueError(f"overlap lies in 1..{max(1, size - 1 - stride)} frames, not {overlap}.")
        further = max(0, (frames - 1) // stride - groups)  # groups after the first window
        count = 1 + math.ceil(further / advance)
        starts = [round(k * further / max(1, count - 1)) for k in range(count)]
        self.size, self.frames = size, 1 + stride * (groups + further)
        self.starts = [stride * start for start in starts]
        # The same number for latents of the same frames, (windows * (1 + groups),).
        own = groups + further + 1
        numbers = [[own + k if k else 0, *(s + i + 1 for i in range(groups))] for k, s in enumerate(starts)]
        self._latents = torch.tensor(numbers).flatten()

    def cut(self, *inputs) -> list[tuple]:
        """The inputs of each window: videos (1, T, C, H, W) are cut, everything else is the same for all."""

        def part(value, start: int):
            long = isinstance(value, Tensor) and value.ndim == 5 and value.shape[1] == self.frames
            return value[:, start : start + self.size] if long else value

        return [tuple(part(value, start) for value in inputs) for start in self.starts]

    def share(self, noise: Tensor) -> Tensor:
        """Noise (..., windows, c, t, h, w) in which latents of the same frames are equal."""
        first: dict[int, int] = {}
        for place, number in enumerate(self._latents.tolist()):
            first.setdefault(number, place)
        return self._spread(self._rows(noise)[[first[n] for n in self._latents.tolist()]])

    def agree(self, outputs: Tensor) -> Tensor:
        """Outputs (..., windows, c, t, h, w), averaged over latents of the same frames; a window counts less
        towards its ends."""
        rows = self._rows(outputs)
        numbers, ramp = self._latents.to(rows.device), self._ramp(len(rows) // len(self.starts)).to(rows)
        weights = ramp.repeat(len(self.starts)).view(-1, *[1] * (rows.ndim - 1))
        count = int(self._latents.max()) + 1
        sums = rows.new_zeros(count, *rows.shape[1:]).index_add(0, numbers, rows * weights)
        total = weights.new_zeros(count, *weights.shape[1:]).index_add(0, numbers, weights)
        return self._spread((sums / total.clamp_min(1e-9))[numbers])

    def join(self, videos: Tensor) -> Tensor:
        """Decoded windows (windows, T, C, H, W), faded into each other: (1, frames, C, H, W)."""
        ramp = self._ramp(self.size).to(videos).view(-1, 1, 1, 1)
        out = videos.new_zeros(1, self.frames, *videos.shape[2:])
        total = videos.new_zeros(1, self.frames, 1, 1, 1)
        for start, video in zip(self.starts, videos, strict=True):
            # The first frame of a later window has a latent of its own: the window before has it better.
            skip = int(start > 0)
            here = slice(start + skip, start + self.size)
            out[0, here] += ramp[skip:] * video[skip:]
            total[0, here] += ramp[skip:]
        return out / total

    def _ramp(self, length: int) -> Tensor:
        place = torch.arange(length)
        return torch.minimum(place + 1, length - place).float()

    def _rows(self, latents: Tensor) -> Tensor:
        """(..., windows, c, t, h, w) -> (windows * t, ..., c, h, w)."""
        return latents.movedim((-5, -3), (0, 1)).flatten(0, 1)

    def _spread(self, rows: Tensor) -> Tensor:
        return rows.unflatten(0, (len(self.starts), -1)).movedim((0, 1), (-5, -3))
