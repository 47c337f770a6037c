"""Training with Lightning: data, modules, optimizer, command line."""

from vera_lite.training.compositions import ToyCompositionData
from vera_lite.training.data import LatentCache, StepBatches, ToyWorldData, build_toy_cache
from vera_lite.training.dialogues import DialogueModule, ToyDialogues
from vera_lite.training.edits import ToyEditData
from vera_lite.training.module import EditingModule

__all__ = [
    "DialogueModule",
    "EditingModule",
    "LatentCache",
    "StepBatches",
    "ToyCompositionData",
    "ToyDialogues",
    "ToyEditData",
    "ToyWorldData",
    "build_toy_cache",
]
