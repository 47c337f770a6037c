"""What a run tells about itself: use of the device, throughput, gradients, memory, waiting for data."""

import math
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from vera_lite import viz
from vera_lite.conditioning.multiscale import Reading
from vera_lite.diffusion.sampling import denoise
from vera_lite.media.files import replacing
from vera_lite.systems import GenCompositor, RVEDiT, Vera
from vera_lite.systems.vera import LAYERS
from vera_lite.training.cost import Cost, reckon, vlm_cost
from vera_lite.training.encoded import CODECS, EncodedClips
from vera_lite.training.plan import PEAKS, plain


class Telemetry(L.Callback):
    """Logs, each ``log_every_n_steps`` steps, to whatever loggers the trainer has:

    - ``speed/mfu``: model FLOPs utilisation, the FLOPs that the mathematics needs per second, over the
      device's dense peak; ``speed/hfu`` counts also what is computed again. Both come from
      :func:`vera_lite.training.cost.step_cost`, with attention's S^2; of :class:`.EncodedClips` alone.
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
        backbone: Any = pl_module.system.config.backbone
        self._tokens += clips * ranks * math.prod(backbone.grid(latents.shape))
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
            needed, computed = reckon(*what, replace(chosen, checkpointing="none")), reckon(*what, chosen)
            vlm = vlm_cost(*what[1:]) if kind is RVEDiT else Cost(0)
            model = needed.flops - needed.repeated + vlm.flops - vlm.repeated
            self._costs[key] = model, computed.flops + vlm.flops
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


class ContactSheets(L.Callback):
    """Draws what the average makes of one clip of the data, every so many steps, as a PNG.

    A full-size VAE does not fit beside a training, so the sheet shows latents: their first three channels as
    red, green and blue. Layout and motion can be judged from that, colours and detail cannot.

    Args:
        folder: for ``000500.png`` and so on.
        every_n_steps: optimizer steps.
        sampling_steps: network calls per sheet.
        shift: of the sampler, for flow matching.
    """

    def __init__(self, folder: str, every_n_steps: int = 500, sampling_steps: int = 12, shift: float = 3.0):
        self.folder, self.every = Path(folder), every_n_steps
        self.steps, self.shift = sampling_steps, shift
        self._last = 0

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        step = trainer.global_step
        if step == self._last or step % self.every:
            return
        self._last = step
        sample = draw(pl_module.ema, batch, self.steps, self.shift)  # all ranks: weights are gathered
        if trainer.is_global_zero:
            target = torch.stack([batch[n] for n in LAYERS]) if "edit" in batch else None
            if target is None:
                target = batch["composite" if "composite" in batch else "target"][None]
            names = LAYERS if len(sample) == len(LAYERS) else ("edited video",)
            self.folder.mkdir(parents=True, exist_ok=True)
            with replacing(self.folder / f"{step:06d}.png") as path:
                sheet(sample, target, names, step).savefig(path, format="png")


@torch.no_grad()
def draw(system: Any, batch: dict, steps: int, shift: float) -> Tensor:
    """Latents that a system draws for the first clip of a training batch, (layers, C, t, h, w)."""
    first = {n: v[:1] for n, v in batch.items() if isinstance(v, Tensor | list)}
    if isinstance(system, Vera):
        like = torch.stack([first[n] for n in LAYERS])
        given = {n: first[n] for n in ("text", "source", "mask")}
    elif isinstance(system, GenCompositor):
        like, given = first["composite"], {n: first[n] for n in ("masked_background", "mask", "foreground")}
        if system.config.backbone.text_embed_dim is not None:
            given["text"] = first["text"]
    else:
        like, given = first["target"], {"source": first["source"]}
        if isinstance(system, RVEDiT):
            given["context"] = system.context(first["source_video"], first["instruction"])
        else:
            read = batch.get("reading")
            if read is None:
                seen = first["source_video"], first["instruction"], first["reference_image"]
                read = system.read(*seen)
            given["reading"] = Reading(tuple(x[:1] for x in read.layers), read.text[:1], read.visual[:1])
            given["reference"] = first["reference"]
    noise = torch.randn(like.shape, generator=torch.Generator().manual_seed(0)).to(like.device)
    prediction = system.config.objective.prediction
    latents = denoise(lambda x, s: system(x, 1000 * s, **given), noise, steps, shift, prediction)
    return latents[:, 0] if latents.ndim == 6 else latents


def sheet(sample: Tensor, target: Tensor, names: Sequence[str], step: int) -> Figure:
    """The first three channels of drawn and of true latents, (layers, C, t, h, w) each, over time."""
    target = target[:, 0] if target.ndim == 6 else target
    low, high = target[:, :3].amin(), target[:, :3].amax()

    def frames(latents: Tensor) -> list[Tensor]:
        colours = (latents[:3].float().cpu() - low.cpu()) / (high - low).cpu().clamp_min(1e-6)
        return list(colours.clamp(0, 1).unbind(1))

    rows = {}
    for drawn, true, name in zip(sample, target, names, strict=True):
        rows |= {f"{name}, drawn": frames(drawn), f"{name}, true": frames(true)}
    columns = [f"latent {t}" for t in range(sample.shape[2])]
    return viz.contact_sheet(rows, columns, f"Step {step}: what the average draws (latents as colours)")
