"""SAM 2 (Ravi et al., arXiv 2408.00714): masks of what a box holds or words name.

A zero-shot detector turns words into a box. Both default models are under Apache-2.0. They are not part of
the package; ``download=True`` fetches them once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from tqdm.auto import tqdm

from vera_lite.dataset.checks import Rejected, check_masks
from vera_lite.dataset.subject import Box, Point, check_box
from vera_lite.dataset.weights import DETECTOR, SEGMENTER, load
from vera_lite.media.video import VideoReader

LOOKS = 8  # frames of a video that the detector sees
#: uint8 frames (3, H, W).
Frames = VideoReader | Sequence[Tensor]


@dataclass(frozen=True)
class Sam2Segmenter:
    """What is in a box or at a point in the first frame, or words name in any, tracked through the clip.

    Attributes:
        prompt: x, y, width and height of a box in pixels; x, y of a point; or a phrase such as "a brown dog".
        segmenter, detector: folder or name on the Hub; the detector is only for words.
        threshold: least score of what the detector finds.
        backend: whose code runs the segmenter: "transformers", or "sam2", the package of its authors. Both
            give the same masks, see :mod:`.sam2_package`.
        download, device: see :func:`load`.
    """

    prompt: Box | Point | str
    segmenter: str = SEGMENTER
    detector: str = DETECTOR
    threshold: float = 0.3
    backend: Literal["transformers", "sam2"] = "transformers"
    download: bool = False
    device: str = "cpu"

    def __post_init__(self):
        if self.backend not in ("transformers", "sam2"):
            raise ValueError(f"backend is transformers or sam2, not {self.backend!r}.")

    def __call__(self, video: Tensor) -> Tensor:
        """A mask as of :class:`.Segmenter`."""
        from transformers import (
            AutoModelForZeroShotObjectDetection,
            AutoProcessor,
            Sam2VideoModel,
            Sam2VideoProcessor,
        )

        frames = list((video * 255).round().clamp(0, 255).byte())
        options = {"download": self.download, "device": self.device}
        if isinstance(self.prompt, str):
            kinds = AutoModelForZeroShotObjectDetection, AutoProcessor
            found = find(frames, self.prompt, *load(*kinds, self.detector, **options), self.threshold)
            if found is None:
                raise Rejected("nothing_found", f"there is no {self.prompt!r} in the clip")
        else:
            check_box(self.prompt, *video.shape[-2:])
            x, y, *size = self.prompt
            found = 0, [x, y, x + size[0], y + size[1]] if size else [x, y]
        model, processor = load(Sam2VideoModel, Sam2VideoProcessor, self.segmenter, **options)
        if self.backend == "sam2":
            from vera_lite.dataset import sam2_package

            masks = sam2_package.track(frames, *found, sam2_package.from_transformers(model), processor)
        else:
            masks = track(frames, *found, model, processor)
        mask = torch.stack(masks).float() / 255
        check_masks(mask)
        return mask


@torch.inference_mode()
def find(video: Frames, what: str, detector, processor, threshold: float):
    """Look for ``what`` on a few frames.

    Returns:
        The frame of the surest find and its box (left, top, right, bottom) in pixels, or None if no score
        is above the threshold.
    """
    looks = {(2 * i + 1) * len(video) // (2 * LOOKS) for i in range(LOOKS)}
    best, found = threshold, None
    for t, frame in enumerate(video):
        if t not in looks:
            continue
        inputs = processor(images=frame, text=[[what]], return_tensors="pt").to(detector.device)
        boxes = processor.post_process_grounded_object_detection(
            detector(**inputs), threshold=best, target_sizes=[tuple(frame.shape[-2:])]
        )[0]
        if len(boxes["scores"]):
            score, i = boxes["scores"].max(0)
            best, found = float(score), (t, boxes["boxes"][i].tolist())
    return found


@torch.inference_mode()
def track(
    video: Frames, start: int, box: Sequence[float], model, processor, bar: tqdm | None = None
) -> list[Tensor]:
    """uint8 masks (1, H, W), 0 or 255, one for each frame.

    Args:
        video: of frames (3, H, W).
        start: the frame that shows the thing in ``box``.
        box: left, top, right and bottom in pixels; or x and y of a point.
        model, processor: of transformers.
        bar: counts frames.
    """
    size = tuple(next(iter(video)).shape[-2:])
    # Frames are prepared one by one and kept on the CPU: 12 MB each, at SAM 2's 1024 x 1024.
    session = processor.init_video_session(
        inference_device=model.device,
        inference_state_device="cpu",
        video_storage_device="cpu",
        dtype=model.dtype,
    )
    for t, frame in enumerate(video):
        session.add_new_frame(processor(images=frame, return_tensors="pt").pixel_values, t)
    prompt = {"input_boxes": [[list(box)]]}
    if len(box) == 2:
        prompt = {"input_points": [[[list(box)]]], "input_labels": [[[1]]]}
    processor.add_inputs_to_inference_session(
        session, frame_idx=start, obj_ids=1, original_size=size, **prompt
    )
    masks = {}
    for reverse in (False, True):
        for output in model.propagate_in_video_iterator(session, start_frame_idx=start, reverse=reverse):
            mask = processor.post_process_masks([output.pred_masks], [size])[0][0]
            if bar is not None:
                bar.update(output.frame_idx not in masks)  # both ways begin at the start
            masks[output.frame_idx] = mask.cpu().to(torch.uint8) * 255
    return [masks[t] for t in range(len(video))]
