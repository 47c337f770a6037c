"""What a training needs before it is begun: memory, time, disk, money.

A plan reckons, from the costs of :mod:`vera_lite.training.cost`; it does not measure. Kernels' own work space
and the allocator's gaps are not in it, which is why a plan is refused above 92 % of a device's memory.
"""

import math
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from vera_lite.systems import MiVE, RVEDiT
from vera_lite.training.cost import Cost, full_depth, on_meta, reckon, step_cost, vlm_cost, vlm_skeleton
from vera_lite.training.encoded import Clip
from vera_lite.training.parallel import Parallel, blocks_of

GB = 1e9
MODES = ("none", "attention", "full")
#: Share of a device's memory that a plan may fill.
FULL = 0.92
#: Model FLOPs utilisation that public trainings of Wan-14B reached on H100s: NeMo Automodel with FSDP on 8
#: (176 of 989 TFLOP/s), and NeMo DFM with tensor and context parallelism on 128 (326 of 989).
MFU = (0.18, 0.33)
#: Dense bfloat16 peak, FLOP/s, from the datasheets; a sparse peak is twice as high and is never reached.
PEAKS = {"A100": 312e12, "H100": 989e12, "H200": 989e12, "B200": 2250e12}


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
        frozen: parts of the system that are not trained.
        sampling_steps: network calls of an edit.
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
    frozen: tuple[str, ...] = ()
    sampling_steps: int = 50
    name: str = ""


@dataclass(frozen=True)
class Plan:
    """What :func:`make_plan` found; bytes are per device unless said otherwise."""

    job: Job
    parameters: int
    trained: int
    memory: dict[str, float]  #: bytes by kind
    activations: dict[str, float]  #: most bytes of them, for each kind of checkpointing
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
    """Reckon a job. Time and activations of frozen parts are counted as if they were trained.

    RVEDiT's vision-language model reads in every step, whole on every device. MiVE's has read beforehand.
    """
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
    modes = {mode: _pass_cost(job, mode) for mode in MODES}
    cost, needed, share = modes[job.parallel.checkpointing], modes["none"], job.context
    if job.kind is RVEDiT:
        memory["VLM, frozen"] = weight_bytes(vlm_skeleton(job.config.vlm).model)
    memory["activations"] = cost.peak
    count = sum(p.numel() for p in system.parameters())
    return Plan(
        job,
        count,
        sum(p.numel() for p in system.parameters() if p.requires_grad),
        memory,
        activations={mode: cost.peak for mode, cost in modes.items()},
        model_flops=needed.flops - needed.repeated,
        hardware_flops=cost.flops,
        passes=max(1, round(job.batch * share / (job.gpus * job.micro_batch))),
        host=2 * (8 * everything + 8 * trained),  # what is there, and its copy while a checkpoint is written
        checkpoint=8 * count + 8 * sum(p.numel() for p in system.parameters() if p.requires_grad),
        problems=tuple(_problems(job)),
    )


def plain(parallel: Parallel) -> Parallel:
    """What of it a step's cost depends on."""
    return Parallel(checkpointing=parallel.checkpointing, dtype=parallel.dtype)


def _pass_cost(job: Job, mode: str) -> Cost:
    """The cost of a pass on one device with this kind of checkpointing."""
    parallel = replace(plain(job.parallel), checkpointing=mode)
    cost = reckon(job.kind, job.config, job.clip, job.micro_batch, parallel)
    cost = Cost(*(x / job.context for x in cost))  # each of these devices holds its part of the tokens
    if job.kind is not RVEDiT:
        return cost
    vlm = vlm_cost(job.config, job.clip, job.micro_batch)
    flops, repeated = cost.flops + vlm.flops, cost.repeated + vlm.repeated
    return Cost(flops, repeated, cost.kept + vlm.kept, max(cost.peak + vlm.kept, vlm.peak))


def weight_bytes(model: nn.Module) -> int:
    """Bytes of a model's parameters."""
    return sum(p.numel() * p.element_size() for p in model.parameters())


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
    stronger = MODES[MODES.index(job.parallel.checkpointing) + 1 :]
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


def describe_inference(job: Job, device: str = "H200") -> str:
    """What one edit needs, as a text. Text encoder and VLM run before the network, the VAE before and after.

    A VAE is not reckoned: decoded in tiles it takes little.
    """
    clip, steps = job.clip, job.sampling_steps
    config = replace(job.config, alignment_weight=0) if job.kind is RVEDiT else job.config
    half = Parallel(dtype="bfloat16")
    cost = full_depth(lambda c: step_cost(job.kind, c, clip, 1, half, training=False), config)
    network = on_meta(job.kind, config, "bfloat16")
    weights, block = weight_bytes(network), weight_bytes(blocks_of(network)[0])
    outside = weights - sum(weight_bytes(b) for b in blocks_of(network))
    vlm = weight_bytes(vlm_skeleton(config.vlm).model) if job.kind in (RVEDiT, MiVE) else 0
    rows = {
        "weights of the network": (weights, outside + block),
        "its activations": (cost.peak, cost.peak),
        "vision-language model": (vlm, 0),
    }
    all_there = weights + cost.peak + vlm
    offloaded = max(outside + block + cost.peak, outside + vlm)  # the VLM leaves before the network runs
    slow, fast = (steps * cost.flops / (mfu * PEAKS[device]) for mfu in MFU)
    return "\n".join(
        [
            f"{job.name}: one edit of {clip.frames} frames, {clip.width} x {clip.height} pixels, in bfloat16",
            f"  {'memory of a GPU, GB':<32}{'all there':>12}{'offloaded':>12}",
            *(f"  {kind:<32}{a / GB:>12.1f}{b / GB:>12.1f}" for kind, (a, b) in rows.items() if a),
            f"  {'peak, beside text encoder and VAE':<32}{all_there / GB:>11.1f}{offloaded / GB:>12.1f}",
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
        + ", ".join(f"{mode} {size / GB:.1f} GB" for mode, size in plan.activations.items()),
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
