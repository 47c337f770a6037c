"""One file a paper."""

from vera_lite.systems.regeneration import Regeneration, RegenerationConfig
from vera_lite.systems.vera import Vera, VeraConfig

SYSTEMS = {"vera": (Vera, VeraConfig), "regeneration": (Regeneration, RegenerationConfig)}

__all__ = ["SYSTEMS", "Regeneration", "RegenerationConfig", "Vera", "VeraConfig"]
