"""Toy compositions as GenCompositor's batches, rendered and encoded on request."""

import torch

from vera_lite.codecs import PatchCodec
from vera_lite.diffusion.draws import StepRandom
from vera_lite.media.clip import composite
from vera_lite.media.placement import LUMINANCE_GAMMA, augment_luminance, inflate_mask
from vera_lite.systems.gencompositor import encode_conditions
from vera_lite.toy.compositions import CompositionConfig
from vera_lite.toy.scene_compositions import SceneCompositionConfig
from vera_lite.training.data import RenderedBatches, RenderedData
from vera_lite.training.toy.layers import SAMPLING, SCENE_CODEC, SHIPPED_CODEC

#: For :func:`.inflate_mask`: three pixels of 32, as far as shadows reach in the toy world.
MASK_SIGMA = 1.2


class CompositionBatches(RenderedBatches):
    """Item ``step``: a :class:`CompositionBatch`; arguments as of :class:`ToyCompositionData`."""

    def __init__(
        self,
        world: CompositionConfig,
        codec: PatchCodec,
        luminance_gamma: tuple[float, float] | None,
        mask_sigma: float | None,
        *ranks: int,
    ):
        super().__init__(*ranks)
        self.world, self.codec = world, codec
        self.luminance_gamma, self.mask_sigma = luminance_gamma, mask_sigma

    def __getitem__(self, step: int) -> dict:
        batch, codec = self.world.render(self.seed, self.clips(step)), self.codec
        white = torch.ones_like(batch.background)
        foreground = composite(batch.foreground, batch.alpha, white)
        if self.luminance_gamma is not None:
            low, high = self.luminance_gamma
            random = StepRandom(self.seed, step, self.batch_size, self.rank, self.world_size)
            foreground = augment_luminance(foreground, low + (high - low) * random.uniform())
        mask = batch.matte if batch.mask is None else batch.mask
        if self.mask_sigma is not None:
            mask = inflate_mask(mask.flatten(0, 1), self.mask_sigma).view_as(mask)
        return {
            "composite": codec.encode(batch.composite),
            "background": codec.encode(batch.background),
            "blank": codec.encode(white[:1]).expand(self.batch_size, -1, -1, -1, -1),
            **encode_conditions(codec, batch.background, foreground, mask),
            "step": step,
        }


class ToyCompositionData(RenderedData):
    """Toy compositions.

    Args:
        world: their content.
        luminance_gamma: range of gamma for :func:`.augment_luminance` of the foreground; None is the ablation
            without it.
        mask_sigma: for :func:`.inflate_mask`, in pixels; None is the ablation without it.
        codec: a file of :class:`vera_lite.codecs.PatchCodec`; None is the shipped one.
        options: of :class:`vera_lite.training.data.RenderedData`.
    """

    def __init__(
        self,
        world: CompositionConfig = CompositionConfig(),  # noqa: B008 (frozen)
        luminance_gamma: tuple[float, float] | None = LUMINANCE_GAMMA,
        mask_sigma: float | None = MASK_SIGMA,
        codec: str | None = None,
        **options,
    ):
        super().__init__(**options)
        self.world, self.codec = world, PatchCodec.load(codec or SHIPPED_CODEC)
        self.luminance_gamma, self.mask_sigma = luminance_gamma, mask_sigma

    def batches(self, seed: int) -> CompositionBatches:
        options = (self.luminance_gamma, self.mask_sigma)
        return CompositionBatches(self.world, self.codec, *options, self.batch_size, seed, *self.ranks)

    @property
    def pipeline_settings(self) -> dict:
        """Arguments of the pipeline for a system trained on these data."""
        return {"clip_size": self.world.size, "sampling": SAMPLING, "mask_sigma": self.mask_sigma}


class SceneCompositionData(ToyCompositionData):
    """Compositions of things on places, with masks as rough as a person's.

    Args:
        world: their content.
        codec: a file of :class:`vera_lite.codecs.PatchCodec`; None is the shipped one of this world.
        options: of :class:`ToyCompositionData`.
    """

    def __init__(
        self,
        world: SceneCompositionConfig = SceneCompositionConfig(jitter=0.08),  # noqa: B008 (frozen)
        codec: str | None = None,
        **options,
    ):
        super().__init__(world, codec=codec or str(SCENE_CODEC), **options)
