"""Vera's pipeline: ``pipe(video, prompt, mask) -> EditResult``."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vera_lite.codecs import Codec
from vera_lite.conditioning.phrases import PhraseEncoder
from vera_lite.errors import UserError, check_pixels, check_tensor
from vera_lite.media.clip import composite
from vera_lite.pipelines.base import (
    EditResult,
    Layers,
    Pipeline,
    Sampling,
    check_prompts,
    check_video,
)
from vera_lite.systems import LayersInTime, Regeneration, Vera


@dataclass(frozen=True)
class VeraSampling(Sampling):
    """:class:`Sampling`, and two settings of Vera's own.

    Attributes:
        guidance: classifier-free guidance; 1 is off, above 1 follows the prompt more strictly. "No prompt" is
            features of zero, as in training (:func:`vera_lite.systems.vera.drop_conditions`).
        alpha_floor: matte values below this become zero, and there the source stays untouched. This loses the
            faintest part of soft edges and shadows; the toy model's card has numbers.
    """

    guidance: float = 1.0
    alpha_floor: float = 0.0


class VeraPipeline(Pipeline):
    """Vera, its codec and its text encoder, ready to edit. It also runs the baselines; regeneration has one
    layer, the composite.

    Args:
        system, codec, clip_size, sampling: see :class:`Pipeline`.
        text_encoder: prompts to features (B, T, text_dim), or the vocabulary of a
            :class:`~vera_lite.conditioning.phrases.PhraseEncoder`.

    At full scale the parts are Wan's::

        VeraPipeline(
            Vera.from_wan(wan / "transformer"),
            WanCodec.from_pretrained(wan / "vae"),
            (49, 480, 832),
            VeraSampling(steps=50, shift=3.0, guidance=5.0),  # diffusers' settings for Wan2.1 at 480p
            Umt5Encoder.from_pretrained(wan),
        )
    """

    systems = (Vera, LayersInTime, Regeneration)
    shipped = "vera_toy"
    sampling_type = VeraSampling

    def __init__(
        self,
        system: nn.Module,
        codec: Codec,
        clip_size: tuple[int, int, int],
        sampling: VeraSampling | dict,
        text_encoder: Callable[[Sequence[str]], Tensor] | Mapping,
    ):
        super().__init__(system, codec, clip_size, sampling)
        is_vocabulary = isinstance(text_encoder, Mapping)
        self.text_encoder = PhraseEncoder(**text_encoder) if is_vocabulary else text_encoder
        if not callable(self.text_encoder):
            raise TypeError(f"text_encoder is {text_encoder!r}; it must turn prompts into features")
        text_dim, known = system.config.backbone.text_dim, getattr(self.text_encoder, "text_dim", None)
        if None not in (text_dim, known) and text_dim != known:
            raise ValueError(f"the text encoder's features have width {known}, the network's {text_dim}.")

    @property
    def reader(self) -> nn.Module | None:
        return getattr(self.text_encoder, "model", None)

    def check_prompt(self, prompt: str) -> None:
        super().check_prompt(prompt)
        if isinstance(self.text_encoder, PhraseEncoder):
            self.text_encoder.parse(prompt)

    @property
    def is_toy(self) -> bool:
        return super().is_toy and isinstance(self.text_encoder, PhraseEncoder)

    @property
    def settings(self) -> dict:
        return super().settings | {"text_encoder": self.text_encoder.vocabulary}

    def prepare(
        self, video: Tensor, prompt: str, mask: Tensor | None = None
    ) -> tuple[Tensor, list[str], Tensor | None]:
        """
        Args:
            video: (T, 3, H, W) in [0, 1].
            prompt: e.g. "add a red ring at the top left moving right".
            mask: (T, 1, H, W) in [0, 1]: where the edit may go (the subject, for a new background).
        """
        check_video(video)
        self.check_prompt(prompt)
        if mask is None:
            return self.shrink(video)[None], [prompt], None
        check_tensor("the mask", mask, len(video), 1, *video.shape[-2:])
        check_pixels("the mask", mask)
        small = self.shrink(mask.float())
        if not small.max() > 0:
            raise UserError("the mask is empty in the frames that the model sees: paint it white somewhere.")
        # Binary. A mask smaller than a pixel of the model keeps its fullest pixels.
        return self.shrink(video)[None], [prompt], (small >= 0.5 * small.max()).float()[None]

    def conditions(self, video: Tensor, prompts: Sequence[str], mask: Tensor | None = None) -> dict:
        """
        Args:
            video: (B, T, 3, H, W) in [0, 1], of ``clip_size``.
            prompts: B sentences.
            mask: (B, T, 1, H, W) in [0, 1].
        """
        check_prompts(video, prompts)
        return {
            "text": self.text_encoder(prompts).to(next(self.system.parameters())),
            "source": self.encode(video),
            "mask": None if mask is None else self.encode(mask),
        }

    def predict(self, latents: Tensor, timestep: Tensor, conditions: dict, sampling: VeraSampling) -> Tensor:
        output = super().predict(latents, timestep, conditions, sampling)
        if sampling.guidance == 1:
            return output
        no_prompt = conditions | {"text": torch.zeros_like(conditions["text"])}
        unconditional = super().predict(latents, timestep, no_prompt, sampling)
        return unconditional + sampling.guidance * (output - unconditional)

    def noise_shape(self, *size: int) -> tuple[int, ...]:
        """(layers, B, c, t, h, w)."""
        return len(self.system.layers), *super().noise_shape(*size)

    def decode(self, latents: Tensor) -> Layers:
        """Latents (layers, B, c, t, h, w) -> the system's layers; alpha has one channel."""
        videos = {n: self.codec.decode(z) for n, z in zip(self.system.layers, latents, strict=True)}
        if "alpha" in videos:
            videos["alpha"] = videos["alpha"].mean(2, keepdim=True)
        return videos

    def read(self, layers: Layers, source: Tensor, sampling: VeraSampling) -> EditResult:
        """final = alpha * edit + (1 - alpha) * source. Below the floor alpha is 0, and final is the source,
        bit for bit."""
        if "alpha" not in layers:  # regeneration
            return super().read(layers, source, sampling)
        alpha = layers["alpha"].where(layers["alpha"] >= sampling.alpha_floor, 0)
        final = composite(layers["edit"], alpha, source)
        return EditResult(final, layers["composite"], layers["edit"], alpha)
