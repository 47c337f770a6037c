"""RVEDiT's pipeline: ``pipe(video, prompt) -> EditResult``."""

from collections.abc import Sequence

from torch import Tensor, nn

from vera_lite.conditioning.vision_language import check_words
from vera_lite.pipelines.base import Pipeline, check_prompts, check_video
from vera_lite.systems import RVEDiT


class RVEDiTPipeline(Pipeline):
    """RVEDiT, its vision-language model and its codec, ready to edit.

    The model draws the whole video anew: there are no layers, and no pixel comes from the source. There is no
    guidance, as in Kiwi-Edit, on which RVEDiT stands; the paper names neither guidance nor steps.

    At full scale the parts are Wan2.2-TI2V-5B's and Qwen2.5-VL's::

        RVEDiTPipeline(
            RVEDiT.from_wan(wan / "transformer", vlm="Qwen/Qwen2.5-VL-3B-Instruct"),
            WanCodec.from_pretrained(wan / "vae"),
            (81, 704, 1280),
            Sampling(steps=50, shift=5.0),  # the settings of Wan2.2's ti2v-5B and of Kiwi-Edit
        )
    """

    systems = (RVEDiT,)
    reads_time = True
    shipped = "rvedit_toy"

    def prepare(self, video: Tensor, prompt: str) -> tuple[Tensor, list[str]]:
        """
        Args:
            video: (T, 3, H, W) in [0, 1].
            prompt: e.g. "make the blue square green".
        """
        check_video(video)
        self.check_prompt(prompt)
        return self.shrink(video)[None], [prompt]

    @property
    def reader(self) -> nn.Module:
        return self.system.vlm.model

    def check_prompt(self, prompt: str) -> None:
        super().check_prompt(prompt)
        check_words(self.system.vlm.processor.tokenizer, prompt)

    def conditions(self, video: Tensor, prompts: Sequence[str], fps: float = 8.0) -> dict:
        """
        Args:
            video: (B, T, 3, H, W) in [0, 1], of ``clip_size``.
            prompts: B sentences.
            fps: frames per second of these clips.
        """
        check_prompts(video, prompts)
        return {"source": self.encode(video), "context": self.system.context(video.float(), prompts, fps)}
