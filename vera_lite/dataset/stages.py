"""The stages that turn a raw clip into a training sample, as Vera's dataset was made (arXiv 2606.23610).

| stage | object addition | background change |
|---|---|---|
| :class:`Select` | one shot, a steady rate, one size | the same |
| :class:`Segment` | what moves | the person |
| :class:`Plate` | the clip without the object | – |
| :class:`Matte` | matte, colours, shadow | matte, colours of subject and background |
| :class:`Background` | – | the subject on another background |
| :class:`Inspect` | rejects bad plates and mattes | rejects bad mattes |
| :class:`Caption` | instruction from a template | the same |

The real clip is always the target (``composite``); what the model is given (``source``) is made. The paper
mattes before it removes the object; here the plate comes first, because it tells how good a matte is.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import torch
from torch import Tensor

from vera_lite.dataset.backgrounds import new_background
from vera_lite.dataset.checks import Rejected, grow, on_border
from vera_lite.dataset.matte import ClosedForm, Matter, foreground, misfit, split, with_shadow
from vera_lite.dataset.plate import background, fill, register
from vera_lite.dataset.segment import segmenter
from vera_lite.dataset.stage import Fail, Ok, Reject, Sample, digest
from vera_lite.dataset.subject import parse_subject
from vera_lite.dataset.weights import revision
from vera_lite.media.clip import composite, to_float, to_uint8
from vera_lite.media.video import VideoReader, read_grey, read_video
from vera_lite.media.video_writer import write_video

Inputs = Callable[[str], Path]
CATEGORIES = ("object_addition", "background_change")


class VeraStage:
    """What the stages share: ``config`` from the fields, and a :class:`.Rejected` clip made a row.

    Subclasses are dataclasses with a ``work`` method; ``only`` names the one category that they are for, and
    ``models`` the fields that name a model. Of each of these, ``config`` holds the revision of the weights,
    too.
    """

    name: str
    version = "1"
    only: str | None = None
    models: tuple[str, ...] = ("model",)

    @property
    def config(self) -> dict[str, Any]:
        fields = json.loads(json.dumps(dataclasses.asdict(self)))
        names = [name for name in self.models if fields.get(name) is not None]
        return fields | {f"{name}_revision": revision(fields[name]) for name in names}

    def __call__(self, sample: Sample, inputs: Inputs, out: Path) -> Ok | Reject | Fail:
        if self.only not in (None, sample.category):
            return Ok(sample)
        try:
            return self.work(sample, inputs, out)
        except Rejected as error:
            return Reject(error.reason, {"why": str(error)} | error.facts)

    def work(self, sample: Sample, inputs: Inputs, out: Path) -> Ok | Reject | Fail:
        raise NotImplementedError


def load(inputs: Inputs, *names: str) -> list[Tensor]:
    """Videos of a sample as float32 (T, 3 or 1, H, W) in [0, 1]."""
    read = {"mask": read_grey, "alpha": read_grey}
    return [to_float(read.get(n, lambda path: read_video(path)[0])(inputs(n))) for n in names]


def save(sample: Sample, out: Path, videos: dict[str, Tensor], **facts: Any) -> Ok:
    """The sample with further videos, written losslessly with 8 bits, and further facts."""
    for name, video in videos.items():
        write_video(out / f"{name}.mkv", to_uint8(video.clone()), sample.facts["fps"], "lossless")
    files = sample.files | {name: f"{name}.mkv" for name in videos}
    return Ok(replace(sample, files=files, facts=sample.facts | facts))


@dataclass
class Select(VeraStage):
    """Decodes the clip once, whole, and takes the beginning of its longest shot as ``composite``.

    The fact ``seconds``, from and to, limits what is taken. A clip of another category becomes two samples,
    one of each of :data:`CATEGORIES`.

    Attributes:
        frames: at most so many, 1 + 4n of them.
        least_frames: shorter shots are rejected.
        fps: frames are left out until the rate is about this.
        height: larger clips are made so small, in pixels.
        least_motion: mean change of a pixel from frame to frame, of values in [0, 1].
    """

    frames: int = 49
    least_frames: int = 17
    fps: float = 16.0
    height: int = 270
    least_motion: float = 5e-4
    name = "select"

    def work(self, sample: Sample, inputs: Inputs, out: Path) -> Ok | Reject:
        reader = VideoReader(inputs("clip"))
        info = reader.info
        step = max(1, round(float(info.fps) / self.fps))
        start, end = max(shots(reader), key=lambda shot: shot[1] - shot[0])
        if "seconds" in sample.facts:
            part = [round(float(info.fps) * second) for second in sample.facts["seconds"]]
            start, end = max(start, part[0]), min(end, part[1])
        count = min(self.frames, (end - start + step - 1) // step)
        if count < self.least_frames:
            raise Rejected("too_short", f"its longest shot has {count} frames", shot=[start, end])
        chosen = range(start, start + step * (1 + 4 * ((count - 1) // 4)), step)
        scale = min(1.0, self.height / info.height)
        size = tuple(2 * round(side * scale / 2) for side in (info.width, info.height))
        kept = []
        for t, frame in enumerate(reader.decode()):
            if t in chosen:
                picture = reader.to_tensor(frame).permute(1, 2, 0).numpy()
                kept.append(cv2.resize(picture, size, interpolation=cv2.INTER_AREA))
        video = torch.from_numpy(np.stack(kept)).permute(0, 3, 1, 2)
        motion = float((to_float(video[1:]) - to_float(video[:-1])).abs().mean())
        if motion < self.least_motion:
            raise Rejected("no_motion", "nothing moves in it", motion=motion)
        facts = {"shot": [start, end], "fps": float(info.fps / step), "motion": round(motion, 5)}
        facts |= {"scale": scale, "frames": len(video), "height": size[1], "width": size[0]}
        write_video(out / "composite.mkv", video, facts["fps"], "lossless")
        kept = replace(
            sample, files=sample.files | {"composite": "composite.mkv"}, facts=sample.facts | facts
        )
        if sample.category in CATEGORIES:
            return Ok(kept)
        both = [replace(kept, key=digest(kept.key, c), category=c) for c in CATEGORIES]
        return Ok(both[0], tuple(both[1:]))


def shots(reader: VideoReader) -> list[tuple[int, int]]:
    """First frame and end of each shot, by PySceneDetect's adaptive detector; every frame is decoded."""
    from scenedetect import AdaptiveDetector, FrameTimecode

    detector, rate = AdaptiveDetector(), float(reader.info.fps)
    cuts, small = [], (256, max(2, round(256 * reader.info.height / reader.info.width)))
    for t, frame in enumerate(reader.decode()):
        picture = frame.to_ndarray(format="bgr24")
        picture = cv2.resize(picture, small, interpolation=cv2.INTER_AREA)
        cuts += detector.process_frame(FrameTimecode(t, rate), picture)
    cuts += detector.post_process(FrameTimecode(len(reader) - 1, rate))
    borders = [0, *sorted(cut.frame_num for cut in cuts), len(reader)]
    return list(zip(borders[:-1], borders[1:], strict=True))


@dataclass
class Segment(VeraStage):
    """Finds the subject: ``mask``.

    Attributes:
        subject: of each category, see :func:`.segmenter`; the fact ``subject`` of a sample goes first.
        model, detector: folder or name of a SAM 2 and of the detector for its words, for subjects such as
            "sam2:a brown dog"; without ``model`` such subjects fail,
            as no key would say what found them.
    """

    subject: dict[str, str] = dataclasses.field(
        default_factory=lambda: {"object_addition": "moving", "background_change": "person"}
    )
    model: str | None = None
    detector: str | None = None
    name, models = "segment", ("model", "detector")

    def __post_init__(self):
        for subject in self.subject.values():
            if lack := self.lack(subject):
                raise ValueError(lack)

    def lack(self, subject: str) -> str | None:
        """The sentence that says what the stage has not to find a subject; None if it has it."""
        kind, place = parse_subject(subject)
        if kind == "sam2" and (self.model is None or isinstance(place, str) and self.detector is None):
            return f"the stage needs a model (and, for words, a detector) to find {subject!r}."
        return None

    def work(self, sample: Sample, inputs: Inputs, out: Path) -> Ok | Fail:
        subject = sample.facts.get("subject") or self.subject[sample.category]
        if lack := self.lack(subject):
            return Fail(lack)
        (video,) = load(inputs, "composite")
        mask = segmenter(subject, sample.facts.get("scale", 1.0), self.model, self.detector)(video)
        return save(sample, out, {"mask": mask}, subject=subject, area=round(float(mask.mean()), 5))


@dataclass
class Plate(VeraStage):
    """Removes the object: ``source``, which is the clip itself where the object never hides it.

    Attributes:
        room: pixels around the mask that are replaced, too.
        most_unseen: share of the replaced pixels that no frame shows; so few are inpainted, with more the
            clip is rejected as ``unseen_background``.
        most_error: mean difference between plate and clip around the object, of values in [0, 1].
        model: folder or name of a Wan VACE that invents what no frame shows; then nothing is rejected for it.
    """

    room: int = 4
    most_unseen: float = 0.01
    most_error: float = 0.03
    model: str | None = None
    name, only = "plate", "object_addition"

    def work(self, sample: Sample, inputs: Inputs, out: Path) -> Ok | Reject:
        video, mask = load(inputs, "composite", "mask")
        hidden = grow(mask, self.room)
        plate, unseen = background(video, register(video), hidden)
        share = float((unseen * hidden).sum() / hidden.sum())
        if share > self.most_unseen and self.model is None:
            raise Rejected("unseen_background", f"{share:.1%} of what is behind is never seen", unseen=share)
        around = grow(hidden, 6) - hidden
        error = float(((plate - video).abs().mean(1, keepdim=True) * around).sum() / around.sum())
        if error > self.most_error:
            raise Rejected("background_changes", "the background changes behind the object", error=error)
        if share > self.most_unseen:
            from vera_lite.dataset.models import WanVideo

            remover = WanVideo(str(self.model), "the empty scene, without the object")
            plate = remover.remove(torch.where(hidden > 0, plate, video), unseen * hidden)
        else:
            plate = fill(plate, unseen * hidden)
        source = torch.where(hidden > 0, plate, video)
        return save(sample, out, {"source": source}, unseen=round(share, 5), plate_error=round(error, 5))


@dataclass
class Matte(VeraStage):
    """Softens the mask: ``alpha``, ``edit`` and ``subject``, the subject's own straight colours.

    Where there is a plate the shadow joins the object's layer, and the matte has to explain the clip better
    than the hard mask does. Otherwise the stage steps aside, which the fact ``soft`` says.

    Attributes:
        width: pixels of the unknown band on either side of the outline.
        least_gain: by how much :func:`.misfit` must fall, as a share.
        model: folder or name of a ViTMatte or a MatAnyone on the Hub; closed-form matting without one.
        network: which of the two, as the class in :mod:`.models` is called.
    """

    width: int = 4
    least_gain: float = 0.05
    model: str | None = None
    network: Literal["ViTMatte", "MatAnyone"] = "ViTMatte"
    name = "matte"

    def __post_init__(self):
        if self.network not in ("ViTMatte", "MatAnyone"):
            raise ValueError(f"network is ViTMatte or MatAnyone, not {self.network!r}.")

    def matter(self) -> Matter:
        """What solves the unknown band."""
        if self.model is None:
            return ClosedForm()
        from vera_lite.dataset import models

        return {"ViTMatte": models.ViTMatte, "MatAnyone": models.MatAnyone}[self.network](self.model)

    def work(self, sample: Sample, inputs: Inputs, out: Path) -> Ok:
        video, mask = load(inputs, "composite", "mask")
        removes = "source" in sample.files
        (plate,) = load(inputs, "source") if removes else (None,)
        mask, alpha, shade = split(video, mask, plate, self.width, self.matter())
        facts = {}
        if removes:
            hard, soft = misfit(video, plate, mask, (mask, alpha), self.width)
            facts = {"misfit_hard": round(hard, 5), "misfit_soft": round(soft, 5)}
            if soft > (1 - self.least_gain) * hard:
                alpha, facts = mask, facts | {"soft": False}
        alpha = to_float(to_uint8(alpha.clone()))  # what the file will hold
        subject = foreground(video, alpha)
        facts = {"soft": True} | facts | {"shadow": round(float(shade.mean()), 6)}
        if not removes:
            layers = {"edit": foreground(video, 1 - alpha), "alpha": 1 - alpha}
        else:
            layers = dict(zip(("edit", "alpha"), with_shadow(subject, alpha, shade), strict=True))
        return save(sample, out, layers | {"subject": subject, "mask": mask}, **facts)


@dataclass
class Background(VeraStage):
    """Puts the subject on another background: ``source``. It moves as the camera does.

    Attributes:
        seed: which of the backgrounds a clip gets depends on this and its key.
        model: folder or name of a Wan text-to-video model; without one see :mod:`.backgrounds`.
        prompts: what it shows; a clip's key chooses one.
    """

    seed: int = 0
    model: str | None = None
    prompts: tuple[str, ...] = (
        "a quiet beach in the morning",
        "a busy street at night",
        "a meadow in spring",
    )
    name, only = "background", "background_change"

    def work(self, sample: Sample, inputs: Inputs, out: Path) -> Ok:
        video, subject, alpha = load(inputs, "composite", "subject", "alpha")
        key = digest(self.seed, sample.key)
        if self.model is None:
            pixels, words = new_background(key, video)
        else:
            from vera_lite.dataset.models import WanVideo

            words = self.prompts[int(key[:8], 16) % len(self.prompts)]
            pixels = WanVideo(self.model, words, seed=int(key[8:15], 16)).background(video)
        source = composite(subject, 1 - alpha, pixels)
        return save(sample, out, {"source": source}, background=words)


@dataclass
class Inspect(VeraStage):
    """Rejects what the stages before could not see.

    Attributes:
        most_flicker: mean jump of the mask's area against the frames before and after, as a share of it,
            while it is wholly in view.
        most_residue: share of the object's pixels that look the same in the plate, so that it is still there.
    """

    most_flicker: float = 0.15
    most_residue: float = 0.4
    name = "inspect"

    def work(self, sample: Sample, inputs: Inputs, out: Path) -> Ok:
        video, source, mask = load(inputs, "composite", "source", "mask")
        area, whole = mask.mean((1, 2, 3)), on_border(mask) == 0
        jump = (area[1:-1] - (area[2:] + area[:-2]) / 2).abs() / area[1:-1].clamp_min(1e-6)
        jump = jump[(area[1:-1] > 1e-4) & whole[2:] & whole[1:-1] & whole[:-2]]
        flicker = float(jump.mean()) if len(jump) else 0.0
        if flicker > self.most_flicker:
            raise Rejected("mask_flickers", f"the area jumps by {flicker:.0%}", flicker=flicker)
        facts = {"flicker": round(flicker, 5)}
        if sample.category == "object_addition":
            same = (video - source).abs().amax(1, keepdim=True) < 0.04
            residue = float((same * mask).sum() / mask.sum())
            if residue > self.most_residue:
                raise Rejected("object_still_there", f"{residue:.0%} of it look the same", residue=residue)
            facts["residue"] = round(residue, 5)
        return Ok(replace(sample, facts=sample.facts | facts))


@dataclass
class Caption(VeraStage):
    """Writes ``source_caption``, ``target_caption`` and ``instruction`` from facts, in fixed sentences.

    The facts ``label`` and ``scene`` say what is seen, such as "a brown dog" and "a quiet street"; without
    them the sentences stay general. :class:`.VLMCaption` looks at the clip instead.
    """

    name = "caption"

    def work(self, sample: Sample, inputs: Inputs, out: Path) -> Ok:
        (mask,) = load(inputs, "mask")
        label = sample.facts.get(
            "label", {"person": "a person"}.get(sample.facts["subject"], "a moving object")
        )
        scene = sample.facts.get("scene", "the real scene")
        if sample.category == "background_change":
            words = {
                "source_caption": f"{label} in front of {sample.facts['background']}",
                "target_caption": f"{label} in {scene}",
                "instruction": f"Change the background to {scene}. Keep {label} as it is.",
            }
        else:
            words = {
                "source_caption": scene,
                "target_caption": f"{label} in {scene}",
                "instruction": f"Add {label} {_where(mask)}.",
            }
        return Ok(replace(sample, facts=sample.facts | words))


def _where(mask: Tensor) -> str:
    """Where an object (T, 1, H, W) begins and where it goes, in words."""
    there = mask.mean((1, 2, 3)) > 0
    x = (mask.mean((1, 2)) * torch.linspace(0, 1, mask.shape[-1])).sum(1) / mask.mean((1, 2)).sum(
        1
    ).clamp_min(1e-9)
    x = x[there]
    place = ("at the left", "in the middle", "at the right")[min(2, int(3 * x[0]))]
    way = float(x[-1] - x[0])
    return place if abs(way) < 0.1 else f"{place}, moving {'right' if way > 0 else 'left'}"
