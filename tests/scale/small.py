"""Tiny systems of every kind, and what they train on."""

import torch
from torch import nn

from vera_lite.backbone import CogVideoXConfig, WanConfig
from vera_lite.diffusion.ddpm import Diffusion
from vera_lite.systems import (
    GenCompositor,
    GenCompositorConfig,
    MiVE,
    MiVEConfig,
    RVEDiT,
    RVEDiTConfig,
    Vera,
    VeraConfig,
)
from vera_lite.training.encoded import Clip, random_clips

WAN = WanConfig(
    num_attention_heads=2, attention_head_dim=12, text_dim=16, freq_dim=32, ffn_dim=48, num_layers=2
)
COG = CogVideoXConfig(
    num_attention_heads=2, attention_head_dim=16, time_embed_dim=16, text_embed_dim=16, num_layers=2,
    sample_frames=5, sample_height=4, sample_width=4, max_text_seq_length=5,
)  # fmt: skip
NO_TEXT = WanConfig(**{**vars(WAN), "text_dim": None})
CONFIGS = {
    Vera: VeraConfig(backbone=WAN),
    GenCompositor: GenCompositorConfig(backbone=COG, objective=Diffusion("v_prediction")),
    RVEDiT: RVEDiTConfig(
        backbone=NO_TEXT, vlm_dim=128, lora_rank=2, editing_tokens=4, text_tokens=16, routed_layers=1
    ),
    MiVE: MiVEConfig(backbone=NO_TEXT, vlm_dim=16),
}
CLIPS = {
    Vera: Clip(5, 32, 32, text_tokens=5),
    GenCompositor: Clip(5, 32, 32, "cogvideox", 5),
    RVEDiT: Clip(5, 32, 32, vlm_size=(4, 32, 32)),
    MiVE: Clip(5, 32, 32, vlm_tokens=7),
}


def build(kind: type[nn.Module], **changes) -> nn.Module:
    """A system of this kind without any zero in it, or gradients would stop at its zero-initialised ends."""
    from dataclasses import replace

    torch.manual_seed(0)
    system = kind(replace(CONFIGS[kind], **changes))
    with torch.no_grad():
        for parameter in system.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return system


def batch(system: nn.Module, clips: int, seed: int = 0) -> dict:
    """A batch of noise."""
    kind = next(k for k in CLIPS if isinstance(system, k))
    torch.manual_seed(seed)
    made = random_clips(system, CLIPS[kind], clips)
    if kind is RVEDiT:
        made["instruction"] = made["target_caption"] = ["make the red square blue"] * clips
        made["source_video"] = torch.rand(clips, 9, 3, 32, 32)
        made["target_video"] = torch.rand(clips, 9, 3, 32, 32)
    return made
