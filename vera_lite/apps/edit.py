"""Edit video files of any size and length; frames stream through, so memory does not grow with it."""

import io
import json
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from tqdm.auto import tqdm

from vera_lite.diffusion.sampling import DenoisingState
from vera_lite.errors import UserError
from vera_lite.media.clip import composite, to_float, to_uint8
from vera_lite.media.trajectory import Trajectory
from vera_lite.media.video import VideoInfo, VideoReader, VideoWriter, replacing
from vera_lite.pipelines import (
    ALPHA_FLOOR,
    MiVEPipeline,
    RVEDiTPipeline,
    VeraPipeline,
    enlarge,
    floored,
    frame_choice,
)
from vera_lite.toy.phrases import PhraseEncoder, parse

_PICTURES = {".png", ".jpg", ".jpeg", ".bmp", ".webp"}
#: Moments on a contact sheet.
SHEET_FRAMES = 5


def edit_file(
    pipe: VeraPipeline,
    video: str | Path,
    prompt: str,
    out: str | Path,
    *,
    mask: str | Path | None = None,
    seed: int = 0,
    alpha_floor: float = ALPHA_FLOOR,
    **options,
) -> list[Path]:
    """Edit ``video`` and write the results into ``out``.

    The layers are generated at the model's own size and resampled onto the source. Where alpha is 0
    a pixel of ``final.mkv`` is the decoded source's own, bit for bit.

    Args:
        pipe: the model.
        video: a file with constant frame rate.
        prompt: what to do.
        out: folder, made if needed. Gets ``final.mkv, edit.mkv, alpha.mkv`` (lossless), ``final.mp4``
            (preview), ``sheet.png`` and ``metrics.json``, each replaced whole or not at all.
        mask: a video of the same length, or a picture for all frames.
        seed: of the noise.
        alpha_floor: alpha below this is 0.
        options: of :meth:`VeraPipeline.generate`.

    Returns:
        The files written.

    Raises:
        UserError: a file cannot be read, or the prompt has an unknown word; nothing is written then.
    """
    if isinstance(pipe.text_encoder, PhraseEncoder):  # what can be refused is refused before any work
        parse(prompt)
    floored(torch.zeros(1), alpha_floor)
    reader = VideoReader(video)
    info = reader.info
    out = checked_folder(out)

    started = time.perf_counter()
    chosen = frame_choice(info.frames, pipe.clip_size[0])
    frames = pick(tqdm(reader, "reading", unit="frame"), chosen)
    small_mask = None if mask is None else read_mask(Path(mask), info, chosen)
    with denoising_bar(options) as options:
        layers = pipe.layers_for(to_float(frames), prompt, small_mask, seed=seed, **options)
    generated = time.perf_counter()

    untouched, untouched_equal, touched_error = 0, True, 0.0
    sheet: list[tuple[Tensor, ...]] = []
    on_sheet = set(frame_choice(info.frames, SHEET_FRAMES))
    with video_writers(out, info.fps, ("final", "edit", "alpha")) as write:
        for t, frame in enumerate(tqdm(reader, "writing", unit="frame")):
            size = (info.height, info.width)
            edit, alpha = (enlarge(layers[name], t, info.frames, size) for name in ("edit", "alpha"))
            alpha = floored(alpha, alpha_floor)
            source = to_float(frame)
            final = to_uint8(composite(edit, alpha, source))
            empty = (alpha == 0).expand_as(final)
            untouched += int(empty.sum())
            untouched_equal &= bool(torch.equal(final[empty], frame[empty]))
            touched_error += float((to_float(final) - source).square().sum())
            edit, alpha = to_uint8(edit), to_uint8(alpha)
            write(final=final, edit=edit, alpha=alpha)
            if t in on_sheet:
                sheet.append((frame, edit, alpha, final))
    pixels = info.frames * info.height * info.width * 3
    metrics = {
        "source": str(video),
        "prompt": prompt,
        "mask": None if mask is None else str(mask),
        "seed": seed,
        "steps": options["steps"],
        "alpha_floor": alpha_floor,
        "frames": info.frames,
        "width": info.width,
        "height": info.height,
        "fps": float(info.fps),
        "untouched_share": round(untouched / pixels, 6),
        "untouched_pixels_equal_source": untouched_equal,
        "mean_squared_change": touched_error / pixels,
        "seconds_generating": round(generated - started, 2),
        "seconds_writing": round(time.perf_counter() - generated, 2),
    }
    rows = ("source", "edit layer", "alpha", "final")
    _write_sheet_and_metrics(out, sheet, rows, sorted(on_sheet), prompt, metrics)
    names = ("sheet.png", "final.mp4", "final.mkv", "edit.mkv", "alpha.mkv", "metrics.json")
    return [out / name for name in names]


def redraw_file(
    pipe: RVEDiTPipeline | MiVEPipeline,
    video: str | Path,
    prompt: str,
    out: str | Path,
    *,
    reference: str | Path | None = None,
    seed: int = 0,
    **options,
) -> list[Path]:
    """Edit ``video`` with a model that draws every frame anew, and write the results into ``out``.

    Args:
        pipe: the model.
        video: a file with constant frame rate.
        prompt: what to do.
        out: folder, made if needed. Gets ``final.mkv`` (lossless), ``final.mp4`` (preview), ``sheet.png`` and
            ``metrics.json``, each replaced whole or not at all.
        reference: a picture of the first frame as it is to look, of any size: MiVE's; RVEDiT takes none.
        seed: of the noise.
        options: of the pipeline's ``generate``.

    Returns:
        The files written.

    Raises:
        UserError: a file cannot be read, or the prompt has an unknown word; nothing is written then.
    """
    looks = () if reference is None else (to_float(read_picture(Path(reference), "reference")),)
    reader = VideoReader(video)
    info = reader.info
    out = checked_folder(out)

    started = time.perf_counter()
    frames = pick(tqdm(reader, "reading", unit="frame"), frame_choice(info.frames, pipe.clip_size[0]))
    with denoising_bar(options) as options:
        small = pipe.small_edit(to_float(frames), prompt, *looks, seed=seed, **options)
    generated = time.perf_counter()

    change = 0.0
    sheet: list[tuple[Tensor, ...]] = []
    on_sheet = set(frame_choice(info.frames, SHEET_FRAMES))
    with video_writers(out, info.fps, ("final",)) as write:
        for t, frame in enumerate(tqdm(reader, "writing", unit="frame")):
            final = to_uint8(enlarge(small, t, info.frames, (info.height, info.width)))
            change += float((to_float(final) - to_float(frame)).square().sum())
            write(final=final)
            if t in on_sheet:
                sheet.append((frame, final))
    metrics = {
        "source": str(video),
        "prompt": prompt,
        "reference": None if reference is None else str(reference),
        "seed": seed,
        "steps": options["steps"],
        "frames": info.frames,
        "width": info.width,
        "height": info.height,
        "fps": float(info.fps),
        "mean_squared_change": change / (info.frames * info.height * info.width * 3),
        "seconds_generating": round(generated - started, 2),
        "seconds_writing": round(time.perf_counter() - generated, 2),
    }
    _write_sheet_and_metrics(out, sheet, ("source", "final"), sorted(on_sheet), prompt, metrics)
    return [out / name for name in ("sheet.png", "final.mp4", "final.mkv", "metrics.json")]


def _write_sheet_and_metrics(
    out: Path,
    sheet: list[tuple[Tensor, ...]],
    names: tuple[str, ...],
    moments: list[int],
    prompt: str,
    metrics: dict,
) -> None:
    seconds = [t / metrics["fps"] for t in moments]
    with replacing(out / "sheet.png") as path:
        draw_sheet(sheet, names, seconds, f"“{prompt}”").save(path, format="PNG")
    with replacing(out / "metrics.json") as path:
        path.write_text(json.dumps(metrics, indent=1) + "\n")


def checked_folder(out: str | Path) -> Path:
    """The folder for the results, made later, when there are some; UserError if it is a file."""
    out = Path(out)
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file; --out wants a folder.")
    return out


def pick(frames: Iterable[Tensor], chosen: list[int]) -> Tensor:
    """The chosen frames of an iterable; the rest is passed over, so that damage is found now."""
    wanted = set(chosen)
    kept = {t: frame for t, frame in enumerate(frames) if t in wanted}
    return torch.stack([kept[t] for t in chosen])


@contextmanager
def denoising_bar(options: dict) -> Iterator[dict]:
    """Options of a pipeline's ``generate`` whose callback also moves a progress bar."""
    options = {"steps": 12, "callback": None, **options}
    with tqdm(total=options["steps"], desc="denoising", unit="step") as bar:

        def show(state: DenoisingState) -> None:
            bar.update()
            if options["callback"] is not None:
                options["callback"](state)

        yield options | {"callback": show}


@contextmanager
def video_writers(out: Path, fps: Fraction, names: tuple[str, ...]) -> Iterator[Callable[..., None]]:
    """Make the folder and open ``{name}.mkv`` (lossless) for each name, and ``final.mp4`` (preview).

    Yields ``write(final=frame, ...)``, which appends one uint8 frame to each.
    """
    out.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        writers = {n: stack.enter_context(VideoWriter(out / f"{n}.mkv", fps, "lossless")) for n in names}
        preview = stack.enter_context(VideoWriter(out / "final.mp4", fps, "preview"))

        def write(**frames: Tensor) -> None:
            for name, writer in writers.items():
                writer.write(frames[name])
            preview.write(frames["final"])

        yield write


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
    """A picture file as uint8 (C, H, W).

    Args:
        path: of the file.
        role: what it is for, as the message says.
        mode: Pillow's: "RGB", or "L" for one channel.

    Raises:
        UserError: there is no such file, or it is no picture.
    """
    if not path.is_file():
        raise UserError(f"there is no {role} file {path}.")
    try:
        pixels = np.array(Image.open(path).convert(mode))
    except (UnidentifiedImageError, OSError) as error:
        raise UserError(f"{path} is no picture that can be read.") from error
    return torch.from_numpy(pixels).reshape(*pixels.shape[:2], -1).permute(2, 0, 1)


def draw_sheet(
    columns: list[tuple[Tensor, ...]],
    names: tuple[str, ...],
    seconds: list[float],
    title: str,
    trajectory: Trajectory | None = None,
) -> Image.Image:
    """Contact sheet: one column a moment, one row a layer.

    Args:
        columns: uint8 pictures (3 or 1, H, W) of each moment; moments are evenly spaced.
        names: of the layers.
        seconds: when each moment is.
        title: of the sheet.
        trajectory: drawn into the first row, with a dot where the object is.
    """
    height, width = columns[0][0].shape[-2:]
    size = (1.9 * len(columns) * min(2.0, width / height) + 0.9, 1.9 * len(names) + 0.7)
    figure = Figure(figsize=size, dpi=100)
    axes = figure.subplots(len(names), len(columns), squeeze=False)
    for column, layers in enumerate(columns):
        for row, picture in enumerate(layers):
            ax = axes[row][column]
            pixels = picture.permute(1, 2, 0).numpy()
            ax.imshow(pixels[..., 0] if len(picture) == 1 else pixels, cmap="gray", vmin=0, vmax=255)
            ax.set_xticks([])
            ax.set_yticks([])
            if row == 0:
                ax.set_title(f"{seconds[column]:.2f} s", fontsize=10)
            if column == 0:
                ax.set_ylabel(names[row], fontsize=11)
    if trajectory is not None:
        line, dots = trajectory.sample(200)[0].T, trajectory.sample(len(columns))[0]
        for ax, dot in zip(axes[0], dots, strict=True):
            ax.autoscale(False)
            ax.plot(*line, color="white", lw=3)
            ax.plot(*line, color="tab:red", lw=1.5)
            ax.plot(*dot, "o", color="tab:red", mec="white", ms=6)
    figure.suptitle(title, fontsize=12, parse_math=False)
    figure.tight_layout()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    buffer.seek(0)
    return Image.open(buffer)
