"""The dataset pipeline: what its stages and its bookkeeping cost, and what it survives.

    python benchmarks/dataset.py --json benchmarks/results/dataset.json

* 10,000 rows that cost nothing, so that bookkeeping is all there is: a plain loop that keeps nothing, bare Ray
  Data, and our store on processes of this machine and on Ray. Wall clock, as Ray is many processes.
* Clips of ground truth through Vera's stages: seconds of each stage, and the whole against a plain loop over
  the same stages.
* One process against two.
* 100 times kill -9 of a whole run at random moments, then the run to its end.

Two halves need what is not always there: Ray, and two idle cores.
"""

import importlib.util
import multiprocessing
import os
import random
import shutil
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from _harness import Report, main

from vera_lite.dataset.engines import one_thread
from vera_lite.dataset.run import manifest_hash, new_run, run
from vera_lite.dataset.stage import Ok, Reject, Sample, digest
from vera_lite.dataset.store import Store, Writer

ROWS, KILLS, KILLED_TASKS = 10_000, 100, 600


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
    with store.lock():
        writer = Writer(store, new_run())
        for number in range(count):
            writer.add(Sample(digest(number), "row", {}, {"number": number}), str(number))
        writer.close()
    return store


def wall(work: Callable[[], object]) -> float:
    """Seconds that a call takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


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

            options = {"num_cpus": 2, "include_dashboard": False, "log_to_driver": False}
            start = wall(lambda: ray.init(logging_level="ERROR", **options))
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


def scaling(report: Report, folder: Path, rounds: int) -> None:
    """One process against two, on stages that compute."""
    seconds = {1: [], 2: []}
    for turn in range(rounds):
        for workers in (1, 2) if turn % 2 == 0 else (2, 1):
            store = rows_of(folder / f"scale{workers}", 24)
            run(store, [Busy(0.01, "warm")], workers=workers, progress=False)  # processes' start aside
            stages = [Busy(0.01, "warm"), Busy(0.25)]
            seconds[workers].append(wall(lambda: run(store, stages, workers=workers, progress=False)))
            shutil.rmtree(store.folder)
    report.add(
        "24 rows of 0.25 s CPU: rows per second of 2 processes against 1",
        24 / min(seconds[2]),
        "rows/s",
        peer="1 process",
        peer_value=24 / min(seconds[1]),
        goal=">= 1.70" if (os.cpu_count() or 1) > 1 else None,
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
        chain(report, folder)
        bookkeeping(report, folder, rounds)
        scaling(report, folder, rounds)
        kills(report, folder)


if __name__ == "__main__":
    main("dataset", measure, rounds=3)
