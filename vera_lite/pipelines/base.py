"""One way to generate, for every system: conditions, noise, denoising, decoding, one result.

A subclass adds three things: :meth:`Pipeline.prepare` turns a person's inputs into the model's,
:meth:`Pipeline.conditions` turns these into arguments of the system, and :meth:`Pipeline.read` turns its
output into the result.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Self

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from vera_lite.codecs import Codec, PatchCodec, latent_shape
from vera_lite.diffusion.sampling import DenoisingState, denoise
from vera_lite.errors import RANGES, UserError, check_number, check_pixels, check_prompt, check_tensor
from vera_lite.media.files import read_json, replacing
from vera_lite.pipelines.saved import check_clip_size, load_weights
from vera_lite.systems import build_system, describe_system

ASSETS = Path(__file__).parents[1] / "assets"

Layers = dict[str, Tensor]


@dataclass(frozen=True)
class Sampling:
    """How to sample a model. A saved model has it in ``pipeline.json``; a call may change any field.

    Attributes:
        steps: network calls.
        shift: above 1 spends more steps at high noise; flow matching only.

    Raises:
        UserError: a value is not a finite number, or out of its range.
    """

    steps: int
    shift: float

    def __post_init__(self):
        for name in RANGES.keys() & vars(self).keys():
            check_number(name, getattr(self, name))


@dataclass(frozen=True)
class EditResult:
    """The result of a pipeline: floating tensors in [0, 1] of the source's size.

    In a batch of clips at the model's size, every tensor has a batch axis in front.

    Attributes:
        final: (T, 3, H, W), the edited video.
        composite: (T, 3, H, W), the whole frame as the model drew it. For systems that redraw the video it is
            ``final``.
        edit: (T, 3, H, W), the edit layer in straight colour (Vera).
        alpha: (T, 1, H, W), its matte (Vera).
        mask: (T, 1, H, W), above 0 where the model could draw, falling to 0 at the rim (GenCompositor).
        matte: (T, 1, H, W), where the object was put (GenCompositor).
        exact_frames: frames that the model itself drew. Models draw a fixed number of frames, spread evenly
            over the video; every other frame shows the nearest of these. A mix of two would show a moving
            object twice.
    """

    final: Tensor
    composite: Tensor
    edit: Tensor | None = None
    alpha: Tensor | None = None
    mask: Tensor | None = None
    matte: Tensor | None = None
    exact_frames: tuple[int, ...] = ()

    def layers(self) -> Layers:
        """The tensors that are not None, by name."""
        return {name: v for name, v in vars(self).items() if isinstance(v, Tensor)}


class Pipeline:
    """A system and its codec, ready for use.

    Args:
        system: the network.
        codec: pixels to latents and back.
        clip_size: (frames, height, width) that the system was trained at.
        sampling: the defaults of a call, as the class's ``sampling_type`` or its fields.

    Raises:
        ValueError: ``clip_size`` does not fit the codec and the network's patches.
    """

    #: Systems that the class can run.
    systems: tuple[type[nn.Module], ...]
    #: Folder in the package that is loaded by default.
    shipped: str
    sampling_type: type[Sampling] = Sampling
    #: Whether the system reads the times of frames, and so must know the frame rate.
    reads_time = False

    def __init__(
        self,
        system: nn.Module,
        codec: Codec,
        clip_size: tuple[int, int, int],
        sampling: Sampling | dict,
    ):
        self.system: Any = system.eval()
        self.codec = codec
        self.clip_size = check_clip_size(clip_size, system, codec)
        self.sampling = sampling if isinstance(sampling, Sampling) else self.sampling_type(**sampling)

    # --- files -----------------------------------------------------------------------------------

    @property
    def settings(self) -> dict:
        """The constructor's plain arguments, as ``pipeline.json`` keeps them."""
        return {"clip_size": self.clip_size, "sampling": asdict(self.sampling)}

    @property
    def is_toy(self) -> bool:
        """Whether :meth:`save_pretrained` can write all its parts."""
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
            raise UserError(f"{folder} holds no pipeline: it has no {index.name}.")
        saved = read_json(index)
        system = build_system(saved)
        if not isinstance(system, cls.systems):
            raise UserError(f"{folder} holds a {saved['system']} model, which {cls.__name__} cannot run.")
        load_weights(system, folder / "system.safetensors")
        settings = {k: v for k, v in saved.items() if k not in ("system", "config")}
        codec = PatchCodec.load(folder / "codec.safetensors")
        try:
            return cls(system, codec, **settings)
        except (TypeError, ValueError, AttributeError) as error:
            reason = str(error).rstrip(".")
            raise UserError(
                f"{index} does not fit this version ({reason}): export the model again."
            ) from error

    def save_pretrained(self, folder: str | Path, dtype: torch.dtype = torch.float32) -> None:
        """Write ``pipeline.json``, ``system.safetensors`` (in ``dtype``) and ``codec.safetensors``.

        Raises:
            ValueError: a part is a large pretrained model, which has its own folder: save the system's
                weights and build the pipeline from its parts.
        """
        if not self.is_toy:
            raise ValueError("only toy pipelines are saved whole; save system.state_dict() of a large one.")
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
        """Move system and codec. Inputs may be on another device; results come back to it."""
        self.system.to(device)
        self.codec.to(device)
        return self

    # --- what a subclass adds ----------------------------------------------------------------------

    def prepare(self, video: Tensor, *inputs) -> tuple:
        """A person's inputs -> the arguments of :meth:`conditions`: a batch of one at the model's size."""
        raise NotImplementedError

    def conditions(self, video: Tensor, *inputs) -> dict:
        """Inputs at the model's size -> arguments of the system other than latents and timestep."""
        raise NotImplementedError

    def predict(self, latents: Tensor, timestep: Tensor, conditions: dict, sampling: Sampling) -> Tensor:
        """One call of the network."""
        return self.system(latents, timestep, **conditions)

    def encode(self, video: Tensor) -> Tensor:
        """Pixels (B, T, C, H, W) on any device -> latents with the system's device and dtype."""
        weights = next(self.system.parameters())
        return self.codec.encode(video.to(weights.device).float()).to(weights)

    def noise_shape(self, clips: int, frames: int, height: int, width: int) -> tuple[int, ...]:
        """Shape (B, c, t, h, w) of the latents of ``clips`` clips."""
        return clips, *latent_shape(self.codec, frames, height, width)

    def decode(self, latents: Tensor) -> Layers:
        """Clean latents -> videos (B, T, 3 or 1, H, W) in [0, 1], by name."""
        return {"composite": self.codec.decode(latents)}

    def read(self, layers: Layers, source: Tensor, sampling: Sampling) -> EditResult:
        """The result of these layers for a source (..., 3, H, W) of their size."""
        return EditResult(layers["composite"], layers["composite"])

    # --- generating --------------------------------------------------------------------------------

    def sampling_with(self, **changes) -> Sampling:
        """The model's own settings with these changes; a value of None changes nothing.

        Raises:
            UserError: a value is out of its range.
            TypeError: there is no such setting.
        """
        return replace(self.sampling, **{name: v for name, v in changes.items() if v is not None})

    @torch.no_grad()
    def layers(
        self,
        video: Tensor,
        *inputs,
        sampling: Sampling,
        seed: int = 0,
        generator: torch.Generator | None = None,
        callback: Callable[[DenoisingState], None] | None = None,
        **named,
    ) -> Layers:
        """The layers that the model draws for a batch of clips at its own size; see :meth:`generate`."""
        check_number("seed", seed)
        weights = next(self.system.parameters())  # gives device and dtype
        conditions = self.conditions(video, *inputs, **named)
        # Drawn on the CPU, so that a seed gives the same noise on every device.
        generator = generator or torch.Generator().manual_seed(seed)
        shape = self.noise_shape(len(video), video.shape[1], *video.shape[-2:])
        noise = torch.randn(shape, generator=generator).to(weights.device)
        latents = denoise(
            lambda x, sigma: self.predict(x.to(weights), 1000 * sigma, conditions, sampling),
            noise,
            sampling.steps,
            sampling.shift,
            self.system.config.objective.prediction,
            callback,
        )
        layers = self.decode(latents)
        if not all(layer.isfinite().all() for layer in layers.values()):
            raise UserError("the model drew numbers that are not finite: check its weights and settings.")
        return {name: layer.to(video) for name, layer in layers.items()}

    def generate(self, video: Tensor, *inputs, **options) -> EditResult:
        """Edit a batch of clips at the model's own size.

        Args:
            video: (B, T, 3, H, W) in [0, 1], of ``clip_size``.
            inputs: those besides the video, see :meth:`conditions`.
            options: ``seed`` or ``generator`` of the noise; ``callback``, which gets a
                :class:`~vera_lite.diffusion.sampling.DenoisingState` per step; fields of ``sampling``.

        Returns:
            Tensors (B, T, C, H, W).
        """
        sampling, rest = self._split(options)
        return self.read(self.layers(video, *inputs, sampling=sampling, **rest), video, sampling)

    def check_prompt(self, prompt: str) -> None:
        """Raise UserError if the model cannot read a prompt."""
        check_prompt(prompt)

    def draw(
        self,
        video: Tensor,
        *inputs,
        frames: int | None = None,
        size: Sequence[int] | None = None,
        fps: float | None = None,
        **options,
    ) -> "Drawing":
        """Edit one video at the model's size; the drawing shows it at the video's size.

        Args:
            video: (T, 3, H, W) in [0, 1]. Of a long video, the frames that the model sees are enough:
                ``frame_choice(frames, self.clip_size[0])``.
            inputs: those besides the video, see :meth:`prepare`.
            frames: number of frames of the whole video, if ``video`` has only some of them.
            size: (H, W) of the video, if ``video`` was made smaller.
            fps: frames per second of the whole video, for systems that read times. None: as in training.
            options: as for :meth:`generate`.
        """
        sampling, rest = self._split(options)
        frames = frames or len(video)
        noise = {name: rest.pop(name) for name in ("seed", "generator", "callback") if name in rest}
        if fps is not None and self.reads_time and frames > 1:
            noise["fps"] = fps * (self.clip_size[0] - 1) / (frames - 1)
        layers = self.layers(*self.prepare(video, *inputs, **rest), sampling=sampling, **noise)
        small = {name: layer[0] for name, layer in layers.items()}
        return Drawing(self, small, sampling, frames, size or video.shape[-2:])

    def __call__(self, video: Tensor, *inputs, **options) -> EditResult:
        """Edit one video of any size and length that fits in memory; the command line streams longer ones.

        The video is resampled to ``clip_size``: frames evenly over its whole length, pixels by area. Sides
        are squeezed, not cropped, so that places in a prompt keep their meaning.

        Args:
            video: (T, 3, H, W) in [0, 1].
            inputs: those besides the video, see :meth:`prepare`.
            options: ``fps`` as for :meth:`draw`; the others as for :meth:`generate`.

        Returns:
            Tensors (T, C, H, W), drawn at ``clip_size`` and enlarged.

        Raises:
            UserError: a prompt has an unknown word, or a setting is out of its range.
            ValueError: a tensor has another shape.
        """
        drawing = self.draw(video, *inputs, **options)
        shown = [drawing.frame(t, frame).layers() for t, frame in enumerate(video)]
        tensors = {name: torch.stack([frame[name] for frame in shown]) for name in shown[0]}
        return EditResult(**tensors, exact_frames=drawing.exact_frames)

    def _split(self, options: dict) -> tuple[Sampling, dict]:
        """Options of a call -> sampling settings, and the rest: noise, callback, and inputs by name."""
        names = {field.name for field in fields(self.sampling)}
        changes = {name: value for name, value in options.items() if name in names}
        return self.sampling_with(**changes), {n: v for n, v in options.items() if n not in names}

    def shrink(self, video: Tensor) -> Tensor:
        """(T, C, H, W) -> (t, C, h, w) of ``clip_size``."""
        frames, *size = self.clip_size
        return F.interpolate(video[frame_choice(len(video), frames)], size=size, mode="area")


class Drawing:
    """Layers at a model's size, shown one frame at a time on a video of any size and length.

    Args:
        pipe: its ``read`` turns layers into a result.
        layers: (t, C, h, w) each.
        sampling: settings for ``read``.
        frames: T of the video.
        size: (H, W) of the video.
    """

    #: Whether all layers change with every frame, and a frame cannot be made row by row.
    whole_frames = False

    def __init__(self, pipe: Pipeline, layers: Layers, sampling: Sampling, frames: int, size: Sequence[int]):
        self.pipe, self.layers, self.sampling = pipe, layers, sampling
        self.size = tuple(size)
        drawn = len(next(iter(layers.values())))
        #: Frames of the video that the model itself drew.
        self.exact_frames = tuple(sorted(set(frame_choice(frames, drawn))))
        #: For each frame of the video, the nearest drawn frame in time.
        self.nearest = frame_choice(drawn, frames)
        self._shown, self._large = None, {}

    def frame(self, t: int, source: Tensor, rows: slice = slice(None)) -> EditResult:
        """Frame ``t``, given the source's (3, H, W) in [0, 1], or ``rows`` of it: tensors (C, H, W)."""
        if self.nearest[t] != self._shown:
            self._shown = self.nearest[t]
            self._large = {name: enlarge(v[self._shown], self.size) for name, v in self.layers.items()}
        layers = {name: v[:, rows].to(source) for name, v in self._large.items()}
        return self.pipe.read(layers, source, self.sampling)


def check_video(video: Tensor) -> None:
    """Raise ValueError unless this is a floating (T, 3, H, W) in [0, 1]."""
    check_tensor("the video", video, "T", 3, "H", "W")
    check_pixels("the video", video)


def check_prompts(video: Tensor, prompts: Sequence[str]) -> None:
    """Raise ValueError unless there is a prompt for each clip."""
    if len(video) != len(prompts):
        raise ValueError(f"{len(video)} clips need as many prompts, got {len(prompts)}.")


def frame_choice(frames: int, wanted: int) -> list[int]:
    """Indices of ``wanted`` frames spread evenly over ``frames``, first and last included."""
    if frames == 1 or wanted == 1:
        return [0] * wanted
    return [round(i * (frames - 1) / (wanted - 1)) for i in range(wanted)]


def enlarge(picture: Tensor, size: Sequence[int]) -> Tensor:
    """A picture (C, h, w) in [0, 1] at another size, bicubic: (C, H, W)."""
    if tuple(size) == tuple(picture.shape[-2:]):
        return picture
    # Bicubic interpolation is linear in each axis: two matrix products, many times quicker.
    rows, columns = (_bicubic(a, b).to(picture) for a, b in zip(picture.shape[-2:], size, strict=True))
    return (rows @ picture @ columns.T).clamp_(0, 1)


def _bicubic(inputs: int, outputs: int) -> Tensor:
    """Bicubic interpolation along one axis, (outputs, inputs): what it makes of the identity."""
    eye = torch.eye(inputs)[None, None]
    return F.interpolate(eye, size=(outputs, inputs), mode="bicubic", antialias=False)[0, 0]


def pick_device(name: str = "auto") -> torch.device:
    """The device with a name: "cpu", "cuda" or "mps"; "auto" is the first available of CUDA, MPS and CPU.

    Raises:
        UserError: this machine has no such device.
    """
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(kind for kind, found in there.items() if found)
    if not there.get(name):
        found = ", ".join(kind for kind, found in there.items() if found)
        raise UserError(f"there is no device {name!r} on this machine; it has {found}.")
    return torch.device(name)
