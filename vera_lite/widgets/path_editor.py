"""The path editor: draw where an object goes in a video, how large it is, and when it is there.

    foreground, alpha = centre_foreground(dog, matte)
    editor = PathEditor(background, (foreground, alpha))
    editor                                   # click in the picture, drag the points, play
    place(foreground, alpha, *editor.trajectory.sample(len(alpha)), editor.trajectory.size)

Drawing needs no Python: everything works in a saved notebook and in a static page. The path can be copied as
JSON for :meth:`Trajectory.from_json` and `vera-lite composite --path`.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from traitlets import Bool, Bytes, Dict, Float, Int, List, validate

from vera_lite.media.clip import to_uint8
from vera_lite.media.trajectory import Trajectory
from vera_lite.media.video import frame_rate
from vera_lite.widgets.base import Widget, checked_video, image_file

#: Frames of a clip if all inputs are pictures.
STILL_FRAMES = 24
#: The most stored frames of a video, evenly spaced; between them the nearest is shown.
MAX_FRAMES = 16
#: Stored pixels of the longer side of a background, and of the visible part of a foreground.
BACKGROUND_SIDE, FOREGROUND_SIDE = 640, 160
#: Empty pixels around a foreground, so that a browser that scales it gives it a soft edge.
MARGIN = 2
#: The most bytes of pictures that a notebook may have to store, in base64.
BUDGET = 3_000_000


class PathEditor(Widget):
    """Draw the trajectories of objects on a background.

    The preview lays the foregrounds over the background as :func:`.place` does, with smaller and fewer frames
    for large videos. Later objects cover earlier ones.

    Args:
        background: (T, 3, H, W) in [0, 1], or one picture (3, H, W).
        foregrounds: pairs of colour (T, 3, h, w) and alpha (T, 1, h, w), or one pair, centred as by
            :func:`.centre_foreground`. By default a plain disc stands for every object. Videos must have as
            many frames as the background; pictures (T = 1) stand still.
        trajectories: the first ones, drawn in the background's size; see the property.
        fps: frames per second when playing.

    Raises:
        ValueError: tensors of another shape or dtype or that do not fit together, a value out of range, or
            more pictures than a notebook should store.
    """

    _esm = Path(__file__).with_name("path_editor.js")
    _css = Path(__file__).with_name("path_editor.css")

    #: for each object ``{"foreground": place in foregrounds, "trajectory": fields of its JSON}``, whose list
    #: of keyframes may be empty.
    objects = List(Dict()).tag(sync=True)
    object = Int(0).tag(sync=True)  #: the one that is edited, counted from 0.
    keyframe = Int(-1).tag(sync=True)  #: the selected one, or -1.
    frame = Int(0).tag(sync=True)  #: of the preview, 0 .. frames - 1.
    #: whether the edited object is also drawn, translucent, at other times.
    onion_skin = Bool(True).tag(sync=True)
    #: diameter, in pixels at scale 1, of the disc that stands for an object.
    disc = Float(min=1e-3, max=1e6).tag(sync=True)
    height = Int(780).tag(sync=True)

    # size: (H, W) of the frame; shown: (H, W) of the stored background; frames and fps: of the clip;
    # foregrounds: left, top, width and height of the stored part of each, from the middle of its canvas.
    _facts = Dict().tag(sync=True)
    _background = List(Bytes()).tag(sync=True)
    _foregrounds = List(List(Bytes())).tag(sync=True)

    def __init__(
        self,
        background: Tensor,
        foregrounds: Sequence[tuple[Tensor, Tensor]] | tuple[Tensor, Tensor] | None = None,
        trajectories: Sequence[Trajectory] | Trajectory | None = None,
        fps: float = 8.0,
    ):
        background = checked_video("background", background[None] if background.ndim == 3 else background, 3)
        pairs = [] if foregrounds is None else list(foregrounds)
        pairs = [pairs] if pairs and isinstance(pairs[0], Tensor) else pairs
        if any(len(pair) != 2 for pair in pairs):
            raise ValueError("a foreground is a pair of colour and alpha; give one pair, or a list of pairs.")
        counts = {len(video) for video in (background, *(colour for colour, _ in pairs)) if len(video) > 1}
        if len(counts) > 1:
            raise ValueError(f"the videos have {sorted(counts)} frames; give equally many, or pictures.")
        stored, (height, width) = _files(background, BACKGROUND_SIDE)
        facts = {
            "size": list(background.shape[2:]),
            "shown": [height, width],
            "frames": counts.pop() if counts else STILL_FRAMES,
            "fps": float(frame_rate(fps)),
            "foregrounds": [],
        }
        layers = []
        for number, (colour, alpha) in enumerate(pairs, 1):
            visible, seen = _visible(f"foreground {number}", colour, alpha)
            layers.append(_files(visible, FOREGROUND_SIDE)[0])
            facts["foregrounds"].append(seen)
        size = 4 / 3 * sum(len(file) for files in (stored, *layers) for file in files)
        if size > BUDGET:
            raise ValueError(
                f"the editor would put {size / 1e6:.1f} MB into the notebook, over {BUDGET / 1e6:g} MB: give "
                "fewer foregrounds, or smaller or shorter videos."
            )
        disc = max(1.0, round(min(facts["size"]) / 4))
        super().__init__(_facts=facts, _background=stored, _foregrounds=layers, disc=disc)
        self.trajectories = [] if trajectories is None else trajectories

    @property
    def trajectories(self) -> list[Trajectory]:
        """The drawn trajectory of each object. ValueError if a path is still empty.

        Set it to continue drawing: the i-th trajectory moves foreground i, further ones the last foreground.
        Foregrounds without a trajectory get an empty path.
        """
        paths = []
        for number, item in enumerate(self.objects, 1):
            path = _trajectory(item)
            if path is None:
                raise ValueError(f"the path of object {number} is empty: draw it, or remove the object.")
            paths.append(path)
        return paths

    @trajectories.setter
    def trajectories(self, trajectories: Sequence[Trajectory] | Trajectory) -> None:
        paths = [trajectories] if isinstance(trajectories, Trajectory) else list(trajectories)
        if not all(isinstance(path, Trajectory) for path in paths):
            raise ValueError("give Trajectory objects; Trajectory.from_json reads them from JSON.")
        paths = [json.loads(path.to_json()) for path in paths]
        last = max(len(self._foregrounds) - 1, 0)
        empty = {"version": 1, "keyframes": [], "size": self._facts["size"]}
        empty |= {"timing": "equal_frames", "scales": [1.0]}
        paths += [empty] * (last + 1 - len(paths))
        objects = [{"foreground": min(i, last), "trajectory": path} for i, path in enumerate(paths)]
        with self.hold_sync():
            self.keyframe, self.object = -1, 0
            self.objects = objects

    @property
    def trajectory(self) -> Trajectory:
        """The trajectory of the only object. ValueError if there are several, or the path is empty."""
        if len(self.objects) > 1:
            raise ValueError(f"there are {len(self.objects)} objects; read their .trajectories.")
        return self.trajectories[0]

    @validate("objects")
    def _check_objects(self, proposal):
        if not proposal["value"]:
            raise ValueError("there must be at least one object; its path may be empty.")
        for number, item in enumerate(proposal["value"], 1):
            path, (height, width) = _trajectory(item), self._facts["size"]
            if path and path.size != (height, width):
                raise ValueError(
                    f"the trajectory of object {number} is for a {path.size[1]}x{path.size[0]} frame, the "
                    f"background is {width}x{height}."
                )
        return proposal["value"]

    @validate("object", "keyframe", "frame")
    def _check_place(self, proposal):
        name, value = proposal["trait"].name, proposal["value"]
        lowest = -1 if name == "keyframe" else 0
        if value == lowest:
            return value
        if name == "frame":
            count = self._facts["frames"]
        elif name == "object":
            count = len(self.objects)
        else:
            count = len(self.objects[self.object]["trajectory"]["keyframes"])
        if not lowest <= value < count:
            raise ValueError(f"{name} {value} is out of range: give {lowest} to {max(count - 1, lowest)}.")
        return value


def _trajectory(item: dict) -> Trajectory | None:
    """The trajectory of an object; None if its path is empty."""
    if item.keys() != {"foreground", "trajectory"}:
        raise ValueError(f"an object has the keys foreground and trajectory, not {', '.join(item)}.")
    fields = item["trajectory"]
    empty = fields.get("keyframes") == []
    path = Trajectory.from_json(json.dumps(fields | {"keyframes": [{"x": 0, "y": 0}]} if empty else fields))
    return None if empty else path


def _visible(name: str, colour: Tensor, alpha: Tensor) -> tuple[Tensor, list[float]]:
    """The part of a foreground that is visible in some frame, (T, 4, h, w), and its left, top, width and
    height; left and top count from the middle of the canvas."""
    colour, alpha = (
        checked_video(f"the colour of {name}", colour, 3),
        checked_video(f"the alpha of {name}", alpha, 1),
    )
    if colour.shape[2:] != alpha.shape[2:] or len(colour) != len(alpha):
        raise ValueError(f"{name} has colour {tuple(colour.shape)} but alpha {tuple(alpha.shape)}.")
    seen = to_uint8(alpha).amax((0, 1))
    if not seen.any():
        raise ValueError(f"the alpha of {name} is 0 everywhere; there is no object to show.")
    (top, bottom), (left, right) = (seen.amax(axis).nonzero()[[0, -1], 0].tolist() for axis in (1, 0))
    layers = torch.cat([colour * (alpha > 0), alpha], 1)[..., top : bottom + 1, left : right + 1]
    layers = F.pad(layers, (MARGIN,) * 4)
    (height, width), (rows, columns) = alpha.shape[2:], layers.shape[2:]
    return layers, [left - MARGIN - width / 2, top - MARGIN - height / 2, columns, rows]


def _files(video: Tensor, max_side: int) -> tuple[list[bytes], tuple[int, int]]:
    """Frames (T, 3 or 4, H, W) as image files, and their (height, width)."""
    places = torch.linspace(0, len(video) - 1, min(len(video), MAX_FRAMES)).round().long()
    shown = to_uint8(video[places]).permute(0, 2, 3, 1).contiguous().numpy()
    # Small clips keep every pixel; JPEG knows no alpha.
    is_exact = shown.shape[-1] == 4 or shown.size <= 2**20
    images = [Image.fromarray(pixels) for pixels in shown]
    for image in images:
        image.thumbnail((max_side, max_side))  # weighs colours by their alpha
    return [image_file(image, is_exact) for image in images], (images[0].height, images[0].width)
