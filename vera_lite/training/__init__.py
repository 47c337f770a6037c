"""Training with Lightning: data, modules, optimizer, command line."""

from vera_lite.training.data import LatentCache, StepBatches
from vera_lite.training.module import EditingModule
from vera_lite.training.toy.compositions import ToyCompositionData
from vera_lite.training.toy.dialogues import DialogueModule, ToyDialogues
from vera_lite.training.toy.edits import ToyEditData
from vera_lite.training.toy.layers import SceneData, ToyWorldData, build_toy_cache

__all__ = [
    "DialogueModule",
    "EditingModule",
    "LatentCache",
    "SceneData",
    "StepBatches",
    "ToyCompositionData",
    "ToyDialogues",
    "ToyEditData",
    "ToyWorldData",
    "build_toy_cache",
]
