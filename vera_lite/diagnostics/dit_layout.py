"""Token grids of diffusers' video and image transformers, in their first layer of self-attention."""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import nn

from vera_lite.diagnostics.token_grid import TextStream, TokenGrid


class _Layout(NamedTuple):
    """How a model makes a sequence; the strides are those of the codec that it was trained with."""

    temporal_stride: int
    spatial_stride: int
    text: str = ""  #: "first" or "last" in the sequence; "" where text has a cross-attention of its own.
    packed: int = 1  #: rows and columns of latents that the pipeline packs into a token before the model.


_LAYOUTS = {
    "WanTransformer3DModel": _Layout(4, 8),
    "CogVideoXTransformer3DModel": _Layout(4, 8, "first"),
    "HunyuanVideoTransformer3DModel": _Layout(4, 8, "last"),
    "LTXVideoTransformer3DModel": _Layout(8, 32),
    "SD3Transformer2DModel": _Layout(1, 8, "last"),
    "FluxTransformer2DModel": _Layout(1, 8, "first", 2),
}


def dit_grid(
    transformer: nn.Module, frames: int, height: int, width: int, words: Sequence[str] = ()
) -> TokenGrid:
    """The self-attention of one of diffusers' transformers, with streams "video" and "text".

    Args:
        transformer: Wan, CogVideoX, HunyuanVideo, LTX-Video, Stable Diffusion 3 or Flux.
        frames: of the source; 1 for the image models.
        height, width: of the source, in pixels.
        words: the piece of text of each text token, with padding, for models that join text and video. In Wan
            and LTX-Video text has a cross-attention of its own.

    Raises:
        ValueError: another model; a clip that does not fit its strides and patches; or words that are missing
            or have no place.
    """
    name = type(transformer).__name__
    if name not in _LAYOUTS:
        raise ValueError(f"there is no grid for {name}, only for {', '.join(_LAYOUTS)}.")
    layout, config = _LAYOUTS[name], transformer.config
    if bool(words) != bool(layout.text):
        raise ValueError(f"{name} has {'' if layout.text else 'no '}text tokens in its self-attention.")
    patch = config.patch_size * layout.packed if isinstance(config.patch_size, int) else config.patch_size
    if isinstance(patch, int):
        patch = (config.get("patch_size_t") or 1, patch, patch)
    video = TokenGrid.wan(
        frames,
        height,
        width,
        temporal_stride=layout.temporal_stride,
        spatial_stride=layout.spatial_stride,
        patch=tuple(patch),
    ).streams[0]
    if not words:
        return TokenGrid((video,))
    starts = (0, len(words)) if layout.text == "first" else (len(video.positions), 0)
    text = TextStream("text", starts[0] + torch.arange(len(words)), tuple(words), "")
    return TokenGrid((text, replace(video, positions=starts[1] + video.positions)))
