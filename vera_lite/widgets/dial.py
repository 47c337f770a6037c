"""Controls to drag, and the picture of every choice, drawn beforehand: it works without Python."""

import io
import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from traitlets import Bytes, List, Unicode

from vera_lite.film import Film
from vera_lite.media.clip import to_uint8
from vera_lite.viz import DPI
from vera_lite.widgets.base import Widget, image_file, script

#: Bytes of pictures that a notebook may have to store.
BUDGET = 2_500_000


class Dial(Widget):
    """A picture that follows its controls: a slider for numbers, a switch for booleans, else buttons.

    Args:
        controls: name -> the values of a control, the first of which is chosen at the beginning.
        draw: called once for every combination, with one value of each control by position; returns a figure,
            a film or a frame (1 or 3, H, W) in [0, 1], or such a picture and a sentence.
        title: what to see.
        height: pixels of the frame that holds the saved page.

    Raises:
        ValueError: there is nothing to choose, or the pictures are more than a notebook should store.

    An example::

        Dial({"alpha": [0.0, 0.5, 1.0]}, lambda alpha: alpha * edit + (1 - alpha) * source)
    """

    _esm = script("element", "dial")
    _css = Path(__file__).with_name("dial.css")

    title = Unicode().tag(sync=True)
    names = List(Unicode()).tag(sync=True)  #: of the controls.
    labels = List(List(Unicode())).tag(sync=True)  #: of the values of each control.
    kinds = List(Unicode()).tag(sync=True)  #: "slider", "switch" or "buttons", one for each control.
    pictures = List(Bytes()).tag(sync=True)  #: PNG files; the last control runs fastest.
    sentences = List(Unicode()).tag(sync=True)  #: one for each picture.
    chosen = List().tag(sync=True)  #: number of the chosen value of each control.

    def __init__(
        self,
        controls: Mapping[str, Sequence],
        draw: Callable,
        title: str = "",
        height: int = 420,
    ):
        if not controls or not all(controls.values()):
            raise ValueError("every control needs values to choose from.")
        drawn = [draw(*choice) for choice in itertools.product(*controls.values())]
        drawn = [pair if isinstance(pair, tuple) else (pair, "") for pair in drawn]
        pictures = [_png(picture) for picture, _ in drawn]
        if (size := sum(map(len, pictures))) > BUDGET:
            raise ValueError(
                f"{len(pictures)} pictures would put {size / 1e6:.1f} MB into the notebook, over "
                f"{BUDGET / 1e6:g} MB: give fewer values or smaller pictures."
            )
        super().__init__(
            title=title,
            names=list(controls),
            labels=[[_label(value) for value in values] for values in controls.values()],
            kinds=[_kind(values) for values in controls.values()],
            pictures=pictures,
            sentences=[sentence for _, sentence in drawn],
            chosen=[0] * len(controls),
            height=height,
        )

    def still(
        self, *choices: Sequence[int], labels: Sequence[str] | None = None, columns: int = 3
    ) -> Image.Image:
        """The pictures of some choices beside each other, for readers without the widget.

        Args:
            choices: number of the chosen value of each control, for each picture.
            labels: of the pictures; None: the chosen values.
            columns: the most pictures in a row.
        """
        font, tiles = ImageFont.load_default(13), []
        for choice in choices:
            at = 0
            for number, values in zip(choice, self.labels, strict=True):
                at = at * len(values) + number
            picture = Image.open(io.BytesIO(self.pictures[at])).convert("RGB")
            if (scale := 160 // picture.width) > 1:  # small frames, in whole pixels
                picture = picture.resize((picture.width * scale, picture.height * scale), Image.NEAREST)
            tiles.append(picture)
        chosen = [[self.labels[i][c] for i, c in enumerate(choice)] for choice in choices]
        labels = labels or [", ".join(map("{}: {}".format, self.names, values)) for values in chosen]
        columns = min(columns, len(tiles))
        wide = (
            max(max(p.width, int(font.getlength(text))) for p, text in zip(tiles, labels, strict=True)) + 12
        )
        tall = max(picture.height for picture in tiles) + 28
        sheet = Image.new("RGB", (columns * wide, -(-len(tiles) // columns) * tall), "white")
        for i, (picture, text) in enumerate(zip(tiles, labels, strict=True)):
            left, top = i % columns * wide, i // columns * tall
            ImageDraw.Draw(sheet).text((left + wide / 2, top + 12), text, "black", font, anchor="mm")
            sheet.paste(picture, (left + (wide - picture.width) // 2, top + 24))
        return sheet


def _png(picture: Figure | Film | Tensor) -> bytes:
    if isinstance(picture, Film):
        return picture.png
    if isinstance(picture, Figure):
        file = io.BytesIO()
        picture.savefig(file, format="png", dpi=DPI)
        return image_file(Image.open(file).convert("RGB"), is_exact=True)
    pixels = to_uint8(torch.as_tensor(picture)).expand(3, -1, -1).permute(1, 2, 0)
    return image_file(Image.fromarray(pixels.contiguous().numpy()), is_exact=True)


def _label(value: object) -> str:
    return f"{value:g}" if isinstance(value, int | float) and not isinstance(value, bool) else str(value)


def _kind(values: Sequence) -> str:
    if all(isinstance(value, bool) for value in values):
        return "switch"
    return "slider" if all(isinstance(value, int | float) for value in values) else "buttons"
