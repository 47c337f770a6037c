"""Toy edits as RVEDiT's and MiVE's batches, rendered and encoded on request."""

from typing import TypedDict

from torch import Tensor

from vera_lite.codecs import PatchCodec, latent_mask
from vera_lite.toy.edits import EditConfig, render_edits
from vera_lite.training.data import RenderedBatches, RenderedData
from vera_lite.training.toy.layers import SHIPPED_CODEC


class EditBatch(TypedDict):
    """What RVEDiT and MiVE train on: latents (B, C, t, h, w) for the denoiser, pixels in [0, 1] and words
    for the vision-language model."""

    source: Tensor
    target: Tensor
    source_video: Tensor  # (B, T, 3, H, W)
    target_video: Tensor
    reference: Tensor  # latents of the target's first frame, coded as a clip of its own
    reference_image: Tensor  # (B, 3, H, W)
    changed: Tensor  # (B, 1, t, h, w), 1 where source and target differ
    instruction: list[str]
    target_caption: list[str]
    step: int


class EditBatches(RenderedBatches):
    """Item ``step``: an :class:`EditBatch`."""

    def __init__(self, world: EditConfig, codec: PatchCodec, *ranks: int):
        super().__init__(*ranks)
        self.world, self.codec = world, codec

    def __getitem__(self, step: int) -> EditBatch:
        batch, codec = render_edits(self.seed, self.clips(step), self.world), self.codec
        return {
            "source": codec.encode(batch.source),
            "target": codec.encode(batch.target),
            "source_video": batch.source,
            "target_video": batch.target,
            "reference": codec.encode(batch.target[:, :1]),
            "reference_image": batch.target[:, 0],
            "changed": latent_mask(codec, batch.changed),
            "instruction": batch.instruction,
            "target_caption": batch.target_caption,
            "step": step,
        }


class ToyEditData(RenderedData):
    """Toy edits in RVEDiT's four categories.

    Args:
        world: what they show.
        codec: a file of :class:`vera_lite.codecs.PatchCodec`; None is the shipped one.
        options: of :class:`vera_lite.training.data.RenderedData`.
    """

    def __init__(
        self,
        world: EditConfig = EditConfig(),  # noqa: B008 (frozen)
        codec: str | None = None,
        **options,
    ):
        super().__init__(**options)
        self.world, self.codec = world, PatchCodec.load(codec or SHIPPED_CODEC)

    def batches(self, seed: int) -> EditBatches:
        return EditBatches(self.world, self.codec, self.batch_size, seed, *self.ranks)

    @property
    def pipeline_settings(self) -> dict:
        """Arguments of the pipeline for a system trained on these data."""
        return {"clip_size": self.world.size}
