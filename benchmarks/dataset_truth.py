"""Which stage of the dataset pipeline hurts? Each is scored on the ground truth, alone and in the chain.

Alone: a stage is given the true layers of the stages before it. In the chain: what those stages made.
24 clips at 480x270, six kinds (`vera_lite.toy.truth`); rows give median, lowest and highest over the clips.

    python benchmarks/dataset_truth.py --json benchmarks/results/dataset_truth.json
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from _harness import report_head, write_json
from torch import Tensor
from tqdm.auto import tqdm

from vera_lite.dataset.checks import Rejected, grow
from vera_lite.dataset.matte import ClosedForm, foreground, misfit, split, with_shadow
from vera_lite.dataset.plate import background, fill, register
from vera_lite.dataset.segment import MovingSegmenter
from vera_lite.evaluation.mattes import matte_scores, sad
from vera_lite.evaluation.metrics import iou
from vera_lite.media.clip import LayeredClip, composite
from vera_lite.toy.truth import KINDS, truth_clip

ROOM, WIDTH, LEAST_GAIN = 4, 4, 0.05  # the defaults of the stages Plate and Matte


def psnr(a: Tensor, b: Tensor, where: Tensor | None = None) -> float:
    """Of colours in [0, 1], over the pixels where ``where`` (T, 1, H, W) is 1, in dB."""
    error = (a - b).square().mean(1, keepdim=True)
    error = error.mean() if where is None else (error * where).sum() / where.sum()
    return float(-10 * error.clamp_min(1e-10).log10())


def plate_of(video: Tensor, mask: Tensor) -> tuple[Tensor, float]:
    """The plate as the stage makes it, and the share of it that no frame shows."""
    hidden = grow(mask, ROOM)
    plate, unseen = background(video, register(video), hidden)
    share = float((unseen * hidden).sum() / hidden.sum())
    return torch.where(hidden > 0, fill(plate, unseen * hidden), video), share


def matte_of(video: Tensor, mask: Tensor, plate: Tensor) -> tuple[dict[str, Tensor], dict[str, float]]:
    """The layers as the stage makes them, hard and soft, and its own two measurements."""
    core, soft, shade = split(video, mask, plate, WIDTH, ClosedForm())
    errors = misfit(video, plate, core, (core, soft), WIDTH)
    alphas = {"hard": core, "soft": soft}
    alphas["chosen"] = soft if errors[1] <= (1 - LEAST_GAIN) * errors[0] else core
    layers = {name: with_shadow(foreground(video, a), a, shade) for name, a in alphas.items()}
    return layers, dict(zip(("hard", "soft"), errors, strict=True))


def score(clip: LayeredClip) -> dict[str, float]:
    """All numbers of one clip.

    Raises:
        Rejected: a stage refuses the clip.
    """
    video, whole = clip.composite, (clip.alpha > 0.1).float()
    found = {}
    mask = MovingSegmenter()(video)
    found["segment: IoU"] = iou(mask > 0, whole > 0)
    hidden = grow((clip.alpha > 0).float(), ROOM)
    for name, given in (("alone", whole), ("chain", mask)):
        plate, found[f"plate, {name}: unseen share"] = plate_of(video, given)
        found[f"plate, {name}: PSNR behind the object"] = psnr(plate, clip.source, hidden)
        layers, errors = matte_of(video, given, clip.source if name == "alone" else plate)
        for kind, (edit, alpha) in layers.items():
            scores = {"sad": sad(alpha, clip.alpha)} | matte_scores(alpha, clip.alpha)
            found |= {f"matte, {name}, {kind}: {metric}": value for metric, value in scores.items()}
            error = psnr(composite(edit, alpha, clip.source if name == "alone" else plate), video)
            found[f"matte, {name}, {kind}: recomposition"] = error
        helps = errors["soft"] <= (1 - LEAST_GAIN) * errors["hard"]
        found[f"matte, {name}: the stage chooses the better of hard and soft"] = float(
            helps == (found[f"matte, {name}, soft: sad"] < found[f"matte, {name}, hard: sad"])
        )
        if name == "chain":
            edit, alpha = layers["chosen"]
            found["chain: edit, colour error where alpha > 0.1"] = float(
                ((edit - clip.edit).abs().mean(1, keepdim=True) * whole).sum() / whole.sum()
            )
    found["inpainting instead of a plate: PSNR behind the object"] = psnr(
        fill(video, hidden), clip.source, hidden
    )
    return found


def rows(scored: list[tuple[str, dict[str, float]]], select: Callable[[str], bool]) -> dict[str, dict]:
    """Median, lowest and highest of every number over the clips of some kinds."""
    chosen = [numbers for kind, numbers in scored if select(kind)]
    return {
        name: {
            "median": median(c[name] for c in chosen),
            "lowest": min(c[name] for c in chosen),
            "highest": max(c[name] for c in chosen),
        }
        for name in (chosen[0] if chosen else ())
    }


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clips", type=int, default=24, help="of the ground truth (default 24)")
    parser.add_argument("--frames", type=int, default=9, help="of each clip (default 9)")
    parser.add_argument("--json", type=Path, help="also write the report to this file")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    scored, rejected = [], []
    for index in tqdm(range(options.clips), unit="clip"):
        clip = truth_clip(index, options.frames)
        try:
            scored.append((clip.attributes["kind"], score(clip)))
        except Rejected as error:
            rejected.append({"clip": index, **clip.attributes, "reason": error.reason})
    report = report_head("dataset_truth", "torch", "opencv-python-headless", "pymatting") | {
        "clips": options.clips,
        "frames": options.frames,
        "rejected": rejected,
        "all": rows(scored, lambda kind: True),
        "by kind": {kind: rows(scored, lambda k, kind=kind: k == kind) for kind in KINDS},
    }
    print(f"{len(scored)} of {options.clips} clips; rejected: {rejected or 'none'}")
    for name, row in report["all"].items():
        print(f"{name:62} {row['median']:10.4f}   {row['lowest']:.4f} .. {row['highest']:.4f}")
    if options.json:
        write_json(report, options.json)


if __name__ == "__main__":
    main()
