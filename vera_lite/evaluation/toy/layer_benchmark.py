"""How well a system edits the toy world: clips it never saw, sampled and judged."""

from collections import defaultdict

import torch
from torch import Tensor

from vera_lite.evaluation.metrics import PooledPSNR, iou
from vera_lite.evaluation.toy.object_judge import judge, judge_final
from vera_lite.media.clip import composite
from vera_lite.pipelines import ALPHA_FLOOR, VeraPipeline, floored
from vera_lite.toy.world import ToyBatch, WorldConfig, render

TEST_SEED = 2_000_000  # no training or validation world has this seed
PRESERVED = 0.02  # a pixel is preserved where the true alpha lies below this


def evaluate(
    pipe: VeraPipeline,
    clips: int = 256,
    with_mask: bool = True,
    *,
    seed: int = TEST_SEED,
    steps: int = 12,
    batch_size: int = 32,
    alpha_floor: float = ALPHA_FLOOR,
    **options,
) -> dict[str, dict[str, float]]:
    """Sample ``clips`` unseen clips and measure each task.

    Args:
        pipe: its system generates "edit" and "alpha" (layered) or only "composite" (regeneration).
        clips: how many, of the world ``seed``.
        with_mask: give the mask to the system.
        steps, batch_size, alpha_floor, options: of sampling, see :class:`VeraPipeline`.

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
        layers = pipe.generate(
            batch.source,
            batch.instruction,
            batch.mask if with_mask else None,
            steps=steps,
            generator=generator,
            **options,
        )
        layered = "alpha" in layers
        if layered:
            alpha = floored(layers["alpha"], alpha_floor)
            final = composite(layers["edit"], alpha, batch.source)
        else:
            final = layers["composite"]
        for i, attributes in enumerate(batch.attributes):
            task = attributes["task"]
            row = values[task]
            preserved = batch.alpha[i] < PRESERVED
            psnrs[task, "preserved_psnr"].add(final[i], batch.source[i], preserved)
            psnrs[task, "composite_psnr"].add(layers["composite"][i], batch.source[i], preserved)
            psnrs[task, "full_psnr"].add(final[i], batch.composite[i], torch.ones_like(preserved))
            if layered:
                for name, value in _matte_metrics(batch, i, alpha[i]).items():
                    row[name].append(value)
                for name, right in judge(layers["edit"][i], alpha[i], attributes).items():
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
