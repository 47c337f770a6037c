"""Learnable editing tokens: queries that a vision-language model (VLM) fills with what an edit is about.

K learned embeddings stand at the end of the user's turn, after video and instruction. The VLM's causal
attention lets them read everything before them. Their last hidden states go through a connector into the
video model's cross-attention (RVEDiT, arXiv 2605.24674; the mechanism is Kiwi-Edit's). The same pass yields
*native* tokens: the hidden states of the video and of the instruction.
"""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vera_lite.conditioning.readings import Readings, padded
from vera_lite.conditioning.vision_language import VisionLanguageModel, chat
from vera_lite.errors import UserError


class Context(NamedTuple):
    """The VLM's tokens for an edit, in the width D of the video model."""

    editing: Tensor  #: X_e (B, K, D).
    video: Tensor  #: X_v (B, V, D); clips with fewer tokens than the longest end with zeros.
    text: Tensor  #: X_l (B, W, D), the instruction; it ends with zeros, as Wan pads its text.


class Before(NamedTuple):
    """The VLM's pass over the part of a prompt before the queries.

    Attributes:
        hidden: last hidden states (B, start, D_vlm).
        cache: transformers' cache of keys and values.
        position: rotary positions of the whole prompt (3, B, L).
    """

    hidden: Tensor
    cache: Any
    position: Tensor


class Connector(nn.Sequential):
    """Linear, GELU (tanh), Linear; the last starts at zero, so an untrained connector puts out zeros."""

    def __init__(self, vlm_dim: int, dim: int):
        super().__init__(nn.Linear(vlm_dim, dim), nn.GELU("tanh"), nn.Linear(dim, dim))
        nn.init.zeros_(self[2].weight)
        nn.init.zeros_(self[2].bias)


class EditingTokens(nn.Module):
    """Queries and connectors. The VLM is an argument of each call and not part of this module.

    Args:
        vlm_dim: width of the VLM's language tower.
        dim: D, of the video model's context.
        tokens: K; 512 in the paper, for video.
        text_tokens: W; a longer instruction is an error.
        read: which hidden states become X_e. "queries": those of the queries. "last": the last K of the
            sequence, as in Kiwi-Edit's code. Its chat template closes the user's turn with more tokens, so
            "last" misses the first queries and reads the closing tokens.
    """

    def __init__(
        self,
        vlm_dim: int,
        dim: int,
        tokens: int = 512,
        text_tokens: int = 64,
        read: Literal["queries", "last"] = "queries",
    ):
        super().__init__()
        self.tokens, self.text_tokens, self.read = tokens, text_tokens, read
        self.queries = nn.Parameter(0.02 * torch.randn(tokens, vlm_dim))
        self.connector, self.native_connector = Connector(vlm_dim, dim), Connector(vlm_dim, dim)

    def prompt(
        self, vlm: VisionLanguageModel, clips: Sequence[Tensor], texts: Sequence[str], fps: float = 8.0
    ) -> dict[str, Tensor]:
        """The VLM's inputs for clips (T, 3, H, W) in [0, 1] and their instructions.

        Returns:
            Tensors that :meth:`forward` takes.

        Raises:
            UserError: as :func:`~vera_lite.conditioning.vision_language.chat`.
        """
        # Kiwi-Edit has a system prompt, and no space before the queries. Ours has a space, and no system
        # prompt.
        placeholder = placeholder_of(vlm)
        dialogues = [[(text + " " + placeholder * self.tokens, None)] for text in texts]
        prompt = chat(
            vlm.processor, clips, dialogues, fps=fps, sample_frames=vlm.sample_frames, to_be_answered=False
        )
        return prompt.tensors

    def start(self, vlm: VisionLanguageModel, prompt: dict[str, Tensor]) -> int:
        """Where the queries begin, the same in all rows of a prompt.

        Raises:
            UserError: the prompt has another number of queries.
        """
        tokens, is_token = prompt["input_ids"], prompt["attention_mask"].bool()
        places = (tokens == vlm.processor.tokenizer.convert_tokens_to_ids(placeholder_of(vlm))) & is_token
        start = int(places[0].int().argmax())  # rows are padded on the left: all end together
        if not places[:, start : start + self.tokens].all() or places.sum() != len(tokens) * self.tokens:
            raise UserError(f"the prompt has another number of editing tokens than {self.tokens}.")
        return start

    def before(self, vlm: VisionLanguageModel, prompt: dict[str, Tensor]) -> Before:
        """Run the VLM over a prompt's video and instruction, without gradients if the VLM is frozen.

        Raises:
            UserError: as :meth:`start`.
        """
        model, tokens, start = vlm.model.model, prompt["input_ids"], self.start(vlm, prompt)
        # Positions come from the whole prompt. In Qwen2.5-VL the times of a video reach beyond the first
        # words after it, so counting on from the largest position would leave a gap.
        position, _ = model.get_rope_index(**prompt)  # (3, B, L)
        before = {n: v[:, :start] if v.shape == tokens.shape else v for n, v in prompt.items()}
        learned = any(p.requires_grad for p in vlm.model.parameters())
        with torch.set_grad_enabled(torch.is_grad_enabled() and learned):
            read = model(**before, position_ids=position[..., :start], use_cache=True)
        return Before(read.last_hidden_state, read.past_key_values, position)

    def remembered(
        self,
        readings: Readings,
        vlm: VisionLanguageModel,
        clips: Sequence[Tensor],
        texts: Sequence[str],
        fps: float = 8.0,
    ) -> tuple[dict[str, Tensor], Before]:
        """:meth:`prompt` (its tokens and mask only) and :meth:`before`, computed once per clip and kept.

        Raises:
            UserError: as :meth:`prompt`.
        """
        from transformers import DynamicCache

        device = self.queries.device

        def compute() -> list[dict[str, Tensor]]:
            prompt = {n: v.to(device) for n, v in self.prompt(vlm, clips, texts, fps).items()}
            before, rows = self.before(vlm, prompt), []
            keys = torch.stack([layer.keys for layer in before.cache.layers], 1)  # (B, layers, H, start, d)
            values = torch.stack([layer.values for layer in before.cache.layers], 1)
            for i, mask in enumerate(prompt["attention_mask"]):
                first = len(mask) - int(mask.sum())
                rows.append(
                    {
                        "tokens": prompt["input_ids"][i, first:],
                        "position": before.position[:, i, first:],
                        "hidden": before.hidden[i, first:],
                        "keys": keys[i, ..., first:, :],
                        "values": values[i, ..., first:, :],
                    }
                )
            return rows

        how = ("editing tokens", self.tokens, fps, vlm.sample_frames, EditingTokens, VisionLanguageModel)
        rows = readings(vlm, how, texts, [[clip] for clip in clips], compute)

        def batch(name: str, axis: int, value: float = 0) -> Tensor:
            return padded([row[name] for row in rows], axis, left=True, value=value).to(device)

        tokens = batch("tokens", 0, vlm.processor.tokenizer.pad_token_id)
        is_token = padded([torch.ones_like(row["tokens"]) for row in rows], left=True).to(device)
        cache = DynamicCache()
        for i, (k, v) in enumerate(
            zip(batch("keys", 2).unbind(1), batch("values", 2).unbind(1), strict=True)
        ):
            cache.update(k, v, i)
        before = Before(batch("hidden", 0), cache, batch("position", 1, 1).transpose(0, 1))
        return {"input_ids": tokens, "attention_mask": is_token}, before

    def forward(
        self, vlm: VisionLanguageModel, prompt: dict[str, Tensor], before: Before | None = None
    ) -> Context:
        """Read a prompt of B rows.

        Attention is causal, so video and instruction cannot see the queries. They pass through the VLM first
        (:meth:`before`, unless it is given); the queries then attend to their keys and values.

        Raises:
            UserError: as :meth:`start`; or an instruction is too long.
        """
        model, embedding = vlm.model.model, vlm.model.get_input_embeddings()
        tokens, start = prompt["input_ids"], self.start(vlm, prompt)
        before = before or self.before(vlm, prompt)
        closing = embedding(tokens[:, start + self.tokens :])
        tail = torch.cat([self.queries.to(closing).expand(len(tokens), -1, -1), closing], 1)
        hidden = model.language_model(
            inputs_embeds=tail,
            attention_mask=prompt["attention_mask"],
            position_ids=before.position[..., start:],
            past_key_values=before.cache,
        ).last_hidden_state
        hidden = hidden[:, -self.tokens :] if self.read == "last" else hidden[:, : self.tokens]

        video = tokens[:, :start] == vlm.model.config.video_token_id
        # The instruction stands between the video's closing token and the queries.
        place = torch.arange(start, device=tokens.device)
        text = place > (place * video).amax(1, keepdim=True) + 1
        if text.sum(1).max() > self.text_tokens:
            longest = int(text.sum(1).max())
            raise UserError(f"the instruction has {longest} tokens; give at most {self.text_tokens}.")
        weight = self.connector[0].weight  # the VLM may have another precision
        native = self.native_connector(before.hidden.type_as(weight))  # (B, start, D)
        pixels = _padded(native, video, int(video.sum(1).max()))
        return Context(
            self.connector(hidden.type_as(weight)), pixels, _padded(native, text, self.text_tokens)
        )


def _padded(rows: Tensor, chosen: Tensor, length: int) -> Tensor:
    """The chosen (B, N) tokens of (B, N, D), padded with zeros: (B, length, D)."""
    picked = [row[where] for row, where in zip(rows, chosen, strict=True)]
    return torch.stack([F.pad(p, (0, 0, 0, length - len(p))) for p in picked])


def placeholder_of(vlm: VisionLanguageModel) -> str:
    """The token whose embeddings the queries replace: Kiwi-Edit's, or the padding token of the toy VLM."""
    released = "<|object_ref_start|>"
    tokenizer = vlm.processor.tokenizer
    return released if released in tokenizer.get_vocab() else tokenizer.pad_token
