"""See inside the attention of any model without touching it: token grid, tap, probes, measures."""

from vera_lite.diagnostics.call import AttentionCall, Site
from vera_lite.diagnostics.ladder import Ladder, Look, layer_ladder, look
from vera_lite.diagnostics.plan import CapturePlan, Entry, attention_shapes
from vera_lite.diagnostics.probes import (
    AttentionShape,
    AttentionStore,
    Capture,
    Columns,
    GroupMass,
    RandomAccess,
    Rows,
    SampledRows,
    Sweep,
    row_entropy,
)
from vera_lite.diagnostics.tap import KnockOut, Tap
from vera_lite.diagnostics.token_grid import TokenGrid

__all__ = [
    "AttentionCall",
    "AttentionShape",
    "AttentionStore",
    "Capture",
    "CapturePlan",
    "Columns",
    "Entry",
    "GroupMass",
    "KnockOut",
    "Ladder",
    "Look",
    "RandomAccess",
    "Rows",
    "SampledRows",
    "Site",
    "Sweep",
    "Tap",
    "TokenGrid",
    "attention_shapes",
    "layer_ladder",
    "look",
    "row_entropy",
]
