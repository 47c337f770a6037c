"""Latents on disk, and batches that are pure functions of the step.

A cache is a folder of safetensors shards and an ``index.json`` that says what is in it. Shards are
written one by one and atomically: an interrupted build goes on where it stopped.

Batch ``step`` of rank ``rank`` depends on (seed, step, rank) alone: no loader state has to be saved,
and a resumed run sees what the uninterrupted one would have seen.
"""

import functools
import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import lightning as L
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from tqdm.auto import tqdm

from vera_lite import clip, codecs, toyworld
from vera_lite.codecs import PatchCodec
from vera_lite.conditioning import PhraseEncoder, phrases
from vera_lite.errors import UserError
from vera_lite.toyworld import WorldConfig, render
from vera_lite.video import replacing

STREAMS = ("source", "mask", "edit", "alpha", "composite")
_SHARD = 512


class LatentCache(Dataset):
    """Reads a folder written by :func:`build_toy_cache`; item i is one clip's latents and text.

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
        shard = self._shard(i // _SHARD)
        return {name: rows[i % _SHARD].float() for name, rows in shard.items()}


def build_toy_cache(folder: Path, codec: PatchCodec, world: WorldConfig, seed: int, clips: int) -> Path:
    """Render and encode ``clips`` clips of world ``seed`` below ``folder``; returns the cache's folder.

    The folder's name is a fingerprint of everything that the latents depend on, so a changed codec,
    world or seed never meets stale latents.
    """
    encoder = PhraseEncoder()
    digest = hashlib.sha256(json.dumps([asdict(world), seed, clips, _SHARD, encoder.text_dim]).encode())
    for name, tensor in sorted(codec.state_dict().items()):
        digest.update(name.encode() + tensor.numpy().tobytes())
    # The code of the world, the codec and the vocabulary is part of what the latents depend on.
    for module in (toyworld, clip, codecs, phrases):
        digest.update(Path(module.__file__).read_bytes())
    folder = Path(folder) / f"toy-{digest.hexdigest()[:16]}"
    if (folder / "index.json").is_file():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    for start in tqdm(range(0, clips, _SHARD), desc="encoding clips", unit="shard"):
        path = folder / f"{start // _SHARD:05d}.safetensors"
        if path.is_file():
            continue
        parts = []
        for first in range(start, min(start + _SHARD, clips), 32):
            batch = render(seed, range(first, min(first + 32, start + _SHARD, clips)), world)
            part = {name: codec.encode(getattr(batch, name)) for name in STREAMS}
            parts.append({**part, "text": encoder(batch.instruction)})
        shard = {name: torch.cat([p[name] for p in parts]).half() for name in parts[0]}
        with replacing(path) as temporary:
            save_file(shard, temporary)
    index = {"clips": clips, "world": asdict(world), "seed": seed}
    with replacing(folder / "index.json") as temporary:
        temporary.write_text(json.dumps(index, indent=1))
    return folder


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


class ToyWorldData(StepData):
    """Toy clips as cached latents.

    Args:
        cache_dir: where caches live; built at the first use.
        world: see :class:`vera_lite.toyworld.WorldConfig`.
        clips: training clips.
        validation_clips: clips of another seed.
        batch_size: clips a rank and step.
        seed: of the world and of the order.
        workers: loader processes.
        codec: a file of :class:`vera_lite.codecs.PatchCodec`; None is the shipped one.
    """

    def __init__(
        self,
        cache_dir: str = "runs/cache",
        world: WorldConfig = WorldConfig(),  # noqa: B008 (frozen)
        clips: int = 4096,
        validation_clips: int = 128,
        batch_size: int = 16,
        seed: int = 1,
        workers: int = 0,
        codec: str | None = None,
    ):
        super().__init__()
        self.cache_dir, self.world, self.clips = Path(cache_dir), world, clips
        self.validation_clips, self.batch_size = validation_clips, batch_size
        self.seed, self.workers = seed, workers
        self.codec = PatchCodec.load(codec or SHIPPED_CODEC)

    @property
    def pipeline_settings(self) -> dict:
        """What the pipeline of a system trained on these data needs to know of them."""
        return {"clip_size": (self.world.frames, self.world.height, self.world.width)}

    def prepare_data(self) -> None:
        """Build the caches; Lightning calls this on one process only."""
        self._folders()

    def _folders(self) -> tuple[Path, Path]:
        build = functools.partial(build_toy_cache, self.cache_dir, self.codec, self.world)
        # Validation worlds start far from any training seed.
        return build(self.seed, self.clips), build(self.seed + 1_000_000, self.validation_clips)

    def setup(self, stage: str | None = None) -> None:
        train, validation = self._folders()
        rank, world_size = 0, 1
        if self.trainer is not None:
            rank, world_size = self.trainer.global_rank, self.trainer.world_size
        self.train = StepBatches(LatentCache(train), self.batch_size, self.seed, rank, world_size)
        size = min(self.batch_size, self.validation_clips // world_size)
        self.validation = StepBatches(LatentCache(validation), size, self.seed, rank, world_size)
        self.validation_steps = self.validation.steps_per_epoch


class _StepsFrom(Sampler):
    """Steps first .. total - 1, of length ``total``: Lightning counts the batches of a resumed epoch
    from the start, and would begin the loader anew after ``total - first`` of them."""

    def __init__(self, first: int, total: int):
        self.first, self.total = first, total

    def __iter__(self):
        return iter(range(self.first, self.total))

    def __len__(self) -> int:
        return self.total


SHIPPED_CODEC = Path(__file__).parents[1] / "assets" / "toy_codec.safetensors"
