"""MiVE's pipeline: ``pipe(video, prompt, reference) -> the edited video``."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from vera_lite.codecs import latent_shape
from vera_lite.diffusion.sampling import DenoisingState, denoise
from vera_lite.errors import UserError
from vera_lite.pipelines.base import Pipeline, check_video_tensor, enlarge
from vera_lite.systems import MiVE


class MiVEPipeline(Pipeline):
    """MiVE, its vision-language model and its codec, ready to edit.

    The model draws the whole video anew: there are no layers, and no pixel is the source's own.

    Args:
        system: a :class:`vera_lite.systems.MiVE`; its config names the vision-language model.
        codec: pixels to latents and back.
        clip_size: (frames, height, width) that the system was trained at.

    At full scale the parts are Wan2.1-T2V-14B's and Qwen3-VL's::

        MiVEPipeline(
            MiVE.from_wan(wan / "transformer", vlm="Qwen/Qwen3-VL-8B-Instruct"),
            WanCodec.from_pretrained(wan / "vae"),
            (81, 720, 1280),
        )
    """

    systems = (MiVE,)
    shipped = "mive_toy"

    @torch.no_grad()
    def generate(
        self,
        source: Tensor,
        prompts: list[str],
        references: Tensor,
        *,
        steps: int = 12,
        shift: float = 3.0,
        generator: torch.Generator | None = None,
        callback: Callable[[DenoisingState], None] | None = None,
    ) -> Tensor:
        """Edit a batch of clips at the system's own size. There is no guidance: the paper mentions none.

        Args:
            source: (B, T, 3, H, W) in [0, 1], of ``clip_size``.
            prompts: B sentences.
            references: (B, 3, H, W) in [0, 1], each clip's first frame as it is to look.
            steps: network calls; the vision-language model is asked once.
            shift: see :func:`vera_lite.diffusion.sampling.denoise`.
            generator: source of the noise; the same state gives the same edit.
            callback: sees every step, see :class:`vera_lite.diffusion.sampling.DenoisingState`.

        Returns:
            (B, T, 3, H, W) in [0, 1].

        Raises:
            UserError: there are not as many prompts as clips, references are not as many and as large as
                first frames, or a prompt has a word unknown to the toy model.
        """
        if len(source) != len(prompts):
            raise UserError(f"{len(source)} clips need as many prompts, got {len(prompts)}.")
        if references.shape != source[:, 0].shape:
            wanted = tuple(source[:, 0].shape)
            raise UserError(f"references of these clips are {wanted}, not {tuple(references.shape)}.")
        size = latent_shape(self.codec, source.shape[1], *source.shape[-2:])
        weights = next(self.system.parameters())  # everything goes to their device, in their precision
        reading = self.system.read(source.float(), prompts, references.float())

        def encode(video: Tensor) -> Tensor:
            return self.codec.encode(video.to(weights.device).float()).to(weights)

        z_source, z_reference = encode(source), encode(references[:, None])
        # Drawn on the CPU: one seed is one edit on every device.
        noise = torch.randn((len(source), *size), generator=generator).to(weights.device)

        def predict(x: Tensor, sigma: Tensor) -> Tensor:
            return self.system(x.to(weights), 1000 * sigma, z_source, reading, z_reference)

        prediction = self.system.config.objective.prediction
        latents = denoise(predict, noise, steps, shift, prediction, callback)
        return self.codec.decode(latents).to(source)

    def small_edit(
        self,
        video: Tensor,
        prompt: str,
        reference: Tensor,
        *,
        seed: int = 0,
        generator: torch.Generator | None = None,
        **options,
    ) -> Tensor:
        """One edit at the system's own size, for a video of any size and length.

        Video and reference are resampled to ``clip_size``: frames evenly over the video's whole length,
        pixels by area. Sides are squeezed, not cropped.

        Args:
            video: (T, 3, H, W) in [0, 1].
            prompt: what to do.
            reference: (3, H', W') in [0, 1], the video's first frame as it is to look.
            seed: of the noise, if no ``generator`` is given.
            generator: source of the noise.
            options: as for :meth:`generate`.

        Returns:
            (t, 3, h, w) in [0, 1].
        """
        check_video_tensor(video)
        if reference.ndim != 3 or len(reference) != 3 or not reference.is_floating_point():
            raise UserError(
                f"a reference is a float tensor (3, H, W), not {reference.dtype} {tuple(reference.shape)}."
            )
        small = F.interpolate(reference[None], size=self.clip_size[1:], mode="area")
        generator = generator or torch.Generator().manual_seed(seed)
        return self.generate(self.shrink(video)[None], [prompt], small, generator=generator, **options)[0]

    def __call__(self, video: Tensor, prompt: str, reference: Tensor, **options) -> Tensor:
        """Edit a video that fits in memory; `vera-lite edit --system mive` streams longer ones.

        Args:
            video: (T, 3, H, W) in [0, 1], of any size.
            prompt: e.g. "make the blue square green".
            reference: (3, H', W') in [0, 1], the video's first frame as it is to look.
            options: ``seed``, and those of :meth:`generate`.

        Returns:
            (T, 3, H, W) in [0, 1], drawn at ``clip_size`` and enlarged.

        Raises:
            UserError: the video or the reference is of another shape, or the prompt has an unknown word.
        """
        small = self.small_edit(video, prompt, reference, **options)
        times, size = range(len(video)), video.shape[-2:]
        return torch.stack([enlarge(small, t, len(video), size) for t in times])
