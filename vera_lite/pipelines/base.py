"""One way to generate, for every system: conditions, noise, denoising, decoding, one result.

A subclass adds three things: :meth:`Pipeline.prepare` turns a person's inputs into the model's,
:meth:`Pipeline.conditions` turns these into arguments of the system, and :meth:`Pipeline.read` turns its
output into the result.
"""

import copy
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Self

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from vera_lite.backbone.checkpointing import blocks_of
from vera_lite.codecs import Codec, PatchCodec, latent_shape
from vera_lite.diffusion.sampling import DenoisingState, denoise
from vera_lite.errors import RANGES, UserError, check_number, check_pixels, check_prompt, check_tensor
from vera_lite.media.files import read_json, replacing
from vera_lite.pipelines.drawing import Drawing, Layers, frame_choice
from vera_lite.pipelines.saved import check_clip_size, load_weights
from vera_lite.pipelines.windows import Windows
from vera_lite.systems import build_system, describe_system

ASSETS = Path(__file__).parents[1] / "assets"


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
        #: Whether :meth:`offload` was called.
        self.offloaded = False

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
        """Move system and codec; text encoder or VLM follow. Inputs may be on another device; results come
        back to it.

        Raises:
            ValueError: the pipeline is offloaded.
        """
        if self.offloaded:
            raise ValueError("an offloaded pipeline stays with its device: build a new one.")
        self.system.to(device)
        self.codec.to(device)
        return self

    def offload(self, device: torch.device | str) -> Self:
        """Use a device that cannot hold everything at once.

        The network's blocks stay in host memory and come to the device one by one (accelerate); text encoder
        or VLM leave it once they have read; a VAE works in tiles (diffusers), which changes pixels near the
        borders of tiles a little. Everything else stays on the device. An offloaded pipeline can only edit.

        Raises:
            ValueError: it is offloaded already.
        """
        from accelerate import cpu_offload

        if self.offloaded:
            raise ValueError("this pipeline is offloaded already.")
        for block in blocks_of(self.system):
            # "preload": all of a block's weights come together, as parts of it are used without being called.
            cpu_offload(block, torch.device(device), True, preload_module_classes=[type(block).__name__])
        self.system._apply(lambda x: x if x.is_meta else x.to(device))  # the rest
        self.codec.to(device)
        if hasattr(self.codec, "vae"):
            self.codec.vae.enable_tiling()
        self.offloaded = True
        return self

    @property
    def reader(self) -> nn.Module | None:
        """The model that reads a prompt, if there is one; it is not needed once the network runs."""
        return None

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
        windows: Windows | None = None,
        **named,
    ) -> Layers:
        """The layers that the model draws for a batch of clips at its own size, see :meth:`generate`; or for
        one long clip in ``windows``, of which the network, VAE and VLM see one at a time."""
        check_number("seed", seed)
        weights = next(self.system.parameters())  # gives device and dtype
        reader = self.reader
        if reader is not None:
            reader.to(weights.device)
        clips = [(video, *inputs)] if windows is None else windows.cut(video, *inputs)
        conditions = [self.conditions(*clip, **named) for clip in clips]
        if reader is not None and self.offloaded:
            reader.to("cpu")
        # Drawn on the CPU, so that a seed gives the same noise on every device.
        generator = generator or torch.Generator().manual_seed(seed)
        first = clips[0][0]
        shape = self.noise_shape(len(first) * len(clips), first.shape[1], *first.shape[-2:])
        noise = torch.randn(shape, generator=generator).to(weights.device)

        def network(x: Tensor, sigma: Tensor) -> Tensor:
            parts = x.to(weights).chunk(len(clips), -5), (1000 * sigma).chunk(len(clips)), conditions
            output = torch.cat([self.predict(*part, sampling) for part in zip(*parts, strict=True)], -5)
            return output if windows is None else windows.agree(output)

        latents = denoise(
            network,
            noise if windows is None else windows.share(noise),
            sampling.steps,
            sampling.shift,
            self.system.config.objective.prediction,
            callback,
        )
        decoded = [self.decode(part) for part in latents.chunk(len(clips), -5)]
        layers = decoded[0]
        if windows is not None:
            layers = {name: windows.join(torch.cat([part[name] for part in decoded])) for name in layers}
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
        overlap: int | None = None,
        **options,
    ) -> Drawing:
        """Edit one video at the model's size; the drawing shows it at the video's size.

        Args:
            video: (T, 3, H, W) in [0, 1]. Of a long video, the frames that the model sees are enough:
                ``frame_choice(frames, self.clip_size[0])``.
            inputs: those besides the video, see :meth:`prepare`.
            frames: number of frames of the whole video, if ``video`` has only some of them.
            size: (H, W) of the video, if ``video`` was made smaller.
            fps: frames per second of the whole video, for systems that read times. None: as in training.
            overlap: draw every frame of a long video, in windows of the model's length that share so many
                frames with their neighbours, see :mod:`.windows`. None: draw as many frames as the model was
                trained on, spread evenly over the video. All windows of MiVE get the same reference.
            options: as for :meth:`generate`.
        """
        sampling, rest = self._split(options)
        frames = frames or len(video)
        noise = {name: rest.pop(name) for name in ("seed", "generator", "callback") if name in rest}
        pipe, windows = self, None
        if overlap is not None:
            if frames != len(video):
                raise ValueError("windows need all frames of the video.")
            windows = Windows(frames, self.clip_size[0], overlap, self.codec.temporal_stride)
            pipe = copy.copy(self)
            pipe.clip_size = windows.frames, *self.clip_size[1:]
        if fps is not None and self.reads_time and frames > 1:
            noise["fps"] = fps * (pipe.clip_size[0] - 1) / (frames - 1)
        prepared = pipe.prepare(video, *inputs, **rest)
        layers = self.layers(*prepared, sampling=sampling, windows=windows, **noise)
        small = {name: layer[0] for name, layer in layers.items()}
        return Drawing(self, small, sampling, frames, size or video.shape[-2:])

    def __call__(self, video: Tensor, *inputs, **options) -> EditResult:
        """Edit one video of any size and length that fits in memory; the command line streams longer ones.

        The video is resampled to ``clip_size``: frames evenly over its whole length, pixels by area. Sides
        are squeezed, not cropped, so that places in a prompt keep their meaning.

        Args:
            video: (T, 3, H, W) in [0, 1].
            inputs: those besides the video, see :meth:`prepare`.
            options: ``fps`` and ``overlap`` as for :meth:`draw`; the others as for :meth:`generate`.

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


def check_video(video: Tensor) -> None:
    """Raise ValueError unless this is a floating (T, 3, H, W) in [0, 1]."""
    check_tensor("the video", video, "T", 3, "H", "W")
    check_pixels("the video", video)


def check_prompts(video: Tensor, prompts: Sequence[str]) -> None:
    """Raise ValueError unless there is a prompt for each clip."""
    if len(video) != len(prompts):
        raise ValueError(f"{len(video)} clips need as many prompts, got {len(prompts)}.")


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
