"""Put a foreground video into a background video file along a path."""

import warnings
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm.auto import tqdm

from vera_lite.apps.files import apply_to_file, check_folder, pick, read_mask
from vera_lite.errors import UserError
from vera_lite.media.clip import to_float
from vera_lite.media.trajectory import Keyframe, Timing, Trajectory, track_point
from vera_lite.media.video import VideoReader
from vera_lite.pipelines import GenCompositorPipeline, frame_choice

_TRACKING_BYTES = 2**28


def composite_file(
    pipe: GenCompositorPipeline,
    background: str | Path,
    foreground: str | Path,
    out: str | Path,
    *,
    path: str | Path,
    scale: str | float | None = None,
    timing: Timing | None = None,
    mask: str | Path | None = None,
    seed: int = 0,
    **changes,
) -> list[Path]:
    """Put ``foreground`` into ``background`` and write the results into ``out``.

    Args:
        pipe: the model.
        background: a file with constant frame rate.
        foreground: a video with an alpha channel; a video and its ``mask``; a folder with ``edit.mkv`` and
            ``alpha.mkv``, as of a saved :class:`~vera_lite.media.clip.LayeredClip` or of `vera-lite edit`; or
            "toy:" and words, see :func:`vera_lite.toy.foreground.toy_foreground`. It may have any size,
            length and place.
        out: see :func:`.apply_to_file`.
        path: where the foreground goes, see :func:`read_trajectory`.
        scale: size of the object there, see :func:`read_trajectory`.
        timing: see :class:`~vera_lite.media.trajectory.Trajectory`.
        mask: a video of the foreground's length, or a picture for all its frames; white is the object.
        seed: of the noise.
        changes: fields of ``pipe.sampling``. With ``paste_back`` a pixel of ``final.mkv`` outside the mask is
            the decoded background's own, bit for bit; otherwise the whole frame is the model's.

    Returns:
        The files written.

    Raises:
        UserError: a file cannot be read, or the path or the foreground makes no sense; nothing is written
            then.
    """
    pipe.sampling_with(**changes)
    out = check_folder(out, background, foreground, path, mask)
    reader = VideoReader(background)
    trajectory = read_trajectory(path, scale, timing, reader)
    side = min(reader.info.height, reader.info.width)
    colour, alpha = _read_foreground(str(foreground), mask, pipe.clip_size[0], side)
    asked = {"background": background, "foreground": foreground, "foreground_mask": mask, "path": path}
    facts = {name: str(value) for name, value in asked.items() if value is not None}
    facts |= {"scale": scale, "timing": trajectory.timing, "mask_sigma": pipe.mask_sigma}
    return apply_to_file(
        pipe,
        reader,
        (colour, alpha, trajectory),
        out,
        facts,
        title=str(foreground),
        trajectory=trajectory,
        seed=seed,
        **changes,
    )


def read_trajectory(
    path: str | Path, scale: str | float | None, timing: Timing | None, background: VideoReader
) -> Trajectory:
    """The path that a command line means.

    Args:
        path: a ``.json`` file of a :class:`.Trajectory`; a ``.txt`` file with one x,y a
            line, as GenCompositor's; or points "x,y x,y ..." in pixels of the background. One point alone
            is followed through the background, as if the object stood on what is there.
        scale: a number, or several with commas that are spread over the clip, see ``Trajectory.scales``;
            at 1 a pixel of the foreground is one of the background.
        timing: see :class:`~vera_lite.media.trajectory.Trajectory`.
        background: the video that it is a path in.

    Raises:
        UserError: the path or the scale cannot be read, or the file has scales already.
    """
    size, kind = (background.info.height, background.info.width), Path(path).suffix
    if kind in (".json", ".txt"):
        if not Path(path).is_file():
            raise UserError(f"there is no path file {path}.")
        try:
            text = Path(path).read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise UserError(f"{path} is no text; draw the path again.") from error
        trajectory = Trajectory.from_json(text) if kind == ".json" else Trajectory.from_txt(text, size)
    else:
        trajectory = Trajectory.from_txt("\n".join(str(path).split()), size)
        if len(trajectory.keyframes) == 1:
            trajectory = _tracked(background, trajectory.keyframes[0])
    changes = {} if timing is None else {"timing": timing}
    if scale is not None:
        if any(k.scale for k in trajectory.keyframes) or trajectory.scales != (1.0,):
            raise UserError(f"{path} has scales of its own already: leave --scale away.")
        try:
            changes["scales"] = tuple(float(number) for number in str(scale).split(","))
        except ValueError as error:
            raise UserError(
                f"the scale is {scale!r}; give a number above 0, or several with commas, such as 0.4,0.6."
            ) from error
    return replace(trajectory, **changes)


def _tracked(reader: VideoReader, point: Keyframe) -> Trajectory:
    """The way of what is at a point in the first frame."""
    info = reader.info
    # All frames are needed at once: grey, and smaller for a long video, so that they always fit.
    factor = min(1.0, (_TRACKING_BYTES / (info.frames * info.height * info.width)) ** 0.5)
    size = max(1, round(factor * info.height)), max(1, round(factor * info.width))
    video = torch.empty((info.frames, 1, *size), dtype=torch.uint8)
    for t, frame in enumerate(tqdm(reader, "following the point", unit="frame")):
        video[t] = F.interpolate(frame.float().mean(0)[None, None], size=size, mode="area")[0].round()
    y_factor, x_factor = size[0] / info.height, size[1] / info.width
    start = ((point.x + 0.5) * x_factor - 0.5, (point.y + 0.5) * y_factor - 0.5)
    start = tuple(min(max(v, 0.0), n - 1.0) for v, n in zip(start, size[::-1], strict=True))
    with warnings.catch_warnings(record=True) as lost:
        warnings.simplefilter("always")
        path = track_point(video.expand(-1, 3, -1, -1), start).keyframes
    keyframes = [Keyframe((k.x + 0.5) / x_factor - 0.5, (k.y + 0.5) / y_factor - 0.5) for k in path]
    if lost:  # said anew, in the background's own pixels
        first, rest = keyframes.index(keyframes[-1]), keyframes[-1]
        warnings.warn(
            f"The point is lost after frame {first} of 0..{info.frames - 1}; it then rests at "
            f"({rest.x:.1f}, {rest.y:.1f}).",
            stacklevel=4,
        )
    return Trajectory(tuple(keyframes), (info.height, info.width))


def _read_foreground(source: str, mask: str | Path | None, frames: int, side: int) -> tuple[Tensor, Tensor]:
    """Colour (t, 3, h, w) and alpha (t, 1, h, w) in [0, 1] of the frames that the model sees."""
    if source.startswith("toy:"):
        if mask is not None:
            raise UserError("a toy object needs no mask: leave --mask away.")
        from vera_lite.toy.foreground import toy_foreground

        return toy_foreground(source.removeprefix("toy:"), frames, side)
    path = Path(source)
    if path.is_dir():
        path, mask = path / "edit.mkv", path / "alpha.mkv" if mask is None else mask
        if not path.is_file():
            raise UserError(f"{source} holds no foreground: it has no edit.mkv.")
    reader = VideoReader(path, alpha=mask is None)
    chosen = frame_choice(len(reader), frames)
    video = to_float(pick(tqdm(reader, "reading foreground", unit="frame"), chosen))
    alpha = video[:, 3:] if mask is None else read_mask(Path(mask), reader.info, chosen)
    return video[:, :3], alpha
