"""How far a matte is from the true one. Mattes are (T, 1, H, W) in [0, 1]; scores are means over frames.

The conventions are those of Robust Video Matting (Lin et al. 2022), which MatAnyone and others follow: other
tables scale and normalise differently. Lower is better.
"""

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from vera_lite.errors import check_tensor


def matte_scores(alpha: Tensor, truth: Tensor) -> dict[str, float]:
    """All of the scores below that need no trimap, by name."""
    scores = (mad, mse, gradient_error, connectivity_error, dtssd)
    return {score.__name__: score(alpha, truth) for score in scores}


def mad(alpha: Tensor, truth: Tensor) -> float:
    """Mean absolute difference, times 1000."""
    return float(1e3 * _difference(alpha, truth).abs().mean())


def mse(alpha: Tensor, truth: Tensor) -> float:
    """Mean squared error, times 1000."""
    return float(1e3 * _difference(alpha, truth).square().mean())


def sad(alpha: Tensor, truth: Tensor, unknown: Tensor | None = None) -> float:
    """Sum of absolute differences of a frame, over 1000: alphamatting.com's number.

    Args:
        alpha, truth: mattes.
        unknown: boolean (T, 1, H, W), the trimap's unknown pixels, which alone count; None: all.
    """
    difference = _difference(alpha, truth).abs()
    difference = difference if unknown is None else difference * unknown
    return float(difference.sum() / len(alpha) / 1e3)


def gradient_error(alpha: Tensor, truth: Tensor, normalised: bool = False) -> float:
    """Summed squared difference of gradient lengths, over 1000, with Gaussian derivatives of sigma 1.4.

    Args:
        alpha, truth: mattes.
        normalised: stretch each matte's frame to [0, 1] first, as the scripts for small frames do and those
            for large ones do not.
    """
    _difference(alpha, truth)
    pair = alpha.double(), truth.double()
    if normalised:
        pair = (_stretched(matte) for matte in pair)
    ours, true = map(_gradient, pair)
    return float((ours - true).square().sum() / len(alpha) / 1e3)


def _stretched(matte: Tensor) -> Tensor:
    low, high = (bound(matte, (1, 2, 3), keepdim=True) for bound in (torch.amin, torch.amax))
    return (matte - low) / (high - low).where(high > low, 1.0)


def _gradient(matte: Tensor, sigma: float = 1.4) -> Tensor:
    # Half a window: beyond it the Gaussian is below 0.01.
    half = math.ceil(sigma * math.sqrt(-2 * math.log(math.sqrt(2 * math.pi) * sigma * 0.01)))
    x = torch.arange(-half, half + 1, dtype=torch.float64)
    smooth = torch.exp(-x.square() / (2 * sigma**2)) / (sigma * math.sqrt(2 * math.pi))
    slope = -x * smooth / sigma**2
    length = smooth.norm() * slope.norm()  # the filter smooth x slope has length 1
    padded = F.pad(matte, (half,) * 4, mode="replicate")
    across = F.conv2d(F.conv2d(padded, smooth.view(1, 1, -1, 1)), slope.view(1, 1, 1, -1))
    down = F.conv2d(F.conv2d(padded, slope.view(1, 1, -1, 1)), smooth.view(1, 1, 1, -1))
    return torch.hypot(across, down) / length


def connectivity_error(alpha: Tensor, truth: Tensor) -> float:
    """How much hangs loose from the largest part that both mattes share, over 1000 (Rhemann et al. 2009).

    Levels are 0.1 apart, neighbours are four, differences below 0.15 do not count.
    """
    _difference(alpha, truth)
    pairs = zip(alpha[:, 0].double().numpy(), truth[:, 0].double().numpy(), strict=True)
    return float(np.mean([_connectivity(*pair) for pair in pairs]) / 1e3)


def _connectivity(alpha: np.ndarray, truth: np.ndarray) -> float:
    from scipy import ndimage

    levels = np.arange(0, 1.1, 0.1)
    both = np.minimum(alpha, truth)
    connected = np.full_like(truth, -1)
    for lower, level in zip(levels, levels[1:], strict=False):
        labels = np.zeros(truth.shape, np.int32)
        parts = ndimage.label(both >= level, output=labels)
        largest = np.zeros_like(labels, bool)
        if parts:
            largest = labels == np.bincount(labels.ravel())[1:].argmax() + 1
        connected[(connected == -1) & ~largest] = lower
    connected[connected == -1] = 1
    loose = [matte - connected for matte in (alpha, truth)]
    degree = [1 - difference * (difference >= 0.15) for difference in loose]
    return np.abs(degree[0] - degree[1]).sum()


def dtssd(alpha: Tensor, truth: Tensor) -> float:
    """Root mean squared error of the change from frame to frame, times 100 (Erofeev et al. 2015).

    The first frame has no change and counts as 0 in the mean.
    """
    change = _difference(alpha, truth).diff(dim=0)
    return float(1e2 * change.square().mean((1, 2, 3)).sqrt().sum() / len(alpha))


def _difference(alpha: Tensor, truth: Tensor) -> Tensor:
    check_tensor("the true matte", truth, "T", 1, "H", "W")
    check_tensor("the matte", alpha, *truth.shape)
    return alpha.double() - truth.double()
