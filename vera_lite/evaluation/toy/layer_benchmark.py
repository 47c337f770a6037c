"""How well a system edits the toy world: clips it never saw, sampled and judged."""

import math
from collections import defaultdict

import torch
from torch import Tensor

from vera_lite.evaluation.toy.object_judge import judge, judge_final
from vera_lite.pipelines import VeraPipeline
from vera_lite.toy.world import ToyBatch, WorldConfig, render

TEST_SEED = 2_000_000  # no training or validation world has this seed
PRESERVED = 0.02  # a pixel is preserved where the true alpha lies below this


class PooledPSNR:
    """PSNR in dB of the mean squared error pooled over clips, for videos in [0, 1].

    Pooling is the stricter mean: one clip that leaks is not outweighed by others that are exact (a
    mean of decibels would reward those without bound).
    """

    def __init__(self):
        self.error, self.pixels = 0.0, 0

    def add(self, a: Tensor, b: Tensor, where: Tensor) -> None:
        """Videos (..., 3, H, W), counted where the boolean (..., 1, H, W) holds."""
        error = (a - b).double().square().mean(-3, keepdim=True)
        self.error += float(error[where].sum())
        self.pixels += int(where.sum())

    def value(self) -> float:
        """The PSNR; infinite if all pixels are equal, nan if there were none."""
        if not self.pixels:
            return float("nan")
        return float("inf") if self.error == 0 else -10 * math.log10(self.error / self.pixels)


def iou(a: Tensor, b: Tensor) -> float:
    """Intersection over union of two boolean tensors; 1 if both are empty."""
    union = (a | b).sum()
    return 1.0 if union == 0 else float((a & b).sum() / union)


def evaluate(
    pipe: VeraPipeline,
    clips: int = 256,
    with_mask: bool = True,
    *,
    seed: int = TEST_SEED,
    batch_size: int = 32,
    **options,
) -> dict[str, dict[str, float]]:
    """Sample ``clips`` unseen clips and measure each task.

    Args:
        pipe: its system generates "edit" and "alpha" (layered) or only "composite" (regeneration).
        clips: how many, of the world ``seed``.
        with_mask: give the mask to the system.
        batch_size, options: of sampling, see :meth:`.Pipeline.generate`.

    Returns:
        ``{task: {metric: value}}``. ``preserved_psnr``: of the result against the source where the
        true alpha says "preserved"; ``composite_psnr`` the same for the generated composite;
        ``full_psnr`` against the true composite; ``alpha_iou`` and ``alpha_mae`` against the true
        matte (for "background" of the subject's matte); then the judge's verdicts as shares of clips,
        ``final_*`` read off the result alone, as must be done for a system without layers;
        ``satisfied``: all of ``final_*`` right.
    """
    frames, height, width = pipe.clip_size
    world = WorldConfig(frames=frames, height=height, width=width)
    psnrs: dict = defaultdict(PooledPSNR)
    values: dict = defaultdict(lambda: defaultdict(list))
    generator = torch.Generator().manual_seed(seed)
    for first in range(0, clips, batch_size):
        batch = render(seed, range(first, min(first + batch_size, clips)), world)
        mask = batch.mask if with_mask else None
        result = pipe.generate(batch.source, batch.instruction, mask, generator=generator, **options)
        final, alpha = result.final, result.alpha
        for i, attributes in enumerate(batch.attributes):
            task = attributes["task"]
            row = values[task]
            preserved = batch.alpha[i] < PRESERVED
            psnrs[task, "preserved_psnr"].add(final[i], batch.source[i], preserved)
            psnrs[task, "composite_psnr"].add(result.composite[i], batch.source[i], preserved)
            psnrs[task, "full_psnr"].add(final[i], batch.composite[i], torch.ones_like(preserved))
            if alpha is not None:
                for name, value in _matte_metrics(batch, i, alpha[i]).items():
                    row[name].append(value)
                for name, right in judge(result.edit[i], alpha[i], attributes).items():
                    row[name].append(right)
            verdict = judge_final(batch.source[i], final[i], attributes)
            for name, right in verdict.items():
                row[f"final_{name}"].append(right)
            row["satisfied"].append(all(verdict.values()))
            row["clips"].append(1)
    result = {}
    for task, row in sorted(values.items()):
        result[task] = {name: p.value() for (t, name), p in psnrs.items() if t == task}
        means = {
            name: float(torch.tensor(v, dtype=torch.float64).mean())
            for name, v in row.items()
            if name != "clips"
        }
        result[task] |= means | {"clips": len(row["clips"])}
    return result


def _matte_metrics(batch: ToyBatch, i: int, alpha: Tensor) -> dict[str, float]:
    truth = batch.alpha[i]
    error = float((alpha - truth).abs().mean())
    if batch.attributes[i]["task"] == "background":  # what matters is the subject's matte
        alpha, truth = 1 - alpha, 1 - truth
    return {"alpha_iou": iou(alpha > 0.5, truth > 0.5), "alpha_mae": error}
