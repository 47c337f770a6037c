"""The toy world's text encoder: a closed vocabulary of phrases, one token each.

It plays the part of Wan's frozen umT5: it has no weights to train, and systems see only features
(B, T, text_dim). A phrase is one concept ("top left", "moving left"), so "left" as a place and
"left" as a direction stay apart without word order.
"""

import difflib
import re

import torch
from torch import Tensor

from vera_lite.errors import UserError
from vera_lite.toy.words import COLOURS, MOTIONS, PATTERNS, PLACES, SHAPES

_FILLERS = frozenset(
    ["a", "an", "the", "at", "to", "in", "of", "with", "and", "is", "it", "please", "background"]
)
_VERBS = ("add", "change", "remove")
_OTHERS = ("striped", "dotted", "shadow", "behind the other object", "standing still")
_SYNONYMS = {
    "center": "centre",
    "still": "standing still",
    "stripes": "vertical stripes",
    "behind": "behind the other object",
    "disc": "circle",
    "disk": "circle",
    "upper left": "top left",
    "upper right": "top right",
    "lower left": "bottom left",
    "lower right": "bottom right",
}
_MOVES = tuple(f"moving {m}" for m in MOTIONS if m != "still")

#: Every phrase, in the order of the one-hot features. Append only: checkpoints depend on it.
PHRASES: tuple[str, ...] = (*_VERBS, *COLOURS, *SHAPES, *PLACES, *_MOVES, *PATTERNS, *_OTHERS)

MAX_PHRASES = 10


def parse(prompt: str) -> list[str]:
    """Phrases of a prompt, longest match first, in the order they stand.

    Raises:
        UserError: a word is not in the vocabulary; names the closest words it knows, or all.
    """
    words = re.findall(r"[^\W_]+", prompt.lower())
    found, i = [], 0
    longest = max(len(p.split()) for p in (*PHRASES, *_SYNONYMS))
    while i < len(words):
        for n in range(min(longest, len(words) - i), 0, -1):
            phrase = " ".join(words[i : i + n])
            phrase = _SYNONYMS.get(phrase, phrase)
            if phrase in PHRASES:
                found.append(phrase)
                break
        else:
            n = 1
            if words[i] not in _FILLERS:
                raise UserError(_unknown(words[i], prompt))
        i += n
    if not found:
        raise UserError(f"the prompt {prompt!r} says nothing that is known. Known: {', '.join(PHRASES)}.")
    if len(found) > MAX_PHRASES:
        raise UserError(f"the prompt names {len(found)} things; at most {MAX_PHRASES} are read.")
    return found


def _unknown(word: str, prompt: str) -> str:
    close = difflib.get_close_matches(word, PHRASES, n=3)
    hint = f" Did you mean {' or '.join(map(repr, close))}?" if close else ""
    return f"unknown word {word!r} in {prompt!r}.{hint} Known: {', '.join(PHRASES)}."


class PhraseEncoder:
    """Prompts -> one-hot features (B, MAX_PHRASES, text_dim); unused rows are zero, as Wan pads."""

    text_dim = len(PHRASES)

    def __call__(self, prompts: list[str]) -> Tensor:
        """Encode prompts.

        Raises:
            UserError: see :func:`parse`. The empty prompt is allowed and encodes as zeros.
        """
        features = torch.zeros(len(prompts), MAX_PHRASES, self.text_dim)
        for row, prompt in zip(features, prompts, strict=True):
            for slot, phrase in enumerate(parse(prompt) if prompt.strip() else []):
                row[slot, PHRASES.index(phrase)] = 1
        return features
