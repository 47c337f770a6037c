"""Write one page in which Vera runs in the browser: no server, no network, no Python.

python scripts/browser_page.py [--model FOLDER] [--out build/vera.html]

The page holds the model as ONNX graphs, onnxruntime-web (`docs/browser`), and eight unseen clips. Network,
codec and sampler are those of the Python pipeline; `tests/browser` compares their results.
"""

import argparse
import base64
import copy
import gzip
import io
import json
from pathlib import Path

import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn
from torch.nn import functional as F

from vera_lite.conditioning.phrases import PhraseEncoder
from vera_lite.evaluation.toy.tally import TEST_SEED
from vera_lite.media.files import replacing
from vera_lite.pipelines import VeraPipeline
from vera_lite.systems.vera import LAYERS, JointAttention
from vera_lite.toy.scenes import SceneConfig
from vera_lite.toy.world import WorldConfig

ROOT = Path(__file__).resolve().parents[1]
PARTS = ROOT / "docs" / "browser"
LARGEST_MB = 25.0
#: An additive mask of attention this low means that nothing is seen. (Infinity is not a number in JSON.)
CUT = -1e4


# --- the model as graphs -------------------------------------------------------------------------


class WiredAttention(JointAttention):
    """:class:`JointAttention` with a ``bias`` (S, S), which is added to the logits."""

    bias: Tensor | None = None

    def forward(self, branches, xs, rotary):
        projected = [branch.project(x, rotary) for branch, x in zip(branches, xs, strict=True)]
        q, k, v = (torch.cat(parts, 2) for parts in zip(*projected, strict=True))
        attended = F.scaled_dot_product_attention(q, k, v, self.bias).chunk(len(branches), 2)
        return [branch.out(y) for branch, y in zip(branches, attended, strict=True)]


class Denoise(nn.Module):
    """Vera's network with a switch on each of the nine wires between layers."""

    def __init__(self, pipe: VeraPipeline):
        super().__init__()
        self.system = copy.deepcopy(pipe.system)
        for block in self.system.blocks:
            block.attn1 = WiredAttention()

    def forward(
        self,
        latents: Tensor,
        sigma: Tensor,
        text: Tensor,
        source: Tensor,
        mask: Tensor,
        mask_given: Tensor,
        wires: Tensor,
    ) -> Tensor:
        """wires (3, 3): 0 where the layer of a row sees that of a column, CUT where it does not."""
        patch = self.system.config.backbone.patch_size
        tokens = latents[0, 0, 0].numel() // torch.Size(patch).numel()
        bias = wires.repeat_interleave(tokens, 0).repeat_interleave(tokens, 1)
        for block in self.system.blocks:
            block.attn1.bias = bias
        output = self.system(latents, 1000 * sigma, text, source, mask, mask_given)
        for block in self.system.blocks:
            block.attn1.bias = None
        return output


class Call(nn.Module):
    """A method as a module, for the exporter."""

    def __init__(self, owner: nn.Module, name: str):
        super().__init__()
        self.owner, self.name = owner, name

    def forward(self, x: Tensor) -> Tensor:
        return getattr(self.owner, self.name)(x)


def graphs(pipe: VeraPipeline) -> dict[str, bytes]:
    """The network and both halves of the codec, as ONNX files by name."""
    frames, height, width = pipe.clip_size
    noise = torch.zeros(pipe.noise_shape(1, *pipe.clip_size))
    text = pipe.text_encoder([""])
    given = {
        "latents": noise,
        "sigma": torch.ones(1),
        "text": text,
        "source": noise[0],
        "mask": noise[0],
        "mask_given": torch.ones(1),
        "wires": torch.zeros(len(LAYERS), len(LAYERS)),
    }
    video = torch.zeros(1, frames, 3, height, width)
    return {
        "encode": to_onnx(Call(pipe.codec, "encode"), {"video": video}),
        "denoise": to_onnx(Denoise(pipe), given),
        "decode": to_onnx(Call(pipe.codec, "decode"), {"latents": noise[0]}),
    }


def to_onnx(module: nn.Module, inputs: dict[str, Tensor]) -> bytes:
    """A module as an ONNX file, which computes in float32.

    Tensors that half precision holds without loss, as the weights of the shipped toys, take half the room.
    """
    program = torch.onnx.export(
        module.eval(),
        tuple(inputs.values()),
        dynamo=True,
        input_names=list(inputs),
        output_names=["output"],
        verbose=False,
    )
    if program is None:
        raise RuntimeError("torch wrote no ONNX program.")
    model = program.model_proto
    for tensor in model.graph.initializer:
        if tensor.data_type != TensorProto.FLOAT:
            continue
        values, name = numpy_helper.to_array(tensor), tensor.name
        half = values.astype("float16")
        if values.size >= 1024 and (half == values).all():
            tensor.CopyFrom(numpy_helper.from_array(half, f"{name}.half"))
            cast = helper.make_node("Cast", [tensor.name], [name], to=TensorProto.FLOAT)
            model.graph.node.insert(0, cast)
    model.graph.ClearField("value_info")  # shapes between the nodes, and where each came from
    for node in model.graph.node:
        node.ClearField("metadata_props")
        node.ClearField("doc_string")
    onnx.checker.check_model(model)
    return model.SerializeToString()


# --- the clips -----------------------------------------------------------------------------------


def clips(pipe: VeraPipeline, count: int = 8) -> list[dict]:
    """Unseen clips with the sentence and the mask of an edit: every fourth changes the background."""
    is_scene = "bricks" in getattr(pipe.text_encoder, "phrases", ())
    kind = SceneConfig if is_scene else WorldConfig
    found = []
    for k in range(count):
        task = "background" if k % 4 == 3 else "add"
        batch = kind(*pipe.clip_size, tasks=(task,)).render(TEST_SEED, [k])
        found.append(
            {
                "sentence": batch.instruction[0],
                "source": pack(to_bytes(batch.source[0])),
                "mask": pack(to_bytes(batch.mask[0])),
            }
        )
    return found


def to_bytes(video: Tensor) -> bytes:
    """(T, C, H, W) in [0, 1] -> one byte per number, in this order."""
    return (255 * video).round().to(torch.uint8).numpy().tobytes()


def pack(data: bytes) -> str:
    """Packed by gzip, as text."""
    return base64.b64encode(gzip.compress(data, mtime=0)).decode()


# --- the page ------------------------------------------------------------------------------------


def page(pipe: VeraPipeline) -> str:
    """The whole page as HTML."""
    if not isinstance(pipe.text_encoder, PhraseEncoder):
        raise ValueError("the page needs a model that reads phrases, as the toys do.")
    settings = {
        "clip_size": pipe.clip_size,
        "noise_shape": pipe.noise_shape(1, *pipe.clip_size),
        "steps": pipe.sampling.steps,
        "shift": pipe.sampling.shift,
        "alpha_floor": pipe.sampling.alpha_floor,
        "prediction": pipe.system.config.objective.prediction,
        "vocabulary": pipe.text_encoder.vocabulary,
        "cut": CUT,
        "clips": clips(pipe),
    }
    data = {name: pack(graph) for name, graph in graphs(pipe).items()}
    for name, file in {"runtime": "ort.wasm.bundle.min.mjs", "wasm": "ort-wasm-simd-threaded.wasm"}.items():
        packed = (PARTS / "onnxruntime-web" / f"{file}.gz").read_bytes()
        data[name] = base64.b64encode(packed).decode()
    html = io.StringIO()
    for line in (PARTS / "page.html").read_text().splitlines(keepends=True):
        match line.strip():
            case "<!-- style -->":
                html.write(f"<style>\n{(PARTS / 'page.css').read_text()}</style>\n")
            case "<!-- data -->":
                text = json.dumps(settings).replace("</", r"<\/")
                html.write(f'<script type="application/json" id="settings">{text}</script>\n')
                for name, value in data.items():
                    html.write(f'<script type="text/plain" id="{name}">{value}</script>\n')
            case "<!-- script -->":
                html.write(f'<script type="module">\n{(PARTS / "page.js").read_text()}</script>\n')
            case _:
                html.write(line)
    return html.getvalue()


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, help="a folder of `vera-lite export`; default: the shipped toy")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "vera.html")
    options = parser.parse_args(arguments)
    text = page(VeraPipeline.from_pretrained(options.model))
    if (size := len(text.encode()) / 1e6) > LARGEST_MB:
        raise SystemExit(f"the page has {size:.1f} MB, more than {LARGEST_MB:g}: export a smaller model.")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with replacing(options.out) as path:
        path.write_text(text)
    print(f"{options.out}: {size:.1f} MB. Open it in a browser.")


if __name__ == "__main__":
    main()
