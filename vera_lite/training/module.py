"""One LightningModule for every system."""

import copy

import lightning as L
import torch
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Shard

from vera_lite.codecs import describe_codec
from vera_lite.diffusion.draws import StepDraws, mix_seed
from vera_lite.errors import UserError
from vera_lite.systems import describe_system
from vera_lite.training.optim import parameter_groups, scheduled

_QUARTERS = ("0-25", "25-50", "50-75", "75-100")


class EditingModule(L.LightningModule):
    """Trains a system and keeps an exponential moving average (EMA) of its weights.

    A system is a module with ``config.objective`` and ``training_losses(batch, sigma, draws)`` that
    returns ``{term: (B,)}``; their sum is minimised, but for terms that the system lists as ``watched``,
    which are logged only. Everything random in a step (noise levels,
    noise, dropped conditions) comes from :class:`vera_lite.diffusion.draws.StepDraws`.

    Args:
        system: e.g. :class:`vera_lite.systems.Vera`.
        lr: of AdamW.
        muon_lr: of Muon, which then takes the matrices of the blocks; None: AdamW for all.
        weight_decay: of AdamW.
        warmup_steps: linear warm-up.
        decay_from: share of ``max_steps`` after which the rate falls linearly to zero.
        ema_decay: of the average.
        seed: of everything random in training.
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
    ):
        super().__init__()
        if not 0 <= ema_decay < 1 or not 0 <= decay_from <= 1:
            raise UserError("ema_decay lies in [0, 1) and decay_from in [0, 1].")
        self.system = system
        #: The average. A plain frozen copy: checkpoints hold it, DDP leaves it alone, FSDP2 shards it.
        self.ema = copy.deepcopy(system).requires_grad_(False)
        self.lr, self.muon_lr, self.weight_decay = lr, muon_lr, weight_decay
        self.warmup_steps, self.decay_from = warmup_steps, decay_from
        self.ema_decay, self.seed = ema_decay, seed

    # --- sharding --------------------------------------------------------------------------------

    def configure_model(self) -> None:
        """Under ModelParallelStrategy (FSDP2), shard block by block, then the rest."""
        if self.device_mesh is None or getattr(self, "_sharded", False):
            return
        mesh = self.device_mesh["data_parallel"]
        for system in (self.system, self.ema):
            for block in system.transformer.blocks:
                fully_shard(block, mesh=mesh, shard_placement_fn=_widest_axis(mesh.size()))
            fully_shard(system, mesh=mesh, shard_placement_fn=_widest_axis(mesh.size()))
        self._sharded = True

    # --- training --------------------------------------------------------------------------------

    def _losses(self, system: nn.Module, batch: dict, salt: int) -> tuple[dict[str, Tensor], Tensor]:
        clips, ranks = len(batch["composite"]), self.trainer.world_size
        draws = StepDraws(mix_seed(self.seed, salt), batch["step"], clips, self.global_rank, ranks)
        sigma = system.config.objective.sample_sigma(draws).to(batch["composite"])
        return system.training_losses(batch, sigma, draws), sigma

    def training_step(self, batch: dict, _index: int) -> Tensor:
        losses, sigma = self._losses(self.system, batch, salt=0)
        self._log("loss", losses, sigma)
        return self._total(losses).mean()

    def _total(self, losses: dict[str, Tensor]) -> Tensor:
        watched = getattr(self.system, "watched", ())
        return sum(v for name, v in losses.items() if name not in watched)

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
        groups = parameter_groups(self.system, self.lr, self.muon_lr, self.weight_decay)
        return scheduled(groups, self.trainer.max_steps, self.warmup_steps, self.decay_from)

    def optimizer_step(self, *args, **kwargs) -> None:
        super().optimizer_step(*args, **kwargs)
        self.update_ema()

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        """Say what the weights are weights of, so that a checkpoint can be exported by itself."""
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
        torch._foreach_lerp_(list(self.ema.parameters()), list(self.system.parameters()), 1 - decay)


def _widest_axis(ranks: int):
    """Shard along the longest axis that divides evenly: the first axis of stacked weights counts
    experts (3 or 1) and would leave ranks without work."""

    def place(parameter: nn.Parameter) -> Shard | None:
        axes = [a for a in range(parameter.ndim) if parameter.shape[a] % ranks == 0]
        return Shard(max(axes, key=lambda a: parameter.shape[a])) if axes else None

    return place
