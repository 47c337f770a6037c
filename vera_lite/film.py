"""Clips that play in a notebook: an animated PNG, which browsers, notebooks and GitHub show as a picture."""

import io
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from vera_lite.viz import DPI, image


class Film:
    """Pictures of one size as an animated PNG; what cannot play it shows the middle one."""

    def __init__(self, pictures: Sequence[Image.Image], fps: float):
        file = io.BytesIO()
        options = {"append_images": pictures, "save_all": True, "default_image": True, "loop": 0}
        pictures[len(pictures) // 2].save(file, format="PNG", duration=1000 / fps, **options)
        self.png = file.getvalue()

    def _repr_png_(self) -> bytes:
        return self.png


def film(clips: Mapping[str, Tensor], title: str = "", *, fps: float = 4, side: float = 1.45) -> Film:
    """Videos that play side by side and in step, for ever; a bar below them shows the time.

    Args:
        clips: name -> (T, 1 or 3, H, W) in [0, 1], all of one size.
        title: what to see.
        fps: frames per second.
        side: inches of a video's width; its pixels stay square and sharp.
    """
    videos = list(clips.values())
    frames, _, height, width = videos[0].shape
    scale = max(1, round(side * DPI / width))
    tall, wide, gap = height * scale, width * scale, 8
    columns = min(5, len(videos))
    heading = 22 * (title.count("\n") + 1) + 4 if title else 0
    name = 17 * max(text.count("\n") + 1 for text in clips) + 5
    row = columns * (wide + gap) + gap
    margin = max(0, 7 * max(map(len, title.split("\n"))) - row) // 2  # the title may be wider than the clips
    corners = []
    for y, x in (divmod(i, columns) for i in range(len(videos))):
        corners.append((margin + gap + x * (wide + gap), heading + name + y * (tall + name + gap)))
    size = row + 2 * margin, corners[-1][1] + tall + gap + 8
    figure = Figure(figsize=(size[0] / DPI, size[1] / DPI), dpi=DPI)
    at = {"transform": None, "ha": "center", "va": "bottom"}  # in pixels, from the bottom
    figure.text(size[0] / 2, size[1] - heading + 2, title, fontsize=11, **at)
    for text, (left, top) in zip(clips, corners, strict=True):
        figure.text(left + wide / 2, size[1] - top + 3, text, fontsize=10, **at)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    pictures = []
    for t in range(frames):
        pixels = np.asarray(canvas.buffer_rgba())[..., :3].copy()
        for video, (left, top) in zip(videos, corners, strict=True):
            pixels[top - 1 : top + tall + 1, left - 1 : left + wide + 1] = 204  # a frame, for white videos
            shown = (255 * image(video[t])).round().astype(np.uint8)
            pixels[top : top + tall, left : left + wide] = shown.repeat(scale, 0).repeat(scale, 1)
        done = gap + (size[0] - 2 * gap) * (t + 1) // frames
        pixels[-8:-4, gap:-gap], pixels[-8:-4, gap:done] = 225, (0, 114, 178)
        pictures.append(Image.fromarray(pixels))
    return Film(pictures, fps)
