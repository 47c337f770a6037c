"""One LightningModule for every system."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.attention import SDPBackend, sdpa_kernel

from vera_lite.codecs import describe_codec
from vera_lite.conditioning.readings import Readings
from vera_lite.diffusion.draws import StepRandom, mix_seed
from vera_lite.systems import describe_system
from vera_lite.training.data import data_rank
from vera_lite.training.optim import build_optimizer, scheduled
from vera_lite.training.parallel import Parallel, materialise, parallelize

_QUARTERS = ("0-25", "25-50", "50-75", "75-100")


class EditingModule(L.LightningModule):
    """Trains a system and keeps an exponential moving average (EMA) of its weights.

    A system is a module with ``config.objective`` and ``training_losses(batch, sigma, random)``, which
    returns ``{term: (B,)}``. The sum of all terms is minimised, except those in the system's ``logged_only``.
    Everything random in a step (noise levels, noise, dropped conditions) comes from
    :class:`vera_lite.diffusion.draws.StepRandom`.

    Args:
        system: e.g. :class:`vera_lite.systems.Vera`.
        lr: of AdamW.
        muon_lr: of Muon, which then takes the matrices of the blocks; None: AdamW for all.
        weight_decay, betas: of AdamW.
        warmup_steps: linear warm-up.
        decay_from: share of ``max_steps`` after which the rate falls to zero.
        decay: how it falls.
        ema_decay: of the average.
        seed: of everything random in training.
        compile: ``torch.compile`` the system: slow first steps, then up to twice the speed. Ignored, with a
            warning, without a compiler or with sharded weights; ``parallel`` compiles block by block.
        readings: folder for the readings of a frozen vision-language model, see
            :class:`vera_lite.conditioning.readings.Readings`. Useful if clips repeat.
        frozen: parts of the system that are not trained, e.g. "transformer".
        parallel: how the devices are used, see :class:`vera_lite.training.parallel.Parallel`.
    """

    def __init__(
        self,
        system: nn.Module,
        lr: float = 2e-3,
        muon_lr: float | None = None,
        weight_decay: float = 0.01,
        warmup_steps: int = 60,
        decay_from: float = 0.5,
        ema_decay: float = 0.995,
        seed: int = 0,
        compile: bool = False,
        readings: str | None = None,
        betas: tuple[float, float] = (0.9, 0.97),
        decay: Literal["linear", "cosine"] = "linear",
        frozen: tuple[str, ...] = (),
        parallel: Parallel = Parallel(),  # noqa: B008 (frozen)
    ):
        super().__init__()
        if min(lr, muon_lr or 0, weight_decay, warmup_steps) < 0:
            raise ValueError("lr, muon_lr, weight_decay and warmup_steps must not be negative.")
        if not 0 <= ema_decay < 1 or not 0 <= decay_from <= 1:
            raise ValueError("ema_decay lies in [0, 1) and decay_from in [0, 1].")
        self.system: Any = system
        for part in frozen:
            system.get_submodule(part).requires_grad_(False)
        #: The average, a frozen copy: checkpoints contain it, DDP ignores it, FSDP2 shards it. (Lightning's
        #: EMAWeightAveraging does not shard, and has the precision of the weights.)
        self.ema = copy.deepcopy(system).float().requires_grad_(False)
        self.lr, self.muon_lr, self.weight_decay = lr, muon_lr, weight_decay
        self.warmup_steps, self.decay_from = warmup_steps, decay_from
        self.ema_decay, self.seed = ema_decay, seed
        self.betas, self.decay, self.frozen, self.parallel = tuple(betas), decay, tuple(frozen), parallel
        self.compile_system, self.readings = compile, readings
        if readings is not None:
            if not hasattr(system, "readings"):
                raise ValueError(f"{type(system).__name__} has no vision-language model: leave readings out.")
            system.readings = self.ema.readings = Readings(readings)

    def _apply(self, fn, recurse=True):
        """The average stays in float32 under "bf16-true", where small updates would be rounded away."""
        average = self.ema
        del self._modules["ema"]
        super()._apply(fn, recurse)
        self._modules["ema"] = average._apply(_without_dtype(fn), recurse)
        return self

    # --- sharding --------------------------------------------------------------------------------

    def configure_model(self) -> None:
        """Use the devices as ``parallel`` says; under :class:`.sharded.Sharded` shard over all of them."""
        if getattr(self, "_configured", False):
            return
        mesh = group = None
        if self.device_mesh is not None:
            device = self.device_mesh.device_type
            mesh = init_device_mesh(
                device, (torch.distributed.get_world_size(),)
            )  # shards lie on all devices
            if "tensor_parallel" in (self.device_mesh.mesh_dim_names or ()):
                sharing = self.device_mesh["tensor_parallel"]
                group = sharing.get_group() if sharing.size() > 1 else None
        on_meta = next(self.system.parameters()).is_meta
        for system in (self.system, self.ema):
            parallelize(system, self.parallel, mesh, group)
        if on_meta:
            if self.parallel.weights is None:
                raise ValueError("a system on the meta device needs weights.")
            device = "cpu" if mesh is None else torch.device(mesh.device_type)
            for system in (self.system, self.ema):
                materialise(system, self.parallel.weights, device, self.seed)
        self._configured = True

    # --- compiling -------------------------------------------------------------------------------

    def on_train_start(self) -> None:
        if not self.compile_system:
            return
        reason = "its weights are sharded" if self.device_mesh is not None else _no_compiler(self.device)
        if reason is not None:
            rank_zero_warn(f"The system is not compiled: {reason}.")
            return
        self.system.compile()  # in place, so names in the state dict stay the same

    def on_train_end(self) -> None:
        self.system._compiled_call_impl = None  # attention can be captured again

    # --- training --------------------------------------------------------------------------------

    def _losses(self, system: Any, batch: dict, salt: int) -> tuple[dict[str, Tensor], Tensor]:
        clips, (rank, ranks) = len(next(iter(batch.values()))), data_rank(self.trainer)
        seed = mix_seed(self.seed, salt)
        random = StepRandom(seed, batch["step"], clips, rank, ranks)
        # In float32 for all latents: in bfloat16 a timestep would be off by up to 4.
        sigma = system.config.objective.sample_sigma(random).to(self.device)
        return system.training_losses(batch, sigma, random), sigma

    def training_step(self, batch: dict, _index: int) -> Tensor:
        with attention_by_products():
            losses, sigma = self._losses(self.system, batch, salt=0)
        self._log("loss", losses, sigma)
        return self._total(losses).mean()

    def _total(self, losses: dict[str, Tensor]) -> Tensor:
        logged_only = getattr(self.system, "logged_only", ())
        return torch.stack([v for name, v in losses.items() if name not in logged_only]).sum(0)

    def validation_step(self, batch: dict, _index: int) -> None:
        self._log("val", *self._losses(self.ema, batch, salt=1))

    def _log(self, name: str, losses: dict[str, Tensor], sigma: Tensor) -> None:
        """Log the loss, each of its terms, and its mean in each quarter of the noise levels.

        Means are over all ranks' clips: everything is summed in one collective.
        """
        total = self._total(losses).detach()
        quarter = (4 * self.system.config.objective.quantile(sigma)).long().clamp(0, 3)
        in_quarter = nn.functional.one_hot(quarter, 4).to(total)  # (B, 4)
        terms = torch.stack([v.detach().sum() for v in losses.values()])
        sums = torch.cat([terms, total @ in_quarter, in_quarter.sum(0)])
        sums = self.trainer.strategy.reduce(sums, reduce_op="sum")
        terms, by_quarter, counts = sums.split([len(losses), 4, 4])
        clips = int(counts.sum())
        self.log(name, by_quarter.sum() / clips, prog_bar=True, batch_size=clips)
        values = {f"{name}/{term}": v / clips for term, v in zip(losses, terms, strict=True)}
        for label, value, count in zip(_QUARTERS, by_quarter, counts, strict=True):
            if count:
                values[f"{name}/sigma_{label}"] = value / count
        self.log_dict(values, batch_size=clips)

    def configure_optimizers(self) -> dict:
        optimizer = build_optimizer(self.system, self.lr, self.muon_lr, self.weight_decay, self.betas)
        return scheduled(optimizer, self.trainer.max_steps, self.warmup_steps, self.decay_from, self.decay)

    def optimizer_step(self, *args, **kwargs) -> None:
        super().optimizer_step(*args, **kwargs)
        self.update_ema()

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        """Describe the system, codec and pipeline, so that a checkpoint alone can be exported."""
        data = self.trainer.datamodule
        checkpoint["vera_lite"] = describe_system(self.system) | {
            "pipeline": data.pipeline_settings,
            "codec": describe_codec(data.codec),
            "threads": torch.get_num_threads(),
        }

    @torch.no_grad()
    def update_ema(self) -> None:
        """ema <- decay * ema + (1 - decay) * weights; the decay starts low and rises with the step."""
        decay = min(self.ema_decay, (1 + self.global_step) / (10 + self.global_step))
        weights = [p.float() for p in self.system.parameters()]
        average = list(self.ema.parameters())
        torch._foreach_lerp_(average, weights, 1 - decay)  # pyright: ignore


@contextmanager
def attention_by_products() -> Iterator[None]:
    """Under CPU autocast, compute attention as two matrix products with a softmax between them.

    In bfloat16 the backward pass of the fused CPU kernel is slow (``benchmarks/attention_training.py``).
    The products need memory for the weights of attention.
    """
    if not torch.is_autocast_enabled("cpu"):
        yield
        return
    before = torch.backends.cuda.fp16_bf16_reduction_math_sdp_allowed()
    torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(True)  # the name says CUDA; it rules the CPU, too
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(before)


def _no_compiler(device: torch.device) -> str | None:
    """Why ``torch.compile`` does not work on this device; None if it does."""
    if device.type == "cpu":
        from torch._inductor.cpp_builder import get_cpp_compiler
        from torch._inductor.exc import InvalidCxxCompiler

        try:
            get_cpp_compiler()
        except InvalidCxxCompiler:
            return "there is no C++ compiler on this machine"
    elif device.type == "cuda":
        from torch.utils._triton import has_triton

        return None if has_triton() else "Triton is not installed"
    return None


def _without_dtype(fn):
    """``fn`` of ``Module._apply`` without its change of dtype."""

    def apply(x: Tensor) -> Tensor:
        y = fn(x)
        return y if y.dtype == x.dtype else x.to(y.device)

    return apply
