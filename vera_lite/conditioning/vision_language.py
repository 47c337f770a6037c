"""Vision-language models: one wrapper for the toy Qwen3-VL in the package and for real models.

All are transformers' own classes with their own processors. The toy model is a small
``Qwen3VLForConditionalGeneration`` with a tokenizer of whole words.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from vera_lite.errors import UserError, unknown_word
from vera_lite.media.clip import to_uint8

TOY_VLM = Path(__file__).parents[1] / "assets" / "vlm_toy"


@dataclass(frozen=True)
class Prompt:
    """The model's input."""

    tensors: dict[str, Tensor]  # keyword arguments of the model
    metadata: list  # of each clip: which frames were sampled (``frames_indices``)


#: A question and its answer, or None for an answer that the model is to give.
Turn = tuple[str, str | None]


def chat(
    processor,
    clips: Sequence[Tensor],
    dialogues: Sequence[Sequence[Turn]],
    images: Sequence[Tensor | None] | None = None,
    fps: float = 8.0,
    sample_frames: bool | int = True,
    to_be_answered: bool = True,
) -> Prompt:
    """Clips and dialogues about them in a model's chat format: [image,] clip, turns.

    Args:
        processor: of the model.
        clips: (T, 3, H, W) in [0, 1] each.
        dialogues: one or more turns about each clip; only the last may lack its answer.
        images: (3, H, W) in [0, 1] each, shown before the clip; None for none.
        fps: frames per second of the clips.
        sample_frames: True: the processor chooses frames at its own rate; False: every frame is shown; a
            number: that many frames, spread evenly. The model reads the time of each frame in the clip.
        to_be_answered: end the prompt with the start of the model's answer, if the last turn has none. False:
            end it with the user's turn, for reading features.

    Raises:
        UserError: a clip is not (T, 3, H, W), or a word is not in the toy model's vocabulary.
    """
    from transformers.video_utils import VideoMetadata

    images = images or [None] * len(clips)
    rows, open_ended = [], False
    for clip, turns, image in zip(clips, dialogues, images, strict=True):
        if clip.ndim != 4 or clip.shape[1] != 3:
            raise UserError(f"a clip for the model is (T, 3, H, W), not {tuple(clip.shape)}.")
        messages = []
        content = [{"type": "image"}] * (image is not None) + [{"type": "video"}]
        for question, answer in turns:
            messages.append({"role": "user", "content": content + [{"type": "text", "text": question}]})
            if answer is not None:
                messages.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
            content = []
        open_ended = to_be_answered and turns[-1][1] is None
        rows.append(processor.apply_chat_template(messages, add_generation_prompt=open_ended))
    shown = [torch.arange(len(clip)) for clip in clips]
    if sample_frames is not True and sample_frames:
        shown = [torch.linspace(0, len(clip) - 1, sample_frames).round().long() for clip in clips]
    inputs = processor(
        text=rows,
        images=[to_uint8(image) for image in images if image is not None] or None,
        videos=[to_uint8(clip[indices]) for clip, indices in zip(clips, shown, strict=True)],
        video_metadata=[
            VideoMetadata(total_num_frames=len(clip), fps=fps, frames_indices=indices.tolist())
            for clip, indices in zip(clips, shown, strict=True)
        ],
        return_metadata=True,
        **({} if sample_frames is True else {"do_sample_frames": False}),
        return_tensors="pt",
        padding=True,
        # Rows that the model continues must end together; in training all rows start together.
        padding_side="left" if dialogues[0][-1][1] is None else "right",
    )
    metadata = inputs.pop("video_metadata")
    unknown = processor.tokenizer.unk_token_id
    if unknown is not None and (inputs["input_ids"] == unknown).any():
        for text in (said for turns in dialogues for turn in turns for said in turn if said):
            _check_vocabulary(processor.tokenizer, text)
    return Prompt(dict(inputs), metadata)


def check_words(tokenizer, text: str) -> None:
    """Raise UserError if a prompt has a special token of the model, or a word that a tokenizer of whole words
    does not know."""
    for token in tokenizer.get_added_vocab():
        if token in text:
            raise UserError(f"{token!r} in the prompt is a special token of the model: leave it out.")
    if tokenizer.unk_token_id is not None:
        _check_vocabulary(tokenizer, text)


def _check_vocabulary(tokenizer, text: str) -> None:
    """Raise UserError if a word has no token of its own, or characters that the tokenizer skips."""
    for word in text.split():
        if "".join(tokenizer.tokenize(word)).lower() != word.lower():
            known = sorted(word for word in tokenizer.get_vocab() if word.isalpha() and len(word) > 1)
            raise unknown_word(word, known)


class VisionLanguageModel:
    """A transformers vision-language model and its processor.

    Args:
        model: e.g. ``Qwen3VLForConditionalGeneration``; put into evaluation mode.
        processor: its processor.
        sample_frames: see :func:`chat`.
    """

    def __init__(self, model, processor, sample_frames: bool = True):
        self.model, self.processor, self.sample_frames = model.eval(), processor, sample_frames

    @classmethod
    def from_pretrained(cls, name: str | Path | None = None, download: bool = False, **kwargs):
        """Load a model and its processor.

        Args:
            name: a local folder, or a model of the Hub: "Qwen/Qwen3-VL-8B-Instruct",
                "Qwen/Qwen2.5-VL-3B-Instruct" and "zai-org/GLM-4.6V-Flash" are tested with tiny random
                weights, not with the checkpoints; None is the toy model in the package.
            download: fetch what is not on this machine yet. Without it, nothing touches the network.
            kwargs: for the model, e.g. ``dtype=torch.bfloat16, device_map="auto"``.

        Raises:
            UserError: there is no such folder, or the model is not on this machine.
        """
        from transformers import AutoModelForImageTextToText, AutoProcessor

        if name is None:
            name = TOY_VLM
            kwargs.setdefault("dtype", torch.float32)  # stored in half, too slow on a CPU
        kwargs.setdefault("attn_implementation", "sdpa")  # what the attention tap can see
        if Path(name).is_dir() and not (Path(name) / "config.json").is_file():
            raise UserError(f"{name} is no model folder: it has no config.json.")
        local = {"local_files_only": not download}
        # Auto classes look for an adapter first, and ask the network unless told twice.
        kwargs.setdefault("adapter_kwargs", local)
        try:
            model = AutoModelForImageTextToText.from_pretrained(name, use_safetensors=True, **local, **kwargs)
            processor = AutoProcessor.from_pretrained(name, **local)
        except OSError as error:
            hint = " Pass download=True to fetch it." if not download and not Path(name).is_dir() else ""
            raise UserError(f"cannot load the vision-language model {str(name)!r}.{hint}") from error
        return cls(model, processor)

    def prompt(self, clips, texts, images=None, fps: float = 8.0) -> Prompt:
        """Clips and texts as this model's input, on its device; see :func:`chat`."""
        prompt = chat(
            self.processor, clips, [[(text, None)] for text in texts], images, fps, self.sample_frames
        )
        tensors = {k: v.to(self.model.device) for k, v in prompt.tensors.items()}
        return Prompt(tensors, prompt.metadata)

    @torch.inference_mode()
    def answer(self, prompt: Prompt, max_new_tokens: int = 48) -> list[str]:
        """The model's answers to the rows of a prompt, decoded greedily."""
        length = prompt.tensors["input_ids"].shape[1]
        tokens = self.model.generate(**prompt.tensors, max_new_tokens=max_new_tokens, do_sample=False)
        return self.processor.batch_decode(tokens[:, length:], skip_special_tokens=True)


@functools.lru_cache(maxsize=2)
def frozen_vlm(name: str | None) -> VisionLanguageModel:
    """The vision-language model of that name, frozen; loaded once."""
    vlm = VisionLanguageModel.from_pretrained(name)
    vlm.model.requires_grad_(False)
    return vlm
