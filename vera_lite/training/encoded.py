"""Clips that were encoded beforehand, as full-size trainings read them: latents, text, and what a VLM saw.

`vera-lite encode` writes them, one safetensors file per clip. They are grouped by shape (a *bucket*), because
the clips of a batch must have one shape. Batch ``step`` of rank ``rank``, its bucket too, depends on (seed,
step, rank) alone, so no loader state has to be saved.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset

from vera_lite.conditioning.multiscale import Reading
from vera_lite.conditioning.readings import padded
from vera_lite.errors import UserError, check_choices
from vera_lite.systems import GenCompositor, MiVE, RVEDiT, Vera
from vera_lite.training.data import VALIDATION, StepData

#: Latent channels, and frames and pixels per latent cell, of the codecs.
CODECS = {"wan2.1": (16, 4, 8), "wan2.2": (48, 4, 16), "cogvideox": (16, 4, 8)}


@dataclass(frozen=True)
class Clip:
    """The size of a training clip.

    Attributes:
        frames, height, width: in pixels.
        codec: whose latents they are.
        text_tokens: T, of a text encoder.
        vlm_tokens: tokens of the prompt (video, reference and instruction) that a VLM reads.
        vlm_size: (frames, height, width) of the pixels that a VLM gets.
    """

    frames: int = 49
    height: int = 480
    width: int = 832
    codec: Literal["wan2.1", "wan2.2", "cogvideox"] = "wan2.1"
    text_tokens: int = 512
    vlm_tokens: int = 2560
    vlm_size: tuple[int, int, int] = (16, 288, 512)

    def __post_init__(self):
        check_choices(self)
        _, frames, pixels = CODECS[self.codec]
        if (self.frames - 1) % frames or self.height % pixels or self.width % pixels:
            raise ValueError(
                f"a clip of {self.frames} frames of {self.height}x{self.width} does not fit the codec: it "
                f"needs 1 + {frames}n frames and sides divisible by {pixels}."
            )

    @property
    def latents(self) -> tuple[int, int, int, int]:
        """(C, t, h, w)."""
        channels, frames, pixels = CODECS[self.codec]
        return channels, 1 + (self.frames - 1) // frames, self.height // pixels, self.width // pixels


def random_clips(system: nn.Module, clip: Clip, clips: int) -> dict[str, Any]:
    """A batch of noise with the shapes that ``system`` trains on, on torch's default device: for dry runs,
    benchmarks and plans."""
    config, (C, *size) = system.config, clip.latents

    def latents(channels: int = C, frames: int | None = None) -> Tensor:
        return torch.randn(clips, channels, *(size if frames is None else (frames, *size[1:])))

    if isinstance(system, GenCompositor):
        names = ("composite", "background", "masked_background", "foreground", "blank")
        batch = {name: latents() for name in names} | {"mask": (latents(1) > 0).float()}
        width = config.backbone.text_embed_dim
    elif isinstance(system, RVEDiT | MiVE):
        batch, width = {"source": latents(), "target": latents()}, None
        frames, *pixels = clip.vlm_size
        if isinstance(system, MiVE):
            hidden = torch.randn(clips, clip.vlm_tokens, config.vlm_dim)
            words = torch.ones(clips, clip.vlm_tokens, dtype=torch.bool, device="cpu")  # looked into
            batch["reference"] = latents(frames=1)
            batch["reading"] = Reading((hidden,) * len(config.vlm_layers), words, ~words)
        else:
            video = torch.rand(clips, frames, 3, *pixels)
            batch |= {"source_video": video, "target_video": video}
            batch |= {"instruction": ["change"] * clips, "target_caption": ["change"] * clips}
        if config.changed_loss_weight:
            batch["changed"] = (latents(1) > 0).float()
    else:
        batch = {name: latents() for name in streams_of(system)}
        width = config.backbone.text_dim
    if width is not None:
        batch["text"] = torch.randn(clips, clip.text_tokens, width)
    return batch


def streams_of(system: nn.Module) -> tuple[str, ...]:
    """The latent streams of a layered clip that a system of layers learns from."""
    return ("source", "mask", "edit", "alpha", "composite") if isinstance(system, Vera) else ("source",)


class EncodedFolder(Dataset):
    """A folder that `vera-lite encode` has finished; item i is one clip's tensors and sentences.

    Raises:
        UserError: the folder is not finished.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        index = self.folder / "index.json"
        if not index.is_file():
            raise UserError(f"{folder} is not a finished folder of encoded clips: run `vera-lite encode`.")
        saved = json.loads(index.read_text())
        self.names, self.codec = saved["clips"], saved["codec"]
        self.text_tokens = saved["clip"]["text_tokens"]

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, i: int) -> dict[str, Any]:
        with safe_open(self.folder / f"{self.names[i]}.safetensors", framework="pt") as file:
            clip: dict[str, Any] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            clip |= {k: v for k, v in (file.metadata() or {}).items() if k != "format"}
        if "text" in clip:  # Wan and CogVideoX read padding, too
            clip["text"] = F.pad(clip["text"], (0, 0, 0, self.text_tokens - len(clip["text"])))
        return clip


def collate(clips: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One batch of clips: tensors stacked, what a VLM read padded at its end."""
    batch: dict[str, Any] = {}
    for name, value in clips[0].items():
        values = [clip[name] for clip in clips]
        if not isinstance(value, Tensor):
            batch[name] = values
        elif name.startswith("reading."):
            batch[name] = padded(values)
        elif value.dtype == torch.uint8:
            batch[name] = torch.stack(values).float() / 255
        else:
            batch[name] = torch.stack(values).float()
    layers = [name for name in sorted(batch) if name.startswith("reading.layer")]
    if layers:
        read = tuple(batch.pop(name).float() for name in layers)
        batch["reading"] = Reading(read, batch.pop("reading.text"), batch.pop("reading.visual"))
    return batch


class BucketBatches(Dataset):
    """Item ``step`` is the batch of that step, all of it from one bucket. In an epoch every bucket gives as
    many batches as it has whole ones, all in an order drawn anew.

    Args:
        buckets: datasets of clips of one shape each.
        batch_size: clips per rank and step.
        seed: of the order.
        rank, ranks: which part of the batch, of how many.

    Raises:
        UserError: no bucket holds a whole batch.
    """

    def __init__(self, buckets: Sequence[Any], batch_size: int, seed: int, rank: int = 0, ranks: int = 1):
        self.buckets, self.batch_size, self.seed = buckets, batch_size, seed
        self.rank, self.ranks = rank, ranks
        self.batches = [len(b) // (batch_size * ranks) for b in buckets]
        if not sum(self.batches):
            raise UserError(
                f"one step takes {ranks} x {batch_size} clips of one shape, and no folder holds so many: "
                "lower batch_size or encode more clips."
            )

    def place(self, step: int) -> tuple[int, list[int]]:
        """The bucket of a step, and this rank's clips in it."""
        epoch, within = divmod(step, sum(self.batches))
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        which = torch.arange(len(self.batches)).repeat_interleave(torch.tensor(self.batches))
        which = which[torch.randperm(len(which), generator=generator)]
        bucket = int(which[within])
        number = int((which[:within] == bucket).sum())  # batches of this bucket before
        orders = [torch.randperm(len(b), generator=generator) for b in self.buckets]
        first = (number * self.ranks + self.rank) * self.batch_size
        return bucket, orders[bucket][first : first + self.batch_size].tolist()

    def __getitem__(self, step: int) -> dict[str, Any]:
        bucket, clips = self.place(step)
        return {**collate([self.buckets[bucket][i] for i in clips]), "step": step}


class RandomBatches(Dataset):
    """Item ``step``: the same batch of noise, in the shapes of a system; for dry runs."""

    def __init__(self, system: nn.Module, clip: Clip, batch_size: int, rank: int = 0, ranks: int = 1):
        with torch.random.fork_rng(devices=[]), torch.device("cpu"):
            torch.manual_seed(0)
            batch = random_clips(system, clip, batch_size * ranks)
        part = slice(rank * batch_size, (rank + 1) * batch_size)
        if "reading" in batch:
            layers, *masks = batch["reading"]
            batch["reading"] = Reading(tuple(x[part] for x in layers), *(x[part] for x in masks))
        self.batch = {name: v if name == "reading" else v[part] for name, v in batch.items()}

    def __getitem__(self, step: int) -> dict[str, Any]:
        return {**self.batch, "step": step}


class EncodedClips(StepData):
    """Data of a full-size training.

    Args:
        folders: what `vera-lite encode` wrote, one folder per shape of clip. None: noise in the shape of
            ``clip``, for dry runs (``--trainer.fast_dev_run true``).
        clip: size of a clip, by which `vera-lite plan` reckons; of the largest, if there are several.
        batch_size: clips per rank and step.
        seed: of the order.
        workers: loader processes.
        validation: folders of clips for validation.
    """

    def __init__(
        self,
        folders: list[str] | None = None,
        clip: Clip = Clip(),  # noqa: B008 (frozen)
        batch_size: int = 1,
        seed: int = 1,
        workers: int = 2,
        validation: list[str] | None = None,
    ):
        super().__init__()
        if batch_size < 1:
            raise ValueError(f"batch_size must be positive, got {batch_size}.")
        self.folders, self.clip, self.batch_size = folders, clip, batch_size
        self.seed, self.workers, self.validation_folders = seed, workers if folders else 0, validation
        self.codec = SimpleNamespace(settings={"vae": clip.codec, "path": ""})

    @property
    def pipeline_settings(self) -> dict:
        """Arguments of the pipeline for a system trained on these data: 50 steps, as Wan and CogVideoX have
        in diffusers, and the shift of the training."""
        clip, trainer = self.clip, self.trainer
        objective: Any = trainer.lightning_module.system.config.objective if trainer else None
        sampling = {"steps": 50, "shift": getattr(objective, "shift", 1.0)}
        return {"clip_size": (clip.frames, clip.height, clip.width), "sampling": sampling}

    def setup(self, stage: str | None = None) -> None:
        rank, ranks = self.ranks
        if self.folders is None:
            trainer: Any = self.trainer
            system = trainer.lightning_module.system
            self.train = RandomBatches(system, self.clip, self.batch_size, rank, ranks)
            self.validation = self.train
            self.validation_steps = 1
            return
        buckets = [EncodedFolder(folder) for folder in self.folders]
        self.codec.settings = buckets[0].codec
        self.train = BucketBatches(buckets, self.batch_size, self.seed, rank, ranks)
        self.validation_steps = 0
        if self.validation_folders:
            kept = [EncodedFolder(folder) for folder in self.validation_folders]
            self.validation = BucketBatches(kept, self.batch_size, VALIDATION, rank, ranks)
            self.validation_steps = sum(self.validation.batches)

    def val_dataloader(self):
        return super().val_dataloader() if self.validation_steps else []
