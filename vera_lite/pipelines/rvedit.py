"""RVEDiT's pipeline: ``pipe(video, prompt) -> the edited video``."""

from collections.abc import Callable

import torch
from torch import Tensor

from vera_lite.codecs import latent_shape
from vera_lite.diffusion.sampling import DenoisingState, denoise
from vera_lite.errors import UserError
from vera_lite.pipelines.base import Pipeline, check_video_tensor, enlarge
from vera_lite.systems import RVEDiT


class RVEDiTPipeline(Pipeline):
    """RVEDiT, its vision-language model and its codec, ready to edit.

    The model draws the whole video anew: there are no layers, and no pixel is the source's own.

    Args:
        system: a :class:`vera_lite.systems.RVEDiT`; its config names the vision-language model.
        codec: pixels to latents and back.
        clip_size: (frames, height, width) that the system was trained at.

    At full scale the parts are Wan2.2-TI2V-5B's and Qwen2.5-VL's::

        RVEDiTPipeline(
            RVEDiT.from_wan(wan / "transformer", vlm="Qwen/Qwen2.5-VL-3B-Instruct"),
            WanCodec.from_pretrained(wan / "vae"),
            (81, 704, 1280),
        )
    """

    systems = (RVEDiT,)
    shipped = "rvedit_toy"

    @torch.no_grad()
    def generate(
        self,
        source: Tensor,
        prompts: list[str],
        *,
        steps: int = 12,
        shift: float = 3.0,
        generator: torch.Generator | None = None,
        callback: Callable[[DenoisingState], None] | None = None,
    ) -> Tensor:
        """Edit a batch of clips at the system's own size. There is no guidance, as in the paper.

        Args:
            source: (B, T, 3, H, W) in [0, 1], of ``clip_size``.
            prompts: B sentences.
            steps: network calls; the vision-language model is asked once.
            shift: see :func:`vera_lite.diffusion.sampling.denoise`.
            generator: source of the noise; the same state gives the same edit.
            callback: sees every step, see :class:`vera_lite.diffusion.sampling.DenoisingState`.

        Returns:
            (B, T, 3, H, W) in [0, 1].

        Raises:
            UserError: there are not as many prompts as clips, or one has a word unknown to the toy model.
        """
        if len(source) != len(prompts):
            raise UserError(f"{len(source)} clips need as many prompts, got {len(prompts)}.")
        size = latent_shape(self.codec, source.shape[1], *source.shape[-2:])
        weights = next(self.system.parameters())  # everything goes to their device, in their precision
        context = self.system.context(source.float(), prompts)
        z_source = self.codec.encode(source.to(weights.device).float()).to(weights)
        # Drawn on the CPU: one seed is one edit on every device.
        noise = torch.randn((len(source), *size), generator=generator).to(weights.device)

        def predict(x: Tensor, sigma: Tensor) -> Tensor:
            return self.system(x.to(weights), 1000 * sigma, z_source, context)

        prediction = self.system.config.objective.prediction
        latents = denoise(predict, noise, steps, shift, prediction, callback)
        return self.codec.decode(latents).to(source)

    def small_edit(
        self,
        video: Tensor,
        prompt: str,
        *,
        seed: int = 0,
        generator: torch.Generator | None = None,
        **options,
    ) -> Tensor:
        """One edit at the system's own size, for a video of any size and length.

        The video is resampled to ``clip_size``: frames evenly over its whole length, pixels by area. Sides
        are squeezed, not cropped.

        Args:
            video: (T, 3, H, W) in [0, 1].
            prompt: what to do.
            seed: of the noise, if no ``generator`` is given.
            generator: source of the noise.
            options: as for :meth:`generate`.

        Returns:
            (t, 3, h, w) in [0, 1].
        """
        check_video_tensor(video)
        generator = generator or torch.Generator().manual_seed(seed)
        return self.generate(self.shrink(video)[None], [prompt], generator=generator, **options)[0]

    def __call__(self, video: Tensor, prompt: str, **options) -> Tensor:
        """Edit a video that fits in memory; `vera-lite edit --system rvedit` streams longer ones.

        Args:
            video: (T, 3, H, W) in [0, 1], of any size.
            prompt: e.g. "make the blue square green".
            options: ``seed``, and those of :meth:`generate`.

        Returns:
            (T, 3, H, W) in [0, 1], drawn at ``clip_size`` and enlarged.

        Raises:
            UserError: the video is of another shape, or the prompt has an unknown word.
        """
        small = self.small_edit(video, prompt, **options)
        times, size = range(len(video)), video.shape[-2:]
        return torch.stack([enlarge(small, t, len(video), size) for t in times])
