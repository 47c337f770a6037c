"""The cost of starting: CPU seconds of whole processes, including imports.

    python benchmarks/startup.py --json benchmarks/results/startup.json

`import vera_lite.pipelines` is compared with `import torch`, and `vera-lite edit` on a sample clip with that
of an older commit, which is checked out during the run. Both sides take turns, every second round in reverse
order.
"""

import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from _harness import Report, main

ROOT = Path(__file__).resolve().parents[1]
#: The last commit with diffusers and matplotlib on the import path of `edit`.
BEFORE = "ff66025"
PROMPT = "add a red ring at the top left moving right"


def child_seconds(arguments: list[str], source: Path) -> float:
    """CPU seconds of a Python process that imports vera_lite from ``source``."""
    threads = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(
        [sys.executable, *arguments],
        env=os.environ | threads | {"PYTHONPATH": str(source)},
        cwd=source,  # Python looks there first
        check=True,
        capture_output=True,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def in_turns(sides: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each side and round, after a first run of each that warms the disk's cache."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for run in sides.values():
        run()
    for number in range(rounds):
        for name in list(sides)[:: 1 if number % 2 == 0 else -1]:
            seconds[name].append(sides[name]())
    return seconds


def measure(report: Report, rounds: int) -> None:
    """Fill the report."""

    def importing(module: str) -> Callable[[], float]:
        return lambda: child_seconds(["-c", f"import {module}"], ROOT)

    imports = {"vera_lite.pipelines": importing("vera_lite.pipelines"), "torch": importing("torch")}
    seconds = in_turns(imports, rounds)
    report.add_times("import vera_lite.pipelines", seconds, "vera_lite.pipelines", "torch", "<= 1.30")

    with tempfile.TemporaryDirectory() as folder:
        old = Path(folder) / "before"
        git = ["git", "-C", str(ROOT), "worktree"]
        subprocess.run([*git, "add", "--detach", str(old), BEFORE], check=True, capture_output=True)
        try:

            def editing(source: Path) -> Callable[[], float]:
                video = str(ROOT / "data_samples" / "clouds.mkv")
                out = ["--prompt", PROMPT, "--out", str(Path(folder) / "out")]
                return lambda: child_seconds(["-m", "vera_lite.cli", "edit", video, *out], source)

            seconds = in_turns({"now": editing(ROOT), f"commit {BEFORE}": editing(old)}, rounds)
        finally:
            subprocess.run([*git, "remove", "--force", str(old)], check=True, capture_output=True)
    report.add_times("vera-lite edit, sample clip", seconds, "now", f"commit {BEFORE}", "<= 0.60")


if __name__ == "__main__":
    main("startup", measure, rounds=5)
