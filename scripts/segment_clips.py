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
from tqdm.auto import tqdm
from transformers import (
    AutoModelForZeroShotObjectDetection,
    AutoProcessor,
    Sam2VideoModel,
    Sam2VideoProcessor,
)

from vera_lite.dataset.sam2 import find, track
from vera_lite.dataset.weights import DETECTOR, SEGMENTER, load
from vera_lite.errors import UserError
from vera_lite.media.video import VideoReader
from vera_lite.media.video_writer import VideoWriter


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
    parser.add_argument("--detector", default=DETECTOR, help="default %(default)s")
    parser.add_argument("--segmenter", default=SEGMENTER, help="default %(default)s")
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
