"""How well GenCompositor composes toy clips that it never saw, and where its tokens look."""

from collections import defaultdict
from collections.abc import Callable

import torch
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

from vera_lite.diagnostics import Sweep, Tap
from vera_lite.evaluation.toy.layer_benchmark import PRESERVED, PooledPSNR, iou
from vera_lite.evaluation.toy.object_judge import name_colour
from vera_lite.media.clip import composite
from vera_lite.media.placement import inflate_mask
from vera_lite.pipelines import GenCompositorPipeline
from vera_lite.toy.compositions import CompositionWorld, ToyCompositions, render_compositions

TEST_SEED = 2_000_000  # no training or validation world has this seed
CHANGED = 0.08  # a pixel shows object or shadow where a channel differs from the background by more


def compositions(pipe: GenCompositorPipeline, indices, seed: int = TEST_SEED, relit: bool = True):
    """Unseen clips, and what the pipeline is given of them.

    Args:
        pipe: gives the size and how far masks are inflated.
        indices: which clips of the world ``seed``.
        relit: foregrounds come with a light of their own, see
            :class:`~vera_lite.toy.compositions.CompositionWorld`.

    Returns:
        :class:`~vera_lite.toy.compositions.ToyCompositions`, foregrounds on white (B, T, 3, H, W) and masks
        (B, T, 1, H, W).
    """
    batch = render_compositions(seed, indices, CompositionWorld(*pipe.clip_size, relit=relit))
    mask = batch.matte
    if pipe.mask_sigma is not None:
        mask = inflate_mask(mask.flatten(0, 1), pipe.mask_sigma).view_as(mask)
    return batch, composite(batch.foreground, batch.alpha, torch.ones_like(batch.foreground)), mask


def evaluate(
    pipe: GenCompositorPipeline,
    clips: int = 256,
    *,
    seed: int = TEST_SEED,
    relit: bool = True,
    batch_size: int = 64,
    draw: Callable[[ToyCompositions], Tensor] | None = None,
    **options,
) -> dict[str, float]:
    """Compose ``clips`` unseen clips and measure the result against the rendered truth.

    Args:
        pipe: see :class:`~vera_lite.pipelines.GenCompositorPipeline`.
        clips: how many, of the world ``seed``.
        relit: see :func:`compositions`.
        batch_size, options: of sampling.
        draw: what to judge instead of the pipeline's composites, as (B, T, 3, H, W) of clips.

    Returns:
        ``psnr`` and ``ssim`` of whole frames; ``object_psnr`` where the object is; ``preserved_psnr`` where
        the truth is the plain background. How much of the foreground arrives: ``colour`` (share of clips
        with its hue), ``shape`` (overlap of what changed with what should change), ``texture`` (correlation
        of gray values with the foreground's at its true place, in all frames, so it sees motion as well),
        ``brightness`` (relative error of the object's mean). ``removal_psnr``: inside the mask, against the
        plain background, when the foreground is blank (not with ``draw``). PSNRs pool the squared error over
        clips, the others are means.
    """
    psnrs = defaultdict(PooledPSNR)
    values: dict[str, list[float]] = defaultdict(list)
    generator = torch.Generator().manual_seed(seed)
    for first in range(0, clips, batch_size):
        indices = range(first, min(first + batch_size, clips))
        batch, foreground, mask = compositions(pipe, indices, seed, relit)
        if draw is None:
            options["generator"] = generator
            result = pipe.generate(batch.background, foreground, mask, **options).final
            removed = pipe.generate(batch.background, None, mask, **options).final
            psnrs["removal_psnr"].add(removed, batch.background, mask > 0.5)
        else:
            result = draw(batch)
        body = batch.matte > 0.5
        psnrs["psnr"].add(result, batch.composite, torch.ones_like(body))
        psnrs["object_psnr"].add(result, batch.composite, body)
        psnrs["preserved_psnr"].add(result, batch.background, batch.changed < PRESERVED)
        similarity = structural_similarity_index_measure(
            result.flatten(0, 1), batch.composite.flatten(0, 1), data_range=1.0, reduction="none"
        )
        values["ssim"] += similarity.tolist()
        for i, attributes in enumerate(batch.attributes):
            seen, truth, where = result[i].mean(1), batch.composite[i].mean(1), body[i, :, 0]
            values["colour"].append(name_colour(result[i].permute(0, 2, 3, 1)[where]) == attributes["colour"])
            changed = [
                (video[i] - batch.background[i]).abs().amax(1) > CHANGED
                for video in (result, batch.composite)
            ]
            values["shape"].append(iou(*changed))
            values["texture"].append(float(torch.stack([seen[where], truth[where]]).corrcoef()[0, 1]))
            values["brightness"].append(float((seen[where].mean() / truth[where].mean() - 1).abs()))
    means = {name: sum(v) / len(v) for name, v in values.items()}
    return {name: psnr.value() for name, psnr in psnrs.items()} | means | {"clips": clips}


def position_leakage(
    pipe: GenCompositorPipeline, clips: int = 32, *, seed: int = TEST_SEED, **options
) -> dict[str, float]:
    """How much a token of the composite looks at the foreground token of the same index.

    The two show the same place of two frames that have nothing to do with each other: where positions are
    shared, nothing but content keeps them apart.

    Args:
        pipe: a system with either fusion.
        clips: of the world ``seed``; the mean runs over them, all steps, blocks, heads and tokens.
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
            values = Sweep(reduce, 2)(call).values  # (B, H, Q, 2)
            S = call.key.shape[2] // 2 if fusion == "self" else call.key.shape[2]
            own, total = values[:, :, :S].mean((0, 1, 2)).tolist()
            same.append(own * S)
            mass.append(total)

    with Tap(pipe.system, observe):
        pipe.generate(batch.background, foreground, mask, **options)
    foreground_mass = sum(mass) / len(mass)
    return {"same_index": sum(same) / sum(mass), "foreground": foreground_mass}
