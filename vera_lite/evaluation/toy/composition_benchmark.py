"""How well GenCompositor composes unseen toy clips, and where its tokens look."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

from vera_lite.diagnostics import RowReduce, Tap
from vera_lite.evaluation.metrics import iou
from vera_lite.evaluation.toy.layer_benchmark import PRESERVED
from vera_lite.evaluation.toy.object_judge import name_colour
from vera_lite.evaluation.toy.tally import TEST_SEED, Row, Tally, batches
from vera_lite.evaluation.toy.thing_judge import read_thing
from vera_lite.media.clip import composite
from vera_lite.media.placement import inflate_mask
from vera_lite.pipelines import GenCompositorPipeline
from vera_lite.toy.compositions import CompositionConfig, ToyCompositions

CHANGED = 0.08  # a pixel with a channel that differs more from the background shows object or shadow


def compositions(
    pipe: GenCompositorPipeline,
    indices,
    seed: int = TEST_SEED,
    relit: bool = True,
    world: CompositionConfig | None = None,
):
    """Unseen clips, and the pipeline's inputs for them.

    Args:
        pipe: its size and ``mask_sigma`` are used.
        indices: which clips of the world ``seed``.
        relit: foregrounds have their own light, see
            :class:`~vera_lite.toy.compositions.CompositionConfig`.
        world: the content of the clips; None: shapes, at the pipeline's size.

    Returns:
        :class:`~vera_lite.toy.compositions.ToyCompositions`, foregrounds on white (B, T, 3, H, W) and masks
        (B, T, 1, H, W).
    """
    batch = replace(world or CompositionConfig(*pipe.clip_size), relit=relit).render(seed, indices)
    mask = batch.matte if batch.mask is None else batch.mask
    if pipe.mask_sigma is not None:
        mask = inflate_mask(mask.flatten(0, 1), pipe.mask_sigma).view_as(mask)
    return batch, composite(batch.foreground, batch.alpha, torch.ones_like(batch.foreground)), mask


def evaluate(
    pipe: GenCompositorPipeline,
    clips: int = 256,
    *,
    seed: int = TEST_SEED,
    relit: bool = True,
    world: CompositionConfig | None = None,
    batch_size: int = 64,
    draw: Callable[[ToyCompositions], Tensor] | None = None,
    **options,
) -> Row:
    """Compose ``clips`` unseen clips and compare the results with the rendered truth.

    Args:
        pipe: see :class:`~vera_lite.pipelines.GenCompositorPipeline`.
        clips: how many, of the world ``seed``.
        relit, world: see :func:`compositions`.
        batch_size, options: of sampling.
        draw: makes the composites (B, T, 3, H, W) of clips to judge, instead of the pipeline.

    Returns:
        ``psnr`` and ``ssim`` of whole frames; ``object_psnr`` where the object is; ``preserved_psnr`` where
        the truth is the plain background. How well the foreground is kept: ``colour`` (share of clips with
        its hue; in scenes ``noun``, the share in which the judge sees the right thing), ``shape`` (overlap of
        the changed pixels with those that should change), ``texture`` (correlation of grey values with the
        truth where the object is, in all frames, so motion counts too), ``brightness`` (relative error of the
        object's mean). ``removal_psnr`` (not with ``draw``): inside the mask, against the plain background,
        for a blank foreground. PSNRs pool the squared error over clips, the others are means.
    """
    row = Tally()
    generator = torch.Generator().manual_seed(seed)
    for indices in batches(clips, batch_size):
        batch, foreground, mask = compositions(pipe, indices, seed, relit, world)
        if draw is None:
            options["generator"] = generator
            result = pipe.generate(batch.background, foreground, mask, **options).final
            removed = pipe.generate(batch.background, None, mask, **options).final
            row.psnr("removal_psnr", removed, batch.background, mask > 0.5)
        else:
            result = draw(batch)
        body = batch.matte > 0.5
        row.psnr("psnr", result, batch.composite)
        row.psnr("object_psnr", result, batch.composite, body)
        row.psnr("preserved_psnr", result, batch.background, batch.changed < PRESERVED)
        similarity = structural_similarity_index_measure(
            result.flatten(0, 1), batch.composite.flatten(0, 1), data_range=1.0, reduction="none"
        )
        row.add({"ssim": similarity.tolist()})
        for i, facts in enumerate(batch.attributes):
            where = body[i, :, 0]
            changed = [
                (video[i] - batch.background[i]).abs().amax(1) > CHANGED
                for video in (result, batch.composite)
            ]
            seen, truth = (video[i].mean(1)[where] for video in (result, batch.composite))
            if "noun" in facts:  # seen in full light
                video, scene = ((v[i] / facts["light"]).clamp(0, 1) for v in (result, batch.background))
                row.add({"noun": read_thing(video, batch.matte[i], scene).noun == facts["noun"]})
            else:
                colour = name_colour(result[i].permute(0, 2, 3, 1)[where])
                row.add({"colour": colour == facts["colour"]})
            row.add(
                {
                    "shape": iou(*changed),
                    "texture": float(torch.stack([seen, truth]).corrcoef()[0, 1]),
                    "brightness": float((seen.mean() / truth.mean() - 1).abs()),
                }
            )
    found = row.row()
    found["clips"] = clips
    return found


def position_leakage(
    pipe: GenCompositorPipeline, clips: int = 32, *, seed: int = TEST_SEED, **options
) -> dict[str, float]:
    """How much a token of the composite looks at the foreground token of the same index.

    The two tokens show the same place in two unrelated frames. If both videos have the same positions, only
    content distinguishes the tokens.

    Args:
        pipe: a system with either fusion.
        clips: of the world ``seed``; the mean is over clips, steps, blocks, heads and tokens.
        options: of sampling.

    Returns:
        ``same_index``: attention to that token over the mean attention to a foreground token; 1 is no
        preference. ``foreground``: attention to the whole foreground, in [0, 1].
    """
    batch, foreground, mask = compositions(pipe, range(clips), seed)
    same, mass = [], []

    def reduce(weights: Tensor, queries: Tensor) -> Tensor:  # (B, b, K) -> (B, b, 2)
        S = weights.shape[2] // 2 if fusion == "self" else weights.shape[2]
        # Rows of foreground tokens are dropped below.
        own = weights[:, torch.arange(len(queries)), weights.shape[2] - S + queries % S]
        return torch.stack([own, weights[:, :, -S:].sum(2)], 2)

    fusion = pipe.system.config.fusion
    sites = "transformer.transformer_blocks" if fusion == "self" else "cross_attention"

    def observe(call) -> None:
        if call.site.module.startswith(sites):
            values = RowReduce(reduce, 2)(call).values  # (B, H, Q, 2)
            S = call.key.shape[2] // 2 if fusion == "self" else call.key.shape[2]
            own, total = values[:, :, :S].mean((0, 1, 2)).tolist()
            same.append(own * S)
            mass.append(total)

    with Tap(pipe.system, observe):
        pipe.generate(batch.background, foreground, mask, **options)
    foreground_mass = sum(mass) / len(mass)
    return {"same_index": sum(same) / sum(mass), "foreground": foreground_mass}
