"""GenCompositor (arXiv 2509.02460): put a foreground video into a background video.

A diffusion transformer denoises the composite z. The mask m says where to draw. The masked background b
(black inside the mask) shows what surrounds that place. The foreground video f shows what to draw: its object
stands in the middle of a white canvas, so the path comes from the mask and not from the foreground.

    [z; f] = [P(x_t ‖ b); P_f(f)]                     channels side by side; tokens one after the other
    [z; f] <- Block_i([z; f])                         full self-attention: the fusion block
    z      <- z + (1 - m) * s_j,  j = floor(i n / L)  the background branch, outside the mask only
    s_j    = W_j BranchBlock_j(P_b(x_t ‖ b ‖ m))      n blocks; W_j starts at zero
    output = head(z)                                  tokens of the foreground are dropped

The two videos need not be aligned, so they must not share positions. ERoPE shifts those of stream s:

    theta_{s,p,k} = w_k (p + Delta_s)                 Delta = 0 for z, the size of the grid for f

Paper and released code differ; :data:`RELEASED` is the code's reading, the defaults are the paper's.

paper                    here
P, P_f                   ``transformer.patch_embed.proj``, ``.fg_proj``
background branch, W_j   ``branch``, ``branch.branch_blocks``
ERoPE                    :func:`stream_positions`
"""

import math
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NotRequired, TypedDict

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vera_lite.backbone.checkpointing import run_block
from vera_lite.backbone.cogvideox import (
    AdaptiveNormOut,
    Attention,
    CogVideoXBlock,
    CogVideoXConfig,
    CogVideoXTransformer,
    PatchEmbed,
    TimeEmbedding,
    config_of,
)
from vera_lite.backbone.context import gather, split_streams
from vera_lite.backbone.rotary import Grid, grid_positions
from vera_lite.codecs import Codec, latent_mask
from vera_lite.diffusion.ddpm import Diffusion
from vera_lite.diffusion.draws import StepRandom
from vera_lite.diffusion.flow_matching import FlowMatching
from vera_lite.errors import UserError, check_choices, check_tensor

AXES = ("t", "h", "w")


@dataclass(frozen=True)
class GenCompositorConfig:
    """Size, and every choice where paper and code differ or that an ablation changes.

    Attributes:
        backbone: size of the main stream; its ``in_channels`` hold noisy latents and masked background.
        objective: "epsilon" :class:`~vera_lite.diffusion.ddpm.Diffusion` in the paper, "v_prediction" in the
            code; :class:`~vera_lite.diffusion.flow_matching.FlowMatching` is ours.
        mask_loss_weight: weight of a second loss term, the same error inside the mask only: 0 in the
            paper, 5 in the code.
        rope: how positions distinguish the two videos, see :func:`stream_positions`. "shared" is an ablation.
        rope_axis: which axis is shifted: t, h (the paper) or w.
        rope_offset: Delta of the foreground, in tokens. None is the size of the grid along that axis, the
            smallest shift that gives every token its own position.
        fusion: "self": foreground tokens join the self-attention (the paper); "cross": noisy tokens read
            them in a cross-attention after every block (ablation).
        shared_projection: the foreground passes through P too, with b in its other channels. Then only
            positions, noise and (outside the mask) the branch distinguish the two videos. For the study of
            ERoPE; not published.
        branch_layers: blocks of the background branch; 0 leaves it out (ablation).
        released_unused_layers: also build the layers that the released branch has but never runs, so that
            its checkpoint can be loaded.
        blank_foreground: chance that a training clip gets a blank foreground and the background as its
            target, so that the model learns removal; 0.2 in the code.
    """

    backbone: CogVideoXConfig = field(default_factory=CogVideoXConfig)
    objective: Diffusion | FlowMatching = field(default_factory=Diffusion)
    mask_loss_weight: float = 0.0
    rope: Literal["paper", "released", "shared"] = "paper"
    rope_axis: Literal["t", "h", "w"] = "h"
    rope_offset: int | None = None
    fusion: Literal["self", "cross"] = "self"
    shared_projection: bool = False
    branch_layers: int = 2
    released_unused_layers: bool = False
    blank_foreground: float = 0.2

    def __post_init__(self):
        check_choices(self)
        if self.backbone.in_channels != 2 * self.backbone.out_channels:
            raise ValueError(
                "the backbone must read twice the channels that it predicts (noisy latents and masked "
                f"background), got {self.backbone.in_channels} and {self.backbone.out_channels}."
            )
        if not 0 <= self.branch_layers <= self.backbone.num_layers:
            raise ValueError(
                f"branch_layers lies in 0..{self.backbone.num_layers}, not {self.branch_layers}."
            )
        if self.rope_offset is not None and self.rope != "paper":
            raise ValueError(f"rope_offset is a choice of rope='paper' only, not of {self.rope!r}.")


class CompositionBatch(TypedDict):
    """What :meth:`GenCompositor.training_losses` learns from: latents (B, C, t, h, w).

    ``blank`` is a white video; ``mask`` is (B, 1, t, h, w) of 0 and 1; ``text``, (B, T, text_embed_dim), is
    for a backbone that reads text.
    """

    composite: Tensor
    background: Tensor
    masked_background: Tensor
    foreground: Tensor
    blank: Tensor
    mask: Tensor
    text: NotRequired[Tensor]


#: The released code's choices for the network and its loss. Its data and sampling differ from ours: it
#: resizes the mask to latents by the nearest pixel (:func:`~vera_lite.codecs.latent_mask` takes any
#: overlap, and so opens more tokens); it cleans masks before it inflates them (3 x 3 opening, parts below
#: 0.01 % dropped); it centres objects frame by frame; gamma of the foreground starts at 0.3, not 0.4; its
#: branch starts from VideoPainter's weights and is frozen; its sampler is DPM-Solver++.
RELEASED = GenCompositorConfig(
    objective=Diffusion("v_prediction"),
    mask_loss_weight=5.0,
    rope="released",
    released_unused_layers=True,
)


# --- positions: ERoPE ----------------------------------------------------------------------------


def stream_positions(grid: Grid, rope: str = "paper", axis: str = "h", offset: int | None = None) -> Tensor:
    """Rotary positions of noisy tokens, then foreground tokens.

    "paper" moves the foreground by ``offset`` along ``axis``. "shared" does not move it. "released" is what
    the code does for axis h: it numbers the cells of one grid that is twice as long along the axis, with time
    outermost, but in the sequence the *stream* is outermost. So the positions of a stream are folded: noisy
    frame f has time floor(f / 2), and the upper rows if f is even, the lower if odd. Along t both orders
    agree and "released" is "paper".

    Args:
        grid: tokens along t, h, w of one stream.
        rope, axis, offset: see :class:`GenCompositorConfig`; "released" has no offset to choose.

    Returns:
        (2S, 3) integers t, h, w.
    """
    which = AXES.index(axis)
    if rope == "released":
        return grid_positions(tuple(2 * n if i == which else n for i, n in enumerate(grid)))
    cells, shift = grid_positions(grid), torch.zeros(3, dtype=torch.long)
    if rope == "paper":
        shift[which] = grid[which] if offset is None else offset
    return torch.cat([cells, cells + shift])


# --- the background branch -----------------------------------------------------------------------


class BackgroundBranch(nn.Module):
    """A few blocks that read noisy latents, masked background and mask, and feed the main stream."""

    #: Devices that share the tokens, see :mod:`vera_lite.backbone.context`.
    context_group: Any = None

    def __init__(self, config: GenCompositorConfig):
        super().__init__()
        size, dim = config.backbone, config.backbone.dim
        #: What a backward pass keeps, see :func:`vera_lite.backbone.checkpointing.run_block`.
        self.checkpointing = "none"
        wider = replace(size, in_channels=size.in_channels + 1)  # noisy ‖ masked background ‖ mask
        self.patch_embed = PatchEmbed(wider, grid_positions(size.sample_grid))
        self.time_embedding = TimeEmbedding(size)
        self.transformer_blocks = nn.ModuleList(CogVideoXBlock(size) for _ in range(config.branch_layers))
        self.branch_blocks = nn.ModuleList(nn.Linear(dim, dim) for _ in range(config.branch_layers))  # W_j
        for parameter in self.branch_blocks.parameters():
            nn.init.zeros_(parameter)  # at the start the main stream is alone
        if config.released_unused_layers:
            self.norm_final, self.norm_out = nn.LayerNorm(dim, size.norm_eps), AdaptiveNormOut(size)
            self.proj_out = nn.Linear(dim, size.patch_size**2 * size.out_channels)
            self.branch_x_embedder = nn.Linear(size.in_channels, dim)

    def forward(self, video: Tensor, timestep: Tensor, text: Tensor | None, rotary: Tensor) -> list[Tensor]:
        """
        Args:
            video: noisy latents, masked background and mask, (B, 2C + 1, t, h, w).
            timestep: (B,).
            text: as for the main stream.
            rotary: (2, T + S, d), of text, and of positions without any shift.

        Returns:
            s_j, (B, S, D) each.
        """
        streams, time, features = self.patch_embed(video, text), self.time_embedding(timestep), []
        S, group = streams[-1].shape[1], self.context_group
        streams = split_streams(streams, group)
        for block, out in zip(self.transformer_blocks, self.branch_blocks, strict=True):
            streams = run_block(self.checkpointing, block, streams, time, rotary)
            features.append(gather(out(torch.cat(streams, 1)), rotary.shape[1], group)[:, -S:])
        return features


class CrossAttention(Attention):
    """The ablation's fusion of the foreground: z <- z + Attention(norm(z), f)."""

    def __init__(self, config: CogVideoXConfig):
        super().__init__(config)
        self.norm = nn.LayerNorm(config.dim, config.norm_eps)
        for parameter in self.to_out.parameters():
            nn.init.zeros_(parameter)  # no effect at the start, like the gates of the self-attention

    def forward(self, z: Tensor, rotary: Tensor, f: Tensor, foreground_rotary: Tensor) -> Tensor:
        """z (B, S, D), f (B, S, D) -> (B, S, D)."""
        return z + super().forward(self.norm(z), rotary, f, foreground_rotary)


# --- the system ----------------------------------------------------------------------------------


class GenCompositor(nn.Module):
    """GenCompositor's denoiser and its training loss."""

    def __init__(self, config: GenCompositorConfig):
        super().__init__()
        self.config, size = config, config.backbone
        self.transformer = CogVideoXTransformer(
            size,
            stream_positions(size.sample_grid, config.rope, config.rope_axis, config.rope_offset),
            foreground_channels=0 if config.shared_projection else size.out_channels,
        )
        self.branch = BackgroundBranch(config) if config.branch_layers else None
        self.cross_attention = None
        if config.fusion == "cross":
            self.cross_attention = nn.ModuleList(CrossAttention(size) for _ in range(size.num_layers))

    @classmethod
    def from_cogvideox(cls, model: nn.Module, **changes) -> "GenCompositor":
        """Start from a CogVideoX image-to-video transformer, as the released code does.

        P_f starts as P's columns for the noisy latents. The branch starts as the first blocks of the main
        stream, with P's noisy columns for both its videos, and zeros for the mask and for W_j (as
        VideoPainter, arXiv 2503.05639, where the released branch comes from).

        ``model`` is a ``diffusers.CogVideoXTransformer3DModel``, ``changes`` are fields of
        :class:`GenCompositorConfig` other than ``backbone``.
        """
        system = cls(GenCompositorConfig(backbone=config_of(model), **changes))
        main, branch, tensors = system.transformer, system.branch, model.state_dict()

        def load(part: nn.Module, *own: str) -> None:
            missing, _ = part.load_state_dict(tensors, strict=False)
            if missing := [n for n in missing if not n.startswith(own)]:
                raise UserError(f"this model is no CogVideoX as released: it has no {missing[0]}.")

        with torch.no_grad():
            if "patch_embed.pos_embedding" in tensors:  # theirs ends with the noisy tokens
                table = tensors.pop("patch_embed.pos_embedding")
                main.patch_embed.pos_embedding[:, : table.shape[1]] = table
            load(main, "patch_embed.fg_", "patch_embed.pos_")
            projection = main.patch_embed.proj
            noisy = projection.weight[:, : system.config.backbone.out_channels]
            if main.patch_embed.fg_proj is not None:
                main.patch_embed.fg_proj.load_state_dict({"weight": noisy, "bias": projection.bias})
            if branch is not None:
                tensors["patch_embed.proj.weight"] = F.pad(torch.cat([noisy, noisy], 1), (0, 0, 0, 0, 0, 1))
                load(branch, "branch_blocks.", "branch_x_embedder.", "patch_embed.pos_")
        return system

    def forward(
        self,
        latents: Tensor,
        timestep: Tensor,
        masked_background: Tensor,
        mask: Tensor,
        foreground: Tensor | None = None,
        text: Tensor | None = None,
    ) -> Tensor:
        """
        Args:
            latents: noisy composite x_t (B, C, t, h, w).
            timestep: (B,), 1000 * sigma.
            masked_background: latents b of the background, black inside the mask (B, C, t, h, w).
            mask: m on the latent grid (B, 1, t, h, w), above 0 where the model may draw.
            foreground: latents f (B, C, t, h, w). A blank video asks for removal; None leaves the second
                stream out.
            text: features (B, T, text_embed_dim) of a backbone with text; the paper's prompt is empty.

        Returns:
            Prediction for the composite (B, C, t, h, w).

        Raises:
            ValueError: a condition's size is not that of the latents.
        """
        B, C, *size = latents.shape
        check_tensor("masked_background", masked_background, B, C, *size)
        check_tensor("mask", mask, B, 1, *size)
        if foreground is not None:
            check_tensor("foreground", foreground, B, C, *size)
        config, main = self.config, self.transformer
        grid = config.backbone.grid(latents.shape)
        S, group = math.prod(grid), main.context_group

        # [z; f] = [P(x_t ‖ b); P_f(f)]
        if config.shared_projection and foreground is not None:
            foreground = torch.cat([foreground, masked_background], 1)
        time = main.time_embedding(timestep)
        seen = torch.cat([latents, masked_background], 1)
        *text_tokens, video = main.patch_embed(seen, text, foreground)
        T = sum(x.shape[1] for x in text_tokens)
        positions = stream_positions(grid, config.rope, config.rope_axis, config.rope_offset)
        rotary = main.rotary(positions.to(latents.device), T)  # text, z, f
        one_stream = main.rotary(grid_positions(grid, device=latents.device), T)
        if foreground is None:
            rotary = one_stream
        if config.fusion == "cross":
            video, f = video[:, :S], video[:, S:]
            rotary, f_rotary = rotary[:, : T + S], rotary[:, T + S :]

        # s_j = W_j BranchBlock_j(P_b(x_t ‖ b ‖ m)), and the tokens that lie wholly outside the mask
        features = []
        if self.branch is not None:
            features = self.branch(torch.cat([seen, mask.to(seen)], 1), timestep, text, one_stream)
        keep = ~token_mask(mask, config.backbone.patch_size)
        updates = [F.pad(keep * s, (0, 0, 0, video.shape[1] - S)) for s in features]  # of z, none of f
        updates = [split_streams([*text_tokens, update], group)[-1] for update in updates]
        streams = split_streams([*text_tokens, video], group)
        for i, block in enumerate(main.blocks):
            # [z; f] <- Block_i([z; f])
            streams = run_block(main.checkpointing, block, streams, time, rotary)
            if self.cross_attention is not None and foreground is not None:
                z_rotary = split_streams([rotary[:, :T], rotary[:, T:]], group)[-1]
                streams[-1] = self.cross_attention[i](streams[-1], z_rotary, f, f_rotary)
            # z <- z + (1 - m) * s_j
            if updates:
                streams[-1] = streams[-1] + updates[i // math.ceil(len(main.blocks) / len(updates))]
        x = gather(torch.cat(streams, 1), rotary.shape[1], group)
        return main.head(x[:, T : T + S], time, grid)

    def training_losses(
        self, batch: dict[str, Tensor], sigma: Tensor, random: StepRandom
    ) -> dict[str, Tensor]:
        """Losses per clip at noise levels sigma (B,).

        Returns:
            ``composite`` (B,) and, with a ``mask_loss_weight``, ``masked`` (B,); their sum is the objective.
        """
        objective, weight = self.config.objective, self.config.mask_loss_weight
        x_0, foreground = blanked(batch, self.config.blank_foreground, random)
        noise = random.noise(x_0)
        output = self(
            objective.add_noise(x_0, noise, sigma),
            1000 * sigma,
            batch["masked_background"],
            batch["mask"],
            foreground,
            None if self.config.backbone.text_embed_dim is None else batch["text"],
        )
        losses = {"composite": objective.loss(output, x_0, noise, sigma)}
        if weight:  # a mean over the whole clip, as in the released code
            m = batch["mask"]
            losses["masked"] = weight * objective.loss(m * output, m * x_0, m * noise, sigma)
        return losses


def token_mask(mask: Tensor, patch_size: int) -> Tensor:
    """Which tokens the model may draw: those with any masked cell, (B, 1, t, h, w) -> bool (B, S, 1)."""
    return F.max_pool3d(mask.float(), (1, patch_size, patch_size)).flatten(2).mT > 0


def blanked(batch: CompositionBatch, rate: float, random: StepRandom) -> tuple[Tensor, Tensor]:
    """Target and foreground per clip; with probability ``rate`` they are the background and a blank video."""
    blank = (random.uniform() < rate).to(batch["composite"].device).view(-1, 1, 1, 1, 1)
    target = torch.where(blank, batch["background"], batch["composite"])
    return target, torch.where(blank, batch["blank"], batch["foreground"])


def encode_conditions(
    codec: Codec, background: Tensor, foreground: Tensor, mask: Tensor
) -> dict[str, Tensor]:
    """Arguments ``masked_background``, ``mask`` and ``foreground`` of :meth:`GenCompositor.forward`.

    Videos are (B, T, 3, H, W) in [0, 1]; the foreground is the centred object on its white canvas. The mask
    is (B, T, 1, H, W); where it is above 0.5 the background becomes black.
    """
    return {
        "masked_background": codec.encode(background.masked_fill(mask > 0.5, 0)),
        "mask": latent_mask(codec, mask),
        "foreground": codec.encode(foreground),
    }
