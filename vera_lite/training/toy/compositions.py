"""Toy compositions as GenCompositor's batches, rendered and encoded when asked for."""

import torch
from torch import Tensor
from torch.utils.data import Dataset

from vera_lite.codecs import PatchCodec
from vera_lite.diffusion.draws import StepRandom
from vera_lite.media.clip import composite
from vera_lite.media.placement import LUMINANCE_GAMMA, augment_luminance, inflate_mask
from vera_lite.systems.gencompositor import encode_conditions
from vera_lite.toy.compositions import CompositionWorld, render_compositions
from vera_lite.training.data import RenderedData
from vera_lite.training.toy.layers import SAMPLING, SHIPPED_CODEC

#: Of :func:`.inflate_mask`: three pixels of 32, as far as the toy world's shadows reach.
MASK_SIGMA = 1.2


class CompositionBatches(Dataset):
    """Item ``step``: latents of that step's clips; clip numbers never repeat."""

    def __init__(self, data: "ToyCompositionData", seed: int, rank: int = 0, world_size: int = 1):
        self.data, self.seed, self.rank, self.world_size = data, seed, rank, world_size

    def __getitem__(self, step: int) -> dict[str, Tensor | int]:
        data, clips = self.data, self.data.batch_size
        first = (step * self.world_size + self.rank) * clips
        batch = render_compositions(self.seed, range(first, first + clips), data.world)
        white = torch.ones_like(batch.background)
        foreground = composite(batch.foreground, batch.alpha, white)
        if data.luminance_gamma is not None:
            low, high = data.luminance_gamma
            random = StepRandom(self.seed, step, clips, self.rank, self.world_size)
            foreground = augment_luminance(foreground, low + (high - low) * random.uniform())
        mask = batch.matte
        if data.mask_sigma is not None:
            mask = inflate_mask(mask.flatten(0, 1), data.mask_sigma).view_as(mask)
        return {
            "composite": data.codec.encode(batch.composite),
            "background": data.codec.encode(batch.background),
            "blank": data.codec.encode(white[:1]).expand(clips, -1, -1, -1, -1),
            **encode_conditions(data.codec, batch.background, foreground, mask),
            "step": step,
        }


class ToyCompositionData(RenderedData):
    """Toy compositions.

    Args:
        world: see :class:`vera_lite.toy.compositions.CompositionWorld`.
        batch_size: clips a rank and step.
        luminance_gamma: range of gamma for :func:`.augment_luminance` of the foreground;
            None is the ablation without.
        mask_sigma: of :func:`.inflate_mask`, in pixels; None is the ablation without.
        seed: of the world; validation uses another one.
        validation_clips: clips of a validation round.
        workers: loader processes.
        codec: a file of :class:`vera_lite.codecs.PatchCodec`; None is the shipped one.
    """

    batches = CompositionBatches

    def __init__(
        self,
        world: CompositionWorld = CompositionWorld(),  # noqa: B008 (frozen)
        batch_size: int = 16,
        luminance_gamma: tuple[float, float] | None = LUMINANCE_GAMMA,
        mask_sigma: float | None = MASK_SIGMA,
        seed: int = 1,
        validation_clips: int = 256,
        workers: int = 0,
        codec: str | None = None,
    ):
        super().__init__()
        self.world, self.batch_size = world, batch_size
        self.luminance_gamma, self.mask_sigma = luminance_gamma, mask_sigma
        self.seed, self.validation_clips, self.workers = seed, validation_clips, workers
        self.codec = PatchCodec.load(codec or SHIPPED_CODEC)

    @property
    def pipeline_settings(self) -> dict:
        """What the pipeline of a system trained on these data needs to know of them."""
        size = (self.world.frames, self.world.height, self.world.width)
        return {"clip_size": size, "sampling": SAMPLING, "mask_sigma": self.mask_sigma}
