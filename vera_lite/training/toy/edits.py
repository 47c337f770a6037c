"""Toy edits as RVEDiT's and MiVE's batches, rendered and encoded on request."""

from vera_lite.codecs import PatchCodec, latent_mask
from vera_lite.systems.mive import MiVEBatch
from vera_lite.systems.rvedit import RVEDiTBatch
from vera_lite.toy.edits import EditConfig
from vera_lite.toy.scene_edits import SceneEditConfig
from vera_lite.training.data import RenderedBatches, RenderedData
from vera_lite.training.toy.layers import SAMPLING, SCENE_CODEC, SHIPPED_CODEC


class EditBatch(RVEDiTBatch, MiVEBatch):
    """A batch for RVEDiT and MiVE; ``reference`` is the target's first frame."""

    step: int


class EditBatches(RenderedBatches):
    """Item ``step``: an :class:`EditBatch`."""

    def __init__(self, world: EditConfig, codec: PatchCodec, *ranks: int):
        super().__init__(*ranks)
        self.world, self.codec = world, codec

    def __getitem__(self, step: int) -> EditBatch:
        batch, codec = self.world.render(self.seed, self.clips(step)), self.codec
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
        world: their content.
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
        return {"clip_size": self.world.size, "sampling": SAMPLING}


class SceneEditData(ToyEditData):
    """Edits of things on places.

    Args:
        world: their content.
        codec: a file of :class:`vera_lite.codecs.PatchCodec`; None is the shipped one of this world.
        options: of :class:`vera_lite.training.data.RenderedData`.
    """

    def __init__(
        self,
        world: SceneEditConfig = SceneEditConfig(),  # noqa: B008 (frozen)
        codec: str | None = None,
        **options,
    ):
        super().__init__(world, codec or str(SCENE_CODEC), **options)
