"""Masks of a named thing: `python scripts/segment_clips.py clips/*.mp4 --what "a person" --out masks`.

A zero-shot detector finds the thing on a few frames; SAM 2 tracks the detection with the best score from its
frame to both ends of the video. Each NAME.mp4 gets a lossless grey NAME.mask.mkv of its size, length and
rate, 255 on the thing; existing masks are skipped. Both default models are under Apache-2.0.
"""

import argparse
import sys
from collections import Counter
from pathlib import Path

import torch
from torch import Tensor
from tqdm.auto import tqdm
from transformers import (
    AutoModelForZeroShotObjectDetection,
    AutoProcessor,
    Sam2VideoModel,
    Sam2VideoProcessor,
)

from vera_lite.errors import UserError
from vera_lite.media.video import VideoReader
from vera_lite.media.video_writer import VideoWriter

LOOKS = 8  # frames of a video that the detector sees


def load(model_class, processor_class, name: str, download: bool, device: str):
    """A model and its processor.

    Raises:
        UserError: they are not on this machine, or of another kind.
    """
    try:
        processor = processor_class.from_pretrained(name, local_files_only=not download)
        model = model_class.from_pretrained(name, local_files_only=not download, use_safetensors=True)
    except (OSError, ValueError) as error:
        hint = "" if download or Path(name).is_dir() else " Pass --download to fetch it."
        raise UserError(f"cannot load {name!r} as {model_class.__name__}.{hint}") from error
    return model.to(device), processor


@torch.inference_mode()
def find(video: VideoReader, what: str, detector, processor, threshold: float):
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
def track(video: VideoReader, start: int, box: list[float], model, processor, bar: tqdm) -> list[Tensor]:
    """uint8 masks (1, H, W), 0 or 255, of what is in ``box`` on frame ``start``, one for each frame."""
    size = (video.info.height, video.info.width)
    # Frames are prepared one by one and kept on the CPU: 12 MB each, at SAM 2's 1024 x 1024.
    session = processor.init_video_session(
        inference_device=model.device,
        inference_state_device="cpu",
        video_storage_device="cpu",
        dtype=model.dtype,
    )
    for t, frame in enumerate(video):
        session.add_new_frame(processor(images=frame, return_tensors="pt").pixel_values, t)
    processor.add_inputs_to_inference_session(
        session, frame_idx=start, obj_ids=1, input_boxes=[[box]], original_size=size
    )
    masks = {}
    for reverse in (False, True):
        for output in model.propagate_in_video_iterator(session, start_frame_idx=start, reverse=reverse):
            mask = processor.post_process_masks([output.pred_masks], [size])[0][0]
            bar.update(output.frame_idx not in masks)  # both ways begin at the start
            masks[output.frame_idx] = mask.cpu().to(torch.uint8) * 255
    return [masks[t] for t in range(len(video))]


def segment(options: argparse.Namespace) -> list[Path]:
    """Write the masks that are missing; returns the videos in which nothing was found.

    Raises:
        UserError: a file or a model is missing, or two videos have one name.
    """
    what = options.what.strip(" .")
    if not what or "." in what:
        raise UserError("--what is one phrase without full stops, such as 'a person'.")
    twice = [name for name, count in Counter(path.stem for path in options.videos).items() if count > 1]
    if twice:
        raise UserError(f"two videos are called {twice[0]!r}, so would be their masks; rename one.")
    if options.out.exists() and not options.out.is_dir():
        raise UserError(f"{options.out} is a file; --out wants a folder.")
    targets = {path: options.out / f"{path.stem}.mask.mkv" for path in options.videos}
    # What can be refused is refused before any work.
    todo = [(VideoReader(path), target) for path, target in targets.items() if not target.exists()]
    if not todo:
        return []
    device = options.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    detector, detector_processor = load(
        AutoModelForZeroShotObjectDetection, AutoProcessor, options.detector, options.download, device
    )
    segmenter, segmenter_processor = load(
        Sam2VideoModel, Sam2VideoProcessor, options.segmenter, options.download, device
    )
    options.out.mkdir(parents=True, exist_ok=True)
    not_found = []
    for i, (video, target) in enumerate(todo, start=1):
        with tqdm(total=len(video), desc=f"{video.path.name} ({i} of {len(todo)})", unit="frame") as bar:
            found = find(video, what, detector, detector_processor, options.threshold)
            if found is None:
                not_found.append(video.path)
                continue
            masks = track(video, *found, segmenter, segmenter_processor, bar)
            with VideoWriter(target, video.info.fps, "lossless") as writer:
                for mask in masks:
                    writer.write(mask)
    return not_found


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("videos", type=Path, nargs="+", metavar="VIDEO")
    parser.add_argument("--what", required=True, help="the thing, such as 'a person'")
    parser.add_argument("--out", type=Path, required=True, help="folder for the masks, made if needed")
    parser.add_argument("--detector", default="IDEA-Research/grounding-dino-tiny", help="default %(default)s")
    parser.add_argument("--segmenter", default="facebook/sam2.1-hiera-small", help="default %(default)s")
    parser.add_argument("--threshold", type=float, default=0.3, help="least score of a find, default 0.3")
    parser.add_argument("--download", action="store_true", help="fetch models that are not on this machine")
    parser.add_argument("--device", default="auto", help="default: CUDA if there is one, else the CPU")
    options = parser.parse_args(arguments)
    try:
        not_found = segment(options)
    except UserError as error:
        print(f"segment_clips: {error}", file=sys.stderr)
        return 2
    for path in not_found:
        print(f"segment_clips: no {options.what!r} was found in {path}; skipped.", file=sys.stderr)
    return 2 if not_found else 0


if __name__ == "__main__":
    sys.exit(main())
