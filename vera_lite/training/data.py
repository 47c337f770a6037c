"""Latents on disk, and batches that are pure functions of the step.

A cache is a folder of safetensors shards and an ``index.json`` that says what is in it. Shards are
written one by one and atomically: an interrupted build goes on where it stopped.

Batch ``step`` of rank ``rank`` depends on (seed, step, rank) alone: no loader state has to be saved,
and a resumed run sees what the uninterrupted one would have seen.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import lightning as L
import torch
from safetensors import safe_open
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from vera_lite.errors import UserError

STREAMS = ("source", "mask", "edit", "alpha", "composite")
SHARD = 512


class LatentCache(Dataset):
    """Reads a folder written by :func:`.build_toy_cache`; item i is one clip's latents and text.

    Raises:
        UserError: the folder is no complete cache.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        index = self.folder / "index.json"
        if not index.is_file():
            raise UserError(f"{folder} is no finished latent cache: it has no index.json.")
        self.clips = json.loads(index.read_text())["clips"]
        self._shards: dict[int, dict] = {}

    def __len__(self) -> int:
        return self.clips

    def _shard(self, number: int) -> dict:
        if number not in self._shards:  # memory-mapped: only rows that are asked for are read
            file = safe_open(self.folder / f"{number:05d}.safetensors", framework="pt")
            self._shards[number] = {name: file.get_slice(name) for name in (*STREAMS, "text")}
        return self._shards[number]

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        shard = self._shard(i // SHARD)
        return {name: rows[i % SHARD].float() for name, rows in shard.items()}


class StepBatches(Dataset):
    """Item ``step`` is the whole batch of that step; see the module's docstring."""

    def __init__(self, cache: Dataset, batch_size: int, seed: int, rank: int = 0, world_size: int = 1):
        if batch_size * world_size > len(cache):
            raise UserError(
                f"{world_size} x {batch_size} clips a step, but the cache holds only {len(cache)}: "
                "lower batch_size or cache more clips."
            )
        self.cache, self.batch_size, self.seed = cache, batch_size, seed
        self.rank, self.world_size = rank, world_size
        self._epoch, self._permutation = None, None
        self.steps_per_epoch = len(cache) // (batch_size * world_size)

    def _order(self, epoch: int) -> Tensor:
        if self._epoch != epoch:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
            self._epoch, self._permutation = epoch, torch.randperm(len(self.cache), generator=generator)
        return self._permutation

    def indices(self, step: int) -> list[int]:
        """Clips of this rank's batch: the ranks' batches of a step are disjoint."""
        epoch, within = divmod(step, self.steps_per_epoch)
        first = (within * self.world_size + self.rank) * self.batch_size
        return self._order(epoch)[first : first + self.batch_size].tolist()

    def __getitem__(self, step: int) -> dict:
        clips = [self.cache[i] for i in self.indices(step)]
        batch = {name: torch.stack([c[name] for c in clips]) for name in clips[0]}
        return {**batch, "step": step}


class StepData(L.LightningDataModule):
    """Data whose item ``step`` is the batch of that step: subclasses set ``train`` and ``validation``
    (datasets), ``validation_steps`` and ``workers``."""

    def train_dataloader(self) -> DataLoader:
        """Batches from the trainer's present step on; a run is one epoch of all its steps."""
        every = self.trainer.accumulate_grad_batches
        steps = _StepsFrom(self.trainer.global_step * every, self.trainer.max_steps * every)
        return self._loader(self.train, steps)

    def val_dataloader(self) -> DataLoader:
        return self._loader(self.validation, range(self.validation_steps))

    def _loader(self, batches: Dataset, steps: Sequence | Sampler) -> DataLoader:
        return DataLoader(batches, batch_size=None, sampler=steps, num_workers=self.workers)


class RenderedData(StepData):
    """Data that are rendered when asked for, so that no clip is seen twice.

    A subclass has ``batch_size, seed, validation_clips, workers`` and names its ``batches``: a dataset that
    is made of (data, seed, rank, world_size). Validation has a seed far from any of training.
    """

    batches: type[Dataset]

    def setup(self, stage: str | None = None) -> None:
        rank, world_size = 0, 1
        if self.trainer is not None:
            rank, world_size = self.trainer.global_rank, self.trainer.world_size
        self.train = self.batches(self, self.seed, rank, world_size)
        self.validation = self.batches(self, self.seed + 1_000_000, rank, world_size)
        self.validation_steps = max(1, self.validation_clips // (self.batch_size * world_size))


class _StepsFrom(Sampler):
    """Steps first .. total - 1, of length ``total``: Lightning counts the batches of a resumed epoch
    from the start, and would begin the loader anew after ``total - first`` of them."""

    def __init__(self, first: int, total: int):
        self.first, self.total = first, total

    def __iter__(self):
        return iter(range(self.first, self.total))

    def __len__(self) -> int:
        return self.total
