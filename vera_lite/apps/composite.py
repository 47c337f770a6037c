"""Put a foreground video into a background video file along a path."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from vera_lite.apps.inputs import check_mask, check_out, check_source
from vera_lite.errors import Notice, UserError, check_number
from vera_lite.media.header import VideoInfo, check_video
from vera_lite.media.trajectory import Keyframe, Timing, Trajectory, track_point

if TYPE_CHECKING:
    from torch import Tensor

    from vera_lite.media.video import VideoReader
    from vera_lite.pipelines import GenCompositorPipeline

_TRACKING_BYTES = 2**28
_TOY = "toy:"


@dataclass
class Composite:
    """A request to compose files. Making one checks, without torch, everything that is known before the work.

    Attributes:
        background: a file with constant frame rate.
        foreground: a video with an alpha channel; a video and its ``mask``; a folder with ``edit.mkv`` and
            ``alpha.mkv``, as of a saved :class:`~vera_lite.media.clip.LayeredClip` or of `vera-lite edit`; or
            "toy:" and words, see :func:`vera_lite.toy.foreground.toy_foreground`. It may have any size and
            length, and the object may be anywhere.
        out: see :func:`.apply_to_file`.
        path, scale, timing: where the foreground goes, see :func:`read_trajectory`.
        mask: a video of the foreground's length, or a picture for all its frames; white is the object.
        seed: of the noise.
        info: what ``background`` holds.
        trajectory: the path.

    Raises:
        UserError: a file cannot be read or does not fit, the path is wrong, or ``out`` cannot be written.
    """

    background: str | Path
    foreground: str | Path
    out: str | Path
    path: str | Path
    scale: str | float | None = None
    timing: Timing | None = None
    mask: str | Path | None = None
    seed: int = 0
    info: VideoInfo = field(init=False)
    trajectory: Trajectory = field(init=False)

    def __post_init__(self):
        check_number("seed", self.seed)
        self.background = Path(self.background)
        self.mask = None if self.mask is None else Path(self.mask)
        is_toy = str(self.foreground).startswith(_TOY)
        foreground = None if is_toy else Path(self.foreground)
        path = Path(self.path) if Path(self.path).suffix in (".json", ".txt") else None
        self.out = check_out(self.out, self.background, foreground, path, self.mask)
        self.info = check_source(self.background)
        size = self.info.height, self.info.width
        self.trajectory = read_trajectory(self.path, self.scale, self.timing, size)
        if self.trajectory.size != size:
            height, width = self.trajectory.size
            raise UserError(
                f"the path was drawn in a {width}x{height} frame, but the background is {size[1]}x{size[0]}: "
                "draw it on this background."
            )
        if is_toy:
            if self.mask is not None:
                raise UserError("a toy object needs no mask: leave out --mask.")
            return
        file, mask = self._foreground_files()
        info = check_video(file)
        if mask is not None:
            check_mask(mask, info)
        elif not info.has_alpha:
            raise UserError(f"{file} has no alpha channel; give a video that has one, or a mask.")

    def _foreground_files(self) -> tuple[Path, Path | None]:
        """The foreground's video and mask."""
        path, mask = Path(self.foreground), None if self.mask is None else Path(self.mask)
        if not path.is_dir():
            return path, mask
        if not (path / "edit.mkv").is_file():
            raise UserError(f"{path} holds no foreground: edit.mkv is missing.")
        return path / "edit.mkv", mask or path / "alpha.mkv"

    def run(self, pipe: GenCompositorPipeline, **changes) -> list[Path]:
        """Put the foreground into the background and write the results into ``out``.

        Args:
            pipe: the model.
            changes: fields of ``pipe.sampling``. With ``paste_back`` a pixel of ``final.mkv`` outside the
                mask is the decoded background's own, bit for bit; otherwise the model draws the whole frame.

        Returns:
            The files written.

        Raises:
            UserError: a setting is out of its range, or the foreground cannot be used. Then nothing is
                written.
        """
        from vera_lite.apps.files import apply_to_file
        from vera_lite.media.video import VideoReader

        pipe.sampling_with(**changes)
        colour, alpha = self._read_foreground(pipe.clip_size[0])
        reader, trajectory = VideoReader(self.background, info=self.info), self.trajectory
        if len(trajectory.keyframes) == 1 and Path(self.path).suffix not in (".json", ".txt"):
            trajectory = follow(reader, trajectory)
        asked = {
            "background": self.background,
            "foreground": self.foreground,
            "foreground_mask": self.mask,
            "path": self.path,
        }
        facts = {name: str(value) for name, value in asked.items() if value is not None}
        facts |= {"scale": self.scale, "timing": trajectory.timing, "mask_sigma": pipe.mask_sigma}
        return apply_to_file(
            pipe,
            reader,
            (colour, alpha, trajectory),
            self.out,
            facts,
            title=str(self.foreground),
            trajectory=trajectory,
            seed=self.seed,
            **changes,
        )

    def _read_foreground(self, frames: int) -> tuple[Tensor, Tensor]:
        """Colour (t, 3, h, w) and alpha (t, 1, h, w) in [0, 1] of the frames that the model sees."""
        from vera_lite.apps.files import pick, read_mask
        from vera_lite.media.clip import to_float
        from vera_lite.media.video import VideoReader
        from vera_lite.pipelines import frame_choice

        words = str(self.foreground)
        if words.startswith(_TOY):
            from vera_lite.toy.foreground import toy_foreground

            side = min(self.info.height, self.info.width)
            return toy_foreground(words.removeprefix(_TOY), frames, side)
        file, mask = self._foreground_files()
        reader = VideoReader(file, "rgba" if mask is None else "rgb")
        chosen = frame_choice(len(reader), frames)
        video = to_float(pick(reader, chosen, "reading foreground"))
        alpha = video[:, 3:] if mask is None else read_mask(mask, reader.info, chosen)
        return video[:, :3], alpha


def read_trajectory(
    path: str | Path, scale: str | float | None, timing: Timing | None, size: tuple[int, int]
) -> Trajectory:
    """The path of a command line.

    Args:
        path: a ``.json`` file of a :class:`.Trajectory`; a ``.txt`` file in GenCompositor's format, one x,y
            per line; or points "x,y x,y ..." in pixels of the background. A single point is then followed
            through the background, as if the object stood on what is there.
        scale: a number, or several with commas, spread over the clip, see ``Trajectory.scales``; at 1 a pixel
            of the foreground is one of the background.
        timing: see :class:`~vera_lite.media.trajectory.Trajectory`.
        size: (H, W) of the background.

    Raises:
        UserError: the path or the scale cannot be read, or the file has scales already.
    """
    kind = Path(path).suffix
    if kind in (".json", ".txt"):
        if not Path(path).is_file():
            raise UserError(f"there is no path file {path}; check the path.")
        try:
            text = Path(path).read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise UserError(f"{path} is not a text file; draw the path again.") from error
        try:
            trajectory = Trajectory.from_json(text) if kind == ".json" else Trajectory.from_txt(text, size)
        except UserError as error:
            raise UserError(f"{path}: {error}") from error
    else:
        try:
            trajectory = Trajectory.from_txt("\n".join(str(path).split()), size)
        except UserError as error:
            raise UserError(f"--path {str(path)[:40]!r}: {error}") from error
    changes = {} if timing is None else {"timing": timing}
    if scale is not None:
        if any(k.scale for k in trajectory.keyframes) or trajectory.scales != (1.0,):
            raise UserError(f"{path} has its own scales: leave out --scale.")
        try:
            changes["scales"] = tuple(float(number) for number in str(scale).split(","))
        except ValueError as error:
            raise UserError(
                f"the scale is {scale!r}; give a number above 0, or several with commas, such as 0.4,0.6."
            ) from error
    return replace(trajectory, **changes)


def follow(reader: VideoReader, point: Trajectory) -> Trajectory:
    """The path of what is at a point (a trajectory of one keyframe) in the first frame of a video."""
    import torch
    from torch.nn import functional as F
    from tqdm.auto import tqdm

    info, (keyframe,) = reader.info, point.keyframes
    # All frames are needed at once: grey, and smaller for a long video, so that they fit into memory.
    factor = min(1.0, (_TRACKING_BYTES / (info.frames * info.height * info.width)) ** 0.5)
    size = max(1, round(factor * info.height)), max(1, round(factor * info.width))
    video = torch.empty((info.frames, 1, *size), dtype=torch.uint8)
    for t, frame in enumerate(tqdm(reader, "following the point", unit="frame")):
        video[t] = F.interpolate(frame.float().mean(0)[None, None], size=size, mode="area")[0].round()
    y_factor, x_factor = size[0] / info.height, size[1] / info.width
    start = ((keyframe.x + 0.5) * x_factor - 0.5, (keyframe.y + 0.5) * y_factor - 0.5)
    start = tuple(min(max(v, 0.0), n - 1.0) for v, n in zip(start, size[::-1], strict=True))
    with warnings.catch_warnings(record=True) as lost:
        warnings.simplefilter("always")
        path = track_point(video.expand(-1, 3, -1, -1), start).keyframes
    keyframes = [Keyframe((k.x + 0.5) / x_factor - 0.5, (k.y + 0.5) / y_factor - 0.5) for k in path]
    if lost:  # warn again, in the background's own pixels
        first, rest = keyframes.index(keyframes[-1]), keyframes[-1]
        warnings.warn(
            f"The point is lost after frame {first} of 0..{info.frames - 1}; it then rests at "
            f"({rest.x:.1f}, {rest.y:.1f}).",
            Notice,
            stacklevel=3,
        )
    return replace(point, keyframes=tuple(keyframes))
