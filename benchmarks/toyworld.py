"""How fast the toy worlds render on one core: against reading clips from files, and against clip by clip.

The data modules of things on places are timed too, from pixels to latents and tokens. The files hold only one
of the five rendered layers, losslessly coded.

python benchmarks/toyworld.py [--json OUT]
"""

import tempfile
from functools import partial
from pathlib import Path
from statistics import median

from _harness import Report, cpu_seconds, main

from vera_lite.codecs import PatchCodec
from vera_lite.media.clip import to_uint8
from vera_lite.media.video import read_video
from vera_lite.media.video_writer import write_video
from vera_lite.toy.scenes import SceneConfig
from vera_lite.toy.world import render
from vera_lite.training import SceneCompositionData, SceneData, SceneEditData, ToyDialogues
from vera_lite.training.data import STREAMS
from vera_lite.training.toy.layers import SHIPPED_CODEC

CLIPS = 32  # per call


def measure(report: Report, rounds: int) -> None:
    """One batch of 32 clips against other ways to get 32 clips, and against encoding them."""
    clips, codec = render(0, range(CLIPS)), PatchCodec.load(SHIPPED_CODEC)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "clip.mkv")
        write_video(file, to_uint8(clips.source[0]), 8, "lossless")
        ways = {
            "batch": lambda: render(0, range(CLIPS)),
            "one by one": lambda: [render(0, [i]) for i in range(CLIPS)],
            "read from files": lambda: [read_video(file) for _ in range(CLIPS)],
            "encoded": lambda: [codec.encode(getattr(clips, name)) for name in STREAMS],
        }
        seconds = cpu_seconds(ways, rounds)
    report.add("9x32x32", CLIPS / median(seconds["batch"]), "clips/s")
    report.add_times(f"{CLIPS} clips", seconds, "batch", "one by one", "<= 0.5")
    report.add_times(f"{CLIPS} clips", seconds, "batch", "read from files", "<= 0.5")
    report.add_times(f"{CLIPS} clips", seconds, "batch", "encoded")

    modules = {
        "Vera": SceneData(batch_size=CLIPS),
        "Vera, 64 px": SceneData(SceneConfig(9, 64, 64), batch_size=CLIPS),
        "edits": SceneEditData(batch_size=CLIPS),
        "compositions": SceneCompositionData(batch_size=CLIPS),
        "dialogues": ToyDialogues(edits=True, scenes=True, batch_size=CLIPS),
    }
    for data in modules.values():
        data.setup()
    makers = {name: partial(data.train.__getitem__, 1) for name, data in modules.items()}
    for name, times in cpu_seconds(makers, rounds).items():
        report.add(f"batches of things on places: {name}", CLIPS / median(times), "clips/s")


if __name__ == "__main__":
    main("toyworld", measure, rounds=15)
