"""MiVE (arXiv 2605.14664): edit a video by instruction and an edited first frame, in one self-attention.

A frozen vision-language model (VLM) reads the instruction, the reference image (the first frame, edited by an
image editor) and the source video in one prompt. Hidden states of an early and of a late layer become one
context c (Eq. 3-5, :mod:`vera_lite.conditioning.multiscale`).

*Reference-aware latents*: the reference is encoded as a clip of one frame. Its clean latents stand before
both halves of the channels (Eq. 6):

    z_t = Concat_channel([z_ref; z~_t], [z_ref; z_src])         z~_t: the noisy edited video

*Unified self-attention*: context and video tokens form one sequence. Wan's blocks process it without
cross-attention (Eq. 7-8):

    u^0 = [c; v]        v = PatchEmbed(z_t)
    v^  = Head(u^P[N_c:])                                       the reference frame is dropped

*Per-token AdaLN*: tokens of context and reference are clean, so they are modulated with t = 0, and the video
tokens with the current t. Two modulation vectors are enough; there is none per token.

paper                    here
phi_l                    :class:`vera_lite.conditioning.multiscale.Reading`
c                        ``adapter``, an :class:`~vera_lite.conditioning.multiscale.MultiscaleContext`
P blocks, PatchEmbed     ``transformer``
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, NotRequired, TypedDict

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vera_lite.backbone import WAN_14B, WanConfig, WanTransformer, grid_positions, load_weights, read_wan
from vera_lite.backbone.checkpointing import run_block
from vera_lite.backbone.context import gather, split, split_runs
from vera_lite.backbone.rotary import Grid
from vera_lite.conditioning.multiscale import MultiscaleContext, Reading, read, remembered
from vera_lite.conditioning.readings import Readings
from vera_lite.conditioning.vision_language import VisionLanguageModel, frozen_vlm
from vera_lite.diffusion.draws import StepRandom
from vera_lite.diffusion.flow_matching import FlowMatching
from vera_lite.errors import check_choices
from vera_lite.systems.baselines.mive_cross_attention import CROSS_ATTENTION, Context, read_apart


@dataclass(frozen=True)
class MiVEConfig:
    """Size, and every choice that the paper leaves open or that an ablation changes.

    Attributes:
        backbone: size of Wan, 2.1-T2V-14B in the paper. ``in_channels`` are those of the codec; the patch
            embedding reads twice as many. ``text_dim`` and ``cross_attention`` are ignored: MiVE has neither
            text embedding nor cross-attention. With ``summed_text`` the text tokens of the context are also
            summed into the time embedding; not in the paper.
        objective: see :class:`vera_lite.diffusion.flow_matching.FlowMatching`.
        vlm: folder or Hub name of the vision-language model, Qwen3-VL-8B in the paper; None is the toy model
            in the package. The paper does not say whether it is trained. Here it is frozen, and not saved
            with the system.
        vlm_dim: width of its language tower.
        vlm_layers: which hidden states become context, numbered as in transformers. We read "first" as 1,
            the output of the first layer: at 0 no token has seen another yet. (Qwen3-VL adds DeepStack
            features to the outputs of its first layers; we take the output before that.) We read "last" as
            -1, after the final norm. Before the norm is nearly the same, as the adapter begins with a norm.
        vlm_frames: how many frames of the video the VLM sees. The paper does not say; None leaves the choice
            to the processor of the model.
        context_positions: rotary positions of context tokens; the paper does not state them. "none": all at
            0. "index": 0, 1, 2, ... along t, as if each were a frame. "before": ..., -2, -1 along t,
            positions that no video token has.
        reference_position: "before": the reference has t = 0 and the video 1, 2, ..., the order of the
            sequence. "first": the reference shares t = 0 with the video's first frame, and the video keeps
            Wan's positions.
        conditioning: "self" is MiVE. The others are the baselines of its Table 3, see
            :mod:`.mive_cross_attention`: "fused_cross", "dual_cross" and "decoupled".
        changed_loss_weight: weight of a second loss term: flow matching, averaged where the edit changes
            pixels. 0 in the paper. Without pretraining, unchanged pixels would dominate the loss.
    """

    backbone: WanConfig = WAN_14B
    objective: FlowMatching = field(default_factory=FlowMatching)
    vlm: str | None = None
    vlm_dim: int = 4096
    vlm_layers: tuple[int, ...] = (1, -1)
    vlm_frames: int | None = None
    context_positions: Literal["none", "index", "before"] = "none"
    reference_position: Literal["before", "first"] = "before"
    conditioning: Literal["self", "fused_cross", "dual_cross", "decoupled"] = "self"
    changed_loss_weight: float = 0.0

    def __post_init__(self):
        check_choices(self)
        if self.vlm_frames is not None and self.vlm_frames < 1:
            raise ValueError(f"vlm_frames must be positive, got {self.vlm_frames}.")


class MiVEBatch(TypedDict):
    """What :meth:`MiVE.training_losses` learns from."""

    #: source, target: latents of the video and of the edited video (B, C, t, h, w).
    source: Tensor
    target: Tensor
    reference: Tensor  #: latents of the edited first frame, coded as a clip of its own (B, C, 1, h, w).
    source_video: Tensor  #: pixels (B, T, 3, H, W) in [0, 1], for the VLM.
    reference_image: Tensor  #: pixels of the edited first frame (B, 3, H, W) in [0, 1], for the VLM.
    instruction: Sequence[str]  #: what to do, B strings.
    #: (B, 1, t, h, w), 1 where the edit changes pixels; for a ``changed_loss_weight``.
    changed: Tensor
    #: what the VLM reads, if that was kept: then the pixels and the instruction are not needed.
    reading: NotRequired[Reading]


class MiVE(nn.Module):
    """MiVE's denoiser and its training loss."""

    #: Folder that keeps what the frozen VLM read; None keeps nothing.
    readings: Readings | None = None

    def __init__(self, config: MiVEConfig):
        super().__init__()
        self.config = config
        wan, crossed = config.backbone, config.conditioning != "self"
        self.transformer = WanTransformer(
            replace(wan, in_channels=2 * wan.in_channels, text_dim=None, cross_attention=crossed)
        )
        # The source's channels start at zero: they have no effect yet.
        nn.init.zeros_(self.transformer.patch_embedding.weight[:, wan.in_channels :])
        apart = config.conditioning == "decoupled"
        self.adapter = MultiscaleContext(config.vlm_dim, wan.dim, 1 if apart else len(config.vlm_layers))
        self.visual_adapter = MultiscaleContext(config.vlm_dim, wan.dim, 1) if apart else None
        if crossed:
            for block in self.transformer.blocks:
                block.attn2 = CROSS_ATTENTION[config.conditioning](wan)

    @classmethod
    def from_wan(cls, folder: str | Path, **changes) -> "MiVE":
        """Start from a Wan transformer that diffusers saved, without its text embedding and cross-attention.

        ``changes`` are fields of :class:`MiVEConfig` other than ``backbone`` and ``conditioning``.
        """
        backbone, tensors = read_wan(folder)
        system = cls(MiVEConfig(backbone=backbone, **changes))
        left_out = ("condition_embedder.text_embedder.", ".attn2.", ".norm2.")
        tensors = {n: v for n, v in tensors.items() if not any(part in n for part in left_out)}
        weight = tensors["patch_embedding.weight"]  # (D, C, p, q, r)
        tensors["patch_embedding.weight"] = torch.cat([weight, torch.zeros_like(weight)], 1)
        load_weights(system.transformer, tensors)
        return system

    @property
    def vlm(self) -> VisionLanguageModel:
        """The frozen vision-language model, on this system's device."""
        vlm = frozen_vlm(self.config.vlm)
        vlm.model.to(self.adapter.fusion.weight.device)
        return vlm

    def read(
        self, videos: Sequence[Tensor], texts: Sequence[str], references: Sequence[Tensor], fps: float = 8.0
    ) -> Reading:
        """Let the VLM read videos (T, 3, H, W), instructions, and reference images (3, H, W) in [0, 1]."""
        vlm, videos, references = self.vlm, list(videos), list(references)
        layers, frames = self.config.vlm_layers, self.config.vlm_frames
        apart = self.config.conditioning == "decoupled"

        def read_anew() -> Reading:
            if apart:
                return read_apart(vlm, texts, references)
            return read(vlm, videos, texts, references, layers, frames, fps)

        if self.readings is None:
            return read_anew()
        how = (
            "reading",
            apart,
            layers,
            frames,
            fps,
            vlm.sample_frames,
            read,
            read_apart,
            VisionLanguageModel,
        )
        seen = list(zip(videos, references, strict=True))
        return remembered(self.readings, vlm, how, texts, seen, read_anew)

    def forward(
        self, latents: Tensor, timestep: Tensor, source: Tensor, reading: Reading, reference: Tensor | None
    ) -> Tensor:
        """
        Args:
            latents: z~_t, noisy latents of the edited video (B, C, t, h, w).
            timestep: (B,), 1000 * sigma.
            source: z_src, clean latents of the source (B, C, t, h, w).
            reading: see :meth:`read`.
            reference: z_ref, clean latents of the edited first frame (B, C, 1, h, w); None leaves it out.

        Returns:
            Prediction (B, C, t, h, w).
        """
        wan, context = self.transformer, self.context(reading)
        grid = wan.config.grid(latents.shape)
        halves = latents, source
        if reference is not None:
            halves = [torch.cat([reference.to(half), half], 2) for half in halves]
        z = torch.cat(tuple(halves), 1)  # (6): (B, 2C, t + 1, h, w)
        u = wan.patch_embedding(z)  # v
        before, key_padding_mask = 0, None  # tokens before v, and which tokens are no padding
        if self.config.conditioning == "self":
            before = context.tokens.shape[1]  # N_c
            u = torch.cat([context.tokens.type_as(u), u], 1)  # (7): (B, N_c + S, D)
            words = context.text | context.visual
            if len(words) > 1 and not words.all():  # a batch of one has no padding
                key_padding_mask = F.pad(words, (0, u.shape[1] - before), value=True)

        noisy = math.prod(grid)
        runs = [u.shape[1] - noisy, noisy]
        times = torch.stack([torch.zeros_like(timestep), timestep], 1)  # (B, 2): clean, and noisy
        summed = context.tokens * context.text[..., None] if wan.config.summed_text else None
        time, modulation, _ = wan.condition_embedder(times, None, summed)
        rotary = wan.rotary(self.positions(before, reference is not None, grid).to(u.device))
        group = wan.context_group
        u, mine = split(u, group), split_runs(runs, group)
        for block in wan.blocks:
            inputs = u, context, modulation, mine, rotary, key_padding_mask
            u = run_block(wan.checkpointing, block, *inputs)
        u = gather(u, sum(runs), group)
        return wan.head(u[:, runs[0] :], time[:, 1:], [noisy], grid)  # (8)

    def context(self, reading: Reading) -> Context:
        """c (B, N_c, D) of Eq. 3-5, and which of its tokens are words or pixels."""
        tokens = self.adapter(reading.layers)
        if self.visual_adapter is not None:
            tokens = torch.where(reading.visual[..., None], self.visual_adapter(reading.layers), tokens)
        return Context(tokens, reading.text, reading.visual)

    def positions(self, context: int, reference: bool, grid: Grid) -> Tensor:
        """Rotary positions (N_c + S, 3) of N_c context tokens, the reference frame if there is one, and the
        video's (t, h, w) tokens."""
        places = torch.zeros(context, 3, dtype=torch.long)
        if self.config.context_positions == "index":
            places[:, 0] = torch.arange(context)
        elif self.config.context_positions == "before":
            places[:, 0] = torch.arange(-context, 0)
        parts = [places]
        if reference:
            parts.append(grid_positions((1, *grid[1:])))
        shift = int(reference and self.config.reference_position == "before")
        return torch.cat([*parts, grid_positions(grid, (shift, 0, 0))])

    def training_losses(self, batch: MiVEBatch, sigma: Tensor, random: StepRandom) -> dict[str, Tensor]:
        """Flow matching per clip at noise levels sigma (B,).

        Returns:
            ``target`` (B,) and, with a ``changed_loss_weight``, ``changed`` (B,).
        """
        objective, x_0 = self.config.objective, batch["target"]
        noise = random.noise(x_0)
        if "reading" in batch:  # read beforehand
            reading = batch["reading"]
        else:
            reading = self.read(batch["source_video"], batch["instruction"], batch["reference_image"])
        x_sigma = objective.add_noise(x_0, noise, sigma)
        output = self(x_sigma, 1000 * sigma, batch["source"], reading, batch["reference"])
        losses = {"target": objective.loss(output, x_0, noise, sigma)}
        if self.config.changed_loss_weight:
            inside = objective.loss_where(batch["changed"], output, x_0, noise, sigma)
            losses["changed"] = self.config.changed_loss_weight * inside
        return losses
