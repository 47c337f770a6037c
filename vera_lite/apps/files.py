"""Apply an edit to a video file of any size and length.

Frames stream through, so memory does not grow with the length of the video.
"""

import json
import textwrap
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

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
from vera_lite.pipelines import Pipeline, frame_choice
from vera_lite.pipelines.base import Drawing

_SHEET_FRAMES = 5
_BAND = 128


def apply_to_file(
    pipe: Pipeline,
    reader: VideoReader,
    inputs: Sequence,
    out: Path,
    facts: dict,
    *,
    title: str,
    trajectory: Trajectory | None = None,
    seed: int = 0,
    refine: Callable[[Drawing], Drawing] | None = None,
    **changes,
) -> list[Path]:
    """Edit a video file and write the results.

    The model draws at its own size. Its layers are enlarged to the source's size and combined with the source
    frame by frame. A model draws a fixed number of frames, spread evenly over the video; the frames between
    show the nearest of them (``exact_frames`` in ``metrics.json`` says which are the model's own).

    Args:
        pipe: the model.
        reader: the video.
        inputs: those besides the video, as for ``pipe.draw``.
        out: folder, made if needed. Gets ``final.mkv`` and the layers of the system (lossless), ``final.mp4``
            (preview, with the source's sound), ``sheet.png`` and ``metrics.json``; they appear together or
            not at all.
        facts: the request, kept in ``metrics.json``.
        title: of the sheet.
        trajectory: kept as ``trajectory.json`` and drawn on the sheet.
        seed: of the noise.
        refine: makes another drawing of the model's.
        changes: fields of ``pipe.sampling``.

    Returns:
        The files written. A warning names each part of the source that they lack.
    """
    info, sampling = reader.info, pipe.sampling_with(**changes)
    started = time.perf_counter()
    chosen = frame_choice(info.frames, pipe.clip_size[0])
    # A path is in the video's pixels, so its frames keep their size; others are shrunk while they are read.
    frames = (
        to_float(pick(reader, chosen, "reading"))
        if trajectory
        else pick(reader, chosen, "reading", pipe.clip_size[1:])
    )
    with tqdm(total=sampling.steps, desc="denoising", unit="step") as bar:
        options = {"seed": seed, "callback": lambda _state: bar.update(), **changes}
        options |= {"frames": info.frames, "size": (info.height, info.width), "fps": float(info.fps)}
        drawing = pipe.draw(frames, *inputs, **options)
    if refine is not None:
        drawing = refine(drawing)
    drawn_at = time.perf_counter()
    del frames

    measured, sheet, show = _Change(), [], _Pictures(drawing)
    moments = sorted(set(frame_choice(info.frames, _SHEET_FRAMES)))
    with replacing_set(out, RESULT_FILES) as folder:
        with ExitStack() as stack:
            writers: dict[str, list[VideoWriter]] = {}

            def writer(name: str, kind: str) -> VideoWriter:
                sound = reader.path if kind == "preview" else None
                like = writers.get("final", [None])[0] if kind == "lossless" else None
                return stack.enter_context(VideoWriter(folder / name, info.fps, kind, info, sound, like))

            for t, frame in enumerate(tqdm(reader, "writing", unit="frame")):
                pictures = show(t, frame)
                if not writers:  # the first frame says which layers there are
                    for name in pictures:
                        writers[name] = [writer(f"{name}.mkv", "lossless")]
                    writers["final"].append(writer("final.mp4", "preview"))
                for name, picture in pictures.items():
                    for file in writers[name]:
                        file.write(picture)
                measured.add(frame, pictures["final"], show.outside)
                if t in moments:
                    rows = [name for name in ("edit", "alpha", "mask", "final") if name in pictures]
                    shown = {"source": frame} | {name: pictures[name] for name in rows}
                    sheet.append({name: tile(picture) for name, picture in shown.items()})
        seconds = [t / float(info.fps) for t in moments]
        zoom = sheet[0]["source"].width / info.width
        draw_sheet(sheet, seconds, title, trajectory, zoom).save(folder / "sheet.png")
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
    """The parts of a video that its result lacks, one sentence each."""
    sentences = list(info.notes)
    if info.pixel_aspect != 1:
        sentences.append(
            f"its pixels are {info.pixel_aspect} as wide as high: final.mp4 says so, the .mkv files do not"
        )
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
    """uint8 pictures of each frame of a drawing, by the name of their file.

    They are made band by band, because floats of a whole frame take much memory. Layers that do not depend on
    the source are made again only when another drawn frame is shown.
    """

    def __init__(self, drawing: Drawing):
        self.drawing, self._shown = drawing, None
        self._pictures: dict[str, Tensor] = {}
        #: uint8 (1, H, W), 1 where nothing should change; None for a system that redraws.
        self.outside: Tensor | None = None

    def __call__(self, t: int, frame: Tensor) -> dict[str, Tensor]:
        height, width = frame.shape[1:]
        is_new = self.drawing.whole_frames or self.drawing.nearest[t] != self._shown
        self._shown = self.drawing.nearest[t]
        band = height if self.drawing.whole_frames else _BAND
        for top in range(0, height, band):
            rows = slice(top, top + band)
            result = self.drawing.frame(t, to_float(frame[:, rows]), rows)
            layers = result.layers()
            layers.pop("matte", None)
            # Vera's result is final; the composite that it generated is not written.
            if result.composite is result.final or result.alpha is not None:
                layers.pop("composite")
            for name, layer in layers.items():
                if name not in self._pictures:
                    self._pictures[name] = torch.empty(len(layer), height, width, dtype=torch.uint8)
                if is_new or name == "final":
                    self._pictures[name][:, rows] = to_uint8(layer)
            matte = result.mask if result.alpha is None else result.alpha
            if is_new and matte is not None:
                if self.outside is None:
                    self.outside = torch.empty(1, height, width, dtype=torch.uint8)
                self.outside[:, rows] = matte == 0
        return self._pictures


class _Change:
    """How far the result is from the source: everywhere, and where nothing should change."""

    def __init__(self):
        self.error = self.values = self.outside_error = self.outside_values = 0

    def add(self, source: Tensor, final: Tensor, outside: Tensor | None) -> None:
        """Count one frame: source and final as uint8, and ``outside``, 1 where nothing should change."""
        error = torch.maximum(source, final) - torch.minimum(source, final)  # bytes, which are fast
        self.error += _square_sum(error)
        self.values += error.numel()
        if outside is not None:
            self.outside_error += _square_sum(error * outside)
            self.outside_values += 3 * int(outside.sum())

    def metrics(self) -> dict:
        """Mean squares of colours in [0, 1]. "Outside" is where alpha or mask is 0; a system that redraws has
        no such place."""
        metrics = {"mean_squared_change": self.error / self.values / 255**2}
        if self.outside_values:
            metrics["outside_share"] = round(self.outside_values / self.values, 6)
            metrics["outside_equals_source"] = self.outside_error == 0
            metrics["outside_mean_squared_change"] = self.outside_error / self.outside_values / 255**2
        return metrics


def _square_sum(error: Tensor) -> float:
    """The sum of squared bytes; 0 only if all bytes are 0."""
    if not error.any():
        return 0.0
    return sum(float(band @ band) for band in (part.float() for part in error.flatten().split(2**20)))


# --- what is read ------------------------------------------------------------------------------------


def pick(
    reader: VideoReader, chosen: Sequence[int], label: str, size: tuple[int, int] | None = None
) -> Tensor:
    """The chosen frames of a video: uint8 (t, C, H, W), or in [0, 1] at another size.

    All other frames are decoded too, so that damage is found now.
    """
    wanted, kept = set(chosen), {}
    for t, frame in enumerate(tqdm(reader.decode(), label, total=len(reader), unit="frame")):
        if t in wanted:
            pixels = reader.to_tensor(frame)
            kept[t] = pixels if size is None else shrunk(to_float(pixels)[None], size)[0]
    return torch.stack([kept[t] for t in chosen])


def shrunk(video: Tensor, size: Sequence[int]) -> Tensor:
    """(T, C, H, W) -> (T, C, h, w), as a pipeline shrinks its inputs."""
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


def tile(picture: Tensor) -> Image.Image:
    """A uint8 picture (3 or 1, H, W), at the size of the sheet."""
    height, width = picture.shape[-2:]
    zoom = min(190 / height, 380 / width)
    pixels = picture.expand(3, -1, -1).permute(1, 2, 0).contiguous().numpy()
    return Image.fromarray(pixels).resize((max(1, round(zoom * width)), max(1, round(zoom * height))))


def draw_sheet(
    columns: list[dict[str, Image.Image]],
    seconds: list[float],
    title: str,
    trajectory: Trajectory | None = None,
    zoom: float = 1.0,
) -> Image.Image:
    """One column per moment, one row per layer.

    Args:
        columns: for each moment, pictures of one size by the name of their row.
        seconds: when each moment is.
        title: of the sheet.
        trajectory: drawn into the first row, with a dot where the object is.
        zoom: size of the pictures / size of the trajectory's frame.
    """
    names, gap, left = list(columns[0]), 8, 90
    tile = columns[0][names[0]].size
    lines = textwrap.wrap(title, max(20, (left + len(columns) * (tile[0] + gap)) // 9)) or [""]
    top = 22 * len(lines) + 30
    size = left + len(columns) * (tile[0] + gap), top + len(names) * (tile[1] + gap)
    sheet = Image.new("RGB", size, "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    draw.multiline_text((sheet.width / 2, 4), "\n".join(lines), "black", font, anchor="ma", align="center")
    dots = [] if trajectory is None else trajectory.sample(len(columns))[0].tolist()
    for column, (pictures, second) in enumerate(zip(columns, seconds, strict=True)):
        x = left + column * (tile[0] + gap)
        draw.text((x + tile[0] / 2, top - 6), f"{second:.2f} s", "black", font, anchor="ms")
        for row, name in enumerate(names):
            if row == 0 and trajectory is not None:
                _draw_path(ImageDraw.Draw(pictures[name]), trajectory, dots[column], zoom)
            sheet.paste(pictures[name], (x, top + row * (tile[1] + gap)))
    for row, name in enumerate(names):
        draw.text((left - 8, top + row * (tile[1] + gap) + tile[1] / 2), name, "black", font, anchor="rm")
    return sheet


def _draw_path(draw: ImageDraw.ImageDraw, trajectory: Trajectory, dot: list[float], zoom: float) -> None:
    line = [(zoom * x, zoom * y) for x, y in trajectory.sample(200)[0].tolist()]
    draw.line(line, "white", 4)
    draw.line(line, "#d62728", 2)
    x, y = (zoom * v for v in dot)
    draw.ellipse((x - 5, y - 5, x + 5, y + 5), "#d62728", "white")
