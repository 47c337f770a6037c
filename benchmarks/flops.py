"""The formula for the FLOPs of a forward pass against torch's count: they are exactly equal.

Full-size models run on the "meta" device, which has only shapes. The last rows show the effect of joint
attention over three branches at Wan's own clip size: 81 frames of 480 x 832 pixels.
"""

import math

import torch
from _harness import Report, main

from vera_lite.backbone import WAN_1_3B, WAN_14B, WanConfig, WanTransformer
from vera_lite.diagnostics.flops import counted_flops, forward_flops
from vera_lite.systems import Vera, VeraConfig

TOY = WanConfig(
    num_attention_heads=4,
    attention_head_dim=32,
    text_dim=36,
    freq_dim=64,
    ffn_dim=384,
    num_layers=4,
)
#: name: config, latent size, text tokens
SIZES = {
    "toy": (TOY, (3, 8, 8), 12),
    "1.3B 480p 81 frames": (WAN_1_3B, (21, 60, 104), 512),
    "14B 480p 81 frames": (WAN_14B, (21, 60, 104), 512),
}
#: Vera's reading of its paper: one text memory and one condition embedder for all branches.
SHARED = {"share_text_kv": True, "share_condition_embedder": True}


def counted(config: WanConfig, latent_size, text_tokens: int, branches: int, **shared) -> int:
    """FLOPs that torch counts in one forward pass of one clip."""
    with torch.device("meta"), torch.no_grad():
        latents = torch.empty(1, config.in_channels, *latent_size)
        model, source = WanTransformer(config), ()
        if branches > 1:
            how = {"share_text_kv": False, "share_condition_embedder": False} | shared
            model, source = Vera(VeraConfig(backbone=config, **how)), (latents,)
            latents = latents.expand(branches, *latents.shape)
        text = torch.empty(1, text_tokens, config.text_dim)
        total = counted_flops(lambda: model(latents, torch.empty(1), text, *source))
    # The source's embedding is Vera's own, no part of the transformers.
    t, h, w = config.grid(latent_size)
    return (
        total - len(source) * 2 * t * h * w * config.in_channels * math.prod(config.patch_size) * config.dim
    )


def measure(report: Report, rounds: int) -> None:
    """Fill the report. Counting has no noise, so ``rounds`` does not matter."""
    for name, arguments in SIZES.items():
        for branches, shared in ((1, {}), (3, {}), (3, SHARED)):
            how = ", text shared" if shared else ""
            report.add(
                f"{name}, {branches} branch{'es' * (branches > 1)}{how}",
                forward_flops(*arguments, branches, **shared).total,
                "FLOP",
                peer="torch's count",
                peer_value=counted(*arguments, branches, **shared),
                goal="== 1",
            )
    for name in list(SIZES)[1:]:
        one = forward_flops(*SIZES[name])
        for how, three in (
            ("joint", forward_flops(*SIZES[name], 3)),
            ("joint, text shared", forward_flops(*SIZES[name], 3, **SHARED)),
            ("separate", forward_flops(*SIZES[name], 3, joint=False)),
        ):
            report.add(
                f"{name}, 3 branches {how}",
                three.total,
                "FLOP",
                peer="1 branch",
                peer_value=one.total,
            )


if __name__ == "__main__":
    main("flops", measure, rounds=1)
