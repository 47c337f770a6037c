"""Latents on disk, and batches that are pure functions of the step.

A cache is a folder of safetensors shards and an ``index.json`` that describes them. Each shard is written
whole or not at all, so an interrupted build continues where it stopped.

Batch ``step`` of rank ``rank`` depends on (seed, step, rank) alone. No loader state has to be saved, and a
resumed run sees the same batches as an uninterrupted one.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from safetensors import safe_open
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from vera_lite.errors import UserError

STREAMS = ("source", "mask", "edit", "alpha", "composite")
SHARD = 512  # clips per file
VALIDATION = 1_000_000  # added to the seed, far from all seeds of training


class LatentCache(Dataset):
    """A folder written by :func:`.build_toy_cache`; item i is one clip's latents and text features.

    Raises:
        UserError: the folder is no complete cache.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        index = self.folder / "index.json"
        if not index.is_file():
            raise UserError(f"{folder} is no finished latent cache: index.json is missing.")
        self.clips = json.loads(index.read_text())["clips"]
        self._shards: dict[int, dict] = {}

    def __len__(self) -> int:
        return self.clips

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_shards": {}}  # each loader process opens its own

    def _shard(self, number: int) -> dict:
        if number not in self._shards:  # memory-mapped: only the needed rows are read
            file = safe_open(self.folder / f"{number:05d}.safetensors", framework="pt")
            self._shards[number] = {name: file.get_slice(name) for name in (*STREAMS, "text")}
        return self._shards[number]

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        shard = self._shard(i // SHARD)
        return {name: rows[i % SHARD].float() for name, rows in shard.items()}


class StepBatches(Dataset):
    """Item ``step`` is the batch of that step: clips of ``cache`` in an order drawn anew each epoch.

    Args:
        cache: a dataset of dicts of tensors.
        batch_size: clips per rank and step.
        seed: of the order.
        rank, world_size: this process, and how many there are; their batches of a step are disjoint.

    Raises:
        UserError: the cache holds less than one step.
    """

    def __init__(self, cache: Dataset, batch_size: int, seed: int, rank: int = 0, world_size: int = 1):
        if batch_size * world_size > len(cache):
            raise UserError(
                f"one step takes {world_size} x {batch_size} clips, but the cache has {len(cache)}: lower "
                "batch_size or cache more clips."
            )
        self.cache, self.batch_size, self.seed = cache, batch_size, seed
        self.rank, self.world_size = rank, world_size
        self._epoch, self._permutation = -1, torch.empty(0, dtype=torch.long)
        self.steps_per_epoch = len(cache) // (batch_size * world_size)

    def _order(self, epoch: int) -> Tensor:
        if self._epoch != epoch:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
            self._epoch, self._permutation = epoch, torch.randperm(len(self.cache), generator=generator)
        return self._permutation

    def indices(self, step: int) -> list[int]:
        """Numbers of the clips in this rank's batch."""
        epoch, within = divmod(step, self.steps_per_epoch)
        first = (within * self.world_size + self.rank) * self.batch_size
        return self._order(epoch)[first : first + self.batch_size].tolist()

    def __getitem__(self, step: int) -> dict:
        clips = [self.cache[i] for i in self.indices(step)]
        batch = {name: torch.stack([c[name] for c in clips]) for name in clips[0]}
        return {**batch, "step": step}


class RenderedBatches(Dataset):
    """Base of datasets whose item ``step`` is rendered on request, always with new clips.

    Args:
        batch_size: clips per rank and step.
        seed: of the world.
        rank, world_size: this process, and how many there are.
    """

    def __init__(self, batch_size: int, seed: int, rank: int = 0, world_size: int = 1):
        self.batch_size, self.seed, self.rank, self.world_size = batch_size, seed, rank, world_size
        self.epoch: int | None = None  # number of different clips; then they start again

    def clips(self, step: int) -> range:
        """Numbers of the clips in this rank's batch."""
        if self.epoch is not None:
            step %= max(1, self.epoch // (self.batch_size * self.world_size))
        first = (step * self.world_size + self.rank) * self.batch_size
        return range(first, first + self.batch_size)


def data_rank(trainer: L.Trainer) -> tuple[int, int]:
    """Which part of a step's batch a process gets, and how many parts there are. Processes that share the
    tokens of their clips (context parallelism) get the same part."""
    ranks = trainer.distributed_sampler_kwargs or {}
    return ranks.get("rank", 0), ranks.get("num_replicas", 1)


class StepData(L.LightningDataModule):
    """Data whose item ``step`` is the batch of that step.

    Subclasses set ``train`` and ``validation`` (datasets), ``validation_steps`` and ``workers``. Loader
    processes receive only the datasets, so these must be picklable and have no trainer.
    """

    @property
    def ranks(self) -> tuple[int, int]:
        """See :func:`data_rank`."""
        return data_rank(self.trainer) if self.trainer else (0, 1)

    def train_dataloader(self) -> DataLoader:
        """Batches from the trainer's current step on; a run is one epoch of all its steps."""
        trainer: Any = self.trainer
        every = trainer.accumulate_grad_batches
        steps = _StepsFrom(trainer.global_step * every, trainer.max_steps * every)
        return self._loader(self.train, steps)

    def val_dataloader(self) -> DataLoader:
        return self._loader(self.validation, range(self.validation_steps))

    def _loader(self, batches: Dataset, steps: Sequence | Sampler) -> DataLoader:
        return DataLoader(batches, batch_size=None, sampler=steps, num_workers=self.workers)


class RenderedData(StepData):
    """Data that are rendered on request, so that no clip is seen twice; a subclass has ``batches``.

    Args:
        batch_size: clips per rank and step.
        seed: of the world; validation uses another one.
        validation_clips: clips per validation round, in whole batches and at least one batch per rank.
        workers: loader processes.
        clips: number of different clips, in whole steps; None: no clip repeats.
    """

    def __init__(
        self,
        batch_size: int = 16,
        seed: int = 1,
        validation_clips: int = 256,
        workers: int = 0,
        clips: int | None = None,
    ) -> None:
        super().__init__()
        if batch_size < 1:
            raise ValueError(f"batch_size must be positive, got {batch_size}.")
        self.clips = clips
        self.batch_size, self.seed = batch_size, seed
        self.validation_clips, self.workers = validation_clips, workers

    def batches(self, seed: int) -> RenderedBatches:
        """The dataset of the world ``seed``, for this process's rank."""
        raise NotImplementedError

    def setup(self, stage: str | None = None) -> None:
        self.train = self.batches(self.seed)
        self.train.epoch = self.clips
        self.validation = self.batches(self.seed + VALIDATION)
        self.validation_steps = max(1, self.validation_clips // (self.batch_size * self.ranks[1]))


class _StepsFrom(Sampler):
    """Steps first .. total - 1, with length ``total``.

    Lightning counts the batches of a resumed epoch from its start. With length ``total - first`` it would
    restart the loader too early.
    """

    def __init__(self, first: int, total: int):
        self.first, self.total = first, total

    def __iter__(self):
        return iter(range(self.first, self.total))

    def __len__(self) -> int:
        return self.total
