"""One attention call as it happened: what the tap sees, and what a probe is given."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Site:
    """Where an attention call happened.

    Attributes:
        module: qualified name of the innermost module that made the call, e.g. ``blocks.3.attn1``.
        call: number of the call inside this module during one call of the tapped model; Wan's
            image-to-video block calls twice in one cross-attention, Qwen's vision tower once a frame slot.
        step: number of the call of the tapped model: the denoising step, or the decoding step.
    """

    module: str
    call: int = 0
    step: int = 0


@dataclass(frozen=True)
class AttentionCall:
    """Arguments and result of one ``scaled_dot_product_attention`` call.

    Attributes:
        site: where.
        query: (B, H, Q, d), after positions were applied.
        key: (B, Hk, K, d); Hk divides H (grouped queries).
        value: (B, Hk, K, dv).
        mask: None, bool (True = may look) or additive, broadcastable to (B, H, Q, K).
        is_causal: query i sees keys 0..i, as the kernel defines it.
        scale: factor of the logits.
        output: (B, H, Q, dv), the kernel's own.
    """

    site: Site
    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | None
    is_causal: bool
    scale: float
    output: Tensor
