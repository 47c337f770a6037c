"""The cost of MiVE's context tokens: predicted FLOPs, counted FLOPs, and CPU time.

Full-size models run on the "meta" device, which has only shapes. N_c is the whole length of the VLM's prompt,
which the paper does not state. The paper's clips are 81 frames of 720 x 1280 pixels, 22 latent frames with
the reference.

python benchmarks/context_tokens.py [--json OUT]
"""

from dataclasses import replace

import torch
from _harness import Report, cpu_seconds, main

from vera_lite.backbone import WanConfig
from vera_lite.conditioning.multiscale import Reading
from vera_lite.diagnostics.flops import counted_flops, forward_flops
from vera_lite.systems import MiVE, MiVEConfig

TOY = MiVEConfig(
    backbone=WanConfig(
        num_attention_heads=4,
        attention_head_dim=32,
        in_channels=24,
        out_channels=24,
        freq_dim=64,
        ffn_dim=384,
        num_layers=6,
    ),
    vlm_dim=128,
)
#: name: config, latent size, N_c. The toy VLM's prompts have about 150 tokens of two frames, 220 of four.
SIZES = {
    "toy": (TOY, (3, 8, 8), (0, 150, 220)),
    "14B 720p 81 frames": (MiVEConfig(), (21, 90, 160), (0, 4096, 16384)),
}


def predicted(config: MiVEConfig, latent_size: tuple[int, int, int], context_tokens: int) -> int:
    """FLOPs of one forward pass of one clip: Wan without cross-attention over context, reference and video,
    less the reference's way back into latents, and the adapter."""
    wan, (t, h, w) = config.backbone, latent_size
    inside = replace(wan, in_channels=2 * wan.in_channels, text_dim=None, cross_attention=False)
    forward = forward_flops(inside, (t + 1, h, w), 0, timesteps=2, context_tokens=context_tokens).total
    adapter = 2 * context_tokens * (config.vlm_dim * wan.dim + wan.dim**2)
    return forward - 2 * h * w * wan.out_channels * wan.dim + adapter


def call(config: MiVEConfig, latent_size: tuple[int, int, int], context_tokens: int, device: str):
    """One forward pass of one clip, to be called."""
    with torch.device(device), torch.no_grad():
        system = MiVE(config)
        video = torch.zeros(1, config.backbone.in_channels, *latent_size)
        layers = (torch.randn(1, context_tokens, config.vlm_dim),) * len(config.vlm_layers)
        words = torch.ones(1, context_tokens, dtype=torch.bool)
        reading, time = Reading(layers, words, ~words), torch.zeros(1)

    @torch.no_grad()
    def forward() -> torch.Tensor:
        return system(video, time, video, reading, video[:, :, :1])

    return forward


def measure(report: Report, rounds: int) -> None:
    """Fill the report."""
    for name, (config, latent_size, lengths) in SIZES.items():
        for length in lengths:
            report.add(
                f"{name}, N_c = {length}",
                predicted(config, latent_size, length),
                "FLOP",
                peer="torch's count",
                peer_value=counted_flops(call(config, latent_size, length, "meta")),
                goal="== 1",
            )
        for length in lengths[1:]:
            report.add(
                f"{name}, N_c = {length}",
                predicted(config, latent_size, length),
                "FLOP",
                peer="no context",
                peer_value=predicted(config, latent_size, 0),
            )
    config, latent_size, lengths = SIZES["toy"]
    seconds = cpu_seconds({str(n): call(config, latent_size, n, "cpu") for n in lengths}, rounds)
    for length in lengths[1:]:
        report.add_times(f"toy, N_c = {length}, time", seconds, str(length), "0")


if __name__ == "__main__":
    main("context_tokens", measure, rounds=15)
