"""The cost of GenCompositor's second video, and of ERoPE.

The foreground's tokens join the noisy tokens in every block: linear layers do twice the work, attention four
times. The first rows compare the measured ratio (with and without foreground) with the ratio of the FLOPs:
the closer to 1, the better the prediction. The rows "FLOPs" check the prediction itself by counting.

ERoPE only changes the numbers in the rotary table. Its rows compare one forward pass under each reading with
one under shared positions. The goal 1.05 allows for noise between machines (up to 1.03 was seen).
"""

from dataclasses import replace
from statistics import median

import torch
from _harness import Report, cpu_seconds, main

from vera_lite.backbone import CogVideoXConfig
from vera_lite.diagnostics.flops import counted_flops
from vera_lite.systems import GenCompositor, GenCompositorConfig

#: name: batch, latent size (t, h, w), heads, blocks; a head has 64 channels
SIZES = {
    "S=48 D=128": (16, (3, 8, 8), 2, 4),
    "S=768 D=384": (1, (3, 32, 32), 6, 4),
    "S=3120 D=384": (1, (5, 48, 52), 6, 2),
}
RELEASED = (1, (13, 60, 90), 48, 42)  # GenCompositor's own, counted without computing


def build(latent_size: tuple[int, int, int], heads: int, blocks: int) -> GenCompositor:
    """The main stream alone, with random weights in every part."""
    backbone = CogVideoXConfig(
        num_attention_heads=heads,
        num_layers=blocks,
        text_embed_dim=None,
        use_learned_positional_embeddings=False,
    )
    return GenCompositor(GenCompositorConfig(backbone=backbone, branch_layers=0)).eval()


def predicted_flops(config: CogVideoXConfig, batch: int, tokens: int, streams: int) -> int:
    """FLOPs of one forward pass, a multiplication and its addition being two.

    With N streams of S tokens, width D, L blocks, B clips, E time channels, c latent cells in a token:

        blocks     = L B (24 N S D^2 + 4 (N S)^2 D + 12 E D)
        embeddings = 2 B S c D (C_in + C_out + (N - 1) C_out) + 2 B (D E + E^2 + 2 E D)
    """
    D, E, cells = config.dim, config.time_embed_dim, config.patch_size**2
    n = streams * tokens
    blocks = config.num_layers * (24 * n * D**2 + 4 * n**2 * D + 12 * E * D)
    channels = config.in_channels + streams * config.out_channels
    return batch * (blocks + 2 * tokens * cells * D * channels + 2 * (D * E + E**2 + 2 * E * D))


def inputs(config: CogVideoXConfig, batch: int, size: tuple[int, int, int], device: str = "cpu") -> tuple:
    """Latents, timestep, masked background, mask, foreground."""
    latents = torch.randn(3, batch, config.out_channels, *size, device=device)
    mask = torch.zeros(batch, 1, *size, device=device)
    return latents[0], torch.full((batch,), 500.0, device=device), latents[1], mask, latents[2]


def measure(report: Report, rounds: int) -> None:
    """Fill the report."""
    for name, (batch, size, heads, blocks) in (*SIZES.items(), ("released", RELEASED)):
        device = "meta" if name == "released" else "cpu"
        with torch.device(device):
            model = build(size, heads, blocks)
        config = model.config.backbone
        given = inputs(config, batch, size, device)
        tokens = torch.Size(config.grid(size)).numel()
        calls = {"two": lambda m=model, g=given: m(*g), "one": lambda m=model, g=given: m(*g[:4])}
        flops = {n: predicted_flops(config, batch, tokens, s) for n, s in (("two", 2), ("one", 1))}
        with torch.no_grad():
            for streams, call in calls.items():
                report.add(
                    f"{name}: FLOPs of {streams} stream{'s' * (streams == 'two')}",
                    counted_flops(call),
                    "FLOP",
                    peer="predicted",
                    peer_value=flops[streams],
                    goal="== 1",
                )
            predicted = flops["two"] / flops["one"]
            if name == "released":
                report.add("released: second stream, predicted FLOPs", predicted, "x one stream")
                continue
            seconds = cpu_seconds(calls, rounds)
            ratios = [a / b for a, b in zip(seconds["two"], seconds["one"], strict=True)]
            report.add(
                f"{name}: second stream, time",
                median(ratios),
                "x one stream",
                peer="predicted by FLOPs",
                peer_value=predicted,
                ratios=[ratio / predicted for ratio in ratios],
            )
            readings = {
                rope: GenCompositor(replace(model.config, rope=rope)).eval()
                for rope in ("shared", "paper", "released")
            }
            times = cpu_seconds({r: lambda m=m, g=given: m(*g) for r, m in readings.items()}, rounds)
            for rope in ("paper", "released"):
                report.add_times(f"{name}: ERoPE, {rope}", times, rope, "shared", "<= 1.05")


if __name__ == "__main__":
    main("gencompositor", measure, rounds=15)
