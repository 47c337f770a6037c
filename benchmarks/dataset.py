"""The dataset pipeline: what its stages and its bookkeeping cost, and what it survives.

    python benchmarks/dataset.py --json benchmarks/results/dataset.json

* Clips of ground truth through Vera's stages: clips per CPU second of each stage, and CPU seconds of the
  whole against a plain loop over the same stages, which keeps no row and checks no file.
* 10,000 rows that cost nothing, so that bookkeeping is all there is: a plain loop, bare Ray Data, and our
  store on a process of this machine and on Ray. Wall clock, as Ray is many processes. Bare Ray Data keeps
  nothing that would survive it; our rows are in a journal.
* One process against two, with a stage that waits (what the engine itself allows) and with one that computes
  (which needs two idle cores, and so has no goal).
* 100 times kill -9 of a whole run at random moments, then the run to its end.

Without Ray its rows are left out.
"""

import importlib.util
import multiprocessing
import random
import shutil
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import yaml
from _harness import Report, main

from vera_lite.apps.data import CONFIGS, build_stages
from vera_lite.dataset.engines import one_thread
from vera_lite.dataset.run import Source, add_samples, add_sources, manifest_hash, run
from vera_lite.dataset.stage import Ok, Reject, Sample, digest
from vera_lite.dataset.store import Store
from vera_lite.media.clip import to_uint8
from vera_lite.media.video_writer import write_video
from vera_lite.toy.truth import truth_clip

CLIPS, ROWS, KILLS, KILLED_TASKS = 6, 10_000, 100, 600


class Count:
    """A stage that costs nothing, and rejects every seventh row."""

    name, version = "count", "1"

    def __init__(self):
        self.config: dict = {}

    def __call__(self, sample: Sample, inputs: object, out: object) -> Ok | Reject:
        number = sample.facts["number"]
        return Reject("seventh") if number % 7 == 0 else Ok(replace(sample, facts={"number": number + 1}))


class Busy:
    """A stage that computes for some CPU seconds and writes a file."""

    version = "1"

    def __init__(self, seconds: float, name: str = "busy"):
        self.name, self.config = name, {"seconds": seconds}

    def __call__(self, sample: Sample, inputs: object, out: Path) -> Ok:
        end = time.process_time() + self.config["seconds"]
        while time.process_time() < end:
            pass
        (out / "busy.json").write_text(f'"{sample.key} {self.name}"')
        return Ok(replace(sample, files=sample.files | {self.name: "busy.json"}))


def rows_of(folder: Path, count: int) -> Store:
    """A store of rows without files."""
    store = Store(folder)
    rows = {str(n): Sample(digest(n), "row", {}, {"number": n}) for n in range(count)}
    add_samples(store, rows)
    return store


def wall(work: Callable[[], object]) -> float:
    """Seconds that a call takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def start_ray() -> None:
    """A cluster on this machine."""
    import ray

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")


class Timed:
    """A stage whose CPU seconds are summed up."""

    def __init__(self, stage):
        self.stage, self.seconds, self.calls = stage, 0.0, 0
        self.name, self.version, self.config = stage.name, stage.version, stage.config

    def __call__(self, *arguments):
        started = time.process_time()
        try:
            return self.stage(*arguments)
        finally:
            self.seconds += time.process_time() - started
            self.calls += 1


def plain_loop(stages: Sequence, source: Source, folder: Path) -> None:
    """One clip through all stages, as a script would do it."""
    sample = Sample("0", source.category, {"clip": "clip"}, source.facts)
    paths = {"clip": source.path}
    for stage in stages:
        out = folder / stage.name
        out.mkdir(parents=True)
        result = stage(sample, paths.__getitem__, out)
        if not isinstance(result, Ok):
            return
        sample = result.sample
        paths |= {name: out / file for name, file in sample.files.items() if (out / file).is_file()}


def chain(report: Report, folder: Path, rounds: int) -> None:
    """Vera's stages on clips of ground truth, with the shipped configuration."""
    stages = build_stages(yaml.safe_load((CONFIGS / "dataset_vera.yaml").read_text()))
    sources = []
    for number in range(CLIPS):
        truth = truth_clip(number, 25, (136, 240))
        path = folder / f"{number}.mp4"
        write_video(path, to_uint8(truth.composite), 16, "preview")
        sources.append(Source(path, path.name, "object_addition", {"licence": "MIT"}))
    seconds, timed = {"ours": [], "plain loop": []}, [Timed(stage) for stage in stages]
    for turn in range(-1, rounds):  # the first one compiles what is compiled once
        for name in ("ours", "plain loop")[:: -1 if turn % 2 else 1]:
            place = folder / name
            started = time.process_time()
            if name == "ours":
                store = Store(place)
                add_sources(store, sources, progress=False)
                run(store, timed, workers=0, progress=False)
            else:
                for number, source in enumerate(sources):
                    plain_loop(stages, source, place / str(number))
            if turn >= 0:
                seconds[name].append(time.process_time() - started)
            shutil.rmtree(place)
        if turn < 0:
            timed = [Timed(stage) for stage in stages]
    for stage in timed:
        report.add(f"{stage.name}, 25 frames of 240x136", stage.calls / stage.seconds, "clips per CPU second")
    report.add_times(f"{CLIPS} clips through all stages", seconds, "ours", "plain loop", "<= 1.20")


def bookkeeping(report: Report, folder: Path, rounds: int) -> None:
    """Rows that cost nothing, in one run side by side."""
    samples = [Sample(digest(n), "row", {}, {"number": n}) for n in range(ROWS)]
    seconds, hashes = defaultdict(list), {}

    def ours(name: str, **options) -> float:
        store = rows_of(folder / name, ROWS)
        taken = wall(lambda: run(store, [Count()], progress=False, **options))
        hashes[name] = manifest_hash(store)
        shutil.rmtree(store.folder)
        return taken

    def bare_ray() -> float:
        import ray

        rows = [{"number": n} for n in range(ROWS)]
        dataset = ray.data.from_items(rows).map(lambda row: {"number": row["number"] + 1})
        return wall(lambda: [None for _ in dataset.iter_rows()])

    stage = Count()
    for _ in range(rounds):
        seconds["plain loop"].append(wall(lambda: [stage(sample, None, None) for sample in samples]))
        seconds["local, 1 process"].append(ours("local", workers=1))
        if importlib.util.find_spec("ray"):
            import ray

            start = wall(start_ray)
            seconds["bare Ray Data, first use"].append(start + bare_ray())
            seconds["bare Ray Data, warm"].append(bare_ray())
            seconds["on Ray, warm"].append(ours("ray", executor="ray", workers=2))
            ray.shutdown()
    middle = {name: sorted(values)[len(values) // 2] for name, values in seconds.items()}
    for name, value in middle.items():
        report.add(f"{ROWS:,} rows that cost nothing: {name}", 1e6 * value / ROWS, "us per row")
    if "on Ray, warm" in middle:
        for peer, goal in (("bare Ray Data, first use", "<= 1.20"), ("bare Ray Data, warm", None)):
            ratios = [a / b for a, b in zip(seconds["local, 1 process"], seconds[peer], strict=True)]
            report.add(
                f"{ROWS:,} rows, local against {peer}",
                middle["local, 1 process"],
                "s",
                peer=peer,
                peer_value=middle[peer],
                goal=goal,
                ratios=ratios,
            )
        same = float(hashes["local"] == hashes["ray"]) * ROWS or 0.5
        report.add(
            "rows of the manifest, local = Ray", same, "rows", peer="local", peer_value=ROWS, goal="== 1"
        )


class Wait(Busy):
    """A stage that waits, as for a network or a graphics card."""

    def __call__(self, sample: Sample, inputs: object, out: Path) -> Ok:
        time.sleep(self.config["seconds"])
        return Ok(sample)


def scaling(report: Report, folder: Path, rounds: int) -> None:
    """One process against two."""
    for kind, goal in ((Wait, ">= 1.70"), (Busy, None)):
        seconds = {1: [], 2: []}
        for turn in range(rounds):
            for workers in (1, 2) if turn % 2 == 0 else (2, 1):
                store = rows_of(folder / f"scale{workers}", 40)
                started = time.perf_counter()
                run(store, [kind(0.25)], workers=workers, progress=False)
                seconds[workers].append(time.perf_counter() - started)
                shutil.rmtree(store.folder)
        what = "waits" if kind is Wait else "computes"
        report.add(
            f"40 rows of 0.25 s that {what}: 2 processes against 1",
            40 / min(seconds[2]),
            "rows per second",
            peer="1 process",
            peer_value=40 / min(seconds[1]),
            goal=goal,
            ratios=[a / b for a, b in zip(seconds[1], seconds[2], strict=True)],
        )


def _run(folder: Path, stages: Sequence, workers: int) -> None:
    run(Store(folder), stages, workers=workers, progress=False)


def kills(report: Report, folder: Path) -> None:
    """kill -9 of a whole run at random moments, until it has been killed 100 times."""
    stages = [Busy(0.02, "first"), Busy(0.02, "second")]
    count = KILLED_TASKS // len(stages)
    calm, store = rows_of(folder / "calm", count), rows_of(folder / "killed", count)
    run(calm, stages, workers=2, progress=False)
    moments, killed = random.Random(0), 0
    context = multiprocessing.get_context("forkserver")
    while killed < KILLS:
        journal = store.folder / "journal"
        known = len(list(journal.iterdir()))
        process = context.Process(target=_run, args=(store.folder, stages, 2 if killed % 10 == 0 else 0))
        process.start()
        while process.is_alive() and len(list(journal.iterdir())) == known:
            time.sleep(0.002)
        time.sleep(moments.random() * 0.2)
        if not process.is_alive():
            break
        process.kill()
        process.join()
        killed += 1
    store = Store(store.folder)
    before = len(store.tasks)
    run(store, stages, workers=0, progress=False)
    once = sum(len(store.outcomes(task)) == 1 for task in store.tasks)
    report.add("kill -9 of a whole run", killed, "kills", peer="planned", peer_value=KILLS, goal="== 1")
    report.add("tasks done before the last run", max(before, 0.5), "tasks")
    report.add("tasks done exactly once", once, "tasks", peer="all", peer_value=KILLED_TASKS, goal="== 1")
    lines = [(s.folder / "manifest.jsonl").read_text().splitlines() for s in (calm, store)]
    equal = sum(a == b for a, b in zip(*lines, strict=True))
    report.add(
        "rows of the manifest as in a calm run",
        equal,
        "rows",
        peer="all",
        peer_value=len(lines[0]),
        goal="== 1",
    )


def measure(report: Report, rounds: int) -> None:
    """Fill the report."""
    with tempfile.TemporaryDirectory() as name, one_thread():
        folder = Path(name)
        chain(report, folder, rounds)
        bookkeeping(report, folder, rounds)
        scaling(report, folder, rounds)
        kills(report, folder)


if __name__ == "__main__":
    main("dataset", measure, rounds=3)
