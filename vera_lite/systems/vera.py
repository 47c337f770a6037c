"""Vera (arXiv 2606.23610): generate an edit as layers over an untouched source.

Three videos are denoised together: the edit layer E (RGB), its alpha matte A and the composite C.
The final video uses only E, A and the source:

    final = A * E + (1 - A) * source

Where the matte is 0, it is the source itself.

Each layer has its own diffusion transformer ("branch"); all start from the same text-to-video model. A branch
keeps its own projections and feed-forward layers, and all branches attend jointly over the 3S tokens (a
Mixture of Transformers, arXiv 2411.04996). Conditions are added to the tokens:

    h_E = P_E(x_E)
    h_A = P_A(x_A) + P_M(z_mask) + e_A          z_mask optional, dropped at random in training
    h_C = P_C(x_C) + P_S(z_source) + e_C        the source enters here only

x_k = (1 - sigma) z_k + sigma noise_k has one sigma and independent noise per layer. The layer embeddings
e_A, e_C start at zero. All branches use the same rotary positions.

paper        here
E, A, C      LAYERS, in this order along the first axis
P_E,P_A,P_C  ``towers[k].patch_embedding``
P_S, P_M     ``source_embedding``, ``mask_embedding``
e_A, e_C     ``layer_embedding``
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypedDict

import torch
from torch import Tensor, nn

from vera_lite.backbone import WanBlock, WanConfig, WanTransformer, grid_positions, read_wan
from vera_lite.backbone.checkpointing import run_block
from vera_lite.backbone.context import gather, split, ulysses
from vera_lite.backbone.loading import load_branches
from vera_lite.backbone.wan import PatchEmbedding, SelfAttention, attend
from vera_lite.diffusion.draws import StepRandom
from vera_lite.diffusion.flow_matching import FlowMatching

LAYERS = ("edit", "alpha", "composite")
EDIT, ALPHA, COMPOSITE = range(3)


@dataclass(frozen=True)
class VeraConfig:
    """Vera's size, and every choice that the paper leaves open or that an ablation changes.

    Attributes:
        backbone: size of one branch.
        objective: see :class:`vera_lite.diffusion.flow_matching.FlowMatching`.
        mixture: one set of weights per branch (the paper); False: one set for all (ablation).
        joint_attention: branches see each other (the paper); False: they do not (ablation).
        composite_weight: weight of the composite's loss. 1 is the paper's plain sum. 0 is the ablation
            "without composite supervision"; the branch stays, because the source enters there.
        share_text_kv, share_condition_embedder: all branches share the projection of text to keys and values,
            and the embedding of time and text. Not stated in the paper, but its parameter counts (3.9 B,
            38.2 B) imply both.
        mask_drop, text_drop: probability that a training clip loses its mask or its prompt (for
            classifier-free guidance). The rates are not published; 0.1 is common.
        phrase_drop: probability that training blanks a single text token, so that prompts may leave things
            out. Ours.
    """

    backbone: WanConfig = field(default_factory=WanConfig)
    objective: FlowMatching = field(default_factory=FlowMatching)
    mixture: bool = True
    joint_attention: bool = True
    composite_weight: float = 1.0
    share_text_kv: bool = True
    share_condition_embedder: bool = True
    mask_drop: float = 0.5
    text_drop: float = 0.1
    phrase_drop: float = 0.0


class VeraBatch(TypedDict):
    """What :meth:`Vera.training_losses` learns from: latents (B, C, t, h, w), text (B, T, text_dim)."""

    source: Tensor
    mask: Tensor
    edit: Tensor
    alpha: Tensor
    composite: Tensor
    text: Tensor


class JointAttention(nn.Module):
    """One self-attention over the tokens of all branches; each branch has its own projections."""

    #: Devices that share the tokens of every branch, see :mod:`vera_lite.backbone.context`.
    context_group: Any = None

    def forward(self, branches: list[SelfAttention], xs: list[Tensor], rotary: Tensor) -> list[Tensor]:
        """xs: (B, S, D) per branch, rotary (2, S, d) for each of them -> (B, S, D) per branch."""
        n = len(branches)
        projected = [branch.project(x, rotary) for branch, x in zip(branches, xs, strict=True)]
        q, k, v = (torch.cat(parts, 2) for parts in zip(*projected, strict=True))  # (B, H, 3S, d)
        attended = ulysses(attend, q, k, v, rotary.shape[1], self.context_group, streams=n).chunk(n, 2)
        return [branch.out(y) for branch, y in zip(branches, attended, strict=True)]


class JointBlock(nn.Module):
    """Block i of all branches: they meet in self-attention and are separate in everything else."""

    def __init__(self, config: VeraConfig):
        super().__init__()
        experts = len(LAYERS) if config.mixture else 1
        self.branches = nn.ModuleList(WanBlock(config.backbone) for _ in range(experts))
        self.attn1 = JointAttention() if config.joint_attention else None
        self.shared_text = config.share_text_kv or not config.mixture
        if self.shared_text:
            for branch in self.branches[1:]:  # the first branch projects for all
                branch.attn2.to_k = branch.attn2.to_v = branch.attn2.norm_k = None

    def forward(
        self, xs: list[Tensor], texts: list[Tensor], modulations: list[Tensor], rotary: Tensor
    ) -> list[Tensor]:
        """
        Args:
            xs: hidden states (B, S, D) per branch.
            texts: text features (B, T, D), for all branches or per branch.
            modulations: projected time embeddings (B, 1, 6, D), likewise.
            rotary: (2, S, d).
        """
        blocks, runs = per_branch(self.branches), [xs[0].shape[1]]
        before = [b.before(x, m, runs) for b, x, m in zip(blocks, xs, per_branch(modulations), strict=True)]
        normed, vectors = zip(*before, strict=True)
        if self.attn1 is None:
            attended = [b.attn1(x, rotary) for b, x in zip(blocks, normed, strict=True)]
        else:
            attended = self.attn1([b.attn1 for b in blocks], normed, rotary)
        if self.shared_text:
            texts = [blocks[0].attn2.memory(text) for text in texts]
        after = zip(blocks, xs, attended, vectors, per_branch(texts), strict=True)
        return [b.after(x, y, v, text, runs) for b, x, y, v, text in after]


def per_branch(one_or_all: Sequence) -> list:
    """One item per branch: its own, or the one that all share."""
    return list(one_or_all) * (len(LAYERS) // len(one_or_all))


class Vera(nn.Module):
    """Vera's denoiser and its training loss."""

    #: Layers that are denoised, and latent conditions that :meth:`forward` takes by keyword.
    layers = LAYERS
    conditions = ("source", "mask")
    #: Devices that share the tokens of every branch, see :mod:`vera_lite.backbone.context`.
    context_group: Any = None

    def __init__(self, config: VeraConfig):
        super().__init__()
        self.config, wan = config, config.backbone
        #: What a backward pass keeps, see :func:`vera_lite.backbone.checkpointing.run_block`.
        self.checkpointing = "none"
        # Embeddings and heads of the branches; their blocks are in self.blocks, layer by layer.
        ends = replace(wan, num_layers=0)
        self.towers = nn.ModuleList(WanTransformer(ends) for _ in range(len(LAYERS) if config.mixture else 1))
        if config.share_condition_embedder:
            for tower in self.towers[1:]:
                tower.condition_embedder = None
        self.blocks = nn.ModuleList(JointBlock(config) for _ in range(wan.num_layers))
        # Zero: at the start each branch is the text-to-video model that it was copied from.
        self.source_embedding = PatchEmbedding(wan, zero=True)  # P_S
        self.mask_embedding = PatchEmbedding(wan, zero=True)  # P_M
        self.layer_embedding = nn.Parameter(torch.zeros(2, wan.dim))  # e_A, e_C

    def forward(
        self,
        latents: Tensor,
        timestep: Tensor,
        text: Tensor,
        source: Tensor,
        mask: Tensor | None = None,
        mask_given: Tensor | None = None,
    ) -> Tensor:
        """
        Args:
            latents: noisy x_E, x_A, x_C, stacked: (3, B, C, t, h, w).
            timestep: (B,), 1000 * sigma.
            text: features (B, T, text_dim).
            source: clean latents of the source (B, C, t, h, w).
            mask: clean latents of the mask, grey as RGB (B, C, t, h, w), or None.
            mask_given: (B,), 1 for clips whose mask counts and 0 for the others; None: all count.

        Returns:
            Prediction for E, A, C: (3, B, C, t, h, w).
        """
        towers = per_branch(self.towers)
        wan, grid = towers[0], self.config.backbone.grid(latents.shape)

        xs = [tower.patch_embedding(x) for tower, x in zip(towers, latents, strict=True)]  # (B, S, D) each
        xs[ALPHA] = xs[ALPHA] + self.layer_embedding[0]
        xs[COMPOSITE] = xs[COMPOSITE] + self.source_embedding(source) + self.layer_embedding[1]
        if mask is not None:
            tokens = self.mask_embedding(mask)
            xs[ALPHA] = xs[ALPHA] + (tokens if mask_given is None else tokens * mask_given.view(-1, 1, 1))
        xs = [x.type_as(wan.patch_embedding.weight) for x in xs]

        own: list[Any] = list(self.towers)
        embedders = [t.condition_embedder for t in own if t.condition_embedder is not None]
        conditions = [embedder(timestep[:, None], text.to(xs[0])) for embedder in embedders]
        texts, modulations = [c.text for c in conditions], [c.modulation for c in conditions]
        rotary, group = wan.rotary(grid_positions(grid, device=latents.device)), self.context_group
        S, xs = xs[0].shape[1], [split(x, group) for x in xs]
        for block in self.blocks:
            xs = run_block(self.checkpointing, block, xs, texts, modulations, rotary)
        xs = [gather(x, S, group) for x in xs]
        heads = zip(towers, xs, per_branch(conditions), strict=True)
        return torch.stack([tower.head(x, c.time, [S], grid) for tower, x, c in heads])

    def training_losses(self, batch: VeraBatch, sigma: Tensor, random: StepRandom) -> dict[str, Tensor]:
        """Flow-matching losses at noise levels sigma (B,): ``{layer: (B,)}``, whose sum is the objective."""
        losses = layer_losses(self, batch, sigma, random)
        return losses | {"composite": self.config.composite_weight * losses["composite"]}

    @classmethod
    def from_wan(cls, folder: str | Path, **changes) -> "Vera":
        """Start all branches from a Wan transformer that diffusers saved in a folder.

        ``changes`` are fields of :class:`VeraConfig` other than ``backbone``.
        """
        backbone, tensors = read_wan(folder)
        vera = cls(VeraConfig(backbone=backbone, **changes))
        load_branches(vera, [tensors] * len(LAYERS))
        return vera


def layer_losses(system, batch: VeraBatch, sigma: Tensor, random: StepRandom) -> dict[str, Tensor]:
    """Flow-matching loss (B,) of each layer that a system denoises, with some conditions dropped."""
    objective = system.config.objective
    text, mask_given = drop_conditions(batch["text"], system.config, random)
    x_0 = torch.stack([batch[layer] for layer in system.layers])  # (layers, B, C, t, h, w)
    noise = random.noise(x_0)
    x_sigma = objective.add_noise(x_0, noise, sigma)
    output = system(x_sigma, 1000 * sigma, text, batch["source"], batch["mask"], mask_given)
    return dict(zip(system.layers, objective.loss(output, x_0, noise, sigma), strict=True))


def drop_conditions(text: Tensor, config, random: StepRandom) -> tuple[Tensor, Tensor]:
    """Blank prompts, phrases and masks at the config's rates; text (B, T, F) -> (text, mask_given (B,))."""
    keep = random.uniform(1) >= config.text_drop
    keep = keep & (random.uniform(text.shape[1]) >= config.phrase_drop)
    mask_given = random.uniform() >= config.mask_drop
    return text * keep[..., None].to(text), mask_given.to(text)
