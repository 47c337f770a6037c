"""Layers one behind the other in time: one plain video model draws all three, as LayerFlow (arXiv 2506.04228)
and LayerT2V (arXiv 2508.04228) do.

Edit, alpha and composite become one video that is three times as long. Every weight is shared and all tokens
attend to each other; a token knows its layer by its position in time and by a layer embedding.
"""

import torch
from einops import rearrange
from torch import Tensor, nn

from vera_lite.systems.baselines.regeneration import Regeneration, RegenerationConfig
from vera_lite.systems.vera import LAYERS


class LayersInTime(Regeneration):
    """The source is added to the tokens of the composite, the mask to those of alpha, as in Vera.

    Raises:
        ValueError: patches of more than one latent frame.
    """

    layers = LAYERS

    def __init__(self, config: RegenerationConfig):
        super().__init__(config)
        if config.backbone.patch_size[0] != 1:
            raise ValueError("a patch of more than one latent frame would mix two layers.")
        self.layer_embedding = nn.Parameter(torch.zeros(2, config.backbone.dim))  # e_A, e_C, as in Vera

    def forward(
        self,
        latents: Tensor,
        timestep: Tensor,
        text: Tensor,
        source: Tensor,
        mask: Tensor | None = None,
        mask_given: Tensor | None = None,
    ) -> Tensor:
        """As :meth:`vera_lite.systems.vera.Vera.forward`: (3, B, C, t, h, w)."""
        composite = self.source_embedding(source)  # (B, S, D)
        edit, (e_A, e_C) = torch.zeros_like(composite), self.layer_embedding
        alpha = edit + self.mask_tokens(mask, mask_given)
        added = torch.cat([edit, alpha + e_A, composite + e_C], 1)
        video = rearrange(latents, "l b c t h w -> b c (l t) h w")
        output = self.transformer(video, timestep, text, added)
        return rearrange(output, "b c (l t) h w -> l b c t h w", l=len(LAYERS))
