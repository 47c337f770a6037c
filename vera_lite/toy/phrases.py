"""The words of the toy world, as a vocabulary for :class:`~vera_lite.conditioning.phrases.PhraseEncoder`."""

from vera_lite.conditioning.phrases import PhraseEncoder
from vera_lite.toy.scenes import NAMED
from vera_lite.toy.sprites import NOUNS
from vera_lite.toy.words import COLOURS, MOTIONS, PATTERNS, PLACES, SHAPES

_VERBS = ("add", "change", "remove")
_OTHERS = ("striped", "dotted", "shadow", "behind the other object", "standing still")
_MOVES = tuple(f"moving {m}" for m in MOTIONS if m != "still")

#: Every phrase, in the order of the one-hot features. Append only: checkpoints depend on it.
PHRASES: tuple[str, ...] = (*_VERBS, *COLOURS, *SHAPES, *PLACES, *_MOVES, *PATTERNS, *_OTHERS)

VOCABULARY = {
    "phrases": list(PHRASES),
    "synonyms": {
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
    },
    "fillers": ["a", "an", "the", "at", "to", "in", "of", "with", "and", "is", "it", "please", "background"],
    "max_phrases": 10,
}
#: The same, then the nouns and backgrounds of :mod:`vera_lite.toy.scenes`.
SCENE_VOCABULARY = VOCABULARY | {
    "phrases": [*PHRASES, *NOUNS, *(name.removeprefix("a ") for name in NAMED)],
    "fillers": [*VOCABULARY["fillers"], "object"],
}


def toy_encoder() -> PhraseEncoder:
    """The toy world's text encoder."""
    return PhraseEncoder(**VOCABULARY)
