"""GenCompositor's pipeline: ``pipe(background, foreground, alpha, trajectory) -> CompositeResult``."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vera_lite.codecs import Codec, latent_shape
from vera_lite.diffusion.sampling import DenoisingState, denoise
from vera_lite.errors import UserError
from vera_lite.media.clip import composite
from vera_lite.media.placement import inflate_mask, object_extent, resample
from vera_lite.media.trajectory import Trajectory
from vera_lite.pipelines.base import Pipeline, check_video_tensor, enlarge, frame_choice
from vera_lite.systems import GenCompositor
from vera_lite.systems.gencompositor import encode_conditions

#: How far an object reaches on its canvas, as a share of half the canvas: what is usual in the toy world.
CANVAS_FILL = 0.65


@dataclass(frozen=True)
class CompositeResult:
    """A composite, floating tensors in [0, 1] of the background's size.

    Attributes:
        final: (T, 3, H, W), what a person gets: ``generated``, or with ``paste_back`` the background with
            ``generated`` laid over it by ``mask``. Where the mask is 0 it then is the background bit for bit.
        generated: (T, 3, H, W), the whole frame that the model drew.
        mask: (T, 1, H, W), above 0 where the model could draw, falling to 0 at the rim.
        matte: (T, 1, H, W), where the object was put.
    """

    final: Tensor
    generated: Tensor
    mask: Tensor
    matte: Tensor


class GenCompositorPipeline(Pipeline):
    """GenCompositor and its codec, ready to put a foreground into a background.

    Args:
        system: a :class:`vera_lite.systems.GenCompositor`.
        codec: pixels to latents and back.
        clip_size: (frames, height, width) that the system was trained at.
        mask_sigma: of :func:`.inflate_mask`, in pixels of ``clip_size``, as in training;
            None leaves masks as they are.
        text: features (T, text_dim) of a backbone with text: those of the empty prompt.

    At full scale the parts are CogVideoX's::

        GenCompositorPipeline(
            GenCompositor.from_cogvideox(transformer),  # a diffusers.CogVideoXTransformer3DModel
            CogVideoXCodec.from_pretrained(cogvideox / "vae"),
            (49, 480, 720),
            mask_sigma=10,
            text=empty_prompt,
        )

    Raises:
        UserError: the backbone reads text and there is none.
    """

    systems = (GenCompositor,)
    shipped = "gencompositor_toy"

    def __init__(
        self,
        system: nn.Module,
        codec: Codec,
        clip_size: tuple[int, int, int],
        mask_sigma: float | None,
        text: Tensor | None = None,
    ):
        super().__init__(system, codec, clip_size)
        if text is None and system.config.backbone.text_embed_dim is not None:
            raise UserError("this backbone reads text: give the empty prompt's features as text=.")
        self.mask_sigma, self.text = mask_sigma, text

    @property
    def settings(self) -> dict:
        return super().settings | {"mask_sigma": self.mask_sigma}

    # --- compositing -----------------------------------------------------------------------------

    @torch.no_grad()
    def generate(
        self,
        background: Tensor,
        foreground: Tensor | None,
        mask: Tensor,
        *,
        steps: int = 12,
        shift: float = 3.0,
        generator: torch.Generator | None = None,
        callback: Callable[[DenoisingState], None] | None = None,
    ) -> Tensor:
        """Generate composites for a batch of clips at the system's own size.

        Args:
            background: (B, T, 3, H, W) in [0, 1], of ``clip_size``.
            foreground: (B, T, 3, H, W), the object in the middle of a white canvas. None is a blank
                (white) video, which asks for what would be there without an object: removal.
            mask: (B, T, 1, H, W), inflated already; above 0.5 the model may draw.
            steps: network calls.
            shift: see :func:`vera_lite.diffusion.sampling.denoise`.
            generator: source of the noise; the same state gives the same composite.
            callback: sees every step, see :class:`vera_lite.diffusion.sampling.DenoisingState`.

        Returns:
            (B, T, 3, H, W) in [0, 1].

        Raises:
            UserError: the shapes do not fit.
        """
        foreground = torch.ones_like(background) if foreground is None else foreground
        if foreground.shape != background.shape or mask.shape != background[:, :, :1].shape:
            raise UserError(
                f"background {tuple(background.shape)}, foreground {tuple(foreground.shape)} and mask "
                f"{tuple(mask.shape)} must agree, the mask with one channel."
            )
        size = latent_shape(self.codec, background.shape[1], *background.shape[-2:])
        weights = next(self.system.parameters())  # everything goes to their device, in their precision
        pixels = (v.to(weights.device).float() for v in (background, foreground, mask))
        told = {name: v.to(weights) for name, v in encode_conditions(self.codec, *pixels).items()}
        if self.text is not None:
            told["text"] = self.text.to(weights).expand(len(background), -1, -1)
        # Drawn on the CPU: one seed is one composite on every device.
        noise = torch.randn((len(background), *size), generator=generator).to(weights.device)

        def predict(x: Tensor, sigma: Tensor) -> Tensor:
            return self.system(x.to(weights), 1000 * sigma, **told)

        prediction = self.system.config.objective.prediction
        latents = denoise(predict, noise, steps, shift, prediction, callback)
        return self.codec.decode(latents).to(background)

    def prepare(
        self, background: Tensor, foreground: Tensor, alpha: Tensor, trajectory: Trajectory
    ) -> dict[str, Tensor]:
        """What the model is to see, made from what a person gives; the inputs of training.

        Everything is resampled to ``clip_size``: frames evenly over the whole length of each video. Sides
        are squeezed, not cropped, and the foreground's canvas is squeezed like the background. On it the
        object has one size in all frames, see :data:`CANVAS_FILL`; the path's scales act on the matte alone.

        Args:
            background: (T, 3, H, W) in [0, 1].
            foreground: (S, 3, h, w) in [0, 1], straight colour, the object anywhere.
            alpha: (S, 1, h, w) in [0, 1]; above 0.5 is the object.
            trajectory: where the object's middle goes, in pixels of the background; at scale 1 a pixel of
                the foreground is one of the background.

        Returns:
            ``background``, ``foreground`` (on white), ``mask`` and ``matte``, (t, 3 or 1, h, w) each.

        Raises:
            UserError: the shapes do not fit, no object can be seen, or nothing else.
        """
        check_video_tensor(background)
        check_video_tensor(foreground)
        if alpha.shape != foreground[:, :1].shape or not alpha.is_floating_point():
            raise UserError(
                f"alpha is {alpha.dtype} {tuple(alpha.shape)}; for this foreground it must be floating "
                f"{tuple(foreground[:, :1].shape)}."
            )
        size = tuple(background.shape[-2:])
        if trajectory.size != size:
            raise UserError(
                f"the path was drawn in a {trajectory.size[1]}x{trajectory.size[0]} frame, but the "
                f"background is {size[1]}x{size[0]}: draw it on this background."
            )
        frames, height, width = self.clip_size
        chosen = frame_choice(len(foreground), frames)
        foreground, alpha = foreground[chosen], alpha[chosen]
        solid = (alpha > 0.5).to(alpha)  # a noisy matte must not change where the object is
        if not solid.any():
            raise UserError(
                "alpha is nowhere above 0.5 in the frames that the model sees: there is no object to put in."
            )
        centres, reach = object_extent(solid)
        small = torch.tensor([width, height], dtype=torch.float64)
        squeeze = small / torch.tensor(size[::-1])

        zoom = CANVAS_FILL / (reach.cpu() * squeeze / (small / 2)).max()
        middle, scales = ((small - 1) / 2).expand(frames, 2), (zoom * squeeze).expand(frames, 2)
        colour, canvas_alpha = resample(foreground, alpha, centres, middle, scales, (height, width))
        canvas = composite(colour, canvas_alpha, torch.ones_like(colour))

        positions, scales = trajectory.sample(frames)
        positions, scales = (positions + 0.5) * squeeze - 0.5, scales[:, None] * squeeze
        _, matte = resample(foreground, alpha, centres, positions, scales, (height, width))
        if not (matte > 0.5).any():
            raise UserError(
                f"the object is too small for the model, which draws {width}x{height} pixels: scale it up."
            )
        mask = matte if self.mask_sigma is None else inflate_mask(matte, self.mask_sigma)
        if (mask > 0.5).all():
            raise UserError("the object covers the whole background in every frame: scale it down.")
        return {"background": self.shrink(background), "foreground": canvas, "mask": mask, "matte": matte}

    def layers_for(
        self,
        background: Tensor,
        foreground: Tensor,
        alpha: Tensor,
        trajectory: Trajectory,
        *,
        seed: int = 0,
        generator: torch.Generator | None = None,
        **options,
    ) -> dict[str, Tensor]:
        """One composite at the system's own size, for videos of any size and length.

        Args:
            background, foreground, alpha, trajectory: see :meth:`prepare`.
            seed: of the noise, if no ``generator`` is given.
            generator: source of the noise.
            options: as for :meth:`generate`.

        Returns:
            What :meth:`prepare` does, and ``generated`` (t, 3, h, w).
        """
        layers = self.prepare(background, foreground, alpha, trajectory)
        generator = generator or torch.Generator().manual_seed(seed)
        given = (layers[name][None] for name in ("background", "foreground", "mask"))
        return layers | {"generated": self.generate(*given, generator=generator, **options)[0]}

    def __call__(
        self,
        background: Tensor,
        foreground: Tensor,
        alpha: Tensor,
        trajectory: Trajectory,
        *,
        paste_back: bool = False,
        **options,
    ) -> CompositeResult:
        """Put a foreground into a background that fits in memory; `vera-lite composite` streams longer ones.

        Args:
            background, foreground, alpha, trajectory: see :meth:`prepare`.
            paste_back: keep the background outside the mask (Vera's lesson); without, the whole frame is
                the model's (the paper).
            options: ``seed``, and those of :meth:`generate`.

        Raises:
            UserError: the shapes do not fit, or no object can be seen.
        """
        layers = self.layers_for(background, foreground, alpha, trajectory, **options)
        times, size = range(len(background)), background.shape[-2:]
        generated, mask, matte = (
            torch.stack([enlarge(layers[name], t, len(background), size) for t in times])
            for name in ("generated", "mask", "matte")
        )
        final = composite(generated, mask, background) if paste_back else generated
        return CompositeResult(final, generated, mask, matte)
