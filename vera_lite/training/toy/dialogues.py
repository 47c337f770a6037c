"""Training of the toy vision-language model: questions about toy clips, answered word by word."""

from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vera_lite.conditioning.vision_language import Prompt, chat
from vera_lite.toy.dialogues import ask, talk
from vera_lite.toy.edits import EditConfig
from vera_lite.toy.scene_edits import SceneEditConfig
from vera_lite.toy.scenes import SceneConfig
from vera_lite.toy.vlm import toy_processor, toy_vocabulary
from vera_lite.toy.world import WorldConfig
from vera_lite.training.data import RenderedBatches, RenderedData
from vera_lite.training.module import attention_by_products
from vera_lite.training.optim import build_optimizer, scheduled

#: No object hides another: each has its own place.
DIALOGUE_WORLD = WorldConfig(behind=0.0, distractor=0.6)
DIALOGUE_SCENES = SceneConfig(behind=0.0, distractor=0.6)


class DialogueBatches(RenderedBatches):
    """Item ``step``: rendered clips with questions and answers, as the model's inputs and their ``labels``
    (-100 for every token that is no answer)."""

    def __init__(self, edits: bool, *ranks: int, scenes: bool = False):
        super().__init__(*ranks)
        self.edits, self.scenes = edits, scenes
        self.processor = toy_processor(scenes=scenes)
        words = self.processor.tokenizer.get_vocab()
        self.assistant, self.end = words["assistant"], words["<|im_end|>"]

    def __getitem__(self, step: int) -> dict[str, Tensor]:
        indices = self.clips(step)
        if self.edits and step % 2 == 0:
            return self._answers(self._orders(indices))
        batch = (DIALOGUE_SCENES if self.scenes else DIALOGUE_WORLD).render(self.seed, indices)
        if step % 12 == 11:  # questions with an image have more tokens, so they get their own batches
            asked = ask(batch, "compare", self.seed, indices)
            clips, images = [d.clip for d in asked], [d.image for d in asked]
            prompt = chat(self.processor, clips, [[(d.question, d.answer)] for d in asked], images)
        else:
            prompt = chat(self.processor, list(batch.composite), talk(batch, self.seed, indices))
        return self._answers(prompt)

    def _orders(self, indices: range) -> Prompt:
        """The question is an edit's instruction, the answer a description of the edited clip."""
        edits = (SceneEditConfig() if self.scenes else EditConfig()).render(self.seed, indices)
        turns = [[turn] for turn in zip(edits.instruction, edits.target_caption, strict=True)]
        return chat(self.processor, list(edits.source), turns)

    def _answers(self, prompt: Prompt) -> dict[str, Tensor]:
        tokens = prompt.tensors["input_ids"]
        # Only answers are learned: the tokens after the k-th "assistant", up to the 2k-th end of a message.
        answers = (tokens == self.assistant).long().cumsum(1)
        ends = (tokens == self.end).long()
        said = (answers > 0) & (ends.cumsum(1) - ends == 2 * answers - 1) & (tokens != self.assistant)
        return {**prompt.tensors, "labels": torch.where(said, tokens, -100)}


class ToyDialogues(RenderedData):
    """Questions about toy clips, rendered on request.

    Args:
        edits: every other batch has toy edits (:mod:`vera_lite.toy.edits`): the question is the instruction,
            the answer describes the edited clip.
        scenes: clips of the world of things on places; otherwise of shapes.
        options: of :class:`vera_lite.training.data.RenderedData`.
    """

    def __init__(self, edits: bool = False, scenes: bool = False, **options):
        super().__init__(**options)
        self.edits, self.scenes = edits, scenes

    def batches(self, seed: int) -> DialogueBatches:
        return DialogueBatches(self.edits, self.batch_size, seed, *self.ranks, scenes=self.scenes)


class DialogueModule(L.LightningModule):
    """Trains a small ``Qwen3VLForConditionalGeneration`` from scratch: cross-entropy of the answers.

    Args:
        text, vision: fields of ``Qwen3VLTextConfig`` and ``Qwen3VLVisionConfig``; the vocabulary, the
            patches and the widths that must agree are filled in.
        scenes: the vocabulary also has the words of things on places.
        lr: of AdamW.
        muon_lr: of Muon, which takes the matrices of the blocks; None: AdamW for all.
        weight_decay: of AdamW.
        warmup_steps, decay_from: see :func:`vera_lite.training.optim.scheduled`.
    """

    def __init__(
        self,
        text: dict,
        vision: dict,
        scenes: bool = False,
        lr: float = 2e-3,
        muon_lr: float | None = 0.02,
        weight_decay: float = 0.01,
        warmup_steps: int = 100,
        decay_from: float = 0.4,
    ):
        super().__init__()
        self.model = toy_qwen3_vl(text, vision, scenes)
        self.lr, self.muon_lr, self.weight_decay = lr, muon_lr, weight_decay
        self.warmup_steps, self.decay_from = warmup_steps, decay_from

    def training_step(self, batch: dict, _index: int) -> Tensor:
        loss, _ = self._score(batch)
        self.log("loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: dict, _index: int) -> None:
        loss, accuracy = self._score(batch)
        values = {"val": loss, "val/word_accuracy": accuracy}
        self.log_dict(values, prog_bar=True, sync_dist=True, batch_size=len(batch["labels"]))

    def _score(self, batch: dict) -> tuple[Tensor, Tensor]:
        """Mean cross-entropy and accuracy of the answers' words, each given the true words before it."""
        batch = dict(batch)
        labels = batch.pop("labels")[:, 1:]
        with attention_by_products():
            logits = self.model(**batch).logits[:, :-1]
        said = labels != -100
        logits, labels = logits[said].float(), labels[said]
        return F.cross_entropy(logits, labels), (logits.argmax(-1) == labels).float().mean()

    def configure_optimizers(self) -> dict:
        optimizer = build_optimizer(self.model, self.lr, self.muon_lr, self.weight_decay)
        return scheduled(optimizer, self.trainer.max_steps, self.warmup_steps, self.decay_from)

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        config: Any = self.model.config
        checkpoint["vera_lite"] = {"vision_language": config.to_dict()}


def toy_qwen3_vl(text: dict, vision: dict, scenes: bool = False) -> nn.Module:
    """A small random Qwen3-VL for the toy processor; see :class:`DialogueModule` for the arguments."""
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

    words = toy_vocabulary(scenes)
    config = Qwen3VLConfig(
        text_config={
            "vocab_size": len(words),
            "pad_token_id": words["<|endoftext|>"],
            "eos_token_id": words["<|im_end|>"],
            "tie_word_embeddings": True,
            **text,
        },
        vision_config={
            "patch_size": 2,
            "temporal_patch_size": 2,
            "spatial_merge_size": 2,
            "num_position_embeddings": 256,  # a 16 x 16 grid of patches
            "out_hidden_size": text["hidden_size"],
            **vision,
        },
        image_token_id=words["<|image_pad|>"],
        video_token_id=words["<|video_pad|>"],
        vision_start_token_id=words["<|vision_start|>"],
        vision_end_token_id=words["<|vision_end|>"],
        tie_word_embeddings=True,
    )
    return Qwen3VLForConditionalGeneration(config)
