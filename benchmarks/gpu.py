"""What one GPU really does, against what plans reckon: a few minutes on one H200.

    python benchmarks/gpu.py --json benchmarks/results/gpu.json
    python benchmarks/gpu.py --tiny                              sizes for a CPU, to try the script

Times are wall-clock on an otherwise idle device, the best of a few; weights are random, so nothing is loaded.
MFU is against the rate of a large bfloat16 product on the same device, not against a datasheet.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from _harness import Report, report_head, write_json
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from vera_lite.backbone import WAN_1_3B, WanConfig, grid_positions, rotary_table
from vera_lite.backbone.checkpointing import blocks_of
from vera_lite.diffusion.draws import StepRandom
from vera_lite.diffusion.infonce import info_nce
from vera_lite.systems import Vera, VeraConfig
from vera_lite.systems.vera import JointBlock
from vera_lite.training.cost import reckon
from vera_lite.training.encoded import Clip, random_clips
from vera_lite.training.parallel import Parallel, compile_blocks, set_checkpointing
from vera_lite.training.plan import PEAKS


@dataclass(frozen=True)
class Sizes:
    """What is measured."""

    backbone: WanConfig  #: of Vera, at full depth
    frames: tuple[int, ...]
    pixels: tuple[int, int]
    text_tokens: int
    grids: tuple[tuple[int, int, int], ...]  #: of one branch, for the block
    positions: int  #: of InfoNCE
    product: int  #: side of the square matrices


FULL = Sizes(WAN_1_3B, (17, 33), (480, 832), 512, ((7, 30, 52), (21, 30, 52)), 32760, 8192)
TINY = Sizes(
    WanConfig(num_attention_heads=2, attention_head_dim=12, text_dim=16, freq_dim=32, ffn_dim=48,
              num_layers=2),
    (5,), (32, 32), 5, ((2, 2, 2),), 64, 64,
)  # fmt: skip


def seconds(function: Callable[[], object], device: torch.device, rounds: int = 3) -> float:
    """Best wall-clock time of a call, after one to warm up."""

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize()

    function()
    best = float("inf")
    for _ in range(rounds):
        wait()
        start = time.perf_counter()
        function()
        wait()
        best = min(best, time.perf_counter() - start)
    return best


def measure(report: Report, sizes: Sizes, device: torch.device, budget: float) -> list[str]:
    """Fill the report.

    Returns:
        What was not measured, and why. After ``budget`` seconds no further case begins, and a part that
        runs out of memory or has no peer installed is left out.
    """
    begun, missed = time.perf_counter(), []
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    a = torch.randn(sizes.product, sizes.product, device=device, dtype=dtype)
    rate = 2 * sizes.product**3 / seconds(lambda: a @ a, device, 10)
    peak = PEAKS["H200"] / 1e12
    report.add("matrix product", rate / 1e12, "TFLOP/s", peer="H200's datasheet, dense", peer_value=peak)
    for part in (attention, step, block, contrast):
        try:
            for _ in part(report, sizes, device, dtype, rate):  # a part pauses before each of its cases
                if time.perf_counter() - begun > budget:
                    missed.append(f"{part.__name__}: the rest, out of time")
                    break
        except torch.OutOfMemoryError:
            missed.append(f"{part.__name__}: the rest, out of memory")
        except ImportError as error:
            missed.append(f"{part.__name__}: {error}")
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return missed


# Each part adds rows to the report and pauses before each of its cases.


def attention(report: Report, sizes: Sizes, device, dtype, rate) -> Iterator[None]:
    """SDPA's kernels on the joint sequence, forward."""
    heads, width = sizes.backbone.num_attention_heads, sizes.backbone.attention_head_dim
    for t, h, w in sizes.grids:
        yield
        tokens = 3 * t * h * w
        q, k, v = torch.randn(3, 1, heads, tokens, width, device=device, dtype=dtype)

        def attend(q=q, k=k, v=v):
            return scaled_dot_product_attention(q, k, v)

        plain = seconds(attend, device)
        for kernel in (
            SDPBackend.CUDNN_ATTENTION,
            SDPBackend.FLASH_ATTENTION,
            SDPBackend.EFFICIENT_ATTENTION,
        ):
            try:
                with sdpa_kernel(kernel):
                    value = seconds(attend, device)
            except RuntimeError as error:
                if isinstance(error, torch.OutOfMemoryError):
                    raise
                continue  # this device has no such kernel
            case, spent = f"attention, 3S = {tokens}, {kernel.name}", (1000 * value, 1000 * plain)
            report.add(case, spent[0], "ms", peer="torch's choice", peer_value=spent[1])


def block(report: Report, sizes: Sizes, device, dtype, rate) -> Iterator[None]:
    """One joint block against three blocks of diffusers in a loop, and against one of them on 3S tokens."""
    from diffusers.models.transformers.transformer_wan import WanTransformerBlock
    from mot_block import copy_weights, loop, with_backward

    config = sizes.backbone
    ours = JointBlock(VeraConfig(backbone=config))
    heads = config.num_attention_heads
    theirs = [WanTransformerBlock(config.dim, config.ffn_dim, heads, cross_attn_norm=True) for _ in range(3)]
    copy_weights(ours, theirs)
    for module in (ours, *theirs):
        module.to(device, dtype)
    for grid in sizes.grids:
        yield
        tokens = grid[0] * grid[1] * grid[2]
        x = torch.randn(3, 1, tokens, config.dim, device=device, dtype=dtype, requires_grad=True)
        text = torch.randn(1, sizes.text_tokens, config.dim, device=device, dtype=dtype)
        clock = torch.randn(1, 6, config.dim, device=device)
        table = rotary_table(grid_positions(grid, device=device), config.rotary_widths)
        cos, sin = table.repeat(1, 3, 1)[:, None, :, None]
        dense = cos, sin[..., 1::2].repeat_interleave(2, -1)
        functions = {
            "ours": lambda x=x, t=text, c=clock, r=table: torch.stack(ours(list(x), [t], [c[:, None]], r)),
            "three of diffusers' in a loop": lambda x=x, t=text, c=clock, r=table: loop(
                theirs, x, t, c.to(dtype), r.to(dtype)
            ),
            "one of diffusers' on 3S tokens": lambda x=x, t=text, c=clock, r=dense: theirs[0](
                x.transpose(0, 1).flatten(1, 2), t, c, r
            ),
        }
        parameters = [x, *ours.parameters(), *(p for b in theirs for p in b.parameters())]
        times = {n: seconds(with_backward(f, parameters), device) for n, f in functions.items()}
        for peer in list(times)[1:]:
            case, spent = f"joint block, 3S = {3 * tokens}", {n: 1000 * t for n, t in times.items()}
            report.add(case, spent["ours"], "ms", peer=peer, peer_value=spent[peer])


def step(report: Report, sizes: Sizes, device, dtype, rate) -> Iterator[None]:
    """Whole training steps of Vera with AdamW, by checkpointing, and compiled: MFU, and memory by plan."""
    config = VeraConfig(backbone=sizes.backbone)
    with torch.device(device):
        system = Vera(config).to(dtype)
    optimizer = torch.optim.AdamW(system.parameters(), lr=1e-5)
    name = str(dtype).removeprefix("torch.")
    for frames in sizes.frames:
        clip = Clip(frames, *sizes.pixels, text_tokens=sizes.text_tokens)
        with torch.device(device):
            batch = random_clips(system, clip, 1)
        needed = reckon(Vera, config, clip, 1, Parallel(dtype=name))
        flops = needed.flops - needed.repeated
        for mode in ("full", "attention", "full, compiled"):
            yield
            parallel = Parallel(checkpointing=mode.split(",")[0], dtype=name)
            set_checkpointing(system, parallel.checkpointing)
            if "compiled" in mode:
                compile_blocks(system, "inductor" if device.type == "cuda" else "eager")

            def one(batch=batch):
                optimizer.zero_grad()
                random = StepRandom(0, 0, 1)
                sigma = config.objective.sample_sigma(random).to(device)
                torch.stack(list(system.training_losses(batch, sigma, random).values())).sum().backward()
                optimizer.step()

            if device.type == "cuda":
                one()
                optimizer.zero_grad()
                torch.cuda.reset_peak_memory_stats()
                before = torch.cuda.memory_allocated()
            spent = seconds(one, device)
            for module in blocks_of(system):
                module.__dict__.pop("forward", None)  # the next one is not compiled
            report.add(
                f"Vera, {frames} frames, {mode}: MFU of the measured rate",
                flops / spent / rate, "share", peer="goal", peer_value=0.55,
            )  # fmt: skip
            if device.type == "cuda":
                cost = reckon(Vera, config, clip, 1, parallel)
                gradients = 2 * sum(p.numel() for p in system.parameters())
                report.add(
                    f"Vera, {frames} frames, {mode}: memory beside weights and AdamW",
                    (torch.cuda.max_memory_allocated() - before) / 1e9, "GB",
                    peer="plan", peer_value=(cost.peak + gradients) / 1e9,
                )  # fmt: skip


def contrast(report: Report, sizes: Sizes, device, dtype, rate) -> Iterator[None]:
    """InfoNCE over all positions: by chunks, against the whole matrix."""
    yield
    features = torch.randn(1, sizes.positions, sizes.backbone.dim, device=device, requires_grad=True)
    reference = torch.randn_like(features).detach()

    def whole():
        q, k = (torch.nn.functional.normalize(x[0].float(), dim=-1) for x in (features, reference))
        logits = q @ k.T / 0.07
        return -(logits.log_softmax(1).diagonal() + logits.log_softmax(0).diagonal()).mean() / 2

    spent = {
        "ours": seconds(lambda: info_nce(features, reference, chunk=1024)[0].sum().backward(), device),
        "whole": seconds(lambda: whole().backward(), device),
    }
    case = f"InfoNCE over {sizes.positions} positions, forward+backward"
    report.add(case, 1000 * spent["ours"], "ms", peer="the whole matrix", peer_value=1000 * spent["whole"])


def main(argv=None) -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description="Measure one GPU.")
    parser.add_argument("--tiny", action="store_true", help="sizes for a CPU, to try the script")
    parser.add_argument("--budget", type=float, default=400, help="seconds after which no new case begins")
    parser.add_argument("--json", type=Path, help="write the report to this file")
    arguments = parser.parse_args(argv)
    there = torch.cuda.is_available()
    report, missed = Report("gpu"), ["everything: this machine has no CUDA device"]
    if there or arguments.tiny:
        torch.manual_seed(0)
        device = torch.device("cuda" if there else "cpu")
        missed = measure(report, TINY if arguments.tiny else FULL, device, arguments.budget)
        print(report.table())
    for part in missed:
        print(f"not measured: {part}")
    if arguments.json is not None:
        described = report_head("gpu", "torch")
        described["machine"]["gpu"] = torch.cuda.get_device_name() if there else None
        rows = [asdict(row) for row in report.results]
        write_json(described | {"results": rows, "not measured": missed}, arguments.json)


if __name__ == "__main__":
    main()
