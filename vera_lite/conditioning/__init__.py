"""What systems are told besides pixels."""

from vera_lite.conditioning.phrases import PHRASES, PhraseEncoder, parse

__all__ = ["PHRASES", "PhraseEncoder", "parse"]
