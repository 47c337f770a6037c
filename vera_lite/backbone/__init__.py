"""Diffusion transformers, readable: Wan's and CogVideoX's."""

from vera_lite.backbone.cogvideox import CogVideoXConfig, CogVideoXTransformer
from vera_lite.backbone.loading import load_branches, load_weights, read_wan
from vera_lite.backbone.rotary import grid_positions, rotary_table, rotate
from vera_lite.backbone.wan import (
    WAN_1_3B,
    WAN_14B,
    WAN_TI2V_5B,
    WanBlock,
    WanConfig,
    WanTransformer,
)

__all__ = [
    "WAN_14B",
    "WAN_1_3B",
    "WAN_TI2V_5B",
    "CogVideoXConfig",
    "CogVideoXTransformer",
    "WanBlock",
    "WanConfig",
    "WanTransformer",
    "grid_positions",
    "load_branches",
    "load_weights",
    "read_wan",
    "rotary_table",
    "rotate",
]
