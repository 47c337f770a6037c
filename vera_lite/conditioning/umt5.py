"""Wan's text encoder: umT5, from transformers."""

from pathlib import Path

import torch
from torch import Tensor

from vera_lite.errors import UserError


class Umt5Encoder:
    """Prompts -> umT5 features (B, max_length, text_dim); zeros after each prompt's end, as Wan pads.

    Args:
        tokenizer, model: a tokenizer and a ``transformers.UMT5EncoderModel``.
        max_length: tokens; Wan was trained with 512.
    """

    def __init__(self, tokenizer, model, max_length: int = 512):
        self.tokenizer, self.max_length = tokenizer, max_length
        self.model = model.eval().requires_grad_(False)

    @classmethod
    def from_pretrained(cls, folder: str | Path, **kwargs) -> "Umt5Encoder":
        """Load ``folder/tokenizer`` and ``folder/text_encoder``, the layout of Wan's diffusers pipelines.

        Args:
            folder: a local folder; nothing is downloaded.
            kwargs: for the model, e.g. ``dtype=torch.bfloat16``.

        Raises:
            UserError: a part is missing.
        """
        from transformers import AutoTokenizer, UMT5EncoderModel

        folder = Path(folder)
        for part in ("tokenizer", "text_encoder"):
            if not (folder / part).is_dir():
                raise UserError(f"{folder} has no {part} folder: give the folder of a Wan pipeline.")
        tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
        model = UMT5EncoderModel.from_pretrained(
            folder / "text_encoder", local_files_only=True, use_safetensors=True, **kwargs
        )
        return cls(tokenizer, model)

    @torch.no_grad()
    def __call__(self, prompts: list[str]) -> Tensor:
        """Encode prompts; longer ones are cut at ``max_length`` tokens."""
        tokens = self.tokenizer(
            [" ".join(p.split()) for p in prompts],
            padding="max_length",
            max_length=self.max_length,
            truncation=True,
            return_tensors="pt",
        )
        mask = tokens.attention_mask.to(self.model.device)
        features = self.model(tokens.input_ids.to(self.model.device), mask).last_hidden_state
        return features * mask[..., None].to(features.dtype)
