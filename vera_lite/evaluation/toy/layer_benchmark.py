"""How well Vera, or the regeneration baseline, edits unseen toy clips."""

from collections import defaultdict

import torch
from torch import Tensor

from vera_lite.evaluation.metrics import iou
from vera_lite.evaluation.toy.object_judge import judge, judge_final
from vera_lite.evaluation.toy.tally import TEST_SEED, Row, Tally, batches
from vera_lite.evaluation.toy.thing_judge import judge_frames, judge_layers
from vera_lite.pipelines import VeraPipeline
from vera_lite.toy.scenes import SceneConfig
from vera_lite.toy.world import ToyBatch, WorldConfig

PRESERVED = 0.02  # a pixel is preserved where the true alpha lies below this


def evaluate(
    pipe: VeraPipeline,
    clips: int = 256,
    with_mask: bool = True,
    *,
    world: WorldConfig | SceneConfig | None = None,
    seed: int = TEST_SEED,
    batch_size: int = 32,
    **options,
) -> dict[str, Row]:
    """Edit ``clips`` unseen clips and measure each task.

    Args:
        pipe: its system generates "edit" and "alpha" (layered) or only "composite" (regeneration).
        clips: how many, of the world ``seed``.
        with_mask: give the mask to the system.
        world: the content of the clips; None: shapes, at the pipeline's size. ``unseen`` scenes show held-out
            pairs.
        batch_size, options: of sampling, see :meth:`.Pipeline.generate`.

    Returns:
        ``{task: {metric: value}}``. PSNRs: ``preserved_psnr`` of the result against the source where the true
        alpha is below ``PRESERVED``, ``composite_psnr`` the same of the generated composite, ``full_psnr``
        against the true composite. ``alpha_iou`` and ``alpha_mae`` compare with the true matte (for
        "background", ``alpha_iou`` with the subject's). The judge's verdicts are shares of clips. ``final_*``
        use the result alone, which also works for a system without layers. ``satisfied``: all of ``final_*``
        are right.
    """
    rows: dict[str, Tally] = defaultdict(Tally)
    counts: dict[str, int] = defaultdict(int)
    scenes = isinstance(world, SceneConfig)
    generator = torch.Generator().manual_seed(seed)
    for indices in batches(clips, batch_size):
        batch = (world or WorldConfig(*pipe.clip_size)).render(seed, indices)
        mask = batch.mask if with_mask else None
        result = pipe.generate(batch.source, batch.instruction, mask, generator=generator, **options)
        final, alpha = result.final, result.alpha
        for i, facts in enumerate(batch.attributes):
            row, preserved = rows[facts["task"]], batch.alpha[i] < PRESERVED
            row.psnr("preserved_psnr", final[i], batch.source[i], preserved)
            row.psnr("composite_psnr", result.composite[i], batch.source[i], preserved)
            row.psnr("full_psnr", final[i], batch.composite[i])
            if alpha is not None:
                row.add(_matte_metrics(batch, i, alpha[i]))
                layers = result.layers()["edit"][i], alpha[i]
                row.add(judge_layers(*layers, batch.source[i], facts) if scenes else judge(*layers, facts))
            verdict = (judge_frames if scenes else judge_final)(batch.source[i], final[i], facts)
            row.add(verdict, prefix="final_")
            if verdict:
                row.add({"satisfied": all(verdict.values())})
            counts[facts["task"]] += 1
    found = {task: row.row() for task, row in sorted(rows.items())}
    for task, row in found.items():
        row["clips"] = counts[task]
    return found


def _matte_metrics(batch: ToyBatch, i: int, alpha: Tensor) -> dict[str, float]:
    truth = batch.alpha[i]
    error = float((alpha - truth).abs().mean())
    if batch.attributes[i]["task"] == "background":  # compare the subject's mattes
        alpha, truth = 1 - alpha, 1 - truth
    return {"alpha_iou": iou(alpha > 0.5, truth > 0.5), "alpha_mae": error}
