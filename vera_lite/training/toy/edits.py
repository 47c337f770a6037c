"""Toy edits as RVEDiT's and MiVE's batches, rendered and encoded when asked for."""

from torch.utils.data import Dataset

from vera_lite.codecs import PatchCodec, latent_mask
from vera_lite.toy.edits import EditWorld, render_edits
from vera_lite.training.data import RenderedData
from vera_lite.training.toy.layers import SAMPLING, SHIPPED_CODEC


class EditBatches(Dataset):
    """Item ``step``: that step's clips, for the denoiser as latents and for the VLM as pixels and words;
    clip numbers never repeat."""

    def __init__(self, data: "ToyEditData", seed: int, rank: int = 0, world_size: int = 1):
        self.data, self.seed, self.rank, self.world_size = data, seed, rank, world_size

    def __getitem__(self, step: int) -> dict:
        data, clips = self.data, self.data.batch_size
        first = (step * self.world_size + self.rank) * clips
        batch = render_edits(self.seed, range(first, first + clips), data.world)
        return {
            "source": data.codec.encode(batch.source),
            "target": data.codec.encode(batch.target),
            "source_video": batch.source,
            "target_video": batch.target,
            # MiVE's edited first frame, coded as a clip of its own.
            "reference": data.codec.encode(batch.target[:, :1]),
            "reference_image": batch.target[:, 0],
            "changed": latent_mask(data.codec, batch.changed),
            "instruction": batch.instruction,
            "target_caption": batch.answer,
            "step": step,
        }


class ToyEditData(RenderedData):
    """Toy edits in RVEDiT's four categories.

    Args:
        world: see :class:`vera_lite.toy.edits.EditWorld`.
        batch_size: clips a rank and step.
        seed: of the world; validation uses another one.
        validation_clips: clips of a validation round.
        workers: loader processes.
        codec: a file of :class:`vera_lite.codecs.PatchCodec`; None is the shipped one.
    """

    batches = EditBatches

    def __init__(
        self,
        world: EditWorld = EditWorld(),  # noqa: B008 (frozen)
        batch_size: int = 16,
        seed: int = 1,
        validation_clips: int = 256,
        workers: int = 0,
        codec: str | None = None,
    ):
        super().__init__()
        self.world, self.batch_size = world, batch_size
        self.seed, self.validation_clips, self.workers = seed, validation_clips, workers
        self.codec = PatchCodec.load(codec or SHIPPED_CODEC)

    @property
    def pipeline_settings(self) -> dict:
        """What the pipeline of a system trained on these data needs to know of them."""
        size = (self.world.frames, self.world.height, self.world.width)
        return {"clip_size": size, "sampling": SAMPLING}
