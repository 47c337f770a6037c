"""What a user calls, in the manner of a diffusers pipeline: one class a system that can be used."""

from vera_lite.pipelines.base import ASSETS, Pipeline, enlarge, frame_choice
from vera_lite.pipelines.gencompositor import CANVAS_FILL, CompositeResult, GenCompositorPipeline
from vera_lite.pipelines.mive import MiVEPipeline
from vera_lite.pipelines.rvedit import RVEDiTPipeline
from vera_lite.pipelines.vera import ALPHA_FLOOR, EditResult, VeraPipeline, floored

__all__ = [
    "ALPHA_FLOOR",
    "ASSETS",
    "CANVAS_FILL",
    "CompositeResult",
    "EditResult",
    "GenCompositorPipeline",
    "MiVEPipeline",
    "Pipeline",
    "RVEDiTPipeline",
    "VeraPipeline",
    "enlarge",
    "floored",
    "frame_choice",
]
