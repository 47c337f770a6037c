"""The cost of a training step of RVEDiT with reference-anchored alignment, against one without.

Forward and backward of the transformer are three units; the reference's forward, without gradient, is a
fourth: 4/3. That is the prediction for the transformer's passes, by FLOPs and by time. InfoNCE and the
vision-language model (VLM), which reads the answer too, come on top and have rows of their own; "whole step"
has everything but the optimizer.

The toy VLM reads at both sizes that are timed. The full size is counted without one and without computing.
FLOPs are those of matrix products; a flash kernel would do one more of them in attention's backward pass.
"""

import math
from collections.abc import Callable
from statistics import median

import torch
from _harness import Report, cpu_seconds, main
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from vera_lite.backbone import WanConfig
from vera_lite.conditioning.editing_tokens import Context
from vera_lite.diagnostics.flops import counted_flops
from vera_lite.diffusion.draws import StepRandom
from vera_lite.diffusion.infonce import info_nce
from vera_lite.systems import RVEDiT, RVEDiTConfig
from vera_lite.toy.edits import render_edits

PREDICTED = 4 / 3
#: name: clips, latent size (t, h, w), heads, channels a head, blocks
SIZES = {
    "toy, S=48 D=128": (16, (3, 8, 8), 4, 32, 6),
    "medium, S=432 D=512": (1, (3, 24, 24), 8, 64, 8),
}
#: Wan2.2-TI2V-5B on 81 frames of 704 x 1280, and the tokens of the video that the VLM of Kiwi-Edit sees.
FULL_SIZE, FULL_VIDEO_TOKENS = (21, 44, 80), 2480
WITH, WITHOUT = "transformer with reference", "transformer without"
#: What is measured, against what.
ROWS = {
    WITH: WITHOUT,
    "InfoNCE": WITH,
    "VLM reads the answer": WITH,
    "whole step with alignment": "whole step without",
}


def transformer_parts(system: RVEDiT, latents: Tensor, answer: Context) -> dict[str, Callable]:
    """The transformer's passes; latents are noisy, source's and target's (3, B, C, t, h, w)."""
    noisy, source, target = latents
    timestep = torch.full((len(noisy),), 500.0)
    instruction = Context(*(x.detach().requires_grad_() for x in answer))  # of the same size

    def step(reference: bool) -> None:
        system.zero_grad()
        output = system(noisy, timestep, source, instruction)
        if reference:
            with torch.no_grad():
                system(noisy, timestep, target, answer)
        output.square().mean().backward()

    return {WITHOUT: lambda: step(False), WITH: lambda: step(True)}


def full_parts() -> dict[str, Callable]:
    """Those at full size, on the "meta" device."""
    system = RVEDiT(RVEDiTConfig())
    lengths = system.config.editing_tokens, FULL_VIDEO_TOKENS, system.config.text_tokens
    answer = Context(*(torch.empty(1, n, system.config.backbone.dim) for n in lengths))
    return transformer_parts(system, torch.empty(3, 1, 48, *FULL_SIZE), answer)


def parts(
    clips: int, size: tuple[int, int, int], heads: int, head_dim: int, blocks: int
) -> dict[str, Callable]:
    """All parts of a training step, and the step itself."""
    backbone = WanConfig(
        num_attention_heads=heads,
        attention_head_dim=head_dim,
        in_channels=24,
        out_channels=24,
        text_dim=None,
        freq_dim=64,
        ffn_dim=3 * heads * head_dim,
        num_layers=blocks,
    )
    common = {"vlm_dim": 128, "editing_tokens": 8, "text_tokens": 48, "routed_layers": blocks // 2}
    system, without = (RVEDiT(RVEDiTConfig(backbone, alignment_weight=w, **common)) for w in (0.1, 0.0))
    edits, latents = render_edits(0, range(clips)), torch.randn(3, clips, 24, *size)
    batch = {
        "source": latents[1],
        "target": latents[2],
        "source_video": edits.source,
        "target_video": edits.target,
        "instruction": edits.instruction,
        "target_caption": edits.target_caption,
    }
    features, reference = torch.randn(2, clips, math.prod(backbone.grid(size)), backbone.dim)
    features.requires_grad_()

    @torch.no_grad()
    def read() -> Context:
        return system.context(edits.target, edits.target_caption)

    def step(trained: RVEDiT) -> None:
        trained.zero_grad()
        losses = trained.training_losses(batch, torch.full((clips,), 0.5), StepRandom(0, 0, clips))
        sum(v.mean() for name, v in losses.items() if name not in trained.logged_only).backward()

    return {
        **transformer_parts(system, latents, read()),
        "InfoNCE": lambda: info_nce(features, reference)[0].sum().backward(),
        "VLM reads the answer": read,
        "whole step without": lambda: step(without),
        "whole step with alignment": lambda: step(system),
    }


def infonce_flops(clips: int, tokens: int, dim: int) -> int:
    """6 B S^2 D: the logits, the same again in the backward pass, and their product with the reference."""
    return 6 * clips * tokens**2 * dim


def flops(functions: dict[str, Callable]) -> dict[str, int]:
    """Counted by plain attention: of other kernels torch does not count every backward pass."""
    with sdpa_kernel(SDPBackend.MATH):
        return {name: counted_flops(function) for name, function in functions.items()}


def add_distance(report: Report, case: str, ratio: float, allowed: float) -> None:
    """How far a ratio is from the predicted one."""
    distance = abs(ratio / PREDICTED - 1)
    report.add(f"{case} off 4/3", distance, "of it", peer="allowed", peer_value=allowed, goal="<= 1")


def measure(report: Report, rounds: int) -> None:
    """Fill the report."""
    for name, (clips, size, heads, head_dim, blocks) in SIZES.items():
        functions = parts(clips, size, heads, head_dim, blocks)
        counts, seconds = flops(functions), cpu_seconds(functions, rounds)
        for ours, peer in ROWS.items():
            report.add(f"{name}: {ours}", counts[ours], "FLOP", peer=peer, peer_value=counts[peer])
            report.add_times(f"{name}: {ours}, time", seconds, ours, peer)
        add_distance(report, f"{name}: FLOPs", counts[WITH] / counts[WITHOUT], 0.01)
        ratios = [a / b for a, b in zip(seconds[WITH], seconds[WITHOUT], strict=True)]
        add_distance(report, f"{name}: time", median(ratios), 0.1)
        predicted = infonce_flops(clips, math.prod(size) // 4, heads * head_dim)
        case = f"{name}: InfoNCE"
        report.add(case, counts["InfoNCE"], "FLOP", peer="predicted", peer_value=predicted, goal="== 1")
        added = counts["whole step with alignment"] - counts["whole step without"]
        sum_of_parts = counts[WITH] - counts[WITHOUT] + counts["InfoNCE"] + counts["VLM reads the answer"]
        case = f"{name}: what alignment adds"
        report.add(case, added, "FLOP", peer="its parts", peer_value=sum_of_parts, goal="== 1")
    name = "full, S=18480 D=3072"
    with torch.device("meta"):
        counts = flops(full_parts())
    report.add(f"{name}: {WITH}", counts[WITH], "FLOP", peer=WITHOUT, peer_value=counts[WITHOUT])
    add_distance(report, f"{name}: FLOPs", counts[WITH] / counts[WITHOUT], 0.01)
    predicted = infonce_flops(1, 18480, 3072)
    report.add(f"{name}: InfoNCE, predicted", predicted, "FLOP", peer=WITH, peer_value=counts[WITH])


if __name__ == "__main__":
    main("rvedit_reference_pass", measure, rounds=15)
