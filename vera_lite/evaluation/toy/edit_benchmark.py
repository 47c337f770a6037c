"""How well RVEDiT and MiVE follow unseen toy instructions, and what RVEDiT's cross-attention does."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from vera_lite.diagnostics import RowReduce, Tap
from vera_lite.diagnostics.scores import entropy, jensen_shannon
from vera_lite.diffusion.infonce import info_nce
from vera_lite.evaluation.toy.edit_judge import judge_edits, seen_motion
from vera_lite.evaluation.toy.tally import TEST_SEED, Row, Tally, batches
from vera_lite.evaluation.toy.thing_judge import difference_matte, read_thing
from vera_lite.pipelines import MiVEPipeline, RVEDiTPipeline
from vera_lite.toy.edits import CATEGORIES, EditConfig, ToyEdits, render_edits


def redraw(pipe: RVEDiTPipeline | MiVEPipeline, edits: ToyEdits, **options) -> Tensor:
    """The pipeline's edits (B, T, 3, H, W); MiVE sees the true first frame of each.

    Args:
        pipe: of the clips' size.
        edits: B clips.
        options: of its ``generate``.
    """
    reference = (edits.target[:, 0],) if isinstance(pipe, MiVEPipeline) else ()
    return pipe.generate(edits.source, edits.instruction, *reference, **options).final


def unseen_world(pipe: RVEDiTPipeline | MiVEPipeline, category: str) -> EditConfig:
    """The world of one category, at the pipeline's size.

    MiVE sees the target's first frame, so in its world this frame does not show how objects move.
    """
    return EditConfig(*pipe.clip_size, (category,), from_place=isinstance(pipe, MiVEPipeline))


def _world(pipe: RVEDiTPipeline | MiVEPipeline, category: str, world: EditConfig | None) -> EditConfig:
    return replace(world, categories=(category,)) if world else unseen_world(pipe, category)


def exchanged(edits: ToyEdits) -> ToyEdits:
    """The same clips, each with the instruction of the next one, to measure the effect of the words."""
    return replace(edits, instruction=edits.instruction[1:] + edits.instruction[:1])


def evaluate(
    pipe: RVEDiTPipeline | MiVEPipeline,
    clips: int = 64,
    *,
    categories: Sequence[str] = CATEGORIES,
    world: EditConfig | None = None,
    seed: int = TEST_SEED,
    batch_size: int = 64,
    draw: Callable[[ToyEdits], Tensor] | None = None,
    **options,
) -> dict[str, Row]:
    """Edit ``clips`` unseen clips of each category and judge them.

    Args:
        pipe: makes the edits, see :func:`redraw`; its size is used.
        clips: of each category.
        categories: some of ``CATEGORIES``.
        world: the content of the clips; None: :func:`unseen_world`.
        seed: of the world.
        batch_size, options: of sampling.
        draw: makes the edits (B, T, 3, H, W) of clips to judge, instead of the pipeline.

    Returns:
        For each category, and for "overall" (their mean): the three scores of
        :func:`~vera_lite.evaluation.toy.edit_judge.judge_edits` and their mean ``score``, 1 to 100; ``psnr``
        against the true edit; ``changed_psnr`` the same where it changes pixels; ``preserved_psnr`` where it
        changes nothing (not for styles, which change everything). PSNRs pool the squared error over clips.
    """
    generator = torch.Generator().manual_seed(seed)
    rows: dict[str, Row] = {}
    for category in categories:
        row = Tally()
        for indices in batches(clips, batch_size):
            edits = _world(pipe, category, world).render(seed, indices)
            results = draw(edits) if draw else redraw(pipe, edits, generator=generator, **options)
            row.psnr("psnr", results, edits.target)
            row.psnr("changed_psnr", results, edits.target, edits.changed > 0)
            if category != "global style":
                row.psnr("preserved_psnr", results, edits.source, edits.changed == 0)
            scores = judge_edits(edits, results)
            scores["score"] = torch.stack(list(scores.values())).mean(0)
            row.add({name: values.tolist() for name, values in scores.items()})
        rows[category] = row.row()
    names = {name for row in rows.values() for name in row}
    having = {name: [row[name] for row in rows.values() if name in row] for name in sorted(names)}
    overall = {name: sum(v) / len(v) for name, v in having.items()}
    return {"overall": Row(overall)} | rows


def added_motion(
    pipe: MiVEPipeline,
    clips: int = 64,
    *,
    world: EditConfig | None = None,
    seed: int = TEST_SEED,
    draw: Callable[[ToyEdits], Tensor] | None = None,
    **options,
) -> float:
    """The share of added objects that are visible and move as the instruction says.

    The edited first frame shows everything about such an object except its motion, which only the words say.

    Args:
        pipe, clips, world, seed, draw, options: as for :func:`evaluate`; "local add" alone.
    """
    edits = _world(pipe, "local add", world).render(seed, range(clips))
    generator = torch.Generator().manual_seed(seed)
    results = draw(edits) if draw else redraw(pipe, edits, generator=generator, **options)
    wanted = [attributes["after"] for attributes in edits.attributes]
    if edits.scene is None:
        seen = [seen_motion(result, thing["colour"]) for result, thing in zip(results, wanted, strict=True)]
    else:
        pairs = zip(results, edits.scene, strict=True)
        seen = [read_thing(result, difference_matte(result, scene), scene).motion for result, scene in pairs]
    return sum(s == thing["motion"] for s, thing in zip(seen, wanted, strict=True)) / clips


def attention_by_depth(
    pipe: RVEDiTPipeline, clips: int = 32, *, sigma: float = 0.8, seed: int = TEST_SEED
) -> dict[str, list[float]]:
    """The paper's Figure 4 at one noise level: where cross-attention looks, and how far the training pass
    (source and instruction) agrees with the reference pass (target and its caption).

    Args:
        pipe: a system, its codec and its size.
        clips: of the world ``seed``, all categories.
        sigma: noise level, in (0, 1].

    Returns:
        One value per block, means over clips, heads and positions.

        ``editing_mass``: share of attention on X_e (1 where a block sees nothing else).
        ``spatial_entropy``: how evenly the attention on a context token is spread over the positions of the
        video, in [0, 1]; the mean weighs tokens by their attention.
        ``cosine``: between the cross-attention's outputs A and A* at the same position.
        ``divergence``: Jensen-Shannon divergence in nats between the two passes' attention over context
        tokens. Both have the same number of tokens, but instruction and caption say different things.
        ``estimate``, ``rank``: of :func:`~vera_lite.diffusion.infonce.info_nce` between A and A*. With S
        positions, chance is -ln S and (S + 1) / 2.
        ``estimate_other_noise``, ``rank_other_noise``: the same with other noise in the reference pass, so
        that the noise itself cannot identify the positions.
    """
    edits = render_edits(seed, range(clips), EditConfig(*pipe.clip_size))
    system, K = pipe.system, pipe.system.config.editing_tokens
    source, target = pipe.codec.encode(edits.source), pipe.codec.encode(edits.target)
    noises = torch.randn(2, *target.shape, generator=torch.Generator().manual_seed(seed))
    level = torch.full((clips,), sigma)
    noisy, noisy_otherwise = (system.config.objective.add_noise(target, noise, level) for noise in noises)

    def trace(
        x_sigma: Tensor, video: Tensor, latents: Tensor, texts: list[str]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Attention (B, H, S, T) and output (B, S, D) of each block's cross-attention."""
        weights, outputs = [], []

        def observe(call) -> None:
            if call.site.module.endswith("attn2"):
                weights.append(RowReduce(lambda w, _: w, call.key.shape[2])(call).values)

        with torch.no_grad():
            context = system.context(video, texts)
            hooks = [
                block.attn2.register_forward_hook(lambda _m, _i, out: outputs.append(out))
                for block in system.transformer.blocks
            ]
            with Tap(system, observe):
                system(x_sigma, 1000 * level, latents, context)
            for hook in hooks:
                hook.remove()
        return weights, outputs

    ours, features = trace(noisy, edits.source, source, edits.instruction)
    theirs, anchors = trace(noisy, edits.target, target, edits.target_caption)
    _, others = trace(noisy_otherwise, edits.target, target, edits.target_caption)
    values = defaultdict(list)
    for p, q, a, b, other in zip(ours, theirs, features, anchors, others, strict=True):
        received = p.mT  # (B, H, T, S)
        share = received.sum(-1) / received.sum((-2, -1))[..., None]
        spread = entropy(received).nan_to_num()  # a token without attention has no entropy, and no share
        values["editing_mass"].append(float(p[..., :K].sum(-1).mean()))
        values["spatial_entropy"].append(float((spread * share).sum(-1).mean()))
        # torch's cosine_similarity is 0 for vectors of zeros; here it is nan.
        cosine = (a * b).double().sum(-1) / (a.double().norm(dim=-1) * b.double().norm(dim=-1))
        values["cosine"].append(float(cosine.mean()))
        values["divergence"].append(float(jensen_shannon(p, q).mean()))
        for name, reference in (("", b), ("_other_noise", other)):
            estimate, rank = info_nce(a, reference, system.config.temperature)
            values[f"estimate{name}"].append(float(estimate.mean()))
            values[f"rank{name}"].append(float(rank.float().mean()))
    return dict(values)
