"""Training with Lightning: data, module, optimizer, command line."""

from vera_lite.training.data import LatentCache, StepBatches, ToyWorldData, build_toy_cache
from vera_lite.training.module import EditingModule

__all__ = ["EditingModule", "LatentCache", "StepBatches", "ToyWorldData", "build_toy_cache"]
