"""Apply an edit to a video file of any size and length.

Frames stream through, so memory does not grow with the length of the video.
"""

import json
import textwrap
import time
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont, ImageOps, UnidentifiedImageError
from torch import Tensor
from tqdm.auto import tqdm

from vera_lite.errors import UserError
from vera_lite.media.clip import to_float, to_uint8
from vera_lite.media.files import replacing_set
from vera_lite.media.trajectory import Trajectory
from vera_lite.media.video import VideoInfo, VideoReader, frame_rate
from vera_lite.media.video_writer import VideoWriter
from vera_lite.pipelines import EditResult, Pipeline, frame_choice

#: Everything that a result folder may hold; the last file describes the others.
RESULT_FILES = (
    "sheet.png",
    "final.mp4",
    "final.mkv",
    "edit.mkv",
    "alpha.mkv",
    "composite.mkv",
    "mask.mkv",
    "trajectory.json",
    "metrics.json",
)
_PICTURES = {".png", ".jpg", ".jpeg", ".bmp", ".webp"}
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
            (preview), ``sheet.png`` and ``metrics.json``; they appear together or not at all.
        facts: what the command was asked, kept in ``metrics.json``.
        title: of the sheet.
        trajectory: kept as ``trajectory.json`` and drawn on the sheet.
        seed: of the noise.
        changes: fields of ``pipe.sampling``.

    Returns:
        The files written.
    """
    info, sampling = reader.info, pipe.sampling_with(**changes)
    frame_rate(info.fps)  # one that cannot be written is refused before the work
    started = time.perf_counter()
    chosen = frame_choice(info.frames, pipe.clip_size[0])
    frames = to_float(pick(tqdm(reader, "reading", unit="frame"), chosen))
    with tqdm(total=sampling.steps, desc="denoising", unit="step") as bar:
        options = {"seed": seed, "callback": lambda _state: bar.update(), **changes}
        drawing = pipe.draw(frames, *given, frames=info.frames, **options)
    drawn_at = time.perf_counter()

    measured, sheet = _Change(), []
    moments = sorted(set(frame_choice(info.frames, _SHEET_FRAMES)))
    with replacing_set(out, RESULT_FILES) as folder:
        with ExitStack() as stack:
            writers = {}

            def writer(name: str, kind: str) -> VideoWriter:
                return stack.enter_context(VideoWriter(folder / name, info.fps, kind))

            for t, frame in enumerate(tqdm(reader, "writing", unit="frame")):
                result = drawing.frame(t, to_float(frame))
                pictures = _pictures(result)
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
            "seconds_drawing": round(drawn_at - started, 2),
            "seconds_writing": round(time.perf_counter() - drawn_at, 2),
        }
        (folder / "metrics.json").write_text(json.dumps(metrics, indent=1) + "\n")
        written = [out / name for name in RESULT_FILES if (folder / name).exists()]
    return written


def _pictures(result: EditResult) -> dict[str, Tensor]:
    """uint8 pictures of one frame, by the name of their file."""
    layers = result.layers()
    layers.pop("matte", None)
    if result.composite is result.final or "alpha" in layers:  # Vera's composite is not for use
        layers.pop("composite")
    return {name: to_uint8(layer) for name, layer in layers.items()}


class _Change:
    """How far the result is from the source, and from it where nothing was to change."""

    def __init__(self):
        self.error = self.values = self.outside_error = self.outside_values = 0

    def add(self, source: Tensor, result: EditResult, final: Tensor) -> None:
        """One frame: source and final as uint8, and the result whose alpha or mask is 0 outside."""
        error = (final.int() - source.int()).square()
        self.error += int(error.sum())
        self.values += error.numel()
        matte = result.mask if result.alpha is None else result.alpha
        if matte is not None:
            outside = (matte == 0).expand_as(error)
            self.outside_error += int(error[outside].sum())
            self.outside_values += int(outside.sum())

    def metrics(self) -> dict:
        """Mean squares are of colours in [0, 1]. Outside is where alpha or mask is 0; a system that redraws
        has no such place."""
        metrics = {"mean_squared_change": self.error / self.values / 255**2}
        if self.outside_values:
            metrics["outside_share"] = round(self.outside_values / self.values, 6)
            metrics["outside_equals_source"] = self.outside_error == 0
            metrics["outside_mean_squared_change"] = self.outside_error / self.outside_values / 255**2
        return metrics


# --- what is read ------------------------------------------------------------------------------------


def check_folder(out: str | Path, *inputs: str | Path | None) -> Path:
    """The folder for the results, which is made when there are some.

    Raises:
        UserError: it is a file, or one of the inputs lies in it: writing could replace what is being read.
    """
    out = Path(out)
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file; --out wants a folder.")
    for path in inputs:
        if path is None or not Path(path).exists():
            continue
        if out.resolve() in (Path(path).resolve(), Path(path).resolve().parent):
            raise UserError(f"{path} lies in the folder for the results: give another --out.")
    return out


def pick(frames: Iterable[Tensor], chosen: list[int]) -> Tensor:
    """The chosen frames of an iterable; all others are decoded too, so that damage is found now."""
    wanted = set(chosen)
    kept = {t: frame for t, frame in enumerate(frames) if t in wanted}
    return torch.stack([kept[t] for t in chosen])


def read_mask(path: Path, info: VideoInfo, chosen: list[int]) -> Tensor:
    """The chosen frames (t, 1, H, W) in [0, 1] of a video, or of a picture that stands for all frames."""
    if path.suffix.lower() in _PICTURES:
        mask = read_picture(path, "mask", "L").expand(len(chosen), -1, -1, -1)
    else:
        reader = VideoReader(path)
        if len(reader) != info.frames:
            raise UserError(f"the mask has {len(reader)} frames, the video {info.frames}; they must agree.")
        mask = pick(reader, chosen)
    if mask.shape[-2:] != (info.height, info.width):
        raise UserError(
            f"the mask is {mask.shape[-1]}x{mask.shape[-2]}, "
            f"the video {info.width}x{info.height}; they must agree."
        )
    return to_float(mask).mean(1, keepdim=True)


def read_picture(path: Path, role: str, mode: str = "RGB") -> Tensor:
    """A picture file as uint8 (C, H, W), upright as a viewer shows it.

    Args:
        path: of the file.
        role: what it is for, as the message says.
        mode: Pillow's: "RGB" on white, or "L" for one channel, in which transparent is black.

    Raises:
        UserError: there is no such file, or it is no picture.
    """
    if not path.is_file():
        raise UserError(f"there is no {role} file {path}.")
    try:
        with Image.open(path) as file:
            picture = ImageOps.exif_transpose(file)
            if picture.has_transparency_data:
                picture = picture.convert("RGBA")
                ground = Image.new("RGBA", picture.size, "black" if mode == "L" else "white")
                picture = Image.alpha_composite(ground, picture)
            pixels = np.array(picture.convert(mode))
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError) as error:
        raise UserError(f"{path} is no picture that can be read.") from error
    return torch.from_numpy(pixels).reshape(*pixels.shape[:2], -1).permute(2, 0, 1)


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
