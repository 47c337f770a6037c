"""What systems are told besides pixels."""

from vera_lite.conditioning.phrases import PHRASES, PhraseEncoder, parse
from vera_lite.conditioning.umt5 import Umt5Encoder

__all__ = ["PHRASES", "PhraseEncoder", "Umt5Encoder", "parse"]
