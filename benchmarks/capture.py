"""The cost of watching attention: the rows of all words of the text, in all layers of a Qwen3-VL.

One video prompt runs in three ways: plain (SDPA, not watched), tapped (the same under a :class:`Tap` with a
plan) and eager (transformers' ``output_attentions=True``, which builds and keeps every matrix). The language
model has the proportions of Qwen3-VL-8B at an eighth of its width, and four layers, so that eager at 8k
tokens takes 11 GiB. Weights are random: time and memory do not depend on them.

Memory is the growth during one run in its own process, minus that of plain. The peak can grow by less than
the size of the capture, because the model's own peak may be in an early layer, before most rows exist. Linux
only, where a process can read its peak.

python benchmarks/capture.py [--json OUT]
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

from vera_lite.conditioning.vision_language import VisionLanguageModel
from vera_lite.diagnostics import CapturePlan, Entry, Rows, Tap, attention_shapes, qwen_vl_grid
from vera_lite.diagnostics.layer_attention import DECODER_LAYERS
from vera_lite.toy.vlm import toy_processor
from vera_lite.training.toy.dialogues import toy_qwen3_vl

SIDE = 64  # pixels; two frames are 16 x 16 tokens and a timestamp
FRAMES = {"2k tokens": 16, "8k tokens": 62}
TEXT = "what is moving in front of the background and where is its shadow in the frame"  # 16 words
LANGUAGE = {
    "hidden_size": 512,
    "intermediate_size": 1536,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "rope_parameters": {"rope_type": "default", "rope_theta": 5e6, "mrope_section": [12, 10, 10]},
}
VISION = {
    "depth": 2,
    "hidden_size": 128,
    "intermediate_size": 512,
    "num_heads": 4,
    "deepstack_visual_indexes": [0],
}


class Watched:
    """A model and a prompt of ``frames`` frames; its methods are the three ways."""

    def __init__(self, frames: int):
        vlm = VisionLanguageModel(toy_qwen3_vl(LANGUAGE, VISION), toy_processor(frames, SIDE * SIDE))
        prompt = vlm.prompt([torch.rand(frames, 3, SIDE, SIDE)], [TEXT])
        inputs = prompt.tensors | {"video_metadata": prompt.metadata}
        self.model, self.inputs = vlm.model, prompt.tensors
        self.words = qwen_vl_grid(inputs, vlm.processor, [(SIDE, SIDE)]).words(TEXT)

    def plan(self) -> CapturePlan:
        return CapturePlan([Entry(DECODER_LAYERS, Rows(self.words), "text")], budget_bytes=10**9)

    def plain(self) -> Tensor:
        return self.model(**self.inputs, use_cache=False).logits

    def tapped(self) -> tuple[Tensor, CapturePlan]:
        plan = self.plan()
        with Tap(self.model, plan):
            return self.plain(), plan

    def eager(self):
        self.model.set_attn_implementation("eager")
        return self.model(**self.inputs, use_cache=False, output_attentions=True)


def memory(field: str) -> float:
    """MiB of this process: VmHWM is its peak, VmRSS its size, RssAnon its size without files."""
    return int(re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024


@torch.inference_mode()
def alone(frames: int, way: str) -> tuple[float, float, float]:
    """One run in a fresh process: MiB at its peak, MiB that its result holds, CPU seconds."""
    torch.set_num_threads(1)
    run = getattr(Watched(frames), way)
    before, data, start = memory("VmRSS"), memory("RssAnon"), time.process_time()
    result = run()  # noqa: F841 - alive while memory is read
    seconds = time.process_time() - start
    return memory("VmHWM") - before, memory("RssAnon") - data, seconds


@torch.inference_mode()
def measure_length(report: Report, rounds: int, name: str) -> None:
    """Fill in one length: outputs, time and memory."""
    watched, latest = Watched(FRAMES[name]), {}
    functions = {
        "plain": lambda: latest.update(plain=watched.plain()),
        "tapped": lambda: latest.update(tapped=watched.tapped()),
    }
    seconds = cpu_seconds(functions, rounds)
    logits, plan = latest["tapped"]
    same = (logits == latest["plain"]).sum().item()
    report.add(f"{name}, same logits", same, "numbers", peer="all", peer_value=logits.numel(), goal="== 1")
    report.add_times(f"{name}, tapped", seconds, "tapped", "plain", "<= 1.3")

    shapes = attention_shapes(watched.model, watched.plain)
    decoder = [s for s in shapes if re.search(DECODER_LAYERS, s.module)]
    causal = sum(s.is_causal and not s.mask_bytes for s in decoder)
    report.add(f"{name}, is_causal without a mask", causal, "calls", peer="decoder", peer_value=len(decoder))

    # A process each, because a peak never falls; one at a time, for the times' sake.
    with ProcessPoolExecutor(1, get_context("spawn"), max_tasks_per_child=1) as pool:
        runs = pool.map(alone, [FRAMES[name]] * 3, ["plain", "tapped", "eager"])
        (peak, kept, _), (tapped_peak, tapped_kept, tapped_time), (eager_peak, _, eager_time) = runs
    report.add(f"{name}, tapped, once", tapped_time, "s CPU", peer="eager", peer_value=eager_time)
    case, ours, eagers = f"{name}, added to the peak", tapped_peak - peak, eager_peak - peak
    report.add(case, ours, "MiB", peer="eager", peer_value=eagers, goal="<= 0.05")
    estimate = plan.estimate(shapes)
    report.add(case, ours, "MiB", peer="predicted", peer_value=estimate.peak_bytes / 2**20)
    stored = estimate.total.stored_bytes / 2**20
    report.add(f"{name}, kept", tapped_kept - kept, "MiB", peer="predicted", peer_value=stored)


def measure(report: Report, rounds: int) -> None:
    """Fill the report, one length after the other."""
    # Tensors get memory of their own that goes back when they are freed, or peaks would be off by MiBs.
    # Only processes that start from here on obey: the one of the timings does not.
    os.environ["MALLOC_MMAP_THRESHOLD_"] = str(2**16)
    for name in FRAMES:
        measure_length(report, rounds, name)


if __name__ == "__main__":
    main("capture", measure, rounds=3)
