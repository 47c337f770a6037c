"""MiVE's pipeline: ``pipe(video, prompt, reference) -> EditResult``."""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from vera_lite.conditioning.vision_language import check_words
from vera_lite.errors import check_pixels, check_tensor
from vera_lite.pipelines.base import Pipeline, check_prompts, check_video
from vera_lite.systems import MiVE


class MiVEPipeline(Pipeline):
    """MiVE, its vision-language model and its codec, ready to edit.

    The model draws the whole video anew: there are no layers, and no pixel comes from the source. There is no
    guidance; the paper names neither guidance nor steps nor shift.

    At full scale the parts are Wan2.1-T2V-14B's and Qwen3-VL's::

        MiVEPipeline(
            MiVE.from_wan(wan / "transformer", vlm="Qwen/Qwen3-VL-8B-Instruct"),
            WanCodec.from_pretrained(wan / "vae"),
            (81, 720, 1280),
            Sampling(steps=50, shift=5.0),  # diffusers' settings for Wan2.1 at 720p
        )
    """

    systems = (MiVE,)
    reads_time = True
    shipped = "mive_toy"

    def prepare(self, video: Tensor, prompt: str, reference: Tensor) -> tuple[Tensor, list[str], Tensor]:
        """
        Args:
            video: (T, 3, H, W) in [0, 1].
            prompt: e.g. "make the blue square green".
            reference: (3, H', W') in [0, 1], the edited first frame.
        """
        check_video(video)
        self.check_prompt(prompt)
        check_tensor("the reference", reference, 3, "H", "W")
        check_pixels("the reference", reference)
        small = F.interpolate(reference[None], size=self.clip_size[1:], mode="area")
        return self.shrink(video)[None], [prompt], small

    @property
    def reader(self) -> nn.Module:
        return self.system.vlm.model

    def check_prompt(self, prompt: str) -> None:
        super().check_prompt(prompt)
        check_words(self.system.vlm.processor.tokenizer, prompt)

    def conditions(self, video: Tensor, prompts: Sequence[str], references: Tensor, fps: float = 8.0) -> dict:
        """
        Args:
            video: (B, T, 3, H, W) in [0, 1], of ``clip_size``.
            prompts: B sentences.
            references: (B, 3, H, W) in [0, 1], the edited first frame of each clip.
            fps: frames per second of these clips.
        """
        check_prompts(video, prompts)
        check_tensor("the batch of references", references, *video[:, 0].shape)
        return {
            "source": self.encode(video),
            "reading": self.system.read(video.float(), prompts, references.float(), fps),
            "reference": self.encode(references[:, None]),  # a clip of one frame
        }
