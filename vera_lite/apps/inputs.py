"""Checks of a command's arguments and files, from the files' headers; nothing here needs torch."""

import os
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from vera_lite.errors import UserError
from vera_lite.media.files import check_safetensors, read_json
from vera_lite.media.header import VideoInfo, check_video, ffmpeg, frame_rate

#: The files that a result folder may hold; the last one describes the others.
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


def check_out(out: str | Path, *inputs: Path | None) -> Path:
    """Check the folder for the results, without making it.

    Raises:
        UserError: it cannot be made or written; or one of the inputs lies in it or is linked from it, so
            that writing could replace what is being read.
    """
    if not str(out).strip():
        raise UserError("--out is empty: give a folder for the results.")
    out = Path(out)
    try:
        real = out.resolve()
        there = next(path for path in (real, *real.parents) if path.exists())
    except (OSError, RuntimeError, ValueError) as error:  # a name too long, a loop of links
        reason = getattr(error, "strerror", None) or "it is no path"
        raise UserError(f"--out cannot be a folder for the results ({reason}): give another one.") from error
    if not there.is_dir():
        raise UserError(f"--out {out} cannot be a folder, because {there} is a file: give another one.")
    if not os.access(there, os.W_OK | os.X_OK):
        raise UserError(f"--out {out} cannot be written: {there} may not be changed; give another.")
    for path in inputs:
        if path is None or not path.exists():
            continue
        places = path.resolve(), path.absolute().parent.resolve() / path.name
        inside = any(real in (place, *place.parents) for place in places)
        if inside or any((out / n).exists() and (out / n).samefile(path) for n in RESULT_FILES):
            raise UserError(f"{path} lies in the folder for the results: give another --out.")
    return out


def check_source(path: Path) -> VideoInfo:
    """A video whose frame rate can also be written.

    Raises:
        UserError: see :func:`.check_video`.
    """
    info = check_video(path)
    try:
        frame_rate(info.fps)
    except UserError as error:
        raise UserError(
            f"{path} has {float(info.fps):g} frames per second; at most 240 can be written; use: "
            + ffmpeg(path, "-i", "-vf fps=60")
        ) from error
    return info


def check_mask(path: Path, info: VideoInfo) -> None:
    """Check that a mask fits a video: a video of the same length and size, or a picture of the same size.

    Raises:
        UserError: it does not fit, cannot be read, or is black.
    """
    picture = is_picture(path)
    if picture:
        pixels = read_picture(path, "mask", "L")
        height, width = pixels.shape[1:]
    else:
        found = check_video(path)
        height, width = found.height, found.width
        if found.frames != info.frames:
            raise UserError(f"the mask has {found.frames} frames, the video {info.frames}; they must agree.")
    if (height, width) != (info.height, info.width):
        raise UserError(
            f"the mask is {width}x{height}, the video {info.width}x{info.height}; they must agree."
        )
    if picture and not pixels.any():
        raise UserError(f"the mask {path} is black or transparent everywhere: paint it white somewhere.")


def check_model(folder: Path, systems: tuple[str, ...]) -> None:
    """Check that a folder holds a model of one of these systems, from its JSON and its tensors' headers.

    Raises:
        UserError: it holds no such model.
    """
    if not folder.is_dir():
        raise UserError(f"there is no model folder {folder}; check the path.")
    for name in ("pipeline.json", "system.safetensors", "codec.safetensors"):
        if not (folder / name).is_file():
            raise UserError(f"{folder} holds no pipeline: it has no {name}.")
    system = read_json(folder / "pipeline.json").get("system")
    if system not in systems:
        raise UserError(
            f"{folder} holds a {system!r} model, but this command runs {' and '.join(systems)}: give another "
            "--model."
        )
    for name in ("system", "codec"):
        check_safetensors(folder / f"{name}.safetensors")


def is_picture(path: Path) -> bool:
    """Whether a file is a picture, by its content."""
    if not path.is_file():
        raise UserError(f"there is no file {path}; check the path.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path) as file:
                return file.format != "MPEG"
    except Image.DecompressionBombError:
        return True
    except Exception:  # Pillow fails in many ways on other files
        return False


def read_picture(path: Path, role: str, mode: str = "RGB") -> np.ndarray:
    """A picture file as uint8 (C, H, W), upright as a viewer shows it.

    Args:
        path: of the file.
        role: its use, for messages.
        mode: Pillow's: "RGB" on white, or "L" for one channel, in which transparent is black.

    Raises:
        UserError: there is no such file, or it is no picture, damaged, too large, or an animation.
    """
    if not path.is_file():
        raise UserError(f"there is no {role} file {path}; check the path.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as file:
                if getattr(file, "n_frames", 1) > 1:
                    raise UserError(
                        f"{path} holds {file.n_frames} pictures; save one of them as a PNG for the {role}."
                    )
                picture = ImageOps.exif_transpose(file)
                picture = _eight_bits(path, picture)
                if picture.has_transparency_data:
                    picture = picture.convert("RGBA")
                    ground = Image.new("RGBA", picture.size, "black" if mode == "L" else "white")
                    picture = Image.alpha_composite(ground, picture)
                pixels = np.array(picture.convert(mode))
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UserError(f"{path} has too many pixels for a {role}: make it smaller.") from error
    except UserError:
        raise
    except Exception as error:  # a damaged picture fails in many ways
        raise UserError(f"{path} is damaged or no picture: save it as a PNG for the {role}.") from error
    return pixels.reshape(*pixels.shape[:2], -1).transpose(2, 0, 1)


def _eight_bits(path: Path, picture: Image.Image) -> Image.Image:
    """16 bits scaled to 8; Pillow's own conversion clips them."""
    if picture.mode == "F":
        raise UserError(f"{path} holds floating numbers, whose white is unknown: save it as a PNG.")
    if not picture.mode.startswith("I"):
        return picture
    pixels = np.array(picture)
    if pixels.min() < 0 or pixels.max() > 65535:
        raise UserError(f"{path} holds more than 16 bits per colour: save it as a PNG.")
    return Image.fromarray((pixels.astype(np.uint32) * 255 + 32767) // 65535).convert("L")
