"""What systems are told besides pixels."""

from vera_lite.conditioning.umt5 import Umt5Encoder

__all__ = ["Umt5Encoder"]
