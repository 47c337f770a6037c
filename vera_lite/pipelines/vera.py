"""Vera's pipeline: ``pipe(video, prompt) -> EditResult``."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vera_lite.codecs import Codec, latent_shape
from vera_lite.diffusion.sampling import DenoisingState, denoise
from vera_lite.errors import UserError
from vera_lite.media.clip import composite
from vera_lite.pipelines.base import Pipeline, check_video_tensor, enlarge
from vera_lite.systems import Regeneration, Vera
from vera_lite.toy.phrases import PhraseEncoder

#: Matte values below this are taken for zero, and there the source stays untouched. What it costs is the
#: faintest tenth of soft edges and shadows. The card has the numbers for 0.1 and 0.05.
ALPHA_FLOOR = 0.1


@dataclass(frozen=True)
class EditResult:
    """The layers of an edit, floating tensors in [0, 1] of the source's size.

    Attributes:
        final: (T, 3, H, W), alpha * edit + (1 - alpha) * source: what a person gets. Where alpha is
            0 it is the source bit for bit.
        edit: (T, 3, H, W), straight colour.
        alpha: (T, 1, H, W), 0 below the floor.
        composite: (T, 3, H, W), the frame that the model drew as a whole; for looking at, not for use.
    """

    final: Tensor
    edit: Tensor
    alpha: Tensor
    composite: Tensor


class VeraPipeline(Pipeline):
    """Vera, its codec and its text encoder, ready to edit.

    Args:
        system: a :class:`vera_lite.systems.Vera`. :meth:`generate` also serves the regeneration
            baseline, whose one layer is the composite.
        codec: pixels to latents and back.
        clip_size: (frames, height, width) that the system was trained at.
        text_encoder: prompts to features (B, T, text_dim); None is the toy vocabulary.

    At full scale the parts are Wan's::

        VeraPipeline(
            Vera.from_wan(wan / "transformer"),
            WanCodec.from_pretrained(wan / "vae"),
            (49, 480, 832),
            Umt5Encoder.from_pretrained(wan),
        )
    """

    systems = (Vera, Regeneration)
    shipped = "vera_toy"

    def __init__(
        self,
        system: nn.Module,
        codec: Codec,
        clip_size: tuple[int, int, int],
        text_encoder: Callable[[list[str]], Tensor] | None = None,
    ):
        super().__init__(system, codec, clip_size)
        self.text_encoder = text_encoder or PhraseEncoder()

    @property
    def is_toy(self) -> bool:
        return super().is_toy and isinstance(self.text_encoder, PhraseEncoder)

    # --- editing ---------------------------------------------------------------------------------

    @torch.no_grad()
    def generate(
        self,
        source: Tensor,
        prompts: list[str],
        mask: Tensor | None = None,
        *,
        steps: int = 12,
        shift: float = 3.0,
        guidance: float = 1.0,
        generator: torch.Generator | None = None,
        callback: Callable[[DenoisingState], None] | None = None,
    ) -> dict[str, Tensor]:
        """Generate the system's layers for a batch of clips at the system's own size.

        Args:
            source: (B, T, 3, H, W) in [0, 1], of ``clip_size``.
            prompts: B sentences.
            mask: (B, T, 1, H, W) in [0, 1]: where the edit may go (the subject, for a new background).
            steps: network calls.
            shift: see :func:`vera_lite.diffusion.sampling.denoise`.
            guidance: classifier-free guidance; 1 is off, more follows the prompt harder. "No prompt" is
                features of zero, as in training (:func:`vera_lite.systems.vera.drop_conditions`).
            generator: source of the noise; the same state gives the same edit.
            callback: sees every step, see :class:`vera_lite.diffusion.sampling.DenoisingState`.

        Returns:
            ``{layer: (B, T, 3 or 1, H, W)}`` in [0, 1]; "alpha" has one channel and no floor.
        """
        if len(source) != len(prompts):
            raise UserError(f"{len(source)} clips need as many prompts, got {len(prompts)}.")
        size = latent_shape(self.codec, *source.shape[1:2], *source.shape[-2:])
        weights = next(self.system.parameters())  # everything goes to their device, in their precision
        text = self.text_encoder(prompts).to(weights)
        z_source = self.codec.encode(source.to(weights.device).float()).to(weights)
        z_mask = None if mask is None else self.codec.encode(mask.to(weights.device).float()).to(weights)
        # Drawn on the CPU: one seed is one edit on every device.
        noise = torch.randn((len(self.system.layers), len(prompts), *size), generator=generator)
        noise = noise.to(weights.device)

        def predict(x: Tensor, sigma: Tensor) -> Tensor:
            x = x.to(weights)
            output = self.system(x, 1000 * sigma, text, z_source, z_mask)
            if guidance == 1:
                return output
            unconditional = self.system(x, 1000 * sigma, torch.zeros_like(text), z_source, z_mask)
            return unconditional + guidance * (output - unconditional)

        prediction = self.system.config.objective.prediction
        latents = denoise(predict, noise, steps, shift, prediction, callback)
        return {name: video.to(source) for name, video in self.decode(latents).items()}

    def decode(self, latents: Tensor) -> dict[str, Tensor]:
        """Latents (layers, B, c, t, h, w) -> ``{layer: (B, T, 3 or 1, H, W)}``."""
        videos = {n: self.codec.decode(z) for n, z in zip(self.system.layers, latents, strict=True)}
        if "alpha" in videos:
            videos["alpha"] = videos["alpha"].mean(2, keepdim=True)
        return videos

    def layers_for(
        self,
        video: Tensor,
        prompt: str,
        mask: Tensor | None = None,
        *,
        seed: int = 0,
        generator: torch.Generator | None = None,
        **options,
    ) -> dict[str, Tensor]:
        """One edit at the system's own size, for a video of any size and length.

        The video is resampled to ``clip_size``: frames evenly over its whole length, pixels by area.
        Sides are squeezed, not cropped, so that places in the prompt keep their meaning; on a wide
        video a circle therefore comes out as wide as the frame.

        Args:
            video: (T, 3, H, W) in [0, 1].
            prompt: what to do.
            mask: (T, 1, H, W) in [0, 1].
            seed: of the noise, if no ``generator`` is given.
            generator: source of the noise.
            options: as for :meth:`generate`.

        Returns:
            ``{layer: (t, 3 or 1, h, w)}``.
        """
        check_video_tensor(video)
        if mask is not None and mask.shape != (len(video), 1, *video.shape[-2:]):
            raise UserError(
                f"the mask is {tuple(mask.shape)}; for this video it must be "
                f"{(len(video), 1, *video.shape[-2:])}."
            )
        small_mask = None if mask is None else self._shrink_mask(mask)[None]
        generator = generator or torch.Generator().manual_seed(seed)
        layers = self.generate(self.shrink(video)[None], [prompt], small_mask, generator=generator, **options)
        return {name: layer[0] for name, layer in layers.items()}

    def _shrink_mask(self, mask: Tensor) -> Tensor:
        """Mask of ``clip_size``, hard; one smaller than the model's pixels keeps its fullest ones."""
        small = self.shrink(mask.float())
        if not small.max() > 0:
            raise UserError("the mask is empty in the frames that the model sees: paint it white somewhere.")
        return (small >= 0.5 * small.max()).float()

    def __call__(
        self,
        video: Tensor,
        prompt: str,
        mask: Tensor | None = None,
        *,
        alpha_floor: float = ALPHA_FLOOR,
        **options,
    ) -> EditResult:
        """Edit a video that fits in memory; `vera-lite edit` streams longer ones.

        Args:
            video: (T, 3, H, W) in [0, 1], of any size.
            prompt: e.g. "add a red ring at the top left moving right".
            mask: (T, 1, H, W) in [0, 1], optional.
            alpha_floor: see :data:`ALPHA_FLOOR`.
            options: ``seed``, and those of :meth:`generate`.

        Raises:
            UserError: shapes do not fit, or the prompt has an unknown word.
        """
        floored(torch.zeros(1), alpha_floor)  # a bad floor shows before the work
        layers = self.layers_for(video, prompt, mask, **options)
        times = range(len(video))
        large = {
            name: torch.stack([enlarge(layer, t, len(video), video.shape[-2:]) for t in times])
            for name, layer in layers.items()
        }
        alpha = floored(large["alpha"], alpha_floor)
        final = composite(large["edit"], alpha, video)
        return EditResult(final, large["edit"], alpha, large["composite"])


def floored(alpha: Tensor, floor: float) -> Tensor:
    """Alpha with everything below ``floor`` set to exactly 0."""
    if not 0 <= floor < 1:
        raise UserError(f"alpha_floor lies in [0, 1), not {floor}.")
    return torch.where(alpha < floor, torch.zeros_like(alpha), alpha)
