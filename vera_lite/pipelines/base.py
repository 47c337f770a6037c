"""What pipelines share: files, device, and the way from a video's size to the model's and back."""

import json
from pathlib import Path
from typing import Self

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from vera_lite.codecs import Codec, PatchCodec
from vera_lite.errors import UserError
from vera_lite.media.video import replacing
from vera_lite.systems import build_system, describe_system

ASSETS = Path(__file__).parents[1] / "assets"


class Pipeline:
    """A system and its codec, ready for use.

    A subclass says which ``systems`` it runs, and which ``shipped`` folder of the package is its default.

    Args:
        system: the network.
        codec: pixels to latents and back.
        clip_size: (frames, height, width) that the system was trained at.
    """

    systems: tuple[type[nn.Module], ...]
    shipped: str

    def __init__(self, system: nn.Module, codec: Codec, clip_size: tuple[int, int, int]):
        self.system = system.eval()
        self.codec = codec
        self.clip_size = tuple(clip_size)

    # --- files -----------------------------------------------------------------------------------

    @property
    def settings(self) -> dict:
        """The constructor's plain arguments, as ``pipeline.json`` keeps them."""
        return {"clip_size": self.clip_size}

    @property
    def is_toy(self) -> bool:
        """Whether a folder can hold all of it."""
        return isinstance(self.codec, PatchCodec)

    @classmethod
    def from_pretrained(cls, folder: str | Path | None = None) -> Self:
        """Load a folder written by :meth:`save_pretrained`; None is the toy model in the package.

        Raises:
            UserError: the folder is missing or holds another kind of thing.
        """
        folder = Path(folder) if folder is not None else ASSETS / cls.shipped
        index = folder / "pipeline.json"
        if not index.is_file():
            raise UserError(f"{folder} holds no pipeline: it has no pipeline.json.")
        weights = folder / "system.safetensors"
        if not weights.is_file():
            raise UserError(f"{folder} holds no weights: it has no system.safetensors.")
        try:
            saved = json.loads(index.read_text())
        except json.JSONDecodeError as error:
            raise UserError(f"{index} is no JSON: {error}.") from error
        system = build_system(saved)
        if not isinstance(system, cls.systems):
            raise UserError(f"{folder} holds a {saved['system']} model, which {cls.__name__} cannot run.")
        tensors = load_file(weights)
        system.load_state_dict({k: v.float() for k, v in tensors.items()})
        settings = {k: v for k, v in saved.items() if k not in ("system", "config")}
        codec = PatchCodec.load(folder / "codec.safetensors")
        try:
            return cls(system, codec, **settings)
        except TypeError as error:
            raise UserError(f"{index} does not fit this version: {error}.") from error

    def save_pretrained(self, folder: str | Path, dtype: torch.dtype = torch.float32) -> None:
        """Write ``pipeline.json``, ``system.safetensors`` (in ``dtype``) and ``codec.safetensors``.

        Raises:
            UserError: a part is a large pretrained model, which has a folder of its own already: save
                the system alone and build the pipeline from its parts.
        """
        if not self.is_toy:
            raise UserError("only toy pipelines are saved whole; save system.state_dict() of a large one.")
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        saved = describe_system(self.system) | self.settings
        tensors = {k: v.to(dtype).contiguous() for k, v in self.system.state_dict().items()}
        with replacing(folder / "system.safetensors") as path:
            save_file(tensors, path)
        with replacing(folder / "codec.safetensors") as path:
            self.codec.save(path)
        with replacing(folder / "pipeline.json") as path:
            path.write_text(json.dumps(saved, indent=1) + "\n")

    def to(self, device: torch.device | str) -> Self:
        """Move system and codec; inputs may stay where they are, results come back to them."""
        self.system.to(device)
        self.codec.to(device)
        return self

    # --- size ------------------------------------------------------------------------------------

    def shrink(self, video: Tensor) -> Tensor:
        """(T, C, H, W) -> (t, C, h, w) of ``clip_size``."""
        frames, *size = self.clip_size
        return F.interpolate(video[frame_choice(len(video), frames)], size=size, mode="area")


def check_video_tensor(video: Tensor) -> None:
    """Raise UserError if this is no float tensor (T, 3, H, W)."""
    if video.ndim != 4 or video.shape[1] != 3 or not video.is_floating_point():
        raise UserError(f"a video is a float tensor (T, 3, H, W), not {video.dtype} {tuple(video.shape)}.")


def frame_choice(frames: int, wanted: int) -> list[int]:
    """Indices of ``wanted`` frames spread evenly over ``frames``, first and last included."""
    if frames == 1 or wanted == 1:
        return [0] * wanted
    return [round(i * (frames - 1) / (wanted - 1)) for i in range(wanted)]


def enlarge(layer: Tensor, frame: int, frames: int, size: tuple[int, int]) -> Tensor:
    """Frame ``frame`` of ``frames`` of a layer (t, C, h, w), linear in time and space: (C, H, W)."""
    if frames == len(layer) and tuple(size) == tuple(layer.shape[-2:]):
        return layer[frame]
    at = frame * (len(layer) - 1) / max(1, frames - 1)
    first = min(int(at), max(0, len(layer) - 2))
    pair = layer[first : first + 2]
    mixed = pair[0] if len(pair) == 1 else torch.lerp(pair[0], pair[1], at - first)
    return F.interpolate(mixed[None], size=tuple(size), mode="bicubic", antialias=False)[0].clamp(0, 1)
