"""Apply an edit to a video file of any size and length.

Frames stream through, so memory does not grow with the length of the video.
"""

import json
import textwrap
import time
import warnings
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn import functional as F
from tqdm.auto import tqdm

from vera_lite.apps.inputs import RESULT_FILES, is_picture, read_picture
from vera_lite.errors import Notice
from vera_lite.media.clip import to_float, to_uint8
from vera_lite.media.files import replacing_set
from vera_lite.media.header import VideoInfo, ffmpeg
from vera_lite.media.trajectory import Trajectory
from vera_lite.media.video import VideoReader
from vera_lite.media.video_writer import SOUND_IN_MP4, VideoWriter
from vera_lite.pipelines import EditResult, Pipeline, frame_choice

_SHEET_FRAMES = 5


def apply_to_file(
    pipe: Pipeline,
    reader: VideoReader,
    given: Sequence,
    out: Path,
    facts: dict,
    *,
    title: str,
    trajectory: Trajectory | None = None,
    seed: int = 0,
    **changes,
) -> list[Path]:
    """Edit a video file and write the results.

    The model draws at its own size. Its layers are enlarged to the source's size and combined with the source
    frame by frame. A model draws a fixed number of frames, spread evenly over the video; the frames between
    show the nearest of them (``exact_frames`` in ``metrics.json`` says which are the model's own).

    Args:
        pipe: the model.
        reader: the video.
        given: what else the model is given, as for ``pipe.draw``.
        out: folder, made if needed. Gets ``final.mkv`` and the layers of the system (lossless), ``final.mp4``
            (preview, with the source's sound), ``sheet.png`` and ``metrics.json``; they appear together or
            not at all.
        facts: what the command was asked, kept in ``metrics.json``.
        title: of the sheet.
        trajectory: kept as ``trajectory.json`` and drawn on the sheet.
        seed: of the noise.
        changes: fields of ``pipe.sampling``.

    Returns:
        The files written. What of the source they do not carry over is a warning each.
    """
    info, sampling = reader.info, pipe.sampling_with(**changes)
    started = time.perf_counter()
    chosen = frame_choice(info.frames, pipe.clip_size[0])
    # A path is in the video's pixels; all else may be shrunk while it is read.
    frames = (
        to_float(pick(reader, chosen, "reading"))
        if trajectory
        else pick(reader, chosen, "reading", pipe.clip_size[1:])
    )
    with tqdm(total=sampling.steps, desc="denoising", unit="step") as bar:
        options = {"seed": seed, "callback": lambda _state: bar.update(), **changes}
        options |= {"frames": info.frames, "size": (info.height, info.width), "fps": float(info.fps)}
        drawing = pipe.draw(frames, *given, **options)
    drawn_at = time.perf_counter()
    del frames

    measured, sheet, uint8 = _Change(), [], _Pictures()
    moments = sorted(set(frame_choice(info.frames, _SHEET_FRAMES)))
    with replacing_set(out, RESULT_FILES) as folder:
        with ExitStack() as stack:
            writers: dict[str, list[VideoWriter]] = {}

            def writer(name: str, kind: str) -> VideoWriter:
                sound = reader.path if kind == "preview" else None
                return stack.enter_context(VideoWriter(folder / name, info.fps, kind, info, sound))

            for t, frame in enumerate(tqdm(reader, "writing", unit="frame")):
                result = drawing.frame(t, to_float(frame))
                pictures = uint8(result)
                if not writers:  # the first frame says which layers there are
                    writers = {name: [writer(f"{name}.mkv", "lossless")] for name in pictures}
                    writers["final"].append(writer("final.mp4", "preview"))
                for name, picture in pictures.items():
                    for file in writers[name]:
                        file.write(picture)
                measured.add(frame, result, pictures["final"])
                if t in moments:
                    rows = [name for name in ("edit", "alpha", "mask", "final") if name in pictures]
                    sheet.append({"source": frame} | {name: pictures[name] for name in rows})
        seconds = [t / float(info.fps) for t in moments]
        draw_sheet(sheet, seconds, title, trajectory).save(folder / "sheet.png")
        if trajectory is not None:
            (folder / "trajectory.json").write_text(trajectory.to_json() + "\n")
        not_carried_over = _not_carried_over(reader.path, info)
        metrics = {
            **facts,
            "seed": seed,
            **asdict(sampling),
            "frames": info.frames,
            "width": info.width,
            "height": info.height,
            "fps": float(info.fps),
            "exact_frames": drawing.exact_frames,
            **measured.metrics(),
            "sound": [name for name in info.sound if name in SOUND_IN_MP4],
            "not_carried_over": not_carried_over,
            "seconds_drawing": round(drawn_at - started, 2),
            "seconds_writing": round(time.perf_counter() - drawn_at, 2),
        }
        (folder / "metrics.json").write_text(json.dumps(metrics, indent=1) + "\n")
        written = [out / name for name in RESULT_FILES if (folder / name).exists()]
    for sentence in not_carried_over:
        warnings.warn(f"{reader.path}: {sentence}.", Notice, stacklevel=3)
    return written


def _not_carried_over(path: Path, info: VideoInfo) -> list[str]:
    """What of a video its result does not have, a sentence each."""
    sentences = list(info.notes)
    if info.has_alpha:
        sentences.append("its alpha channel is left out: the result is opaque")
    for name in info.sound:
        if name not in SOUND_IN_MP4:
            sentences.append(
                f"its sound ({name}) does not fit into final.mp4; add it with: "
                + ffmpeg(path, "-i final.mp4 -i", "-map 0:v -map 1:a -c:v copy -c:a aac")
            )
    return sentences


class _Pictures:
    """uint8 pictures of a frame, by the name of their file; layers that stay are converted once."""

    def __init__(self):
        self._kept: dict[str, tuple[Tensor, Tensor]] = {}

    def __call__(self, result: EditResult) -> dict[str, Tensor]:
        layers = result.layers()
        layers.pop("matte", None)
        if result.composite is result.final or "alpha" in layers:  # Vera's composite is not for use
            layers.pop("composite")
        for name, layer in layers.items():
            if name not in self._kept or self._kept[name][0] is not layer:
                self._kept[name] = layer, to_uint8(layer)
        return {name: self._kept[name][1] for name in layers}


class _Change:
    """How far the result is from the source, and from it where nothing was to change."""

    def __init__(self):
        self.error = self.values = self.outside_error = self.outside_values = 0
        self._matte = self._outside = None

    def add(self, source: Tensor, result: EditResult, final: Tensor) -> None:
        """One frame: source and final as uint8, and the result whose alpha or mask is 0 outside."""
        error = torch.maximum(source, final) - torch.minimum(source, final)  # bytes: quick to look through
        self.error += _square_sum(error)
        self.values += error.numel()
        matte = result.mask if result.alpha is None else result.alpha
        if matte is None:
            return
        if matte is not self._matte:
            self._matte, self._outside = matte, (matte == 0).to(torch.uint8)
            self._count = 3 * int(self._outside.sum())
        self.outside_error += _square_sum(error * self._outside)
        self.outside_values += self._count

    def metrics(self) -> dict:
        """Mean squares are of colours in [0, 1]. Outside is where alpha or mask is 0; a system that redraws
        has no such place."""
        metrics = {"mean_squared_change": self.error / self.values / 255**2}
        if self.outside_values:
            metrics["outside_share"] = round(self.outside_values / self.values, 6)
            metrics["outside_equals_source"] = self.outside_error == 0
            metrics["outside_mean_squared_change"] = self.outside_error / self.outside_values / 255**2
        return metrics


def _square_sum(error: Tensor) -> float:
    """Of bytes; 0 if and only if all are."""
    if not error.any():
        return 0.0
    values = error.flatten().float()
    return float(values @ values)


# --- what is read ------------------------------------------------------------------------------------


def pick(
    reader: VideoReader, chosen: Sequence[int], label: str, size: tuple[int, int] | None = None
) -> Tensor:
    """The chosen frames of a video: uint8 (t, C, H, W), or in [0, 1] at another size.

    All others are decoded too, so that damage is found now.
    """
    wanted, kept = set(chosen), {}
    for t, frame in enumerate(tqdm(reader.decode(), label, total=len(reader), unit="frame")):
        if t in wanted:
            pixels = reader.to_tensor(frame)
            kept[t] = pixels if size is None else shrunk(to_float(pixels)[None], size)[0]
    return torch.stack([kept[t] for t in chosen])


def shrunk(video: Tensor, size: Sequence[int]) -> Tensor:
    """(T, C, H, W) -> (T, C, h, w), as a pipeline shrinks what it is given."""
    return F.interpolate(video, size=tuple(size), mode="area")


def read_mask(path: Path, info: VideoInfo, chosen: Sequence[int]) -> Tensor:
    """The chosen frames (t, 1, H, W) in [0, 1] of a video, or of a picture that stands for all frames; see
    :func:`.check_mask`."""
    if is_picture(path):
        mask = torch.from_numpy(read_picture(path, "mask", "L")).expand(len(chosen), -1, -1, -1)
    else:
        mask = pick(VideoReader(path, "grey"), chosen, "reading mask")
    return to_float(mask)


# --- the contact sheet ---------------------------------------------------------------------------------


def draw_sheet(
    columns: list[dict[str, Tensor]], seconds: list[float], title: str, trajectory: Trajectory | None = None
) -> Image.Image:
    """One column per moment, one row per layer.

    Args:
        columns: for each moment, uint8 pictures (3 or 1, H, W) by the name of their row.
        seconds: when each moment is.
        title: of the sheet.
        trajectory: drawn into the first row, with a dot where the object is.
    """
    names, gap, left = list(columns[0]), 8, 90
    height, width = columns[0][names[0]].shape[-2:]
    zoom = min(190 / height, 380 / width)
    tile = max(1, round(zoom * width)), max(1, round(zoom * height))
    lines = textwrap.wrap(title, max(20, (left + len(columns) * (tile[0] + gap)) // 9)) or [""]
    top = 22 * len(lines) + 30
    sheet = Image.new(
        "RGB", (left + len(columns) * (tile[0] + gap), top + len(names) * (tile[1] + gap)), "white"
    )
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    draw.multiline_text((sheet.width / 2, 4), "\n".join(lines), "black", font, anchor="ma", align="center")
    dots = None if trajectory is None else trajectory.sample(len(columns))[0].tolist()
    for column, (pictures, second) in enumerate(zip(columns, seconds, strict=True)):
        x = left + column * (tile[0] + gap)
        draw.text((x + tile[0] / 2, top - 6), f"{second:.2f} s", "black", font, anchor="ms")
        for row, name in enumerate(names):
            pixels = pictures[name].expand(3, -1, -1).permute(1, 2, 0).numpy()
            picture = Image.fromarray(np.ascontiguousarray(pixels)).resize(tile)
            if row == 0 and trajectory is not None:
                _draw_path(ImageDraw.Draw(picture), trajectory, dots[column], zoom)
            sheet.paste(picture, (x, top + row * (tile[1] + gap)))
    for row, name in enumerate(names):
        draw.text((left - 8, top + row * (tile[1] + gap) + tile[1] / 2), name, "black", font, anchor="rm")
    return sheet


def _draw_path(draw: ImageDraw.ImageDraw, trajectory: Trajectory, dot: list[float], zoom: float) -> None:
    line = [(zoom * x, zoom * y) for x, y in trajectory.sample(200)[0].tolist()]
    draw.line(line, "white", 4)
    draw.line(line, "#d62728", 2)
    x, y = (zoom * v for v in dot)
    draw.ellipse((x - 5, y - 5, x + 5, y + 5), "#d62728", "white")
