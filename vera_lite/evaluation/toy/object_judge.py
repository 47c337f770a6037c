"""Image processing that names colour, shape, place, motion and pattern in generated layers.

There is no network. The judge first describes what it sees, without knowing the request, and then compares
this with the request. It finds shapes by matching the matte with the four outlines at many sizes and tilts,
and patterns by the share of their frequency in the spectrum.
"""

import functools
import math
from dataclasses import replace

import torch
from torch import Tensor

from vera_lite.toy.drawing import (
    PATTERN_PERIOD,
    PLACE_STEP,
    ClipConfig,
    Sprite,
    signed_distance,
    soft_coverage,
)
from vera_lite.toy.words import PLACES, SHAPES, nearest_colour

_TILTS = (-0.2, -0.1, 0.0, 0.1, 0.2)
_RADII = (0.26, 0.30, 0.34, 0.38, 0.42, 0.46)
_SMALLEST = 0.008  # share of the frame; with less matte above one half, nothing is there


def chroma(rgb: Tensor) -> Tensor:
    """Colours (3, ...) as complex numbers (...): angle is hue, length about saturation times value."""
    r, g, b = rgb
    return torch.complex(2 * r - g - b, math.sqrt(3) * (g - b)) / 2


def name_colour(rgb: Tensor) -> str:
    """The colour whose hue is nearest to that of the mean of (n, 3) pixels, grey ones included."""
    return nearest_colour(torch.rad2deg(chroma(rgb.double().mean(0)).angle())[None])[0]


def _centroids(alpha: Tensor) -> Tensor:
    """Centre of mass of each frame in half-frames, (T, 2) as (x, y); alpha (T, H, W), none empty."""
    height, width = alpha.shape[-2:]
    x = (torch.arange(width) + 0.5) / width * 2 - 1
    y = (torch.arange(height) + 0.5) / height * 2 - 1
    mass = alpha.sum((1, 2))
    return torch.stack([(alpha.sum(1) @ x) / mass, (alpha.sum(2) @ y) / mass], dim=1)


def _upper_half(alpha: Tensor) -> Tensor:
    """Stretch [0.5, 1] to [0, 1]: shadows lie below one half, and only the object is matched."""
    return (2 * alpha - 1).clamp(0, 1)


@functools.lru_cache(maxsize=8)
def _templates(height: int, width: int) -> tuple[Sprite, Tensor]:
    """One sprite per (shape, tilt, radius), and its centre of mass when centred: (K, 2)."""
    shape, tilt, radius = torch.meshgrid(
        torch.arange(len(SHAPES)).float(), torch.tensor(_TILTS), torch.tensor(_RADII), indexing="ij"
    )
    zero = torch.zeros(shape.numel())
    sprite = Sprite(
        shape.flatten().long(), zero, zero, radius.flatten(), tilt.flatten(), zero[:, None], zero[:, None]
    )
    config = ClipConfig(1, height, width)
    cover = _upper_half(soft_coverage(signed_distance(sprite, config)[0], config)[:, 0])
    return sprite, _centroids(cover)


def name_shape(alpha: Tensor) -> tuple[str, float]:
    """The outline that fits a matte (T, H, W) best, and its mean overlap (soft IoU) in [0, 1].

    Each frame is matched at its own centre of mass. Frames that show more of the object count more.
    """
    frames, height, width = alpha.shape
    sprite, offset = _templates(height, width)
    at = _centroids(alpha)[None] - offset[:, None]  # (K, T, 2)
    placed = replace(sprite, cx=at[..., 0], cy=at[..., 1])
    config = ClipConfig(frames, height, width)
    template = _upper_half(soft_coverage(signed_distance(placed, config)[0], config))  # (K, T, H, W)
    overlap = torch.minimum(template, alpha).sum((2, 3)) / torch.maximum(template, alpha).sum((2, 3))
    weight = alpha.sum((1, 2)) ** 2
    score = (overlap * weight).sum(1) / weight.sum()  # (K,)
    best = int(score.argmax())
    return SHAPES[sprite.shape[best]], float(score[best])


def read_object(edit: Tensor, alpha: Tensor) -> dict:
    """Describe an added object.

    Args:
        edit: (T, 3, H, W) in [0, 1].
        alpha: (T, 1, H, W) in [0, 1].

    Returns:
        ``colour, shape, place, motion`` as the world names them (None where nothing is there),
        ``fit`` (overlap with the named outline) and ``steady``: every frame shows one object in one piece
        and of about the same size, and it never jumps.
    """
    alpha = alpha[:, 0]
    solid = alpha > 0.5
    area = solid.float().mean((1, 2))
    shown = area >= _SMALLEST
    if not shown.any():
        return {"colour": None, "shape": None, "place": None, "motion": None, "fit": 0.0, "steady": False}
    body = _upper_half(alpha)
    shape, fit = name_shape(body[shown])
    path = _centroids(body[shown])
    start, end = path[: max(1, len(path) // 3)].mean(0), path[-max(1, len(path) // 3) :].mean(0)
    return {
        "colour": name_colour(edit.permute(0, 2, 3, 1)[solid]),
        "shape": shape,
        "place": _name_place(path.mean(0)),
        "motion": _name_motion(end - start),
        "fit": fit,
        "steady": bool(shown.all()) and _steady(solid, area, path),
    }


def _name_place(at: Tensor) -> str:
    column, row = (min(2, max(0, round(float(v) / PLACE_STEP) + 1)) for v in at)
    return PLACES[3 * row + column]


def _name_motion(step: Tensor) -> str:
    # The means of the first and the last third lie about two thirds of the path apart, which is 0.3 to 0.46.
    x, y = step.tolist()
    if math.hypot(x, y) < 0.1:
        return "still"
    if abs(x) > abs(y):
        return "right" if x > 0 else "left"
    return "down" if y > 0 else "up"


def _steady(solid: Tensor, area: Tensor, path: Tensor) -> bool:
    from skimage.measure import label, regionprops

    for frame in solid.numpy():
        parts = sorted((r.area for r in regionprops(label(frame, connectivity=2))), reverse=True)
        if sum(parts[1:]) > 0.15 * parts[0]:
            return False
    jumps = (path[1:] - path[:-1]).norm(dim=1)
    return bool(area.min() > 0.55 * area.max() and jumps.max() < 0.16)


def read_background(edit: Tensor, alpha: Tensor) -> dict:
    """Describe a new background by ``colour`` and ``pattern``.

    Args:
        edit: (T, 3, H, W) in [0, 1]; all of it is the background.
        alpha: (T, 1, H, W), 1 where the background shows; the colour is read there.
    """
    solid = alpha[:, 0] > 0.5
    pixels = edit.permute(0, 2, 3, 1)
    colour = name_colour(pixels[solid] if solid.any() else pixels.reshape(-1, 3))
    return {"colour": colour, "pattern": name_pattern(edit)}


def name_pattern(video: Tensor) -> str:
    """The pattern of a (T, 3, H, W) background, from the mean power spectrum of its frames."""
    grey = video.double().mean(1)
    height, width = grey.shape[-2:]
    y = torch.linspace(-1, 1, height).double()[:, None]
    grey = grey - grey.mean((1, 2), keepdim=True)
    slope = (grey * y).sum((1, 2), keepdim=True) / (y * y).sum() / width
    flat = grey - slope * y  # "plain" is a slow ramp
    if flat.std() < 0.035:
        return "plain"
    window = torch.outer(torch.hann_window(height), torch.hann_window(width)).double()
    power = torch.fft.fft2(flat * window).abs().square().mean(0)
    n = round(2 / PATTERN_PERIOD)  # cycles per frame

    def share(fy: int, fx: int) -> float:
        rows = [(fy + d) % height for d in (-1, 0, 1)]
        columns = [(fx + d) % width for d in (-1, 0, 1)]
        return float(power[rows][:, columns].sum() / power.sum())

    shares = {
        "vertical stripes": share(0, n) + share(0, -n),
        "horizontal stripes": share(n, 0) + share(-n, 0),
        "checks": sum(share(a, b) for a in (n, -n) for b in (n, -n)),
    }
    best = max(shares, key=lambda name: shares[name])
    return best if shares[best] > 0.5 else "clouds"


def judge(edit: Tensor, alpha: Tensor, attributes: dict) -> dict[str, bool]:
    """Compare what is seen in the layers with what was asked.

    Args:
        edit, alpha: the generated layers, (T, 3 or 1, H, W) in [0, 1].
        attributes: of the clip, as the toy world gives them.

    Returns:
        For "add": colour, shape, place, motion, steady; for "background": colour, pattern. Shape and
        steadiness of an object that passes behind another are not judged, since its matte is cut.
    """
    if attributes["task"] == "background":
        seen = read_background(edit, alpha)
        return {k: seen[k] == attributes[f"background_{k}"] for k in ("colour", "pattern")}
    seen = read_object(edit, alpha)
    cut = attributes["behind"]
    keys = ("colour", "place", "motion") if cut else ("colour", "shape", "place", "motion")
    verdict = {k: seen[k] == attributes[k] for k in keys}
    return verdict if cut else verdict | {"steady": seen["steady"]}


def judge_final(source: Tensor, final: Tensor, attributes: dict) -> dict[str, bool]:
    """The same from the result alone: what differs from the source is taken for the edit.

    This works for editors without layers, but it sees less: where an object covers its own colour nothing
    changes. So steadiness is not judged.

    Args:
        source, final: (T, 3, H, W) in [0, 1].
        attributes: of the clip.
    """
    change = (final - source).abs().amax(1, keepdim=True)
    if attributes["task"] == "background":
        alpha = (change > 0.05).float()
        mean = (final * alpha).sum((2, 3), keepdim=True) / alpha.sum((2, 3), keepdim=True).clamp_min(1)
        return judge(torch.where(alpha > 0, final, mean), alpha, attributes)
    verdict = judge(final, _changed_object(final, change), attributes)
    verdict.pop("steady", None)
    return verdict


def _changed_object(final: Tensor, change: Tensor) -> Tensor:
    """Matte (T, 1, H, W) of the pixels that changed and have the hue of those that changed most.

    A shadow changes pixels too, but not towards a colour of its own.
    """
    colours = chroma(final.movedim(1, 0))[:, None]
    strong = colours * (change > 0.1) * change
    hue = strong.sum() / strong.abs().sum().clamp_min(1e-6)
    towards = (colours * hue.conj() / hue.abs().clamp_min(1e-6)).real.clamp_min(0)
    typical = towards[change > 0.1].quantile(0.8) if (change > 0.1).any() else towards.new_tensor(1.0)
    return (towards / typical.clamp_min(0.1)).clamp(0, 1) * (change / 0.1).clamp(0, 1)
