"""What a training needs before it is begun: memory, time, disk, money.

One training step of the real system runs on the meta device, which has shapes and no numbers. torch counts
its floating-point operations, and every tensor that is alive is added up. So a plan holds for whatever the
system does: masks, a reference pass, a contrastive loss. Blocks are alike, so two shallow systems tell what
each further block costs.

A plan reckons; it does not measure. Kernels' own work space and the allocator's gaps are not in it, which is
why a plan is refused above 92 % of a device's memory.
"""

import functools
import math
from collections.abc import Iterable
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.flop_counter import FlopCounterMode

from vera_lite.conditioning.editing_tokens import Context
from vera_lite.diffusion.draws import StepRandom
from vera_lite.systems import RVEDiT
from vera_lite.training.encoded import Clip, random_clips
from vera_lite.training.parallel import Parallel, blocks_of, set_checkpointing, shallow_config

GB = 1e9
#: Share of a device's memory that a plan may fill.
FULL = 0.92
#: Model FLOPs utilisation that public trainings of Wan-14B reached on H100s: NeMo Automodel with FSDP on 8
#: (176 of 989 TFLOP/s), and NeMo DFM with tensor and context parallelism on 128 (326 of 989).
MFU = (0.18, 0.33)
#: Dense bfloat16 peak, FLOP/s, from the datasheets; a sparse peak is twice as high and is never reached.
PEAKS = {"A100": 312e12, "H100": 989e12, "H200": 989e12, "B200": 2250e12}
#: Parameters of vision-language models, from their cards.
VLM_PARAMETERS = {"Qwen/Qwen2.5-VL-3B-Instruct": 3.75e9, "Qwen/Qwen3-VL-8B-Instruct": 8.77e9}


class Cost(NamedTuple):
    """What one pass over one rank's clips costs."""

    flops: float  #: that are computed.
    repeated: float  #: of these, what attention's fused backward kernels compute a second time.
    kept: float = 0  #: bytes alive between forward and backward pass, beside weights.
    peak: float = 0  #: most bytes alive at once, beside weights and their gradients.


# --- one step on the meta device -----------------------------------------------------------------


class Alive(TorchDispatchMode):
    """Adds up the bytes of all tensors that are made while it is on and still alive.

    Args:
        before: tensors that were there before; views of them count as nothing.
    """

    def __init__(self, before: Iterable[Tensor] = ()):
        super().__init__()
        storages = [tensor.untyped_storage() for tensor in before]
        self.known = {s._cdata: (StorageWeakRef(s), 0) for s in storages}
        self._now = self.peak = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in tree_iter(out):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self.known:  # while referred to, no address is used again
                    self.known[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
                    self._now += storage.nbytes()
                    if self._now > self.peak:
                        self.peak = max(self.peak, self.now)
        return out

    @property
    def now(self) -> int:
        """Bytes that are alive at present."""
        for key in [key for key, (reference, _) in self.known.items() if reference.expired()]:
            self._now -= self.known.pop(key)[1]
        return self._now


@contextmanager
def fused_attention():
    """On the meta device attention runs as plain matrix products, with its whole matrix: give it the shapes
    of CUDA's fused kernels."""
    plain = F.scaled_dot_product_attention

    def fused(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, **_) -> Tensor:
        if not q.is_meta:
            return plain(q, k, v, mask)
        if mask is None:
            return torch.ops.aten._scaled_dot_product_flash_attention(q, k, v)[0]
        bias = q.new_empty(1).expand(*q.shape[:-1], k.shape[-2])
        return torch.ops.aten._scaled_dot_product_efficient_attention(q, k, v, bias, True)[0]

    F.scaled_dot_product_attention = fused
    try:
        yield
    finally:
        F.scaled_dot_product_attention = plain


def step_cost(
    kind: type[nn.Module], config: Any, clip: Clip, clips: int, parallel: Parallel, memory: bool = True
) -> Cost:
    """The cost of a training step of a system of this config.

    Args:
        kind: class of the system.
        config: its config.
        clip: size of a clip.
        clips: per rank.
        parallel: its checkpointing and dtype count.
        memory: add up bytes, too; else they are 0.
    """
    system = on_meta(kind, config, parallel.dtype)
    set_checkpointing(system, parallel.checkpointing)
    for parameter in system.parameters():  # FSDP2 hands gradients on as soon as they are there
        parameter.register_post_accumulate_grad_hook(lambda p: setattr(p, "grad", None))
    with torch.device("meta"):
        batch = random_clips(system, clip, clips)
    _stand_in(system, clip, clips)
    sigma = config.objective.sample_sigma(StepRandom(0, 0, clips)).to("meta")

    def forward() -> Tensor:
        losses = system.training_losses(batch, sigma, StepRandom(0, 0, clips))
        skipped = getattr(system, "logged_only", ())
        return torch.stack([v for n, v in losses.items() if n not in skipped]).sum(0).mean()

    # One after the other: the counter keeps what a checkpointed block computes again.
    kept = peak = 0
    with fused_attention():
        if memory:
            with Alive([*system.parameters(), *system.buffers()]) as alive:
                loss = forward()
                kept = alive.now
                loss.backward()
            peak = alive.peak
        with FlopCounterMode(display=False) as counter:
            forward().backward()
    counts = counter.get_flop_counts().get("Global", {})
    backward = [v for op, v in counts.items() if "attention" in str(op) and "backward" in str(op)]
    # Fused kernels do 5 matrix products backward, of which 1 is Q K^T once more.
    return Cost(counter.get_total_flops(), sum(backward) / 5, kept, peak)


def on_meta(kind: type[nn.Module], config: Any, dtype: str) -> Any:
    """A system without memory, in the precision in which it computes."""
    with torch.device("meta"):
        system = kind(replace(config, lora_rank=0) if hasattr(config, "lora_rank") else config)
    return system.to(getattr(torch, dtype))


def _stand_in(system: Any, clip: Clip, clips: int) -> None:
    """For what a VLM reads; its own work is reckoned apart."""
    if isinstance(system, RVEDiT):
        tokens, config = system.tokens, system.config

        def context(*_) -> Context:
            width = config.vlm_dim
            edit, video, text = (
                torch.empty(clips, n, width, device="meta").type_as(tokens.queries)
                for n in (config.editing_tokens, clip.vlm_tokens, config.text_tokens)
            )
            edit = edit + tokens.queries
            native = tokens.native_connector
            return Context(tokens.connector(edit), native(video), native(text))

        system.context = context


def full_depth(cost: Any, config: Any) -> Cost:
    """``cost(config)`` at the config's depth, from those of two shallow ones: blocks are alike."""
    depth = config.backbone.num_layers
    step = depth // math.gcd(depth, getattr(config, "routed_layers", depth))  # keeps the routed share exact
    step = max(step, 2, getattr(config, "branch_layers", 0))
    if depth <= 2 * step:
        return cost(config)
    one, two = (cost(shallow_config(config, n)) for n in (step, 2 * step))
    return Cost(*(a + (b - a) * (depth - step) / step for a, b in zip(one, two, strict=True)))


@functools.lru_cache(maxsize=256)
def reckon(
    kind: type[nn.Module], config: Any, clip: Clip, clips: int, parallel: Parallel, memory: bool = True
) -> Cost:
    """:func:`step_cost` at full depth; each question is answered once per process."""
    return full_depth(lambda shallow: step_cost(kind, shallow, clip, clips, parallel, memory), config)


# --- a plan --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Job:
    """A training, and the devices for it.

    Attributes:
        kind, config: class of the system and its config.
        clip: size of a clip.
        batch: clips per optimizer step, all ranks together.
        micro_batch: clips per rank and pass.
        steps: optimizer steps.
        parallel: see :class:`vera_lite.training.parallel.Parallel`.
        gpus: devices.
        context: devices that share the tokens of a clip.
        sharded: FSDP2; else every device holds everything (DDP).
        muon: whether blocks' matrices are trained by Muon.
        vlm_online: whether a VLM runs in every step.
        name: of the configuration.
    """

    kind: type[nn.Module]
    config: Any
    clip: Clip
    batch: int
    micro_batch: int
    steps: int
    parallel: Parallel
    gpus: int
    context: int = 1
    sharded: bool = True
    muon: bool = False
    vlm_online: bool = False
    frozen: tuple[str, ...] = ()
    name: str = ""


@dataclass(frozen=True)
class Plan:
    """What :func:`make_plan` found; bytes are per device unless said otherwise."""

    job: Job
    parameters: int
    trained: int
    memory: dict[str, float]  #: bytes by kind
    model_flops: float  #: that the mathematics of one pass over a rank's clips needs (MFU)
    hardware_flops: float  #: that are computed, some of them a second time (HFU)
    passes: int  #: of a rank per optimizer step
    host: float  #: bytes of a host's memory per device: its shards, copied while they are written
    checkpoint: float  #: bytes on disk, all devices together
    problems: tuple[str, ...]  #: why it cannot run, but for memory

    @property
    def total(self) -> float:
        """Bytes of a device."""
        return sum(self.memory.values())

    @property
    def step_flops(self) -> float:
        """Model FLOPs of one optimizer step, on all devices."""
        return self.model_flops * self.passes * self.job.gpus

    def seconds(self, mfu: float, peak: float = PEAKS["H200"]) -> float:
        """Of one optimizer step."""
        return self.model_flops * self.passes / (mfu * peak)


def make_plan(job: Job) -> Plan:
    """Reckon a job. Time and activations of frozen parts are counted as if they were trained."""
    ranks = job.gpus if job.sharded else 1
    system = on_meta(job.kind, job.config, "float32")
    for part in job.frozen:
        system.get_submodule(part).requires_grad_(False)
    everything, trained = shard_sizes(system, ranks), shard_sizes(system, ranks, trained=True)
    memory = {
        "weights, float32": 4 * everything,
        "average (EMA), float32": 4 * everything,
        "gradients, float32": 4 * trained,
        "AdamW, float32": 8 * trained,
        "gathered blocks": _gathered(system, job),
    }
    if job.vlm_online:
        memory["VLM (its time is not counted)"] = 2 * VLM_PARAMETERS.get(str(job.config.vlm), 0)
    what = job.kind, job.config, job.clip, job.micro_batch
    cost = reckon(*what, plain(job.parallel))
    needed = reckon(*what, replace(plain(job.parallel), checkpointing="none"), memory=False)
    share = job.context  # each of these devices holds its part of the tokens
    memory["activations"] = cost.peak / share
    count = sum(p.numel() for p in system.parameters())
    return Plan(
        job,
        count,
        sum(p.numel() for p in system.parameters() if p.requires_grad),
        memory,
        model_flops=(needed.flops - needed.repeated) / share,
        hardware_flops=cost.flops / share,
        passes=max(1, round(job.batch * share / (job.gpus * job.micro_batch))),
        host=2 * (8 * everything + 8 * trained),  # what is there, and its copy while a checkpoint is written
        checkpoint=8 * count + 8 * sum(p.numel() for p in system.parameters() if p.requires_grad),
        problems=tuple(_problems(job)),
    )


def plain(parallel: Parallel) -> Parallel:
    """What of it a step's cost depends on."""
    return Parallel(checkpointing=parallel.checkpointing, dtype=parallel.dtype)


def activations_by_mode(job: Job) -> dict[str, float]:
    """Most bytes of activations on a device, for each kind of checkpointing."""
    what, parallel = (job.kind, job.config, job.clip, job.micro_batch), plain(job.parallel)
    modes = ("none", "attention", "full")
    return {m: reckon(*what, replace(parallel, checkpointing=m)).peak / job.context for m in modes}


def shard_sizes(system: nn.Module, ranks: int, trained: bool = False) -> int:
    """Elements of the largest shard: FSDP2 cuts each parameter along its first axis."""
    chosen = (p for p in system.parameters() if p.requires_grad or not trained)
    return sum(math.ceil(p.shape[0] / ranks) * p[:1].numel() if p.ndim else 1 for p in chosen)


def _gathered(system: nn.Module, job: Job) -> float:
    """Whole weights that FSDP2 holds: two blocks (one is gathered ahead), one block's gradient, and the unit
    of everything outside the blocks with its gradient."""
    if not job.sharded:
        return 0.0
    size = 2 if job.parallel.dtype == "bfloat16" else 4
    blocks = blocks_of(system)
    largest = max(sum(p.numel() for p in block.parameters()) for block in blocks)
    outside = sum(p.numel() for p in system.parameters()) - sum(
        p.numel() for block in blocks for p in block.parameters()
    )
    return size * (2 * largest + outside) + 4 * (largest + outside)


def _problems(job: Job) -> list[str]:
    problems, heads = [], job.config.backbone.num_attention_heads
    if heads % job.context:
        problems.append(f"{heads} attention heads do not divide by context_parallel_size {job.context}")
    if job.gpus % job.context:
        problems.append(f"{job.gpus} GPUs do not divide by context_parallel_size {job.context}")
    elif job.batch % (job.gpus // job.context * job.micro_batch):
        ranks = job.gpus // job.context
        problems.append(f"{job.batch} clips per step do not divide by {ranks} x {job.micro_batch}")
    if job.muon and job.sharded:
        problems.append("Muon needs whole matrices: set muon_lr to null when weights are sharded")
    return problems


def smallest_change(job: Job, memory: float) -> tuple[str, Plan] | None:
    """The first of these that fits into ``memory`` bytes: more checkpointing, context parallelism, more GPUs,
    alone and then together. None: nothing that was tried does."""
    modes = ("none", "attention", "full")
    stronger = modes[modes.index(job.parallel.checkpointing) + 1 :]
    lean = replace(job, parallel=replace(job.parallel, checkpointing="full"))
    tried = [
        (f"checkpointing: {m}", replace(job, parallel=replace(job.parallel, checkpointing=m)))
        for m in stronger
    ]
    with_full = "checkpointing: full and " if stronger else ""
    tried += [(f"{with_full}context_parallel_size: {n}", replace(lean, context=n)) for n in (2, 4, 8)]
    tried += [(f"{with_full}{job.gpus * n} GPUs", replace(lean, gpus=job.gpus * n)) for n in (2, 4, 8)]
    for change, other in tried:
        plan = make_plan(replace(other, sharded=True))
        if not plan.problems and plan.total <= FULL * memory:
            return change, plan
    return None


def inference_cost(job: Job) -> Cost:
    """One network call for one clip, without gradients: FLOPs, and most bytes alive beside the weights."""

    def cost(config: Any) -> Cost:
        system = on_meta(job.kind, config, "bfloat16")
        with torch.device("meta"):
            batch = random_clips(system, job.clip, 1)
        _stand_in(system, job.clip, 1)
        sigma = config.objective.sample_sigma(StepRandom(0, 0, 1)).to("meta")
        with torch.no_grad(), fused_attention():
            # The loss adds next to nothing; alignment's reference pass is no part of an edit.
            system.config = (
                replace(config, alignment_weight=0) if hasattr(config, "alignment_weight") else config
            )
            with Alive([*system.parameters(), *system.buffers()]) as alive:
                system.training_losses(batch, sigma, StepRandom(0, 0, 1))
            with FlopCounterMode(display=False) as counter:
                system.training_losses(batch, sigma, StepRandom(0, 0, 1))
        return Cost(counter.get_total_flops(), 0, 0, alive.peak)

    return full_depth(cost, job.config)


def describe_inference(job: Job, device: str = "H200", steps: int = 50) -> str:
    """What one edit needs, as a text. Text encoder, VLM and VAE run before and after, perhaps elsewhere."""
    cost, clip = inference_cost(job), job.clip
    weights = 2 * sum(p.numel() for p in on_meta(job.kind, job.config, "bfloat16").parameters())
    slow, fast = (steps * cost.flops / (mfu * PEAKS[device]) for mfu in MFU)
    return "\n".join(
        [
            f"{job.name}: one edit of {clip.frames} frames, {clip.width} x {clip.height} pixels, in bfloat16",
            f"  {'weights':<32}{weights / GB:>9.1f} GB",
            f"  {'activations':<32}{cost.peak / GB:>9.1f} GB",
            f"  {'in all':<32}{(weights + cost.peak) / GB:>9.1f} GB",
            f"{steps} network calls take {fast:.0f} to {slow:.0f} s at {MFU[1]:.0%} to {MFU[0]:.0%} MFU on "
            f"one {device} (reckoned, not measured); guidance doubles it",
        ]
    )


# --- in words ------------------------------------------------------------------------------------


def describe(plan: Plan, memory: float, rate: float | None = None, device: str = "H200") -> str:
    """A plan as a text; ``memory`` is a device's bytes, ``rate`` its price per hour."""
    job, peak = plan.job, PEAKS[device]
    clip = job.clip
    spread = "FSDP2" if job.sharded else "DDP"
    lines = [
        f"{job.name}: {job.kind.__name__}, {plan.parameters / 1e9:.3f} B parameters, "
        f"{plan.trained / 1e9:.3f} B trained",
        f"clips of {clip.frames} frames, {clip.width} x {clip.height} pixels; {job.batch} per step = "
        f"{job.gpus // job.context} x {job.micro_batch} at once x {plan.passes} passes; {job.steps:,} steps",
        f"{job.gpus} GPUs, {spread}, context_parallel_size {job.context}, checkpointing "
        f"{job.parallel.checkpointing}",
        "",
        f"memory of a GPU, of {memory / GB:.0f} GB:",
        *(f"  {kind:<32}{size / GB:>9.1f} GB" for kind, size in plan.memory.items()),
        f"  {'in all':<32}{plan.total / GB:>9.1f} GB  ({plan.total / memory:.0%})",
        "activations with checkpointing "
        + ", ".join(f"{mode} {size / GB:.1f} GB" for mode, size in activations_by_mode(job).items()),
        "",
        f"host memory                       {plan.host / GB:>9.1f} GB per GPU, while a checkpoint is written",
        f"disk                              {plan.checkpoint / GB:>9.1f} GB per checkpoint",
        f"FLOPs of a step                   {plan.step_flops / 1e15:>9.1f} PFLOP "
        f"(computed: {plan.hardware_flops / plan.model_flops:.2f} times)",
    ]
    slow, fast = (plan.seconds(mfu, peak) for mfu in MFU)
    days = [s * job.steps / 86400 for s in (fast, slow)]
    lines += [
        f"a step takes                      {fast:>9.1f} to {slow:.1f} s at {MFU[1]:.0%} to {MFU[0]:.0%} "
        f"MFU of {peak / 1e12:.0f} TFLOP/s ({device}, reckoned, not measured)",
        f"the training takes                {days[0]:>9.1f} to {days[1]:.1f} days",
    ]
    if rate is not None:
        low, high = (24 * d * job.gpus * rate for d in days)
        lines.append(f"at {rate:g} per GPU and hour             {low:>9,.0f} to {high:,.0f}")
    return "\n".join(lines)
