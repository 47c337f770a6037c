"""Take a subject out of a video: its layer, its matte, and what is behind it, at the video's own size."""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from vera_lite.apps.inputs import check_out, check_source
from vera_lite.dataset.subject import check_box, parse_subject
from vera_lite.dataset.weights import DETECTOR, SEGMENTER, not_loaded, revision
from vera_lite.errors import Notice, UserError
from vera_lite.media.header import VideoInfo

if TYPE_CHECKING:
    from torch import Tensor

    from vera_lite.media.video import VideoReader

#: Subjects are looked for in frames of this height, and in so many of them at most.
HEIGHT, MOST_FRAMES = 270, 1200
#: Bytes of the frames that the background is made from.
_PLATE_BYTES = 2**29
#: Everything that `vera-lite layers` writes; the last file describes the others.
FILES = ("sheet.png", "plate.mkv", "edit.mkv", "alpha.mkv", "metrics.json")


def check_subject(subject: str, info: VideoInfo, download: bool) -> None:
    """Check, without torch, what a person says of a subject.

    Raises:
        UserError: it is nothing known, lies outside the frame, the video is too long, or OpenCV or a model
            is missing.
    """
    kind, box = parse_subject(subject)
    for model in (SEGMENTER, DETECTOR)[: 1 + isinstance(box, str)] if kind == "sam2" else ():
        if not download and revision(model) is None:
            raise not_loaded(model, "a part of SAM 2", download)
    if isinstance(box, tuple):
        check_box(box, info.height, info.width)
    if info.frames > MOST_FRAMES:
        raise UserError(
            f"a subject is found in {MOST_FRAMES:,} frames at most, not in {info.frames:,}: cut it."
        )
    if find_spec("cv2") is None or find_spec("pymatting") is None:
        raise UserError("finding a subject needs more packages: `pip install 'vera-lite[dataset]'`.")


def find_subject(reader: VideoReader, subject: str, download: bool = False) -> tuple[Tensor, Tensor]:
    """Masks of the subject (T, 1, h, w), 0 or 1, and the small video (T, 3, h, w) that was searched.

    Args:
        reader: the video.
        subject: see :func:`.parse_subject`.
        download: fetch SAM 2 if it is not on this machine.

    Raises:
        Rejected: the segmenter has no use on this video.
    """
    from vera_lite.apps.files import pick
    from vera_lite.dataset.segment import segmenter

    info = reader.info
    scale = min(1.0, HEIGHT / info.height)
    size = round(scale * info.height), round(scale * info.width)
    video = pick(reader, range(info.frames), "looking for the subject", size)
    return segmenter(subject, scale, download=download)(video), video


def outline_width(height: int) -> int:
    """How many pixels on either side of an outline may be soft, in frames of so many rows."""
    return max(3, round(height / 70))


def enlarged(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """Masks (T, 1, h, w) at another size, (T, 1, H, W), 0 or 1."""
    from torch.nn import functional as F

    return (F.interpolate(mask, size, mode="bilinear") > 0.5).float()


@dataclass
class Layers:
    """Layers of a file, as they were asked for. Making one checks all that can be known without torch.

    Attributes:
        video: a file with constant frame rate.
        out: folder, made if needed.
        subject: see :func:`.parse_subject`.
        width: pixels on either side of the outline that may be soft; 0: as fits the video's size.
        download: fetch SAM 2 if it is not on this machine.
        info: what ``video`` holds.

    Raises:
        UserError: a file cannot be read, the subject is nothing known, or ``out`` cannot be written.
    """

    video: str | Path
    out: str | Path
    subject: str = "person"
    width: int = 0
    download: bool = False
    info: VideoInfo = field(init=False)

    def __post_init__(self):
        self.video = Path(self.video)
        self.out = check_out(self.out, self.video)
        self.info = check_source(self.video)
        check_subject(self.subject, self.info, self.download)
        if self.width == 0:
            self.width = outline_width(self.info.height)
        if not 1 <= self.width <= self.info.height // 8:
            raise UserError(f"--width lies in [1, {self.info.height // 8}], not {self.width}.")

    def run(self) -> list[Path]:
        """Write ``edit.mkv`` (straight colours) and ``alpha.mkv``, which are a foreground for `vera-lite
        composite`; ``plate.mkv``, what is behind, unless some of it is never seen; ``sheet.png`` and
        ``metrics.json``.

        Returns:
            The files written.

        Raises:
            Rejected: the subject cannot be found.
        """
        from contextlib import ExitStack

        import torch
        from tqdm.auto import tqdm

        from vera_lite.apps.files import draw_sheet, tile
        from vera_lite.dataset.matte import ClosedForm, foreground, split, with_shadow
        from vera_lite.media.clip import composite, to_float, to_uint8
        from vera_lite.media.files import replacing_set
        from vera_lite.media.video import VideoReader
        from vera_lite.media.video_writer import VideoWriter
        from vera_lite.pipelines import frame_choice

        reader, info = VideoReader(self.video, info=self.info), self.info
        size = info.height, info.width
        small, video = find_subject(reader, self.subject, self.download)
        behind = _Behind(reader, small, video)
        del video
        sheet, error = [], 0.0
        moments = sorted(set(frame_choice(info.frames, 5)))
        with replacing_set(self.out, FILES) as folder:
            with ExitStack() as stack:
                names = ("edit", "alpha", "plate")[: 2 + behind.is_seen]
                files = [
                    stack.enter_context(VideoWriter(folder / f"{n}.mkv", info.fps, "lossless", info))
                    for n in names
                ]
                for t, frame in enumerate(tqdm(reader, "writing", unit="frame")):
                    pixels = to_float(frame)[None]
                    mask = enlarged(small[t : t + 1], size)
                    plate = behind(t, pixels) if behind.is_seen else None
                    _, alpha, shade = split(
                        pixels, mask, plate, self.width, ClosedForm(margin=3 * self.width)
                    )
                    edit, alpha = with_shadow(foreground(pixels, alpha), alpha, shade)
                    layers = {"edit": edit, "alpha": alpha} | ({} if plate is None else {"plate": plate})
                    layers = {name: to_uint8(layer[0].clone()) for name, layer in layers.items()}
                    for file, layer in zip(files, layers.values(), strict=True):
                        file.write(layer)
                    if plate is not None:
                        error += float((composite(edit, alpha, plate) - pixels).square().mean())
                    if t in moments:
                        grey = torch.full_like(pixels, 0.5)
                        cut_out = to_uint8(composite(edit, alpha, grey)[0])
                        rows = {"source": frame, "layer": cut_out, **layers}
                        rows.pop("edit")
                        sheet.append({name: tile(picture) for name, picture in rows.items()})
            seconds = [t / float(info.fps) for t in moments]
            draw_sheet(sheet, seconds, f"Layers of {self.video.name}: {self.subject}").save(
                folder / "sheet.png"
            )
            metrics = {
                "source": str(self.video),
                "subject": self.subject,
                "width": self.width,
                "frames": info.frames,
                "never_seen": behind.unseen,
                "recomposition_mean_squared_error": error / info.frames if behind.is_seen else None,
            }
            (folder / "metrics.json").write_text(json.dumps(metrics, indent=1) + "\n")
            written = [Path(self.out) / name for name in FILES if (folder / name).exists()]
        if not behind.is_seen:
            sentence = "of what is behind the subject no frame shows; plate.mkv is left out"
            warnings.warn(f"{self.video}: {behind.unseen:.0%} {sentence}.", Notice, stacklevel=2)
        return written


class _Behind:
    """What is behind a subject, frame by frame, at the video's own size.

    Attributes:
        unseen: share of it that no frame shows.
        is_seen: whether there is a plate: that share is small enough to be filled from its rims.
    """

    def __init__(self, reader: VideoReader, mask: Tensor, video: Tensor, most_unseen: float = 0.01):
        import numpy as np

        from vera_lite.apps.files import pick
        from vera_lite.dataset.checks import grow
        from vera_lite.dataset.plate import Canvas, background, register, spread
        from vera_lite.media.clip import to_float

        size = reader.info.height, reader.info.width
        hidden, cameras = grow(mask, 4), register(video)
        unseen = background(video, cameras, hidden)[1]
        self.unseen = float((unseen * hidden).sum() / hidden.sum())
        self.is_seen = self.unseen <= most_unseen
        if not self.is_seen:
            return
        self.hidden, self.size = hidden, size
        chosen = spread(reader.info.frames, max(9, min(49, _PLATE_BYTES // (16 * size[0] * size[1]))))
        y, x = (full / part for full, part in zip(size, video.shape[-2:], strict=True))
        larger = np.array([[x, 0, (x - 1) / 2], [0, y, (y - 1) / 2], [0, 0, 1]])
        cameras = larger @ cameras @ np.linalg.inv(larger)
        frames = to_float(pick(reader, chosen, "looking behind it"))
        self.canvas = Canvas(frames, enlarged(hidden[chosen], size), chosen, cameras)

    def __call__(self, t: int, frame: Tensor) -> Tensor:
        """The plate (1, 3, H, W) of frame ``t`` (1, 3, H, W): the frame itself where the subject is not."""
        import torch

        from vera_lite.dataset.plate import fill

        plate, unseen = (view[None] for view in self.canvas.view(t))
        hidden = enlarged(self.hidden[t : t + 1], self.size)
        return torch.where(hidden > 0, fill(plate, unseen * hidden), frame)
