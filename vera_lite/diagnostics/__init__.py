"""See inside the attention of any model without touching it: token grid, tap, measurements, scores."""

from vera_lite.diagnostics.call import AttentionCall, AttentionShape, CallSite, Capture
from vera_lite.diagnostics.dit_layout import dit_grid
from vera_lite.diagnostics.layer_attention import (
    ClipAttention,
    LayerAttention,
    attention_by_layer,
    attention_over_clips,
)
from vera_lite.diagnostics.measurements import Columns, GroupMass, Measurement, RowReduce, Rows
from vera_lite.diagnostics.plan import CapturePlan, Entry, attention_shapes
from vera_lite.diagnostics.scores import entropy, jensen_shannon, lift, mask_ratio, similarity_map, sinks
from vera_lite.diagnostics.store import AttentionStore, StoreQK
from vera_lite.diagnostics.tap import KnockOut, Tap
from vera_lite.diagnostics.token_grid import TextStream, TokenGrid, VideoStream
from vera_lite.diagnostics.vlm_layout import qwen_vl_grid, square_vlm_grid

__all__ = [
    "AttentionCall",
    "AttentionShape",
    "AttentionStore",
    "CallSite",
    "Capture",
    "CapturePlan",
    "ClipAttention",
    "Columns",
    "Entry",
    "GroupMass",
    "KnockOut",
    "LayerAttention",
    "Measurement",
    "RowReduce",
    "Rows",
    "StoreQK",
    "Tap",
    "TextStream",
    "TokenGrid",
    "VideoStream",
    "attention_by_layer",
    "attention_over_clips",
    "attention_shapes",
    "dit_grid",
    "entropy",
    "jensen_shannon",
    "lift",
    "mask_ratio",
    "qwen_vl_grid",
    "similarity_map",
    "sinks",
    "square_vlm_grid",
]
