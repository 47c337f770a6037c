"""A GenCompositor small enough for tests, with the latents of the shipped codec."""

import torch
from diffusers import CogVideoXTransformer3DModel

from vera_lite.backbone import CogVideoXConfig
from vera_lite.codecs import PatchCodec
from vera_lite.pipelines import GenCompositorPipeline
from vera_lite.systems import GenCompositor, GenCompositorConfig
from vera_lite.training.toy.layers import SAMPLING, SHIPPED_CODEC

SMALL = CogVideoXConfig(
    num_attention_heads=2,
    attention_head_dim=16,
    in_channels=48,
    out_channels=24,
    time_embed_dim=16,
    text_embed_dim=None,
    num_layers=2,
    use_learned_positional_embeddings=False,
    sample_frames=9,
    sample_height=8,
    sample_width=8,
)


def build(*, random: bool = False, **changes) -> GenCompositor:
    """The same weights at every call; ``random`` ones leave no part silent. ``changes`` of the config."""
    torch.manual_seed(0)
    system = GenCompositor(GenCompositorConfig(**{"backbone": SMALL} | changes))
    return randomise(system) if random else system


def randomise(model: torch.nn.Module) -> torch.nn.Module:
    """Nothing left at zero or one, so that no term can hide."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape, generator=generator) * 0.2)
    return model.eval()


def diffusers_cogvideox(table: bool = True) -> CogVideoXTransformer3DModel:
    """A random one with text, for clips of 9 frames, 32 x 48; with or without the table of positions."""
    torch.manual_seed(0)
    return randomise(
        CogVideoXTransformer3DModel(
            num_attention_heads=2,
            attention_head_dim=16,
            in_channels=8,
            out_channels=4,
            time_embed_dim=12,
            text_embed_dim=10,
            num_layers=2,
            sample_width=6,
            sample_height=4,
            sample_frames=9,
            max_text_seq_length=5,
            use_rotary_positional_embeddings=True,
            use_learned_positional_embeddings=table,
        )
    )


def pipeline(system: GenCompositor, mask_sigma: float | None = 1.2) -> GenCompositorPipeline:
    """With the shipped codec, for clips of 9 frames, 32 x 32."""
    return GenCompositorPipeline(system, PatchCodec.load(SHIPPED_CODEC), (9, 32, 32), SAMPLING, mask_sigma)
