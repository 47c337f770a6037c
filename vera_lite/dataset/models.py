"""Matting, removal, backgrounds and captions by large models, whose weights are not in the package.

Each loads the real format of its library, from a folder or, if asked to download, from the Hub. Without such
models :mod:`.matte`, :mod:`.plate` and :mod:`.backgrounds` do the same jobs.
"""

from __future__ import annotations

import functools
import importlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file
from torch import Tensor

from vera_lite.dataset.checks import Rejected, rgb8
from vera_lite.dataset.stage import Ok, Reject, Sample
from vera_lite.dataset.stages import Inputs, VeraStage
from vera_lite.dataset.stages import load as load_layers
from vera_lite.dataset.weights import load, not_loaded
from vera_lite.errors import UserError
from vera_lite.media.files import read_json


@dataclass(frozen=True)
class ViTMatte:
    """ViTMatte (Yao et al., arXiv 2305.15272), a :class:`.Matter`, frame by frame.

    Attributes:
        model: folder, or name on the Hub, such as "hustvl/vitmatte-small-composition-1k" (Apache-2.0).
        download, device: see :func:`.load`.
    """

    model: str
    download: bool = False
    device: str = "cpu"

    @torch.inference_mode()
    def __call__(self, video: Tensor, trimap: Tensor) -> Tensor:
        from transformers import VitMatteForImageMatting, VitMatteImageProcessor

        kinds = VitMatteForImageMatting, VitMatteImageProcessor
        model, processor = load(*kinds, self.model, self.download, self.device)
        height, width = video.shape[-2:]
        alphas = []
        for frame, known in zip(video, trimap, strict=True):
            pictures = {"images": (frame * 255).round().byte(), "trimaps": (known[0] * 255).round().byte()}
            inputs = processor(**pictures, return_tensors="pt").to(self.device)
            alphas.append(model(**inputs).alphas[0, :, :height, :width].float().cpu())
        return torch.where(trimap == 0.5, torch.stack(alphas).clamp(0, 1), trimap)


@dataclass(frozen=True)
class MatAnyone:
    """MatAnyone and its second version (Yang et al., arXiv 2501.14677), a :class:`.Matter` with a memory.

    The trimap of the first frame that shows the object is its first guess, from which it follows the object
    to the end. Code and weights are under the S-Lab licence, for non-commercial use, so this package has
    neither and asks for neither: install ``matanyone`` from github.com/pq-yang/MatAnyone, or ``matanyone2``.

    Attributes:
        model: folder with ``config.json`` and ``model.safetensors``, or name on the Hub, such as
            "PeiqingYang/MatAnyone".
        package: which version's code.
        warm_up: how often it looks at the first frame.
        download, device: see :func:`.load`.
    """

    model: str
    package: Literal["matanyone", "matanyone2"] = "matanyone"
    warm_up: int = 10
    download: bool = False
    device: str = "cpu"

    @torch.inference_mode()
    def __call__(self, video: Tensor, trimap: Tensor) -> Tensor:
        alpha, shown = trimap.clone(), (trimap == 1).flatten(1).any(1).nonzero()
        if len(shown):
            core, start = self._core(), int(shown[0])
            first = video[start].to(self.device)
            core.step(first, 255 * trimap[start, 0].to(self.device), objects=[1])
            for _ in range(self.warm_up):
                core.step(first, first_frame_pred=True)
            for t in range(start, len(video)):
                step = core.step(video[t].to(self.device), first_frame_pred=t == start)
                alpha[t] = step[1:2].float().cpu()  # after the background
        return torch.where(trimap == 0.5, alpha.clamp(0, 1), trimap)

    def _core(self):
        """The package's inference with the model's weights; its own loader would fetch pickles for parts."""
        try:
            inference = importlib.import_module(f"{self.package}.inference.inference_core")
            network = importlib.import_module(f"{self.package}.model.{self.package}")
            from omegaconf import OmegaConf  # pyright: ignore[reportMissingImports] (its own)
        except ImportError as error:
            raise UserError(f"{self.package} is not installed; read its licence, then install it.") from error
        kind = {"matanyone": "MatAnyone", "matanyone2": "MatAnyone2"}[self.package]
        settings = read_json(_file(self.model, "config.json", kind, self.download))
        cfg = OmegaConf.create(settings.pop("cfg"))
        cfg.model.pretrained_resnet = False
        model = getattr(network, kind)(cfg, **settings)
        model.load_state_dict(load_file(_file(self.model, "model.safetensors", kind, self.download)))
        return inference.InferenceCore(model, cfg=cfg, device=self.device)


def _file(name: str, file: str, kind: str, download: bool) -> Path:
    """A file of a model, from a folder or the Hub."""
    if Path(name).is_dir():
        if (Path(name) / file).is_file():
            return Path(name) / file
        raise not_loaded(name, kind, download)
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(name, file, local_files_only=not download))
    except (OSError, HfHubHTTPError, LocalEntryNotFoundError) as error:
        raise not_loaded(name, kind, download) from error


def _pipeline(kind: str, name: str, download: bool, device: str):
    """A pipeline of diffusers.

    Raises:
        UserError: it is not on this machine, or of another kind.
    """
    import diffusers

    local = {"local_files_only": not download}
    try:
        pipeline = getattr(diffusers, kind)
        if dict(pipeline.load_config(name, **local))["_class_name"] != kind:
            raise ValueError("another pipeline")
        pipe = pipeline.from_pretrained(name, use_safetensors=True, **local)
    except (OSError, ValueError, KeyError) as error:
        raise not_loaded(name, kind, download) from error
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(device)


@dataclass(frozen=True)
class WanVideo:
    """Wan's pipelines in diffusers: a remover that invents what no frame shows, or text-to-video.

    The paper removes with Casper, which also takes shadows and reflections away. Its weights have a format
    of their own; VACE is the nearest model in diffusers' format.

    Attributes:
        model: folder or name, such as "Wan-AI/Wan2.1-VACE-1.3B-diffusers" to remove, or
            "Wan-AI/Wan2.1-T2V-1.3B-Diffusers" for backgrounds (Apache-2.0).
        prompt: what to show.
        steps, guidance, seed: of the sampling.
        download, device: see :func:`.load`.
    """

    model: str
    prompt: str
    steps: int = 50
    guidance: float = 5.0
    seed: int = 0
    download: bool = False
    device: str = "cpu"

    def remove(self, video: Tensor, mask: Tensor) -> Tensor:
        """A clip (T, 3, H, W) without what a mask (T, 1, H, W) covers; the rest stays as it was."""
        from PIL import Image

        shown, hidden = rgb8(video), (mask[:, 0] > 0).byte().mul(255).numpy()
        pictures = {"video": list(map(Image.fromarray, shown)), "mask": list(map(Image.fromarray, hidden))}
        return torch.where(mask > 0, self._sample("WanVACEPipeline", video, **pictures), video)

    def background(self, video: Tensor) -> Tensor:
        """A new background, as large and long as a clip (T, 3, H, W)."""
        return self._sample("WanPipeline", video)

    def _sample(self, kind: str, like: Tensor, **inputs: Any) -> Tensor:
        frames, _, height, width = like.shape
        if (frames - 1) % 4 or height % 16 or width % 16:
            size = f"{frames} frames of {width}x{height}"
            raise ValueError(f"Wan makes 1 + 4n frames of multiples of 16 pixels, not {size}.")
        pipe = _pipeline(kind, self.model, self.download, self.device)
        generator = torch.Generator(self.device).manual_seed(self.seed)
        made = pipe(
            prompt=self.prompt,
            height=height,
            width=width,
            num_frames=frames,
            num_inference_steps=self.steps,
            guidance_scale=self.guidance,
            generator=generator,
            output_type="np",
            **inputs,
        ).frames[0]
        return torch.from_numpy(made).permute(0, 3, 1, 2).float().clamp(0, 1)


@functools.lru_cache(maxsize=1)
def _vlm(model: str | None, download: bool):
    from vera_lite.conditioning.vision_language import VisionLanguageModel

    return VisionLanguageModel.from_pretrained(model, download)


@dataclass
class VLMCaption(VeraStage):
    """Captions both videos by a vision-language model, which then writes the instruction from the captions.

    Attributes:
        model: folder or name, such as "Qwen/Qwen3-VL-8B-Instruct"; None: the toy model in the package.
        describe: the question about each video.
        instruct: the question for the instruction; {source} and {target} become the captions.
        max_new_tokens: of each answer.
        download: fetch the model if it is not on this machine.
    """

    model: str | None = None
    describe: str = (
        "Describe this video in plain words: what the subject looks like and does, where it is, the light "
        "and the camera. Leave out what cannot be seen, and do not praise it."
    )
    instruct: str = (
        "Before: {source}\nAfter: {target}\nWrite one sentence that asks an editor to turn the first video "
        "into the second one. Name what is added or replaced, and what must stay."
    )
    max_new_tokens: int = 128
    download: bool = False
    name = "caption"

    def work(self, sample: Sample, inputs: Inputs, out: Path) -> Ok | Reject:
        vlm = _vlm(self.model, self.download)
        source, target = load_layers(inputs, "source", "composite")
        fps = sample.facts["fps"]

        def ask(clip: Tensor, question: str) -> str:
            return vlm.answer(vlm.prompt([clip], [question], fps=fps), self.max_new_tokens)[0].strip()

        words = {"source_caption": ask(source, self.describe), "target_caption": ask(target, self.describe)}
        question = self.instruct.replace("{source}", words["source_caption"])
        words["instruction"] = ask(target, question.replace("{target}", words["target_caption"]))
        if not all(words.values()):
            raise Rejected("no_caption", "the model has nothing to say", **words)
        return Ok(replace(sample, facts=sample.facts | words))
