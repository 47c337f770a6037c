"""Edit a video file by a sentence."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from vera_lite.apps.inputs import check_mask, check_out, check_source, read_picture
from vera_lite.apps.layers import check_subject
from vera_lite.errors import UserError, check_number, check_prompt
from vera_lite.media.header import VideoInfo

if TYPE_CHECKING:
    from vera_lite.pipelines import Pipeline


@dataclass
class Edit:
    """A request to edit a file. Making one checks, without torch, everything that is known before the work.

    Attributes:
        video: a file with constant frame rate.
        prompt: what to do.
        out: see :func:`.apply_to_file`.
        mask: for Vera: a video of the same length, or a picture for all frames. The object takes its shape.
        subject: for Vera, instead of a mask: what to keep, see :func:`.parse_subject`. Its outline in the
            result is as fine as the video, see :class:`.OutlinedDrawing`.
        download: fetch SAM 2, for subjects such as "sam2:a brown dog", if it is not on this machine.
        reference: for MiVE: a picture of the edited first frame, of any size.
        seed: of the noise.
        info: what ``video`` holds.

    Raises:
        UserError: a file cannot be read or does not fit, the prompt is empty, or ``out`` cannot be written.
    """

    video: str | Path
    prompt: str
    out: str | Path
    mask: str | Path | None = None
    reference: str | Path | None = None
    subject: str | None = None
    download: bool = False
    seed: int = 0
    info: VideoInfo = field(init=False)

    def __post_init__(self):
        check_prompt(self.prompt)
        check_number("seed", self.seed)
        files = [None if v is None else Path(v) for v in (self.video, self.mask, self.reference)]
        self.video, self.mask, self.reference = files
        self.out = check_out(self.out, *files)
        self.info = check_source(self.video)
        if self.reference is not None:
            read_picture(self.reference, "reference")
        if self.mask is not None:
            check_mask(self.mask, self.info)
        if self.subject is not None:
            if self.mask is not None:
                raise UserError("--mask and --subject both say where: give one of them.")
            check_subject(self.subject, self.info, self.download)

    def run(self, pipe: Pipeline, **changes) -> list[Path]:
        """Edit the video and write the results into ``out``.

        Args:
            pipe: the model. Vera lays an edit over the source: where alpha is 0, a pixel of ``final.mkv`` is
                the decoded source's own, bit for bit. RVEDiT and MiVE draw every frame anew.
            changes: fields of ``pipe.sampling``.

        Returns:
            The files written.

        Raises:
            UserError: a setting is out of its range, or the prompt has an unknown word. Then nothing is
                written.
        """
        import torch

        from vera_lite.apps.files import apply_to_file, read_mask, shrunk
        from vera_lite.apps.layers import find_subject
        from vera_lite.media.clip import to_float
        from vera_lite.media.video import VideoReader
        from vera_lite.pipelines import frame_choice

        pipe.sampling_with(**changes)
        pipe.check_prompt(self.prompt)
        inputs = [self.prompt]
        if self.reference is not None:
            inputs.append(to_float(torch.from_numpy(read_picture(self.reference, "reference"))))
        reader = VideoReader(self.video, info=self.info)
        if self.mask is not None:
            chosen = frame_choice(self.info.frames, pipe.clip_size[0])
            inputs.append(shrunk(read_mask(self.mask, self.info, chosen), pipe.clip_size[1:]))
        masks = None
        if self.subject is not None:
            masks = find_subject(reader, self.subject, self.download)[0]
            chosen = frame_choice(self.info.frames, pipe.clip_size[0])
            inputs.append(shrunk(masks[chosen], pipe.clip_size[1:]))

        def refine(drawing):
            if masks is None or "alpha" not in drawing.layers:
                return drawing
            from vera_lite.apps.outline import OutlinedDrawing

            return OutlinedDrawing(drawing, masks)

        names = ("video", "prompt", "mask", "subject", "reference")
        facts = {name: str(v) for name in names if (v := getattr(self, name)) is not None}
        facts["source"] = facts.pop("video")
        options = {"title": f"“{self.prompt}”", "seed": self.seed, "refine": refine}
        return apply_to_file(pipe, reader, inputs, self.out, facts, **options, **changes)
