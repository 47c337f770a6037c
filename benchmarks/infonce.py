"""InfoNCE over all positions in chunks, against the plain formula with its S x S logits.

Both directions, forward and backward, at the temperature of the paper. Chunks stay in the cache, but their
logits are computed twice: four matrix products (three with a fixed reference) against three (two), which
matters with many channels.

Memory is the growth to the peak in a separate process, including the gradients. Linux only.

python benchmarks/infonce.py [--json OUT]
"""

import os
import re
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch
from _harness import Report, cpu_seconds, main
from torch import Tensor
from torch.nn import functional as F

from vera_lite.diffusion.infonce import info_nce

TEMPERATURE, CHANNELS = 0.07, 128
LENGTH = 8192
LONG = {"704p 81 frames, S=18480": 18480, "480p 81 frames, S=32760": 32760}


def naive(features: Tensor, reference: Tensor) -> Tensor:
    """Two cross-entropies over one matrix of logits."""
    logits = F.normalize(features, dim=-1) @ F.normalize(reference, dim=-1).mT / TEMPERATURE
    index = torch.arange(logits.shape[-1]).expand(len(logits), -1)
    both = (F.cross_entropy(x, index, reduction="none") for x in (logits, logits.mT))
    return -sum(both).mean(-1) / 2


WAYS = {"chunks": lambda *pair: info_nce(*pair)[0], "naive": naive}


def pair(positions: int, channels: int = CHANNELS) -> list[Tensor]:
    """Features and a reference that agree in part."""
    features, other = torch.randn(2, 1, positions, channels)
    return [x.requires_grad_() for x in (features, features + 2 * other)]


def step(way: str, inputs: list[Tensor], fixed: bool = False) -> list[Tensor]:
    """Forward and backward: the estimate and the gradients; ``fixed``, the reference takes none."""
    features, reference = inputs
    estimate = WAYS[way](features, reference.detach() if fixed else reference)
    return [estimate.detach(), *torch.autograd.grad(estimate.sum(), inputs[: 1 if fixed else 2])]


def memory(field: str) -> float:
    """MiB of this process: VmHWM is the peak so far, VmRSS the current size."""
    return int(re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024


def alone(positions: int, way: str) -> tuple[float, float]:
    """One step in a fresh process: MiB at its peak above before, CPU seconds."""
    torch.set_num_threads(1)
    step(way, pair(64))  # what torch loads once
    inputs = pair(positions)
    before, start = memory("VmRSS"), time.process_time()
    step(way, inputs)
    return memory("VmHWM") - before, time.process_time() - start


def measure(report: Report, rounds: int) -> None:
    """Fill the report: digits, time, memory."""
    inputs = pair(LENGTH)
    exact = step("naive", [x.detach().double().requires_grad_() for x in inputs])
    errors = {}
    for way in WAYS:
        gradients = zip(step(way, inputs)[1:], exact[1:], strict=True)
        errors[way] = max(float((a - b).norm() / b.norm()) for a, b in gradients)
    del exact
    case = f"S={LENGTH} d={CHANNELS}, relative error of gradients"
    report.add(case, errors["chunks"], "of float64's norm", peer="naive", peer_value=errors["naive"])
    report.add(case, errors["chunks"], "of float64's norm", peer="wanted", peer_value=1e-6, goal="<= 1")

    for name, size, fixed, goal in (
        (f"S={LENGTH} d={CHANNELS}", (LENGTH,), False, "<= 0.6"),
        (f"S={LENGTH} d={CHANNELS}, reference fixed", (LENGTH,), True, "<= 0.6"),
        ("S=2048 d=3072, reference fixed", (2048, 3072), True, None),
    ):
        inputs = pair(*size)
        functions = {way: (lambda way=way, i=inputs, f=fixed: step(way, i, f)) for way in WAYS}
        report.add_times(name, cpu_seconds(functions, rounds), "chunks", "naive", goal)

    # Tensors get memory of their own that goes back when they are freed, or peaks would be off by MiBs.
    os.environ["MALLOC_MMAP_THRESHOLD_"] = str(2**16)
    runs = [(LENGTH, way) for way in WAYS] + [(s, "chunks") for s in LONG.values()]
    # A process each, because a peak never falls.
    with ProcessPoolExecutor(1, get_context("spawn"), max_tasks_per_child=1) as pool:
        alones = dict(zip(runs, pool.map(alone, *zip(*runs, strict=True)), strict=True))
    for name, positions in {f"S={LENGTH}": LENGTH, **LONG}.items():
        ours, seconds = alones[positions, "chunks"]
        compared = {}
        if positions == LENGTH:
            compared = {"peer": "naive", "peer_value": alones[positions, "naive"][0], "goal": "<= 0.25"}
        report.add(f"{name}, added to the peak", ours, "MiB", **compared)
        if positions != LENGTH:
            report.add(f"{name}, once", seconds, "s CPU")


if __name__ == "__main__":
    main("infonce", measure, rounds=3)
