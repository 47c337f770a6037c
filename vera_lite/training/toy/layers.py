"""Vera's training data: layered clips of the toy world as cached latents."""

import functools
import hashlib
import json
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import save_file
from tqdm.auto import tqdm

from vera_lite import codecs
from vera_lite.codecs import PatchCodec
from vera_lite.conditioning.phrases import PhraseEncoder
from vera_lite.errors import UserError
from vera_lite.media import clip
from vera_lite.media.files import replacing
from vera_lite.toy import drawing, phrases, words
from vera_lite.toy import world as world_module
from vera_lite.toy.phrases import SCENE_VOCABULARY, VOCABULARY, toy_encoder
from vera_lite.toy.scenes import SceneConfig
from vera_lite.toy.world import WorldConfig, render
from vera_lite.training.data import (
    SHARD,
    STREAMS,
    VALIDATION,
    LatentCache,
    RenderedBatches,
    RenderedData,
    StepBatches,
    StepData,
)

#: How toy models are sampled; see :class:`vera_lite.pipelines.Sampling`.
SAMPLING = {"steps": 12, "shift": 3.0}
SHIPPED_CODEC = Path(__file__).parents[2] / "assets" / "toy_codec.safetensors"
SCENE_CODEC = SHIPPED_CODEC.with_name("scene_codec.safetensors")  # of the world of things on places


def build_toy_cache(folder: Path, codec: PatchCodec, world: WorldConfig, seed: int, clips: int) -> Path:
    """Render and encode ``clips`` clips of the world ``seed``; a finished cache is left as it is.

    Returns:
        The cache's folder, below ``folder``. Its name is a digest of everything that the latents depend on,
        so a changed codec, world or seed never uses old latents.
    """
    encoder = toy_encoder()
    digest = hashlib.sha256(json.dumps([asdict(world), seed, clips, SHARD, encoder.text_dim]).encode())
    for name, tensor in sorted(codec.state_dict().items()):
        digest.update(name.encode() + tensor.numpy().tobytes())
    # The latents also depend on the code of the world, the codec and the vocabulary.
    for module in (world_module, drawing, words, clip, codecs, phrases):
        digest.update(Path(module.__file__).read_bytes())
    folder = Path(folder) / f"toy-{digest.hexdigest()[:16]}"
    if (folder / "index.json").is_file():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    for start in tqdm(range(0, clips, SHARD), desc="encoding clips", unit="shard"):
        path = folder / f"{start // SHARD:05d}.safetensors"
        if path.is_file():
            continue
        parts = []
        for first in range(start, min(start + SHARD, clips), 32):
            batch = render(seed, range(first, min(first + 32, start + SHARD, clips)), world)
            part = {name: codec.encode(getattr(batch, name)) for name in STREAMS}
            parts.append({**part, "text": encoder(batch.instruction)})
        shard = {name: torch.cat([p[name] for p in parts]).half() for name in parts[0]}
        with replacing(path) as temporary:
            save_file(shard, temporary)
    index = {"clips": clips, "world": asdict(world), "seed": seed}
    with replacing(folder / "index.json") as temporary:
        temporary.write_text(json.dumps(index, indent=1))
    return folder


class ToyWorldData(StepData):
    """Toy clips as cached latents, in batches like :class:`~vera_lite.systems.vera.VeraBatch`.

    Args:
        cache_dir: where caches live; they are built at the first use.
        world: see :class:`vera_lite.toy.world.WorldConfig`.
        clips: training clips.
        validation_clips: clips of another seed; at least one per rank.
        batch_size: clips per rank and step.
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
        if batch_size < 1:
            raise ValueError(f"batch_size must be positive, got {batch_size}.")
        self.cache_dir, self.world, self.clips = Path(cache_dir), world, clips
        self.validation_clips, self.batch_size = validation_clips, batch_size
        self.seed, self.workers = seed, workers
        self.codec = PatchCodec.load(codec or SHIPPED_CODEC)

    @property
    def pipeline_settings(self) -> dict:
        """Arguments of the pipeline for a system trained on these data."""
        sampling = SAMPLING | {"alpha_floor": 0.1}
        return {"clip_size": self.world.size, "sampling": sampling, "text_encoder": VOCABULARY}

    def prepare_data(self) -> None:
        """Build the caches; Lightning calls this on one process only."""
        self._folders()

    def _folders(self) -> tuple[Path, Path]:
        build = functools.partial(build_toy_cache, self.cache_dir, self.codec, self.world)
        return build(self.seed, self.clips), build(self.seed + VALIDATION, self.validation_clips)

    def setup(self, stage: str | None = None) -> None:
        rank, world_size = self.ranks
        size = min(self.batch_size, self.validation_clips // world_size)
        if not size:
            raise UserError(
                f"validation_clips is {self.validation_clips}, but there are {world_size} processes: "
                "give at least one clip to each."
            )
        train, validation = self._folders()
        self.train = StepBatches(LatentCache(train), self.batch_size, self.seed, rank, world_size)
        self.validation = StepBatches(LatentCache(validation), size, self.seed, rank, world_size)
        self.validation_steps = self.validation.steps_per_epoch


class SceneBatches(RenderedBatches):
    """Item ``step``: a :class:`~vera_lite.systems.vera.VeraBatch` of things on places."""

    def __init__(self, world: SceneConfig, codec: PatchCodec, *ranks: int):
        super().__init__(*ranks)
        self.world, self.codec, self.encoder = world, codec, PhraseEncoder(**SCENE_VOCABULARY)

    def __getitem__(self, step: int) -> dict:
        batch = self.world.render(self.seed, self.clips(step))
        layers = {name: self.codec.encode(getattr(batch, name)) for name in STREAMS}
        return {**layers, "text": self.encoder(batch.instruction), "step": step}


class SceneData(RenderedData):
    """Layered clips of things on places, for Vera.

    Args:
        world: their content.
        codec: a file of :class:`vera_lite.codecs.PatchCodec`; None is the shipped one of this world.
        options: of :class:`vera_lite.training.data.RenderedData`.
    """

    def __init__(self, world: SceneConfig = SceneConfig(), codec: str | None = None, **options):  # noqa: B008
        super().__init__(**options)
        self.world, self.codec = world, PatchCodec.load(codec or SCENE_CODEC)

    def batches(self, seed: int) -> SceneBatches:
        return SceneBatches(self.world, self.codec, self.batch_size, seed, *self.ranks)

    @property
    def pipeline_settings(self) -> dict:
        """Arguments of the pipeline for a system trained on these data."""
        sampling = SAMPLING | {"alpha_floor": 0.1}
        return {"clip_size": self.world.size, "sampling": sampling, "text_encoder": SCENE_VOCABULARY}
