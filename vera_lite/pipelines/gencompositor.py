"""GenCompositor's pipeline: ``pipe(background, foreground, alpha, trajectory) -> EditResult``."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vera_lite.codecs import Codec
from vera_lite.errors import UserError, check_pixels, check_tensor
from vera_lite.media.clip import composite
from vera_lite.media.placement import inflate_mask, object_extent, resample
from vera_lite.media.trajectory import Trajectory
from vera_lite.pipelines.base import (
    EditResult,
    Layers,
    Pipeline,
    Sampling,
    check_video,
    frame_choice,
)
from vera_lite.systems import GenCompositor
from vera_lite.systems.gencompositor import encode_conditions

#: How far an object reaches on its canvas, as a share of half the canvas: the usual share in the toy world.
CANVAS_FILL = 0.65


@dataclass(frozen=True)
class CompositeSampling(Sampling):
    """:class:`Sampling`, and one setting of GenCompositor's own.

    Attributes:
        paste_back: keep the background outside the mask, bit for bit (Vera's way). False: the model draws the
            whole frame (the paper).
    """

    paste_back: bool = False


class GenCompositorPipeline(Pipeline):
    """GenCompositor and its codec, ready to put a foreground into a background.

    Args:
        system, codec, clip_size, sampling: see :class:`Pipeline`.
        mask_sigma: for :func:`.inflate_mask`, in pixels of ``clip_size``, as in training; None does not
            inflate masks.
        text: features (T, text_dim) of the empty prompt, for a backbone that reads text.

    At full scale the parts are CogVideoX's::

        GenCompositorPipeline(
            GenCompositor.from_cogvideox(transformer),  # a diffusers.CogVideoXTransformer3DModel
            CogVideoXCodec.from_pretrained(cogvideox / "vae"),
            (49, 480, 720),
            CompositeSampling(steps=50, shift=1.0),  # diffusers' steps for CogVideoX; DDIM has no shift
            mask_sigma=10,
            text=empty_prompt,
        )

    Raises:
        ValueError: the backbone reads text and there is none.
    """

    systems = (GenCompositor,)
    shipped = "gencompositor_toy"
    sampling_type = CompositeSampling

    def __init__(
        self,
        system: nn.Module,
        codec: Codec,
        clip_size: tuple[int, int, int],
        sampling: CompositeSampling | dict,
        mask_sigma: float | None,
        text: Tensor | None = None,
    ):
        super().__init__(system, codec, clip_size, sampling)
        if mask_sigma is not None and not 0 < mask_sigma <= self.clip_size[2]:
            raise ValueError(f"mask_sigma lies above 0 and up to the clip's width, not {mask_sigma!r}.")
        if text is None and system.config.backbone.text_embed_dim is not None:
            raise ValueError("this backbone reads text: give the empty prompt's features as text=.")
        self.mask_sigma, self.text = mask_sigma, text

    @property
    def settings(self) -> dict:
        return super().settings | {"mask_sigma": self.mask_sigma}

    def prepare(
        self, background: Tensor, foreground: Tensor, alpha: Tensor, trajectory: Trajectory
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Make the model's inputs from a person's inputs, as in training.

        Everything is resampled to ``clip_size``: frames evenly over the whole length of each video. Sides
        are squeezed, not cropped, and the foreground's canvas is squeezed like the background. On the canvas
        the object has one size in all frames, see :data:`CANVAS_FILL`; the path's scales only change the
        matte.

        Args:
            background: (T, 3, H, W) in [0, 1].
            foreground: (S, 3, h, w) in [0, 1], straight colour; the object may be anywhere.
            alpha: (S, 1, h, w) in [0, 1]; above 0.5 is the object.
            trajectory: where the object's middle goes, in pixels of the background; at scale 1 a pixel of
                the foreground is one of the background.

        Returns:
            The arguments of :meth:`conditions`, with a batch axis of 1.

        Raises:
            ValueError: a tensor has another shape.
            UserError: the path is for another frame size, or the object is not visible or covers everything.
        """
        check_video(background)
        check_video(foreground)
        check_tensor("alpha", alpha, len(foreground), 1, *foreground.shape[-2:])
        check_pixels("alpha", alpha)
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
                "alpha is nowhere above 0.5 in the frames that the model sees: give a matte with an object."
            )
        centres, reach = object_extent(solid)
        small = torch.tensor([width, height], dtype=torch.float64)
        squeeze = small / torch.tensor(size[::-1])

        zoom = CANVAS_FILL / (reach.cpu() * squeeze / (small / 2)).max()
        middle, scales = ((small - 1) / 2).expand(frames, 2), (zoom * squeeze).expand(frames, 2)
        colour, canvas_alpha = resample(foreground, alpha, centres, middle, scales, (height, width))
        canvas = composite(colour, canvas_alpha, torch.ones_like(colour))

        positions, scales = trajectory.sample(frames)
        # Below a hundredth nothing is visible at this size, and the filter would grow without limit.
        positions, scales = (positions + 0.5) * squeeze - 0.5, scales[:, None].clamp_min(0.01) * squeeze
        _, matte = resample(foreground, alpha, centres, positions, scales, (height, width))
        if not (matte > 0.5).any():
            raise UserError(f"the object is too small for a model of {width}x{height} pixels: scale it up.")
        mask = matte if self.mask_sigma is None else inflate_mask(matte, self.mask_sigma)
        if (mask > 0.5).all():
            raise UserError("the object covers the whole background in every frame: scale it down.")
        return self.shrink(background)[None], canvas[None], mask[None], matte[None]

    def conditions(
        self, background: Tensor, foreground: Tensor | None, mask: Tensor, matte: Tensor | None = None
    ) -> dict:
        """
        Args:
            background: (B, T, 3, H, W) in [0, 1], of ``clip_size``.
            foreground: (B, T, 3, H, W), the object in the middle of a white canvas. None is a blank (white)
                video and asks for removal: the background without any object.
            mask: (B, T, 1, H, W), inflated; the model may draw where it is above 0.5.
            matte: (B, T, 1, H, W), where the object goes; for the result, the model does not see it.
        """
        foreground = torch.ones_like(background) if foreground is None else foreground
        check_tensor("the foreground", foreground, *background.shape)
        check_tensor("the mask", mask, *background[:, :, :1].shape)
        weights = next(self.system.parameters())
        pixels = (v.to(weights.device).float() for v in (background, foreground, mask))
        conditions = {name: v.to(weights) for name, v in encode_conditions(self.codec, *pixels).items()}
        if self.text is not None:
            conditions["text"] = self.text.to(weights).expand(len(background), -1, -1)
        return conditions

    def layers(
        self,
        background: Tensor,
        foreground: Tensor | None,
        mask: Tensor,
        matte: Tensor | None = None,
        **options,
    ) -> Layers:
        """The composite, with the mask and the matte beside it."""
        drawn = super().layers(background, foreground, mask, **options) | {"mask": mask}
        return drawn if matte is None else drawn | {"matte": matte}

    def read(self, layers: Layers, source: Tensor, sampling: CompositeSampling) -> EditResult:
        """final is the composite; with ``paste_back``, the composite laid over the background by the mask."""
        drawn = layers["composite"]
        # Rounded to 8 bits, so that a mask file shows exactly where the background is kept.
        mask = (255 * layers["mask"]).round() / 255
        final = composite(drawn, mask, source) if sampling.paste_back else drawn
        return EditResult(final, drawn, mask=mask, matte=layers.get("matte"))
