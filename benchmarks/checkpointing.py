"""The cost of a backward pass in which blocks compute their activations again.

"none" keeps every activation, "full" only the inputs of a block, "attention" also the outputs of attention.
In joint attention over long videos, attention is nearly the whole cost of a block, and its output a small
part of the activations. So "attention" should be nearly as fast as "none" and need little more memory than
"full". At this size, self-attention has the same share of the FLOPs as in Vera-1.3B on 81 frames at 480p: 87
percent.

Bytes are those that a forward pass allocates and does not free, counted by torch's profiler. Hooks on saved
tensors would miss the attention outputs, which selective checkpointing keeps elsewhere.
"""

import torch
from _harness import Report, cpu_seconds, main
from torch.profiler import ProfilerActivity, profile

from vera_lite.backbone import WanConfig
from vera_lite.diagnostics.flops import forward_flops
from vera_lite.systems import Vera, VeraConfig

BRANCHES = 3
LATENTS = (6, 32, 32)
TEXT_TOKENS = 12
CONFIG = WanConfig(
    num_attention_heads=2,
    attention_head_dim=48,
    in_channels=4,
    out_channels=4,
    text_dim=36,
    freq_dim=64,
    ffn_dim=4 * 96,
    num_layers=2,
)


def kept_bytes(forward) -> int:
    """Bytes that are alive after ``forward``, its output included, and were not before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        out = forward()  # noqa: F841 - while it lives, so does what its backward pass needs
    return sum(event.self_cpu_memory_usage for event in profiler.key_averages())


def measure(report: Report, rounds: int) -> None:
    """Fill the report: time of forward and backward, and bytes in between."""
    shared = {"share_text_kv": True, "share_condition_embedder": True}
    model = Vera(VeraConfig(backbone=CONFIG, **shared))
    for tower in model.towers:
        torch.nn.init.normal_(tower.proj_out.weight, std=0.1)  # zero would stop all gradients
    latents = torch.randn(BRANCHES, 1, CONFIG.in_channels, *LATENTS)
    timestep = torch.tensor([500.0])
    text = torch.randn(1, TEXT_TOKENS, CONFIG.text_dim)

    def forward(kind):
        model.checkpointing = kind
        return model(latents, timestep, text, latents[0], latents[0])

    def step(kind):
        model.zero_grad()
        forward(kind).square().mean().backward()

    kinds = ("none", "attention", "full")
    gradients, kept = {}, {}
    for kind in kinds:
        step(kind)
        gradients[kind] = [p.grad.clone() for p in model.parameters()]
        model.zero_grad()
        kept[kind] = kept_bytes(lambda kind=kind: forward(kind)) / 2**20
    for kind in kinds[1:]:
        pairs = zip(gradients["none"], gradients[kind], strict=True)
        assert all(torch.equal(a, b) for a, b in pairs), f"{kind} changes a gradient"

    flops = forward_flops(CONFIG, LATENTS, TEXT_TOKENS, BRANCHES, **shared)
    attention = flops.self_attention + flops.cross_attention
    report.add(
        "self-attention in a forward pass",
        flops.self_attention,
        "FLOP",
        peer="all",
        peer_value=flops.total,
    )
    seconds = cpu_seconds({k: (lambda kind=k: step(kind)) for k in kinds}, rounds)
    report.add_times("forward+backward, attention", seconds, "attention", "full", "< 1")
    report.add_times("forward+backward, attention", seconds, "attention", "none")
    report.add_times("forward+backward, full", seconds, "full", "none")
    # A backward pass counts as two forward passes.
    predictions = {"attention": 4 * flops.total - attention, "full": 4 * flops.total}
    for kind, value in predictions.items():
        report.add(f"predicted, {kind}", value, "FLOP", peer="none", peer_value=3 * flops.total)
    for kind, peer in (("attention", "none"), ("attention", "full"), ("full", "none")):
        report.add(f"kept for backward, {kind}", kept[kind], "MiB", peer=peer, peer_value=kept[peer])


if __name__ == "__main__":
    main("checkpointing", measure, rounds=5)
