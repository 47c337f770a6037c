"""SAM 2 by the ``sam2`` package, Meta's own code (extra ``sam2``), with the weights that transformers loads.

The package's own checkpoints are pickles, so they are not read. A model of transformers is rebuilt in the
package's classes, weight for weight.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from vera_lite.dataset.sam2 import Frames
from vera_lite.errors import UserError

#: Configuration in the package, by the blocks in each of Hiera's four stages.
SIZES = {(1, 2, 7, 2): "t", (1, 2, 11, 2): "s", (2, 3, 16, 3): "b+", (2, 6, 36, 4): "l"}
#: What the package calls a weight -> what transformers calls it, one after the other.
NAMES = (
    (r"^image_encoder\.neck\.convs\.(\d+)\.conv", r"vision_encoder.neck.convs.\1"),
    (r"^image_encoder\.trunk", "vision_encoder.backbone"),
    (r"patch_embed\.proj", "patch_embed.projection"),
    (r"^sam_(prompt_encoder|mask_decoder)", r"\1"),
    (r"pe_layer\.positional_encoding_gaussian_matrix", "shared_embedding.positional_embedding"),
    (r"mask_downscaling\.([036])", lambda m: f"mask_embed.conv{1 + int(m[1]) // 3}"),
    (r"mask_downscaling\.([14])", lambda m: f"mask_embed.layer_norm{1 + int(m[1]) // 3}"),
    (r"output_upscaling\.([03])", lambda m: f"upscale_conv{1 + int(m[1]) // 3}"),
    (r"output_upscaling\.1", "upscale_layer_norm"),
    (r"mask_downsampler\.encoder\.12", "mask_downsampler.final_conv"),
    (r"mask_downsampler\.encoder\.(0|3|6|9)\.", lambda m: f"mask_downsampler.layers.{int(m[1]) // 3}.conv."),
    (r"mask_downsampler\.encoder\.(\d+)", lambda m: f"mask_downsampler.layers.{int(m[1]) // 3}.layer_norm"),
    (r"\.fuser", ".memory_fuser"),
    (r"dwconv", "depthwise_conv"),
    (r"pwconv", "pointwise_conv"),
    (r"gamma", "scale"),
    (r"pix_feat_proj", "feature_projection"),
    (r"^memory_encoder\.out_proj", "memory_encoder.projection"),
    (r"out_proj", "o_proj"),
    (r"\.norm", ".layer_norm"),
    (r"^maskmem_tpos_enc", "memory_temporal_positional_encoding"),
    (r"^no_mem_embed", "no_memory_embedding"),
    (r"^no_mem_pos_enc", "no_memory_positional_encoding"),
    (r"^no_obj_embed_spatial", "occlusion_spatial_embedding_parameter"),
    (r"^obj_ptr_tpos_proj", "temporal_positional_encoding_projection_layer"),
    (r"^(no_)?obj_ptr", r"\1object_pointer"),
    (r"(mlp|head|mlps\.\d+|pointer_proj)\.layers\.0", r"\1.proj_in"),
    (r"mlp\.layers\.1", "mlp.proj_out"),
    (r"(head|mlps\.\d+|pointer_proj)\.layers\.1", r"\1.layers.0"),
    (r"(head|mlps\.\d+|pointer_proj)\.layers\.2", r"\1.proj_out"),
)


def from_transformers(model):
    """A ``SAM2VideoPredictor`` with the weights of a ``Sam2VideoModel`` of SAM 2.1, on its device.

    Raises:
        UserError: the package is not installed, or has no model of this size.
    """
    try:
        from sam2.build_sam import (  # pyright: ignore[reportMissingImports] (an extra)
            build_sam2_video_predictor,
        )
    except ImportError as error:
        raise UserError("this backend needs the package of SAM 2: pip install 'vera-lite[sam2]'.") from error
    backbone = model.config.vision_config.backbone_config
    size = SIZES.get(tuple(backbone.blocks_per_stage))
    if size is None:
        raise UserError("the sam2 package has no model of this size; use the backend transformers.")
    options = {
        "image_size": model.config.image_size,
        "memory_attention.layer.self_attention.feat_sizes": model.config.memory_attention_rope_feat_sizes,
        "memory_attention.layer.cross_attention.feat_sizes": model.config.memory_attention_rope_feat_sizes,
    }
    predictor = build_sam2_video_predictor(
        f"configs/sam2.1/sam2.1_hiera_{size}.yaml",
        device=str(model.device),
        hydra_overrides_extra=[f"++model.{name}={value}" for name, value in options.items()],
    )
    predictor.fill_hole_area = 0  # of CUDA alone; transformers fills none
    weights = model.state_dict()
    weights |= {
        f"prompt_encoder.point_embeddings.{i}.weight": row[None]
        for i, row in enumerate(weights["prompt_encoder.point_embed.weight"])
    }
    predictor.load_state_dict({name: weights[_renamed(name)] for name in predictor.state_dict()})
    return predictor.to(model.dtype)


def _renamed(name: str) -> str:
    for pattern, new in NAMES:
        name = re.sub(pattern, new, name)
    return name


@torch.inference_mode()
def track(video: Frames, start: int, box: Sequence[float], predictor, processor) -> list[Tensor]:
    """As :func:`vera_lite.dataset.sam2.track`; the frames are prepared by transformers' processor."""
    height, width = next(iter(video)).shape[-2:]
    with tempfile.TemporaryDirectory() as folder:  # the package starts from files, of lossy JPEG
        Image.new("RGB", (width, height)).save(Path(folder) / "0.jpg")
        state = predictor.init_state(folder, offload_video_to_cpu=True, offload_state_to_cpu=True)
    frames = [processor(images=frame, return_tensors="pt").pixel_values[0] for frame in video]
    state |= {"images": frames, "num_frames": len(frames), "cached_features": {}}
    prompt = {"box": box} if len(box) == 4 else {"points": [list(box)], "labels": [1]}
    predictor.add_new_points_or_box(state, start, obj_id=1, **prompt)
    masks = {}
    for reverse in (False, True):
        for t, _, scores in predictor.propagate_in_video(state, start, reverse=reverse):
            masks[t] = (scores[0] > 0).cpu().to(torch.uint8) * 255
    return [masks[t] for t in range(len(frames))]
