"""RVEDiT's three scores (arXiv 2605.24674, section 5 and appendix D.3) for toy edits, by image processing.

In the paper a large model scores how well the instruction was followed, how well everything else was kept,
and how good the video looks: three independent scores from 1 to 100. Here a score is 1 + 99 s, where s is the
share that one of the functions below returns.

Means over 48 clips of each category, rounded, by axis (instruction compliance, content fidelity, visual
quality):

    the truth                                             99  100  100
    the truth, through the toy codec and back             97   89   92
    the truth, each pixel the mean of 3 x 3               92   81   78
    the truth, every second frame a fifth darker          90   56   20
    the source                                             1  100  100
    another edit (other object removed, other style)       1   68   90
    noise                                                  2    1    3
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from vera_lite.evaluation.toy.object_judge import chroma, read_object
from vera_lite.evaluation.toy.thing_judge import edit_share
from vera_lite.toy.edits import LUMA, STYLES, ToyEdits
from vera_lite.toy.words import COLOURS, colour_index

PSNR_RANGE = 10.0, 35.0  # dB: of two unrelated clips, and of a difference that is hardly visible
OBJECT_FIT = 0.25  # overlap with the best outline: below 0.16 for noise, above 0.47 for true objects
GREY = 0.08  # a pixel whose channels span less has no colour
UNSEEN = 0.03  # added to pixel differences: smaller ones are hardly visible, and ratios stay moderate


def judge_edits(edits: ToyEdits, results: Tensor) -> dict[str, Tensor]:
    """Score edited videos.

    Args:
        edits: B clips with their truth.
        results: (B, T, 3, H, W) in [0, 1], an editor's results for ``edits.source``.

    Returns:
        ``instruction_compliance``, ``content_fidelity`` and ``visual_quality``, (B,) each, from 1 to 100.

    Raises:
        ValueError: the results have another shape than the clips, or are not finite.
    """
    if results.shape != edits.source.shape or not results.isfinite().all():
        raise ValueError(f"results must be finite videos of shape {tuple(edits.source.shape)}.")
    shares = [
        (
            instruction_compliance(source, result, attributes)
            if edits.scene is None or attributes["style"]
            else edit_share(result, source, edits.scene[i], changed, attributes),
            content_fidelity(source, result, changed, attributes["style"]),
            visual_quality(source, result, target),
        )
        for i, (source, result, target, changed, attributes) in enumerate(
            zip(edits.source, results.clamp(0, 1), edits.target, edits.changed, edits.attributes, strict=True)
        )
    ]
    axes = ("instruction_compliance", "content_fidelity", "visual_quality")
    return dict(zip(axes, 1 + 99 * torch.tensor(shares).T, strict=True))


def instruction_compliance(source: Tensor, result: Tensor, attributes: dict) -> float:
    """Was the instruction followed?

    * Another colour: the share of the object's pixels that have the new colour. Removal: the share that have
      a colour of the background or the other object. Chance (1/6 for each colour that counts) gives 0.
    * Another shape: 1 if the region of the object's colour has the new outline.
    * A new object: the share of its colour, shape, place and motion that are right; 0 if nothing has its
      colour and a known outline. Texture does not count.
    * A style: 1 - d(asked) / d(next). d is a distance between distributions of brightness, colour and
      contrast over the whole frame: d(asked) to the source in the requested style, d(next) to the nearest
      among the source itself and the source in the other styles.

    Args:
        source, result: (T, 3, H, W) in [0, 1].
        attributes: of the clip, see :class:`~vera_lite.toy.edits.ToyEdits`.

    Returns:
        A share in [0, 1].
    """
    before, after = attributes["before"], attributes["after"]
    if attributes["style"]:
        return _style_share(source, result, attributes["style"])
    if not after or (before and before["colour"] != after["colour"]):
        parts = [after] if after else [attributes["background"], attributes["other"]]
        wanted = torch.tensor([list(COLOURS).index(part["colour"]) for part in parts if part])
        where = _matte(source, before["colour"])[:, 0] > 0.5
        share = torch.isin(_colours(result), wanted)[where].float().mean()
        chance = len(wanted) / len(COLOURS)
        return max(0.0, float(share - chance) / (1 - chance))
    seen = read_object(result, _matte(result, after["colour"]))
    if seen["fit"] < OBJECT_FIT:
        return 0.0
    keys = ("shape",) if before else ("colour", "shape", "place", "motion")
    return sum(seen[key] == after[key] for key in keys) / len(keys)


def content_fidelity(source: Tensor, result: Tensor, changed: Tensor, style: str | None) -> float:
    """Is everything else unchanged?

    * Local edit: the PSNR against the source where the true edit changes nothing, mapped from ``PSNR_RANGE``
      to [0, 1].
    * Style: the highest absolute correlation between the brightness of the result and that of the source in
      any style or in none. (Absolute, since a negative has -1.)

    Args:
        source, result: (T, 3, H, W) in [0, 1].
        changed: (T, 1, H, W), see :class:`~vera_lite.toy.edits.ToyEdits`.
        style: a word of ``STYLES``, or None: the edit is local.

    Returns:
        A share in [0, 1].
    """
    if style:
        videos = (result, source, *(restyled(source) for restyled in STYLES.values()))
        correlation = torch.stack([_luma(video).flatten() for video in videos]).corrcoef()[0, 1:]
        return float(correlation.abs().nan_to_num().max())
    error = (result - source).square().mean(1, keepdim=True)[changed == 0].mean()
    low, high = PSNR_RANGE
    return float(((-10 * error.log10() - low) / (high - low)).clamp(0, 1))


def visual_quality(source: Tensor, result: Tensor, target: Tensor) -> float:
    """Is the result as steady and as sharp as the source and the truth?

    Flicker is the mean |x[t+1] - 2 x[t] + x[t-1]|, sharpness the mean |difference| of neighbouring pixels,
    with ``UNSEEN`` added to both. A value between those of source and truth scores 1. Any other value scores
    its ratio to the nearer of the two, smaller over larger. The two scores are multiplied. Noise and flicker
    give too high values, blur and frozen frames too low ones.

    Args:
        source, result, target: (T, 3, H, W) in [0, 1].

    Returns:
        A share in (0, 1].
    """
    share = 1.0
    for measure in (_flicker, _sharpness):
        value, *span = (float(measure(video)) + UNSEEN for video in (result, source, target))
        share *= min(1.0, value / min(span), max(span) / value)
    return share


def seen_motion(result: Tensor, colour: str) -> str | None:
    """How the object of a colour moves, a word of ``MOTIONS``; None if nothing has the colour and an outline.

    Args:
        result: (T, 3, H, W) in [0, 1].
        colour: a word of ``COLOURS``.
    """
    seen = read_object(result, _matte(result, colour))
    return None if seen["fit"] < OBJECT_FIT else seen["motion"]


# --- vision --------------------------------------------------------------------------------------


def _luma(video: Tensor) -> Tensor:
    return torch.einsum("c,tchw->thw", torch.tensor(LUMA), video)


def _colours(video: Tensor) -> Tensor:
    """Each pixel's colour as an index of ``COLOURS``, (T, H, W); -1 for grey."""
    hue = torch.rad2deg(chroma(video.movedim(1, 0)).angle())
    return torch.where(video.amax(1) - video.amin(1) < GREY, -1, colour_index(hue))


def _matte(video: Tensor, colour: str) -> Tensor:
    """Soft matte of what has a colour, (T, 1, H, W)."""
    core = (_colours(video) == list(COLOURS).index(colour)).float()[:, None]
    # Where two other colours meet, a line of mixed pixels may have this hue: an opening removes it.
    core = -F.max_pool2d(-F.pad(core, (0, 1, 0, 1), value=1.0), 2, stride=1)
    core = F.max_pool2d(F.pad(core, (1, 0, 1, 0)), 2, stride=1)
    if not core.any():
        return core
    hue = torch.tensor(math.radians(COLOURS[colour]))
    towards = (chroma(video.movedim(1, 0)) * torch.polar(torch.tensor(1.0), -hue)).real[:, None]
    typical = towards[core > 0].quantile(0.8)
    return (towards / typical).clamp(0, 1) * F.max_pool2d(core, 3, stride=1, padding=1)


def _style_share(source: Tensor, result: Tensor, style: str) -> float:
    look = _look(result)
    distances = {name: (look - _look(restyled(source))).abs().mean() for name, restyled in STYLES.items()}
    asked = distances.pop(style)
    nearest = min(*distances.values(), (look - _look(source)).abs().mean())
    return max(0.0, 1 - float(asked / nearest.clamp_min(1e-6)))


def _look(video: Tensor) -> Tensor:
    """Brightness, two colour differences, and brightness steps in y and x, each sorted."""
    luma = _luma(video)
    parts = (luma, video[:, 0] - luma, video[:, 2] - luma, luma.diff(dim=1), luma.diff(dim=2))
    return torch.cat([part.flatten().sort().values for part in parts])


def _flicker(video: Tensor) -> Tensor:
    return video.diff(n=2, dim=0).abs().mean().nan_to_num()  # 0 for fewer than three frames


def _sharpness(video: Tensor) -> Tensor:
    return video.diff(dim=2).abs().mean() + video.diff(dim=3).abs().mean()
