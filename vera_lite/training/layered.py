"""Layered clips from a dataset on disk as cached latents: what Vera learns from outside the toy world."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F
from tqdm.auto import tqdm

from vera_lite.codecs import PatchCodec, latent_shape
from vera_lite.conditioning.phrases import PhraseEncoder
from vera_lite.dataset.layers import layer_files
from vera_lite.dataset.stage import KINDS, LayerFiles
from vera_lite.errors import UserError
from vera_lite.media.clip import to_float
from vera_lite.media.files import replacing
from vera_lite.media.video import VideoReader
from vera_lite.training.data import SHARD, LatentCache, StepBatches, StepData

_SCENE_CODEC = Path(__file__).parents[1] / "assets" / "scene_codec.safetensors"
_UNUSED = "unused phrase"


def read_layers(sample: LayerFiles, size: Sequence[int]) -> dict[str, Tensor]:
    """The layers (T, C, H, W) in [0, 1] of a sample at a model's size, shrunk as a pipeline does it.

    Frames are spread evenly over the clip; the mask is hard.
    """
    layers = {}
    for name, kind in KINDS.items():
        reader = VideoReader(sample.files[name], kind)
        chosen = torch.linspace(0, len(reader) - 1, size[0]).round().int().tolist()
        frames = {t: frame for t, frame in enumerate(reader) if t in chosen}
        video = torch.stack([frames[t] for t in chosen])
        layers[name] = F.interpolate(to_float(video), size=tuple(size[1:]), mode="area")
    most = layers["mask"].amax().clamp_min(1e-6)
    layers["mask"] = (layers["mask"] >= 0.5 * most).float()
    return layers


def words_of(instructions: Sequence[str], count: int) -> dict:
    """A vocabulary for :class:`.PhraseEncoder` made of the ``count`` most frequent words; others are ignored.

    Words of equal frequency come in alphabetical order, so equal datasets give equal features.
    """
    counts = Counter(word for text in instructions for word in set(re.findall(r"[^\W_]+", text.lower())))
    ranked = sorted(counts, key=lambda word: (-counts[word], word))
    phrases = ranked[:count] + [f"{_UNUSED} {n}" for n in range(count - len(ranked))]
    most = max(len(re.findall(r"[^\W_]+", text)) for text in instructions)
    return {"phrases": phrases, "synonyms": {}, "fillers": ranked[count:], "max_phrases": most}


class LayeredVideoData(StepData):
    """Finished samples of a dataset store, or of a folder in Vera's public layout, as batches for Vera.

    The first ``fit`` encodes them; a changed dataset, codec or size is encoded anew.

    Args:
        folder: of ``vera-lite data run``, or the root of ``netflix/Vera-Layered-Video-Dataset`` or a part.
        cache_dir: where latents are kept.
        clip_size: (frames, height, width) that the model sees.
        text_dim: how many words the model reads, those that are most frequent in the instructions; the
            backbone's ``text_dim``.
        validation_share: share of the samples that is held out, chosen by their keys.
        batch_size: clips per rank and step.
        seed: of the order.
        workers: loader processes.
        codec: a file of :class:`vera_lite.codecs.PatchCodec`; None is the shipped one of things on places.
    """

    def __init__(
        self,
        folder: str,
        cache_dir: str = "runs/cache",
        clip_size: tuple[int, int, int] = (9, 32, 32),
        text_dim: int = 64,
        validation_share: float = 0.1,
        batch_size: int = 8,
        seed: int = 1,
        workers: int = 0,
        codec: str | None = None,
    ):
        super().__init__()
        if batch_size < 1 or text_dim < 1 or not 0 < validation_share < 1:
            raise ValueError("batch_size and text_dim are at least 1, and validation_share lies in (0, 1).")
        self.folder, self.cache_dir, self.clip_size = Path(folder), Path(cache_dir), tuple(clip_size)
        self.batch_size, self.seed, self.workers = batch_size, seed, workers
        self.codec = PatchCodec.load(codec or _SCENE_CODEC)
        latent_shape(self.codec, *self.clip_size)  # refuses a size that the codec cannot take
        samples = sorted(layer_files(self.folder), key=lambda sample: _hash(sample.key))
        held_out = max(1, round(validation_share * len(samples)))
        self.samples = {"train": samples[held_out:], "validation": samples[:held_out]}
        if not self.samples["train"]:
            raise UserError(f"{folder} holds {len(samples)} finished samples: two are needed at least.")
        self.vocabulary = words_of([sample.instruction for sample in samples], text_dim)

    @property
    def pipeline_settings(self) -> dict:
        """Arguments of the pipeline for a system trained on these data."""
        sampling = {"steps": 12, "shift": 3.0, "alpha_floor": 0.1}
        return {"clip_size": self.clip_size, "sampling": sampling, "text_encoder": self.vocabulary}

    def prepare_data(self) -> None:
        """Encode what is not encoded yet; Lightning calls this on one process only."""
        for samples in self.samples.values():
            self._encode(samples)

    def _encode(self, samples: Sequence[LayerFiles]) -> Path:
        facts = [[s.key, s.instruction, {n: _stamp(s.files[n]) for n in KINDS}] for s in samples]
        digest = hashlib.sha256(json.dumps([facts, self.clip_size, SHARD, self.vocabulary]).encode())
        for name, tensor in sorted(self.codec.state_dict().items()):
            digest.update(name.encode() + tensor.numpy().tobytes())
        folder = self.cache_dir / f"layered-{digest.hexdigest()[:16]}"
        if (folder / "index.json").is_file():
            return folder
        folder.mkdir(parents=True, exist_ok=True)
        encoder = PhraseEncoder(**self.vocabulary)
        for start in tqdm(range(0, len(samples), SHARD), desc="encoding clips", unit="shard"):
            path = folder / f"{start // SHARD:05d}.safetensors"
            if path.is_file():
                continue
            rows = []
            for sample in samples[start : start + SHARD]:
                layers = read_layers(sample, self.clip_size)
                latents = {name: self.codec.encode(layer[None])[0] for name, layer in layers.items()}
                rows.append(latents | {"text": encoder([sample.instruction])[0]})
            shard = {name: torch.stack([row[name] for row in rows]).half() for name in rows[0]}
            with replacing(path) as temporary:
                save_file(shard, temporary)
        with replacing(folder / "index.json") as temporary:
            temporary.write_text(json.dumps({"clips": len(samples), "clip_size": self.clip_size}))
        return folder

    def setup(self, stage: str | None = None) -> None:
        rank, world_size = self.ranks
        train, validation = (self._encode(samples) for samples in self.samples.values())
        self.train = StepBatches(LatentCache(train), self.batch_size, self.seed, rank, world_size)
        held_out = LatentCache(validation)
        size = min(self.batch_size, len(held_out) // world_size)
        if not size:
            raise UserError(f"{len(held_out)} clips are held out for {world_size} processes: hold out more.")
        self.validation = StepBatches(held_out, size, self.seed, rank, world_size)
        self.validation_steps = self.validation.steps_per_epoch


def _hash(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def _stamp(path: Path) -> list:
    """What tells a changed file apart, without reading it."""
    state = path.stat()
    return [path.name, state.st_size, state.st_mtime_ns]
