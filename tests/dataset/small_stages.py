"""Stages for tests of the store and the engines; in a module of their own, as processes import them."""

import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import torch

from vera_lite.dataset.stage import Fail, Ok, Reject, Sample, digest
from vera_lite.media.clip import to_uint8
from vera_lite.media.video import read_video
from vera_lite.media.video_writer import write_video


class _Base:
    version = "1"

    def __init__(self, **config):
        self.config = config
        self.name = config.pop("name", type(self).__name__.lower())


class Measure(_Base):
    """Brightness of a clip as a fact, and a darker copy of it as a file."""

    def __call__(self, sample, inputs, out):
        video, info = read_video(inputs("clip"))
        write_video(out / "dark.mkv", video // 2, info.fps, "lossless")
        facts = sample.facts | {"brightness": round(float(video.float().mean()), 3), "frames": info.frames}
        return Ok(replace(sample, files=sample.files | {"dark": "dark.mkv"}, facts=facts))


class Bright(_Base):
    """Rejects what is darker than ``least``."""

    def __call__(self, sample, inputs, out):
        brightness = sample.facts["brightness"]
        if brightness < self.config["least"]:
            return Reject("too_dark", {"brightness": brightness})
        return Ok(sample)


class Count(_Base):
    """Costs nothing; rejects every seventh."""

    def __call__(self, sample, inputs, out):
        number = sample.facts["number"]
        return Reject("seventh") if number % 7 == 0 else Ok(replace(sample, facts={"number": number + 1}))


class Trouble(_Base):
    """Does to itself what the facts of a sample say."""

    def __call__(self, sample, inputs, out):
        trouble = sample.facts.get("trouble")
        if trouble == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if trouble == "kill once" and not (mark := inputs("clip").parents[2] / f"once-{sample.key}").exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if trouble == "hang":
            time.sleep(60)
        if trouble == "raise":
            raise RuntimeError(f"this clip, {inputs('clip')}, is not to my taste")
        if trouble == "memory":
            raise MemoryError
        if trouble == "fail":
            return Fail("I give up.")
        if trouble == "missing":
            return Ok(replace(sample, files={"mask": "mask.mkv"}))
        if trouble == "cut":
            write_video(
                out / "mask.mkv", torch.randint(0, 256, (5, 1, 32, 32)).to(torch.uint8), 8, "lossless"
            )
            whole = (out / "mask.mkv").read_bytes()
            (out / "mask.mkv").write_bytes(whole[: len(whole) // 2])
            return Ok(replace(sample, files={"mask": "mask.mkv"}))
        if trouble == "nan":
            return Ok(replace(sample, facts={"score": float("nan")}))
        if trouble == "nothing":
            return None
        return Ok(sample)


class Slow(_Base):
    """Sleeps, and writes a file that depends on its sample alone."""

    def __call__(self, sample, inputs, out):
        time.sleep(self.config["seconds"])
        (out / "slow.json").write_text(f'"{sample.key}"')
        return Ok(replace(sample, files=sample.files | {self.name: "slow.json"}))


class Where(_Base):
    """Touches a file called as the node of the cluster that it runs on."""

    def __call__(self, sample, inputs, out):
        import ray

        time.sleep(0.05)
        (Path(os.environ["NODES"]) / ray.get_runtime_context().get_node_id()).touch()
        return Ok(sample)


class Triple(_Base):
    """Makes three samples of one."""

    def __call__(self, sample, inputs, out):
        kinds = ("add", "remove", "replace")
        first, *more = (replace(sample, key=digest(sample.key, kind), category=kind) for kind in kinds)
        return Ok(first, tuple(more))


class Cap(_Base):
    """A choice: at most ``most`` samples of each category, in the order of their keys."""

    def choose(self, samples):
        seen: dict[str, int] = {}
        reasons = {}
        for sample in samples:
            seen[sample.category] = seen.get(sample.category, 0) + 1
            if seen[sample.category] > self.config["most"]:
                reasons[sample.key] = "over_the_cap"
        return reasons


def clip(folder, number, level=None, suffix=".mkv", frames=5):
    """A small video of noise around a level."""
    generator = torch.Generator().manual_seed(number)
    level = number / 10 if level is None else level
    video = torch.rand(frames, 3, 16, 24, generator=generator) * 0.1 + level * 0.9
    path = folder / f"{number:02d}{suffix}"
    write_video(path, to_uint8(video), 8, "lossless" if suffix == ".mkv" else "preview")
    return path


def numbers(count):
    """Samples without files."""
    return [Sample(digest(n), "number", {}, {"number": n}) for n in range(count)]
