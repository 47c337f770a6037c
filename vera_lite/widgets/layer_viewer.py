"""The layers of an edit, frame by frame: the source, the drawn layers, and their composite."""

from pathlib import Path

from torch import Tensor
from traitlets import Bytes, Enum, Float, Int, List, Unicode, validate

from vera_lite.media.clip import LayeredClip, to_uint8
from vera_lite.media.video import frame_rate
from vera_lite.pipelines import EditResult
from vera_lite.widgets.base import Widget, checked_video, script

VIEWS = ("final", "source", "straight", "premultiplied", "checker", "matte", "composite")
LAYERS = ("source", "edit", "alpha")
#: Bytes of pixels that a notebook may have to store, in base64.
BUDGET = 3_000_000


class LayerViewer(Widget):
    """Look through the layers of an edit.

    The browser gets 8-bit layers and lays the edit over the source itself. The result is within 1/255 of
    :func:`.composite` of these layers, and is the source where the 8-bit alpha is 0. With ``max_frames`` and
    ``max_side``, every k-th frame and pixel is shown, never a mean of several.

    Args:
        layers: the clip, or the result of a pipeline.
        source: (T, 3, H, W) in [0, 1]; needed with an EditResult, which has none.
        fps: frames per second; default: the clip's, or 8.
        max_frames: the most frames to show, evenly spaced.
        max_side: the most pixels to show along the longer side.

    Raises:
        ValueError: layers do not fit together, a value is out of range, or the state would be larger than
            a notebook should store.

    An example::

        LayerViewer(pipe(video, prompt), source=video)
    """

    _esm = script("element", "layer_viewer")
    _css = Path(__file__).with_name("layer_viewer.css")

    source = Bytes().tag(sync=True)
    edit = Bytes().tag(sync=True)
    alpha = Bytes().tag(sync=True)
    composite = Bytes().tag(sync=True)
    size = List(Int()).tag(sync=True)  #: (shown frames, height, width).
    strides = List(Int()).tag(sync=True)  #: (frames, pixels) of the clip between two shown ones.
    fps = Float().tag(sync=True)
    caption = Unicode().tag(sync=True)
    frame = Int(0).tag(sync=True)  #: shown frame, 0 .. shown frames - 1.
    #: "final" is what ``visible`` leaves of the layers; "straight" the edit in its own colours;
    #: "premultiplied" alpha * edit; "checker" the edit by its alpha over a checkerboard; "matte" alpha as
    #: grey; "source"; "composite" the frame that was drawn as a whole.
    view = Enum(VIEWS, "final").tag(sync=True)
    #: which of "source", "edit" and "alpha" take part in "final". Without alpha the edit covers everything;
    #: without source a checkerboard shows through.
    visible = List(Enum(LAYERS), list(LAYERS)).tag(sync=True)
    #: the left part of the picture, 0 .. 1, that shows the source.
    wipe = Float(0.0, min=0, max=1).tag(sync=True)

    def __init__(
        self,
        layers: LayeredClip | EditResult,
        source: Tensor | None = None,
        fps: float | None = None,
        max_frames: int | None = None,
        max_side: int | None = None,
    ):
        if source is None and not hasattr(layers, "source"):
            raise ValueError("an edit result has no source: give the video as source=.")
        tensors = {name: getattr(layers, name) for name in ("edit", "alpha", "composite")}
        tensors["source"] = layers.source if source is None else source
        tensors = {name: checked_video(name, x, 1 if name == "alpha" else 3) for name, x in tensors.items()}
        frames, _, height, width = tensors["edit"].shape
        for name, layer in tensors.items():
            if (len(layer), *layer.shape[2:]) != (frames, height, width):
                raise ValueError(f"{name} is {tuple(layer.shape)}, but edit {tuple(tensors['edit'].shape)}.")
        stride, side_stride = _stride(frames, max_frames), _stride(max(height, width), max_side)
        shown = {
            name: to_uint8(layer[::stride, :, ::side_stride, ::side_stride]).permute(0, 2, 3, 1)
            for name, layer in tensors.items()
        }
        stored = sum(layer.numel() for layer in shown.values()) * 4 // 3
        size = shown["edit"].shape[:3]
        if stored > BUDGET:
            raise ValueError(
                f"{size[0]} frames of {size[2]}x{size[1]} would put {stored / 1e6:.1f} MB into the notebook, "
                f"over {BUDGET / 1e6:g} MB: give a smaller max_frames or max_side."
            )
        super().__init__(
            **{name: layer.contiguous().numpy().tobytes() for name, layer in shown.items()},
            size=list(size),
            strides=[stride, side_stride],
            fps=float(frame_rate(getattr(layers, "fps", 8.0) if fps is None else fps)) / stride,
            caption=getattr(layers, "instruction", ""),
        )

    @validate("frame")
    def _check(self, proposal):
        if not 0 <= proposal["value"] < self.size[0]:
            raise ValueError(f"frame {proposal['value']} is out of range: give 0 to {self.size[0] - 1}.")
        return proposal["value"]


def _stride(count: int, most: int | None) -> int:
    """The smallest stride that leaves at most ``most`` of ``count``."""
    if most is None:
        return 1
    if most < 1:
        raise ValueError(f"max_frames and max_side must be at least 1, got {most}.")
    return -(-count // most)
