"""What a user calls, in the manner of a diffusers pipeline: one class per system, and one result."""

from vera_lite.pipelines.base import ASSETS, EditResult, Pipeline, Sampling, frame_choice, pick_device
from vera_lite.pipelines.gencompositor import CANVAS_FILL, CompositeSampling, GenCompositorPipeline
from vera_lite.pipelines.mive import MiVEPipeline
from vera_lite.pipelines.rvedit import RVEDiTPipeline
from vera_lite.pipelines.vera import VeraPipeline, VeraSampling

#: The pipeline class of each system.
PIPELINES = (VeraPipeline, GenCompositorPipeline, RVEDiTPipeline, MiVEPipeline)

__all__ = [
    "ASSETS",
    "CANVAS_FILL",
    "PIPELINES",
    "CompositeSampling",
    "EditResult",
    "GenCompositorPipeline",
    "MiVEPipeline",
    "Pipeline",
    "RVEDiTPipeline",
    "Sampling",
    "VeraPipeline",
    "VeraSampling",
    "frame_choice",
    "pick_device",
]
