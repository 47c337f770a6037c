"""The layered clip, the unit of data that is made, read and shown everywhere else."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from vera_lite.errors import UserError, check_pixels, check_tensor
from vera_lite.media.files import replacing_set
from vera_lite.media.video import frame_rate, read_grey, read_video
from vera_lite.media.video_writer import write_video

__all__ = ["LayeredClip", "composite", "to_float", "to_uint8"]

# The layers and how many channels each has.
LAYERS = {"source": 3, "edit": 3, "alpha": 1, "composite": 3, "mask": 1}


def composite(edit: Tensor, alpha: Tensor, source: Tensor) -> Tensor:
    """Lay the edit over the source: ``alpha * edit + (1 - alpha) * source``.

    Colours are straight (not multiplied by alpha beforehand). Where ``alpha == 0`` the result is the source,
    bit for bit, even if the edit is inf or nan there. Such pixels give no gradient to ``alpha``.

    Args:
        edit: floating ``(..., C, H, W)``.
        alpha: floating ``(..., 1, H, W)``, 1 shows the edit.
        source: floating ``(..., C, H, W)``.

    Returns:
        ``(..., C, H, W)``.

    Raises:
        ValueError: the shapes do not fit, or a tensor is not floating.
    """
    check_tensor("source", source, *edit.shape)
    check_tensor("alpha", alpha, *edit.shape[:-3], 1, *edit.shape[-2:])
    check_tensor("edit", edit, *source.shape)
    mixed = alpha * edit
    mixed += (1 - alpha) * source
    return torch.where(alpha == 0, source, mixed)


def to_uint8(x: Tensor) -> Tensor:
    """Floats in [0, 1] as uint8 in [0, 255], rounded; values outside are clamped."""
    return x.mul(255).round_().clamp_(0, 255).to(torch.uint8)


def to_float(x: Tensor) -> Tensor:
    """uint8 in [0, 255] as float32 in [0, 1]; ``to_uint8`` gives the same bytes back."""
    return x.float() / 255


@dataclass(frozen=True, eq=False)
class LayeredClip:
    """A source video, an edit of it in layers, and the instruction that asks for the edit.

    Layers are floating tensors in [0, 1] on one device.

    Attributes:
        source: ``(T, 3, H, W)``, the video before the edit.
        edit: ``(T, 3, H, W)``, the edit layer, in straight colour.
        alpha: ``(T, 1, H, W)``, the edit's matte; 1 shows the edit.
        composite: ``(T, 3, H, W)``, the edited video as it should look.
        mask: ``(T, 1, H, W)``, the region that a user would mark.
        instruction: the edit in words.
        fps: frames per second.
        attributes: further facts, plain values for JSON.

    Raises:
        ValueError: a field does not fit this description.
    """

    source: Tensor
    edit: Tensor
    alpha: Tensor
    composite: Tensor
    mask: Tensor
    instruction: str
    fps: float = 8.0
    attributes: dict = field(default_factory=dict)

    def __post_init__(self):
        check_tensor("source", self.source, "T", 3, "H", "W")
        frames, _, height, width = self.source.shape
        for name, channels in LAYERS.items():
            layer = getattr(self, name)
            check_tensor(name, layer, frames, channels, height, width)
            check_pixels(name, layer)
        frame_rate(self.fps)
        try:
            survives = json.loads(json.dumps(self.attributes)) == self.attributes
        except (TypeError, ValueError):
            survives = False
        if not survives or not isinstance(self.attributes, dict) or not isinstance(self.instruction, str):
            raise ValueError("instruction must be a string, and attributes a dict of plain values for JSON.")

    def __repr__(self) -> str:
        frames, _, height, width = self.source.shape
        return f"LayeredClip({self.instruction!r}, {frames} frames of {width}x{height}, {self.fps:g} fps)"

    @property
    def final(self) -> Tensor:
        """The edit laid over the untouched source, ``(T, 3, H, W)``: Vera's result.

        It differs from ``composite`` at the soft edges of a replaced background, where the source is still
        visible.
        """
        return composite(self.edit, self.alpha, self.source)

    def save(self, folder: str | Path) -> None:
        """Write the layers as lossless 8-bit ``.mkv`` files, and ``clip.json``, into a folder.

        They appear together: a failed save leaves an older clip in the folder as it was.

        Raises:
            UserError: ``folder`` is a file.
        """
        with replacing_set(folder, (*(f"{name}.mkv" for name in LAYERS), "clip.json")) as temporary:
            for name in LAYERS:
                layer = to_uint8(getattr(self, name))
                write_video(temporary / f"{name}.mkv", layer, self.fps, "lossless")
            facts = {
                "instruction": self.instruction,
                "fps": float(self.fps),
                "attributes": self.attributes,
            }
            text = json.dumps(facts, indent=2, ensure_ascii=False) + "\n"
            (temporary / "clip.json").write_text(text, encoding="utf-8")

    @classmethod
    def load(cls, folder: str | Path) -> LayeredClip:
        """Read a clip that ``save`` wrote; layers are float32, exact to 8 bits.

        Raises:
            UserError: the folder holds no whole clip.
        """
        folder = Path(folder)
        path = folder / "clip.json"
        if not path.is_file():
            raise UserError(f"{folder} holds no layered clip (no clip.json); check the path.")
        try:
            facts = json.loads(path.read_text(encoding="utf-8"))
            instruction, fps, attributes = (facts[key] for key in ("instruction", "fps", "attributes"))
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} does not describe a layered clip; save the clip again.") from error
        layers = {
            name: to_float(
                read_grey(folder / f"{name}.mkv") if channels == 1 else read_video(folder / f"{name}.mkv")[0]
            )
            for name, channels in LAYERS.items()
        }
        try:
            return cls(**layers, instruction=instruction, fps=fps, attributes=attributes)
        except ValueError as error:
            raise UserError(f"{folder} is no whole clip: {error}") from error
