"""The baselines of MiVE's Table 3: three kinds of cross-attention instead of unified self-attention.

fused_cross     the same context; every block reads it in one cross-attention, as Wan reads its text.
dual_cross      the same context; the outputs of two cross-attentions are added: one reads the word tokens,
                the other the pixel tokens, as Wan's image-to-video model reads text and image.
decoupled       two separate encoders, and dual_cross. The paper's are T5 and CLIP. Ours are the two halves of
                the VLM: its language tower reads the instruction alone, its vision tower the reference image
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
    """Read instructions with the language tower alone (its last hidden states), and images (3, H, W) in
    [0, 1] of one size with the vision tower alone. The reading has one layer: words, then pixels."""
    device, model, processor = vlm.model.device, vlm.model.model, vlm.processor
    words = processor.tokenizer(list(texts), padding=True, padding_side="right", return_tensors="pt")
    words = {name: words[name].to(device) for name in ("input_ids", "attention_mask")}
    pixels = processor.image_processor([to_uint8(image) for image in images], return_tensors="pt").to(device)
    read = model.language_model(**words, use_cache=False).last_hidden_state  # (B, W, D_vlm)
    seen = torch.stack(model.get_image_features(**pixels).pooler_output)  # (B, V, D_vlm)
    is_word = words["attention_mask"].bool()
    text = torch.cat([is_word, is_word.new_zeros(seen.shape[:2])], 1)
    visual = torch.cat([torch.zeros_like(is_word), is_word.new_ones(seen.shape[:2])], 1)
    return Reading((torch.cat([read, seen], 1),), text, visual)
