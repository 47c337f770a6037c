"""Text and vision-language features that condition the systems."""

from vera_lite.conditioning.umt5 import Umt5Encoder

__all__ = ["Umt5Encoder"]
