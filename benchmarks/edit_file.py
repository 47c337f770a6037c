"""The cost of a frame of a video file: `vera-lite edit` from file to files.

    python benchmarks/edit_file.py --json benchmarks/results/edit_file.json

The cost of a frame is the difference between a long and a short video of the same size. This leaves out the
start of the program, and the model, which draws nine frames of both. The peer is an older commit, which is
checked out during the run. Memory is the peak of a whole process, at 1080p, for a short and a long video.
"""

import subprocess
import sys
import tempfile
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from _harness import Report, cpu_seconds, main
from av.video.reformatter import Interpolation
from startup import BEFORE, PROMPT, ROOT, child_seconds, in_turns

from vera_lite.media.video import ACCURATE, VideoReader

SHORT, LONG = 8, 48
_PEAK = "import resource, sys; from vera_lite.cli import main; code = main(sys.argv[1:]); " + (
    "print('peak', resource.getrusage(resource.RUSAGE_SELF).ru_maxrss); sys.exit(code)"
)


def make_video(path: Path, frames: int, height: int, width: int) -> Path:
    """H.264 of a textured picture that moves, under a little noise."""
    noise = np.random.default_rng(0)
    y, x = np.mgrid[:height, : width + frames * 4]
    scene = 127 + 60 * np.sin(x / 23) * np.cos(y / 31) + 40 * np.sin((x + 2 * y) / 7)
    scene = np.stack([scene, np.roll(scene, 40, 1), 255 - scene], -1)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(24), options={"crf": "20"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for t in range(frames):
            seen = scene[:, 4 * t : 4 * t + width] + noise.normal(0, 3, (height, width, 1))
            picture = av.VideoFrame.from_ndarray(seen.clip(0, 255).astype(np.uint8), "rgb24")
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
    return path


def peak_megabytes(video: Path, out: Path) -> float:
    """Of a process that edits ``video``."""
    command = [sys.executable, "-c", _PEAK, "edit", str(video), "--prompt", PROMPT, "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    return int(done.stdout.split("peak ")[1]) / 1024


def measure(report: Report, rounds: int) -> None:
    """Fill the report."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        old = folder / "before"
        git = ["git", "-C", str(ROOT), "worktree"]
        subprocess.run([*git, "add", "--detach", str(old), BEFORE], check=True, capture_output=True)
        try:
            videos = {n: make_video(folder / f"{n}.mp4", n, 720, 1280) for n in (SHORT, LONG)}
            out = ["--prompt", PROMPT, "--out", str(folder / "out")]

            def editing(source: Path, video: Path):
                return lambda: child_seconds(["-m", "vera_lite.cli", "edit", str(video), *out], source)

            sides = {
                (side, n): editing(source, video)
                for side, source in (("now", ROOT), (BEFORE, old))
                for n, video in videos.items()
            }
            seconds = in_turns(sides, rounds)
        finally:
            subprocess.run([*git, "remove", "--force", str(old)], check=True, capture_output=True)
        frame = {
            side: [
                (b - a) / (LONG - SHORT)
                for a, b in zip(seconds[side, SHORT], seconds[side, LONG], strict=True)
            ]
            for side in ("now", BEFORE)
        }
        report.add_times("a frame of 720p, file to files", frame, "now", BEFORE, "<= 0.40")

        def plainly() -> None:
            with av.open(str(videos[LONG])) as container:
                for picture in container.decode(video=0):
                    picture.to_ndarray(format="rgb24", interpolation=ACCURATE)

        def quickly() -> None:
            with av.open(str(videos[LONG])) as container:
                for picture in container.decode(video=0):
                    picture.to_ndarray(format="rgb24", interpolation=Interpolation.BICUBIC)

        def ours() -> None:
            for _ in VideoReader(videos[LONG]):
                pass

        reading = {"VideoReader": ours, "PyAV, accurate": plainly, "PyAV, as it comes": quickly}
        seconds = cpu_seconds(reading, rounds)
        report.add_times(f"read {LONG} frames of 720p", seconds, "VideoReader", "PyAV, accurate", "<= 1.20")
        report.add_times("the same, colours less exact", seconds, "VideoReader", "PyAV, as it comes")
        peaks = {
            n: peak_megabytes(make_video(folder / "large.mp4", n, 1080, 1920), folder / "out")
            for n in (24, 96)
        }
        goal = {"peer": "1.2 GB", "peer_value": 1.2 * 1024, "goal": "<= 1.00"}
        report.add("peak memory, 24 frames of 1080p", peaks[24], "MiB", **goal)
        goal = {"peer": "24 frames", "peer_value": peaks[24], "goal": "<= 1.15"}
        report.add("peak memory, 96 frames of 1080p", peaks[96], "MiB", **goal)


if __name__ == "__main__":
    main("edit_file", measure, rounds=3)
