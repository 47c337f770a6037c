"""What a run tells about itself: use of the device, throughput, gradients, memory, waiting for data."""

import math
import time
from collections import defaultdict
from dataclasses import replace
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn

from vera_lite.systems.vera import LAYERS
from vera_lite.training.encoded import CODECS, EncodedClips
from vera_lite.training.plan import PEAKS, plain, reckon


class Telemetry(L.Callback):
    """Logs, each ``log_every_n_steps`` steps, to whatever loggers the trainer has:

    - ``speed/mfu``: model FLOPs utilisation, the FLOPs that the mathematics needs per second, over the
      device's dense peak; ``speed/hfu`` counts also what is computed again. Both come from
      :func:`vera_lite.training.plan.step_cost`, with attention's S^2; of :class:`.EncodedClips` alone.
    - ``speed/seconds``, ``speed/clips``, ``speed/tokens``: of a step, and per second over all ranks.
    - ``speed/data_wait``: share of the time spent waiting for the loader.
    - ``memory/peak_gb``: most memory of this rank's device.
    - ``gradient/...``: norm of the gradient by branch, before clipping.

    Loss by layer and by quarter of the noise levels is logged by :class:`.EditingModule`.
    """

    def __init__(self):
        self._costs: dict[tuple, tuple[float, float]] = {}
        self._peak = 0.0

    def on_train_start(self, trainer, pl_module) -> None:
        self._peak = device_peak(pl_module.device)
        self._start = self._waited_from = time.perf_counter()
        self._clear()

    def _clear(self) -> None:
        self._waited = self._model = self._hardware = 0.0
        self._clips = self._tokens = self._steps = 0
        self._norms: dict[str, float] = {}

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        self._waited += time.perf_counter() - self._waited_from

    def on_before_optimizer_step(self, trainer, pl_module, optimizer) -> None:
        if self._due(trainer, 1):
            self._norms = gradient_norms(pl_module.system)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        self._waited_from = time.perf_counter()
        latents = next(v for v in batch.values() if isinstance(v, Tensor) and v.ndim == 5)
        clips = len(latents)
        model, hardware = self._cost(trainer, pl_module, latents)
        self._model, self._hardware = self._model + model, self._hardware + hardware
        ranks = (trainer.distributed_sampler_kwargs or {}).get("num_replicas", 1)
        self._clips += clips * ranks
        self._tokens += clips * ranks * math.prod(pl_module.system.config.backbone.grid(latents.shape))
        if not trainer.fit_loop._should_accumulate():
            self._steps += 1
        if self._due(trainer, 0) and self._steps:
            self._log(trainer, pl_module)

    def _log(self, trainer, pl_module) -> None:
        now = time.perf_counter()
        seconds = now - self._start
        context = trainer.world_size / (trainer.distributed_sampler_kwargs or {}).get("num_replicas", 1)
        values = {
            "speed/seconds": seconds / self._steps,
            "speed/clips": self._clips / seconds,
            "speed/tokens": self._tokens / seconds,
            "speed/data_wait": self._waited / seconds,
        }
        if self._model:
            values["speed/mfu"] = self._model / context / seconds / self._peak
            values["speed/hfu"] = self._hardware / context / seconds / self._peak
        if pl_module.device.type == "cuda":
            values["memory/peak_gb"] = torch.cuda.max_memory_allocated() / 1e9
        values |= {f"gradient/{name}": norm for name, norm in self._norms.items()}
        pl_module.log_dict(values, rank_zero_only=True, batch_size=1)
        self._start = time.perf_counter()
        self._clear()

    def _due(self, trainer, ahead: int) -> bool:
        return (trainer.global_step + ahead) % trainer.log_every_n_steps == 0

    def _cost(self, trainer, pl_module, latents: Tensor) -> tuple[float, float]:
        """FLOPs of this rank's pass: what the mathematics needs, and what is computed."""
        key = tuple(latents.shape)
        if key not in self._costs:
            data, system = trainer.datamodule, pl_module.system
            if not isinstance(data, EncodedClips):  # a toy's codec has strides of its own
                return 0.0, 0.0
            clip = data.clip
            _, frames, pixels = CODECS[clip.codec]
            t, h, w = latents.shape[-3:]
            clip = replace(clip, frames=1 + (t - 1) * frames, height=h * pixels, width=w * pixels)
            kind = next(
                c for c in type(system).__mro__ if c.__name__ == type(system).__name__.removeprefix("FSDP")
            )
            what = kind, system.config, clip, len(latents)
            chosen = plain(pl_module.parallel)
            needed = reckon(*what, replace(chosen, checkpointing="none"), memory=False)
            computed = reckon(*what, chosen, memory=False)
            self._costs[key] = needed.flops - needed.repeated, computed.flops
        return self._costs[key]


def gradient_norms(system: nn.Module) -> dict[str, float]:
    """Norm of the gradient of each part of a system; of Vera's, of each branch."""
    parts: dict[str, list[Tensor]] = defaultdict(list)
    for name, parameter in system.named_parameters():
        if parameter.grad is not None:
            words = name.split(".")
            part = words[0]
            for place in ("towers", "branches"):
                if place in words:
                    part = LAYERS[int(words[words.index(place) + 1])]
            parts[part].append(parameter.grad)
    norms = {}
    for part, gradients in parts.items():
        norm: Any = nn.utils.get_total_norm(gradients)
        norms[part] = float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)
    return norms


def device_peak(device: torch.device) -> float:
    """Dense bfloat16 FLOP/s of a device: its datasheet's, or what a large product reaches."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        for known, peak in PEAKS.items():
            if known in name:
                return peak
    size = 4096 if device.type == "cuda" else 512
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    a = torch.randn(size, size, device=device, dtype=dtype)
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        (a @ a).sum().item()
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best
