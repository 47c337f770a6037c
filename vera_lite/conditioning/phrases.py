"""A text encoder with a closed vocabulary: every known phrase is one token.

In toy models it replaces Wan's frozen umT5. It has no weights, and systems see only features
(B, T, text_dim). A phrase is one concept ("top left", "moving left"), so "left" as a place and "left" as a
direction differ without word order. A saved pipeline holds the vocabulary.
"""

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from vera_lite.errors import UserError, unknown_word


class PhraseEncoder:
    """Prompts -> one-hot features (B, max_phrases, text_dim); unused rows are zero, as Wan pads.

    Args:
        phrases: the known phrases in the order of the features; the model's weights depend on it.
        synonyms: other word -> phrase.
        fillers: words that are ignored.
        max_phrases: how many phrases a prompt may name.
    """

    def __init__(
        self, phrases: Sequence[str], synonyms: Mapping[str, str], fillers: Sequence[str], max_phrases: int
    ):
        self.phrases, self.synonyms = tuple(phrases), dict(synonyms)
        self.fillers, self.max_phrases = frozenset(fillers), max_phrases
        self.text_dim = len(self.phrases)
        self._longest = max(len(p.split()) for p in (*self.phrases, *self.synonyms))

    @property
    def vocabulary(self) -> dict:
        """The constructor's arguments as plain values for JSON."""
        return {
            "phrases": list(self.phrases),
            "synonyms": self.synonyms,
            "fillers": sorted(self.fillers),
            "max_phrases": self.max_phrases,
        }

    def parse(self, prompt: str) -> list[str]:
        """The phrases of a prompt in their order; at each word the longest phrase is taken.

        Raises:
            UserError: a word is not in the vocabulary (the message names the closest ones), the prompt has
                no known phrase, or too many.
        """
        words = re.findall(r"[^\W_]+", prompt.lower())
        found, i = [], 0
        while i < len(words):
            for n in range(min(self._longest, len(words) - i), 0, -1):
                phrase = " ".join(words[i : i + n])
                phrase = self.synonyms.get(phrase, phrase)
                if phrase in self.phrases:
                    found.append(phrase)
                    break
            else:
                n = 1
                if words[i] not in self.fillers:
                    raise unknown_word(words[i], self.phrases)
            i += n
        if not found:
            raise UserError(f"the prompt {prompt!r} has no known phrase: {', '.join(self.phrases)}.")
        if len(found) > self.max_phrases:
            raise UserError(f"the prompt has {len(found)} phrases; give at most {self.max_phrases}.")
        return found

    def __call__(self, prompts: Sequence[str]) -> Tensor:
        """Features (B, max_phrases, text_dim); zeros for the empty prompt. Errors as :meth:`parse`."""
        features = torch.zeros(len(prompts), self.max_phrases, self.text_dim)
        for row, prompt in zip(features, prompts, strict=True):
            for slot, phrase in enumerate(self.parse(prompt) if prompt.strip() else []):
                row[slot, self.phrases.index(phrase)] = 1
        return features
