"""Take the weights of the person network out of MediaPipe's own file:

    pip download mediapipe==0.10.21 --no-deps --dest build
    python scripts/extract_person_net.py build/mediapipe-0.10.21-*.whl

Needs `ai-edge-litert` (extra `tests`). Convolutions of the original graph, in the order in which they run, are
those of PersonNet in the order in which they are defined. The weights stay in half precision, as they are.
"""

import sys
import zipfile
from pathlib import Path

import numpy as np
import torch
from ai_edge_litert.interpreter import Interpreter, OpResolverType
from safetensors.torch import save_file
from torch import nn

from vera_lite.dataset.person import WEIGHTS, PersonNet

MODEL = "mediapipe/modules/selfie_segmentation/selfie_segmentation_landscape.tflite"
#: How the axes of each kind of weight are moved for PyTorch.
AXES = {
    "CONV_2D": (0, 3, 1, 2),  # output, height, width, input
    "DEPTHWISE_CONV_2D": (3, 0, 1, 2),  # 1, height, width, channel
    "Convolution2DTransposeBias": (3, 0, 1, 2),  # output, height, width, input
}


def state_dict(tflite: bytes) -> dict[str, torch.Tensor]:
    """PersonNet's weights in float16."""
    graph = Interpreter(
        model_content=tflite, experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    )
    operations = graph._get_ops_details()
    half = {int(op["outputs"][0]): int(op["inputs"][0]) for op in operations if op["op_name"] == "DEQUANTIZE"}
    theirs = [op for op in operations if op["op_name"] in AXES]
    kinds = (nn.Conv2d, nn.ConvTranspose2d)
    ours = [(name, module) for name, module in PersonNet().named_modules() if isinstance(module, kinds)]
    weights = {}
    for (name, module), op in zip(ours, theirs, strict=True):
        weight, bias = (graph.get_tensor(half[int(i)]) for i in op["inputs"][1:3])
        weight = torch.from_numpy(np.ascontiguousarray(weight.transpose(AXES[op["op_name"]])))
        assert weight.shape == module.weight.shape, (name, weight.shape)
        weights |= {f"{name}.weight": weight, f"{name}.bias": torch.from_numpy(bias.copy())}
    return weights


def main(wheel: str) -> None:
    with zipfile.ZipFile(wheel) as files:
        weights = state_dict(files.read(MODEL))
    WEIGHTS.parent.mkdir(exist_ok=True)
    save_file(weights, WEIGHTS, {"source": f"mediapipe 0.10.21, {Path(MODEL).name}", "licence": "Apache-2.0"})
    print(f"{sum(w.numel() for w in weights.values()):,} weights in {WEIGHTS}")


if __name__ == "__main__":
    main(sys.argv[1])
