"""Per-token AdaLN from two modulation vectors, against the dense form with one vector per token.

In MiVE the tokens of context and reference are modulated with t = 0, all others with the current t. The dense
form embeds a timestep for every token and gives each block (S, 6 D) numbers. Ours embeds two timesteps, and
each block applies them run by run. Both use the same block with the same weights.

Memory is that of the embedded timesteps that every block gets. The dense form needs the same again in each
block, when it adds the block's own table. Full sizes run on the "meta" device, which has only shapes.

python benchmarks/adaln.py [--json OUT]
"""

import torch
from _harness import Report, cpu_seconds, main
from torch import Tensor

from vera_lite.backbone import WAN_1_3B, WAN_14B, WanBlock, WanConfig, grid_positions, rotary_table
from vera_lite.backbone.wan import ConditionEmbedder, gated_residual, modulated_norm

TOY = WanConfig(num_attention_heads=4, attention_head_dim=32, freq_dim=64, ffn_dim=384)
#: name: config, clean tokens, noisy tokens. At full size the context has 4,096 tokens; a frame of 480 x 832
#: pixels has 1,560, one of 720 x 1280 has 3,600.
SIZES = {
    "toy": (TOY, 150 + 16, 48),
    "1.3B 480p 81 frames": (WAN_1_3B, 4096 + 1560, 21 * 1560),
    "14B 720p 81 frames": (WAN_14B, 4096 + 3600, 21 * 3600),
}
WAYS = ("two vectors", "dense")


def modulation(embedder: ConditionEmbedder, clean: int, noisy: int, way: str) -> tuple[Tensor, list[int]]:
    """(1, G, 6, D) and the runs' lengths: G = 2, or one run whose numbers differ from token to token."""
    lengths, runs = ((clean, noisy), [clean + noisy]) if way == "dense" else ((1, 1), [clean, noisy])
    times = torch.cat([torch.full((1, n), t) for n, t in zip(lengths, (0.0, 700.0), strict=True)], 1)
    return embedder(times, None).modulation, runs


def parts(config: WanConfig) -> tuple[ConditionEmbedder, WanBlock]:
    """A random embedder and block, without text and cross-attention."""
    torch.manual_seed(0)
    config = WanConfig(**vars(config) | {"text_dim": None, "cross_attention": False})
    return ConditionEmbedder(config), WanBlock(config)


def adaln(x: Tensor, given: Tensor, runs: list[int]) -> Tensor:
    """AdaLN in one half of a block: modulate, then add the update with its gate."""
    shift, scale, gate = given.float().unbind(-2)[:3]
    return gated_residual(x, modulated_norm(x, shift, scale, runs, 1e-6), gate, runs)


def measure(report: Report, rounds: int) -> None:
    """Fill the report: the same numbers, memory, time."""
    config, clean, noisy = SIZES["toy"]
    embedder, block = parts(config)
    x = torch.randn(2, clean + noisy, config.dim)
    rotary = rotary_table(grid_positions((clean + noisy, 1, 1)), config.rotary_widths)

    def run(way: str) -> Tensor:
        given, runs = modulation(embedder, clean, noisy, way)
        return block(x, None, given, runs, rotary)

    def gradients(way: str) -> list[Tensor]:
        weights = [*embedder.parameters(), *block.parameters()]
        return torch.autograd.grad(run(way).square().mean(), weights)

    ours, theirs = (run(way).detach() for way in WAYS)
    error = float((ours - theirs).abs().max() / theirs.abs().max())
    report.add(
        "toy block, largest difference", error, "of the largest", peer="wanted", peer_value=1e-6, goal="<= 1"
    )
    pairs = zip(*(gradients(way) for way in WAYS), strict=True)
    error = max(float((a - b).norm() / b.norm().clamp_min(1e-12)) for a, b in pairs)
    report.add("toy block, gradients, relative", error, "of the norm", peer="wanted", peer_value=1e-6)

    for name, (config, clean, noisy) in SIZES.items():
        with torch.device("meta"), torch.no_grad():
            embedder = ConditionEmbedder(WanConfig(**vars(config) | {"text_dim": None}))
            mib = [modulation(embedder, clean, noisy, way)[0].nbytes / 2**20 for way in WAYS]
        report.add(f"{name}, modulation", mib[0], "MiB", peer="dense", peer_value=mib[1], goal="<= 0.1")

    config, clean, noisy = SIZES["toy"]
    embedder, _ = parts(config)
    with torch.no_grad():
        both = {way: (lambda way=way: adaln(x, *modulation(embedder, clean, noisy, way))) for way in WAYS}
        report.add_times("toy, embedding and one AdaLN", cpu_seconds(both, rounds), *WAYS)


if __name__ == "__main__":
    main("adaln", measure, rounds=15)
