"""The baselines of MiVE's Table 3: cross-attention in three ways, instead of unified self-attention.

fused_cross     the same context; every block reads it by one cross-attention, as Wan reads its text.
dual_cross      the same context; two cross-attentions, whose outputs are added: one reads the tokens of the
                words, one those of the pixels, as Wan's image-to-video model reads text and image.
decoupled       two separate encoders, and dual_cross. The paper's are T5 and CLIP. Ours are the VLM's own
                halves: its language tower reads the instruction alone, its vision tower the reference image
                alone, so that only their interplay is missing.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from vera_lite.backbone.wan import CrossAttention, WanConfig
from vera_lite.conditioning.multiscale import Reading
from vera_lite.conditioning.vision_language import VisionLanguageModel
from vera_lite.media.clip import to_uint8


class Context(NamedTuple):
    """What a denoiser is conditioned on."""

    tokens: Tensor  #: (B, N_c, D).
    text: Tensor  #: (B, N_c), True where a token is a word.
    visual: Tensor  #: (B, N_c), True where a token stands for pixels; padding is neither.


class FusedCrossAttention(CrossAttention):
    """Words and pixels alike."""

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """x (B, S, D) -> (B, S, D)."""
        return super().forward(x, context.tokens, context.text | context.visual)


class DualCrossAttention(nn.Module):
    """Words by one, pixels by the other."""

    def __init__(self, config: WanConfig):
        super().__init__()
        self.text, self.visual = CrossAttention(config), CrossAttention(config)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """x (B, S, D) -> (B, S, D)."""
        words = self.text(x, context.tokens, context.text)
        return words + self.visual(x, context.tokens, context.visual)


CROSS_ATTENTION = {
    "fused_cross": FusedCrossAttention,
    "dual_cross": DualCrossAttention,
    "decoupled": DualCrossAttention,
}


@torch.no_grad()
def read_apart(vlm: VisionLanguageModel, texts: Sequence[str], images: Sequence[Tensor]) -> Reading:
    """Instructions through the language tower alone (its last hidden state), images (3, H, W) in [0, 1] of
    one size through the vision tower alone: one "layer", of words and then pixels."""
    device, processor = vlm.model.device, vlm.processor
    words = processor.tokenizer(list(texts), padding=True, padding_side="right", return_tensors="pt").to(
        device
    )
    given = words["attention_mask"]
    heard = vlm.model.model.language_model(
        input_ids=words["input_ids"], attention_mask=given, use_cache=False
    )
    pixels = processor.image_processor([to_uint8(image) for image in images], return_tensors="pt").to(device)
    seen = torch.stack(vlm.model.model.get_image_features(**pixels).pooler_output)  # (B, V, D_vlm)
    both = torch.cat([heard.last_hidden_state, seen], 1)
    text, visual = (torch.zeros(both.shape[:2], dtype=torch.bool, device=device) for _ in range(2))
    text[:, : given.shape[1]], visual[:, given.shape[1] :] = given.bool(), True
    return Reading((both,), text, visual)
