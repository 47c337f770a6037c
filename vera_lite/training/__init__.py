"""Training with Lightning: data, modules, optimizer, command line."""

from vera_lite.training.data import LatentCache, StepBatches
from vera_lite.training.encoded import EncodedClips
from vera_lite.training.layered import LayeredVideoData
from vera_lite.training.module import EditingModule
from vera_lite.training.sharded import Sharded
from vera_lite.training.telemetry import Telemetry
from vera_lite.training.toy.compositions import SceneCompositionData, ToyCompositionData
from vera_lite.training.toy.dialogues import DialogueModule, ToyDialogues
from vera_lite.training.toy.edits import SceneEditData, ToyEditData
from vera_lite.training.toy.layers import SceneData, ToyWorldData, build_toy_cache

__all__ = [
    "DialogueModule",
    "EditingModule",
    "EncodedClips",
    "LatentCache",
    "LayeredVideoData",
    "SceneCompositionData",
    "SceneData",
    "SceneEditData",
    "Sharded",
    "StepBatches",
    "Telemetry",
    "ToyCompositionData",
    "ToyDialogues",
    "ToyEditData",
    "ToyWorldData",
    "build_toy_cache",
]
