"""Vera (arXiv 2606.23610): generate an edit as layers over an untouched source.

Three videos are denoised together: the edit layer E (RGB), its alpha matte A and the composite C.
The result that a person gets uses only E, A and the source:

    final = A * E + (1 - A) * source

so whatever the matte leaves out is the source itself.

Three diffusion transformers ("branches"), one a layer and each started from the same text-to-video
model, keep their own projections and feed-forward layers and attend jointly over all 3S tokens
(a Mixture of Transformers). Conditioning is by addition, and only where the layer concerns it:

    h_E = P_E(x_E)
    h_A = P_A(x_A) + P_M(z_mask) + e_A          z_mask optional, dropped at random in training
    h_C = P_C(x_C) + P_S(z_source) + e_C        the only way in for the source

x_k = (1 - sigma) z_k + sigma noise_k with one sigma and independent noise; e_A, e_C are layer
embeddings, zero at the start; all branches use the same rotary positions.

paper      here
E, A, C    LAYERS, in this order along the branch axis
P_E,P_A,P_C  ``transformer.patch_embedding``
P_S, P_M   ``source_embedding``, ``mask_embedding``
e_A, e_C   ``layer_embedding``
"""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from vera_lite.backbone import WanConfig, WanTransformer, load_wan, read_wan
from vera_lite.backbone.wan import StackedLinear
from vera_lite.diffusion.draws import StepDraws
from vera_lite.diffusion.flow_matching import FlowMatching, noised

LAYERS = ("edit", "alpha", "composite")
EDIT, ALPHA, COMPOSITE = range(3)


@dataclass(frozen=True)
class VeraConfig:
    """Vera's size and every choice that the paper leaves open or that an ablation turns.

    Attributes:
        backbone: size of one branch.
        objective: see :class:`vera_lite.diffusion.flow_matching.FlowMatching`.
        mixture: a set of weights for each branch (the paper) or, False, one set for all (ablation).
        joint_attention: branches see each other (the paper) or, False, not (ablation).
        composite_weight: weight of the composite's loss; 1 is the paper's plain sum, 0 is the
            ablation "without composite supervision". The branch itself stays: the source enters there.
        share_text_kv: one projection of the text to keys and values. Not stated in the paper; it is
            what its reported parameter counts (3.9 B, 38.2 B) imply.
        share_condition_embedder: one time and text embedding; implied by the same counts.
        mask_drop: chance that a training clip loses its mask. The rate is not published.
        text_drop: chance that a training clip loses its prompt, for classifier-free guidance. Not
            published; 0.1 is common.
        phrase_drop: chance of each single text token to be blanked in training, so that prompts may
            leave things unsaid. Ours.
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


class Vera(nn.Module):
    """Vera's denoiser and its training loss.

    Args:
        config: see :class:`VeraConfig`.
    """

    #: Layers that are denoised, and latent conditions that :meth:`forward` takes by keyword.
    layers = LAYERS
    conditions = ("source", "mask")

    def __init__(self, config: VeraConfig):
        super().__init__()
        self.config = config
        self.transformer = WanTransformer(
            config.backbone,
            branches=3,
            experts=3 if config.mixture else 1,
            joint=config.joint_attention,
            share_text_kv=config.share_text_kv,
            share_condition_embedder=config.share_condition_embedder,
        )
        token = self.transformer.patch_embedding.weight.shape[-1]
        self.source_embedding = StackedLinear(1, token, config.backbone.dim)
        self.mask_embedding = StackedLinear(1, token, config.backbone.dim)
        self.layer_embedding = nn.Parameter(torch.zeros(2, config.backbone.dim))  # e_A, e_C
        # Zero, so that at the start each branch is the text-to-video model it was copied from.
        for embedding in (self.source_embedding, self.mask_embedding):
            nn.init.zeros_(embedding.weight)

    @classmethod
    def from_wan(cls, folder: str | Path, **changes) -> "Vera":
        """Start all three branches from one Wan checkpoint saved by diffusers.

        Args:
            folder: the transformer's folder.
            changes: fields of :class:`VeraConfig` other than ``backbone``.
        """
        backbone, tensors = read_wan(folder)
        vera = cls(VeraConfig(backbone=backbone, **changes))
        load_wan(vera.transformer, [tensors])
        return vera

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
            mask: clean latents of the mask, gray as RGB (B, C, t, h, w), or None.
            mask_given: (B,) of 0 and 1: which clips' mask counts; None means all.

        Returns:
            Prediction for E, A, C: (3, B, C, t, h, w).
        """
        patchify = self.transformer.patchify
        source_tokens = self.source_embedding(patchify(source)[None])[0]  # (B, S, D)
        added = torch.zeros_like(source_tokens).expand(3, -1, -1, -1).clone()  # (3, B, S, D)
        added[ALPHA] += self.layer_embedding[0]
        added[COMPOSITE] += source_tokens + self.layer_embedding[1]
        if mask is not None:
            mask_tokens = self.mask_embedding(patchify(mask)[None])[0]
            if mask_given is not None:
                mask_tokens = mask_tokens * mask_given.view(-1, 1, 1).type_as(mask_tokens)
            added[ALPHA] += mask_tokens
        return self.transformer(latents, timestep, text, added)

    def training_losses(self, batch: dict[str, Tensor], sigma: Tensor, draws: StepDraws) -> dict[str, Tensor]:
        """Flow-matching loss of each layer and clip.

        Args:
            batch: latents ``source, mask, edit, alpha, composite`` (B, C, t, h, w) and ``text``
                (B, T, text_dim).
            sigma: (B,).
            draws: source of noise and of dropped conditions.

        Returns:
            ``{layer: (B,)}``, weighted so that their sum is the objective.
        """
        text, mask_given = drop_conditions(batch["text"], self.config, draws)
        x_0 = torch.stack([batch[layer] for layer in LAYERS])  # (3, B, C, t, h, w)
        noise = draws.noise(x_0)
        output = self(
            noised(x_0, noise, sigma), 1000 * sigma, text, batch["source"], batch["mask"], mask_given
        )
        losses = self.config.objective.loss(output, x_0, noise, sigma)  # (3, B)
        weights = (1.0, 1.0, self.config.composite_weight)
        return {layer: w * loss for layer, w, loss in zip(LAYERS, weights, losses, strict=True)}


def drop_conditions(text: Tensor, config, draws: StepDraws) -> tuple[Tensor, Tensor]:
    """Blank prompts, phrases and masks at the config's rates; text (B, T, F) -> (text, mask_given (B,))."""
    keep = draws.uniform(1) >= config.text_drop
    keep = keep & (draws.uniform(text.shape[1]) >= config.phrase_drop)
    mask_given = draws.uniform() >= config.mask_drop
    return text * keep[..., None].to(text), mask_given.to(text)
