"""Vera's baseline: an editor that generates the whole frame anew.

One diffusion transformer with the same size, data, conditions and objective denoises the composite C alone.
Source and mask are added to its tokens, as in Vera. Nothing is pasted over the source, so preserved pixels
are only as good as the model draws them.
"""

from dataclasses import dataclass, field

from torch import Tensor, nn

from vera_lite.backbone import WanConfig, WanTransformer
from vera_lite.backbone.wan import PatchEmbedding
from vera_lite.diffusion.draws import StepRandom
from vera_lite.diffusion.flow_matching import FlowMatching
from vera_lite.systems.vera import VeraBatch, layer_losses


@dataclass(frozen=True)
class RegenerationConfig:
    """Size and choices; the fields mean what they mean in :class:`vera_lite.systems.vera.VeraConfig`."""

    backbone: WanConfig = field(default_factory=WanConfig)
    objective: FlowMatching = field(default_factory=FlowMatching)
    mask_drop: float = 0.5
    text_drop: float = 0.1
    phrase_drop: float = 0.0


class Regeneration(nn.Module):
    """Full-frame regeneration: h = P(x_C) + P_S(z_source) + P_M(z_mask)."""

    layers = ("composite",)
    conditions = ("source", "mask")

    def __init__(self, config: RegenerationConfig):
        super().__init__()
        self.config = config
        self.transformer = WanTransformer(config.backbone)
        wan = config.backbone
        self.source_embedding = PatchEmbedding(wan, zero=True)
        self.mask_embedding = PatchEmbedding(wan, zero=True)

    def forward(
        self,
        latents: Tensor,
        timestep: Tensor,
        text: Tensor,
        source: Tensor,
        mask: Tensor | None = None,
        mask_given: Tensor | None = None,
    ) -> Tensor:
        """As :meth:`vera_lite.systems.vera.Vera.forward`, with one layer: (1, B, C, t, h, w)."""
        added = self.source_embedding(source) + self.mask_tokens(mask, mask_given)  # (B, S, D)
        return self.transformer(latents[0], timestep, text, added)[None]

    def mask_tokens(self, mask: Tensor | None, mask_given: Tensor | None) -> Tensor | float:
        """P_M(z_mask) (B, S, D) of the clips whose mask counts; 0 without masks."""
        if mask is None:
            return 0.0
        tokens = self.mask_embedding(mask)
        return tokens if mask_given is None else tokens * mask_given.view(-1, 1, 1)

    def training_losses(self, batch: VeraBatch, sigma: Tensor, random: StepRandom) -> dict[str, Tensor]:
        """As :meth:`vera_lite.systems.vera.Vera.training_losses`, for the composite alone."""
        return layer_losses(self, batch, sigma, random)
