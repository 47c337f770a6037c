"""GenCompositor's inputs (arXiv 2509.02460), made from a person's.

A foreground is a video with a matte. It is centred on its own canvas, which removes its own path. A
:class:`~vera_lite.media.trajectory.Trajectory` gives the new path. The object's place on it is inflated, so
that shadow and edge have room, and cut out of the background:

    foreground, alpha = centre_foreground(foreground, alpha, size)
    placed, matte = place(foreground, alpha, *trajectory.sample(len(alpha)), trajectory.size)
    mask = inflate_mask(matte)  # the model paints here

Videos are floating (T, C, H, W) in [0, 1], colours straight. Positions as in a trajectory: x and y in
pixels, (0, 0) the centre of the top left pixel.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from vera_lite.errors import UserError, check_tensor


def place(
    foreground: Tensor, alpha: Tensor, positions: Tensor, scales: Tensor, size: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Put the centre of a foreground's canvas at a position in every frame, scaled about that centre.

    Resampled bilinearly, with the filter widened where it shrinks (antialiasing). What falls outside
    the frame is cut off.

    Args:
        foreground: (T, 3, h, w).
        alpha: (T, 1, h, w).
        positions: (T, 2), x and y in the frame.
        scales: (T,), above 0.
        size: (H, W) of the frame.

    Returns:
        Colour (T, 3, H, W), 0 where alpha is 0, and alpha (T, 1, H, W).

    Raises:
        ValueError: the shapes do not fit.
        UserError: a scale is not above 0.
    """
    _check_layers(foreground, alpha)
    middle = torch.tensor([alpha.shape[3] - 1, alpha.shape[2] - 1]).expand(len(alpha), 2) / 2
    return resample(foreground, alpha, middle, positions, scales, size)


def centre_foreground(
    foreground: Tensor, alpha: Tensor, size: tuple[int, int] | None = None
) -> tuple[Tensor, Tensor]:
    """Put the object into the middle of a canvas in every frame: this keeps shape and motion, not the path.

    The object's middle is the mean position weighted by alpha, which moves smoothly where the middle of a
    bounding box would jump. All frames have one scale: 1, or less if the canvas is too small.

    Args:
        foreground: (T, 3, H, W).
        alpha: (T, 1, H, W). Frames where it is all 0 stay empty.
        size: (h, w) of the canvas; by default the foreground's.

    Returns:
        Colour (T, 3, h, w), 0 where alpha is 0, and alpha (T, 1, h, w).

    Raises:
        ValueError: the shapes do not fit.
        UserError: alpha is 0 everywhere.
    """
    _check_layers(foreground, alpha)
    height, width = alpha.shape[2:] if size is None else size
    centres, reach = object_extent(alpha)
    canvas = torch.tensor([width, height], device=alpha.device)
    scales = (canvas / 2 / reach).min().clamp_max(1).expand(len(alpha))
    middle = ((canvas - 1) / 2).expand(len(alpha), 2)
    return resample(foreground, alpha, centres, middle, scales, (height, width))


def object_extent(alpha: Tensor) -> tuple[Tensor, Tensor]:
    """Where an object is, and how far it reaches from its middle, in pixels.

    Args:
        alpha: (T, 1, H, W).

    Returns:
        x and y of its middle in every frame (T, 2), the mean position weighted by alpha; and the largest
        reach from there along x and y in any frame, (2,).

    Raises:
        UserError: alpha is 0 everywhere.
    """
    if not alpha.any():
        raise UserError("the foreground's alpha is 0 everywhere: give a matte that shows the object.")
    mass = alpha[:, 0].double()
    total = mass.sum((1, 2)).clamp_min(torch.finfo(alpha.dtype).tiny)
    centres, reaches = [], []
    for across in (1, 2):  # x, y
        profile = mass.sum(across)  # (T, W), (T, H)
        pixel = torch.arange(profile.shape[1], device=alpha.device)
        centre = (profile * pixel).sum(1) / total
        centres.append(centre)
        reaches.append((((pixel - centre[:, None]).abs() + 0.5) * (profile > 0)).max())
    return torch.stack(centres, 1), torch.stack(reaches)


def inflate_mask(mask: Tensor, sigma: float | None = None, threshold: float = 0.0) -> Tensor:
    """Enlarge a mask: blur it with a Gaussian, and keep what is above a threshold.

    The paper names neither sigma nor threshold. The released code cuts the Gaussian off at 2.5 sigma and
    keeps every response. This is a dilation by a square (51 pixels for sigma = 10 in a frame 720 wide), and
    the default here. A threshold in (0, 0.5) follows the outline more closely.

    Args:
        mask: (T, 1, H, W) in [0, 1]; above 0.5 is inside.
        sigma: in pixels; the default is a 72nd of the width, as released.
        threshold: in [0, 1).

    Returns:
        (T, 1, H, W), 0 or 1, of the mask's dtype.

    Raises:
        UserError: sigma is out of its range.
        ValueError: threshold is out of its range, or the mask has another shape.
    """
    check_tensor("the mask", mask, "T", 1, "H", "W")
    sigma = mask.shape[-1] / 72 if sigma is None else sigma
    if not 0 < sigma <= mask.shape[-1]:
        raise UserError(f"sigma lies above 0 and up to the mask's width, not {sigma:g}.")
    if not 0 <= threshold < 1:
        raise ValueError(f"threshold lies in [0, 1), not {threshold}.")
    inside = (mask > 0.5).to(mask.dtype)
    radius = round(2.5 * sigma)
    if threshold == 0:  # exact, where a convolution may give tiny numbers instead of 0
        inside = F.pad(inside, (radius,) * 4)
        for kernel in ((2 * radius + 1, 1), (1, 2 * radius + 1)):
            inside = F.max_pool2d(inside, kernel, stride=1)
        return inside
    offset = torch.arange(-radius, radius + 1, device=mask.device, dtype=mask.dtype)
    kernel = torch.softmax(-((offset / sigma) ** 2) / 2, 0)[None, None, None]  # a Gaussian, adding up to 1
    blurred = F.conv2d(inside, kernel, padding=(0, radius))
    blurred = F.conv2d(blurred, kernel.mT, padding=(radius, 0))
    return (blurred > threshold).to(mask.dtype)


#: Gamma of :func:`augment_luminance` is uniform in this range in the paper; from 0.3 in the released code.
LUMINANCE_GAMMA = (0.4, 1.9)


def augment_luminance(foreground: Tensor, gamma: Tensor) -> Tensor:
    """foreground ** gamma: darker above 1, brighter below; white and black do not change.

    Training on foregrounds with a wrong brightness teaches the model to match the background's.

    Args:
        foreground: pixels (B, T, 3, H, W) in [0, 1].
        gamma: (B,), see :data:`LUMINANCE_GAMMA`.

    Raises:
        ValueError: a gamma is not positive, or pixels are not in [0, 1].
    """
    if (gamma <= 0).any() or foreground.min() < 0 or foreground.max() > 1:
        raise ValueError("luminance augmentation takes pixels in [0, 1] and gammas above 0.")
    return foreground ** gamma.view(-1, 1, 1, 1, 1)


def resample(
    foreground: Tensor, alpha: Tensor, source: Tensor, target: Tensor, scales: Tensor, size: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Move points ``source`` (T, 2) of a foreground to ``target`` (T, 2), scaled about them.

    Scales are (T,), or (T, 2) for x and y; the rest is as for :func:`place`.
    """
    # The filter is separable, so two small matrix products do all frames. Colours are weighted by alpha, or
    # invisible colour around the object would mix into its edge.
    frames, shapes = len(alpha), (tuple(target.shape), tuple(scales.shape))
    if shapes not in (((frames, 2), (frames,)), ((frames, 2), (frames, 2))):
        raise ValueError(
            f"{frames} frames need positions ({frames}, 2) and scales ({frames},), not {shapes}."
        )
    if not bool((scales > 0).all()):
        raise UserError(f"the smallest scale is {scales.min().item():g}; scales must be above 0.")
    scales = scales.reshape(frames, -1).expand(frames, 2)

    def weights(axis: int, inputs: int, outputs: int) -> Tensor:  # (T, outputs, inputs): hat functions
        to, start, s = (v[:, axis].to(alpha.device, torch.float64) for v in (target, source, scales))
        pixel = torch.arange(outputs, device=alpha.device, dtype=torch.float64)
        seen = start[:, None] + (pixel - to[:, None]) / s[:, None]  # (T, outputs)
        reach = (1 / s).clamp_min(1)[:, None, None]
        # Pixels beyond the border, where alpha is 0, count when the weights are made to add up to 1.
        pad = 2 * math.ceil(reach.max())
        grid = torch.arange(-pad, inputs + pad, device=alpha.device)
        hat = (1 - (seen[..., None] - grid).abs() / reach).clamp_min(0)
        hat = hat / hat.sum(-1, keepdim=True).clamp_min(1e-12)
        return hat[..., pad : pad + inputs].to(alpha.dtype)

    columns, rows = weights(0, alpha.shape[3], size[1]), weights(1, alpha.shape[2], size[0])
    layers = torch.cat([foreground * alpha, alpha], 1)
    colour, alpha = torch.einsum("tyh,tchw,txw->tcyx", rows, layers, columns).split([3, 1], 1)
    colour = torch.where(alpha > 0, colour / alpha, 0)
    return colour.clamp(0, 1), alpha.clamp(0, 1)


def _check_layers(foreground: Tensor, alpha: Tensor) -> None:
    check_tensor("the foreground", foreground, "T", 3, "H", "W")
    check_tensor("alpha", alpha, len(foreground), 1, *foreground.shape[2:])
