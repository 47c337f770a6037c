"""What every benchmark shares: fair timing of two things side by side, a table, a JSON report.

Times are CPU seconds of this process on one thread. Wall clock would also count what other programs
do on a shared machine. What CPU time still feels of them (caches, clock rate) drifts, so both sides
take turns within a round, a ratio is formed round by round, and the median of the rounds is kept.
"""

import argparse
import ctypes
import gc
import os
import platform
import re
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import date
from fractions import Fraction
from importlib.metadata import version
from json import dumps
from pathlib import Path
from statistics import median

import torch

from vera_lite.media.files import replacing

#: Seconds that one sample should at least last; faster functions are called several times.
SAMPLE_SECONDS = 0.02

_COMPARISONS = {
    "<=": lambda a, b: a <= b,
    "<": lambda a, b: a < b,
    ">=": lambda a, b: a >= b,
    "==": lambda a, b: a == b,
}


def meets(ratio: float | Fraction, goal: str) -> bool:
    """Whether ``ratio`` meets a goal such as ``"<= 1.10"``.

    Raises:
        ValueError: ``goal`` is not a comparison (<=, <, >=, ==) followed by a number.
    """
    match = re.fullmatch(r"(<=|<|>=|==) (\d+(?:\.\d+)?)", goal)
    if match is None:
        raise ValueError(f"goal {goal!r} should look like '<= 1.10'.")
    return _COMPARISONS[match[1]](ratio, float(match[2]))


def cpu_seconds(functions: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Time functions in turns: A B A B ...

    Args:
        functions: what to call, by name.
        rounds: samples of each.

    Returns:
        CPU seconds of one call, by name, one for each round.
    """
    calls = {}
    for name, function in functions.items():
        function()  # warm-up: allocator, kernels' one-time choices
        start = time.process_time()
        function()
        calls[name] = max(1, round(SAMPLE_SECONDS / max(time.process_time() - start, 1e-6)))
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    gc.freeze()  # modules need no looking through
    for _ in range(rounds):
        gc.collect()
        gc.disable()  # a collection would be charged to whoever happens to run
        for name, function in functions.items():
            start = time.process_time()
            for _ in range(calls[name]):
                function()
            seconds[name].append((time.process_time() - start) / calls[name])
        gc.enable()
    return seconds


@dataclass(frozen=True)
class Result:
    """One row of a report.

    Attributes:
        case: what was measured, at which size.
        value: ours, in ``unit``.
        peer: what it is held against, if anything.
        peer_value: the peer's value, in ``unit``.
        ratio: ours / peer. For times the median over rounds, so not exactly value / peer_value.
        goal: what the ratio should meet, such as ``"<= 1.10"``; None: the row is context.
        holds: whether it does.
    """

    case: str
    value: float
    unit: str
    peer: str | None = None
    peer_value: float | None = None
    ratio: float | None = None
    goal: str | None = None
    holds: bool | None = None


class Report:
    """Rows of one benchmark, printed as a table and written as JSON.

    Args:
        name: of the benchmark.
    """

    def __init__(self, name: str):
        self.name = name
        self.results: list[Result] = []

    def add(
        self,
        case: str,
        value: float,
        unit: str,
        *,
        peer: str | None = None,
        peer_value: float | None = None,
        ratio: float | None = None,
        goal: str | None = None,
    ) -> None:
        """Add a row; see :class:`Result`. ``ratio`` defaults to value / peer_value."""
        if ratio is None and peer_value is not None:
            ratio = Fraction(value) / Fraction(peer_value)  # FLOPs have more digits than floats
        if goal is not None and ratio is None:
            raise ValueError(f"{case}: a goal needs something to compare with.")
        holds = meets(ratio, goal) if goal is not None else None
        ratio = None if ratio is None else float(ratio)
        self.results.append(Result(case, value, unit, peer, peer_value, ratio, goal, holds))

    def add_times(
        self,
        case: str,
        seconds: dict[str, list[float]],
        ours: str,
        peer: str,
        goal: str | None = None,
    ) -> None:
        """Add a row from :func:`cpu_seconds`: median milliseconds, median ratio over rounds."""
        ratios = [a / b for a, b in zip(seconds[ours], seconds[peer], strict=True)]
        self.add(
            case,
            1000 * median(seconds[ours]),
            "ms CPU",
            peer=peer,
            peer_value=1000 * median(seconds[peer]),
            ratio=median(ratios),
            goal=goal,
        )

    def table(self) -> str:
        """The rows as aligned text."""
        rows = [("case", "value", "unit", "peer", "peer value", "ratio", "goal", "holds")]
        for r in self.results:
            holds = "" if r.holds is None else "yes" if r.holds else "NO"
            ratio = "" if r.ratio is None else f"{r.ratio:.3f}"
            numbers = ["" if v is None else f"{v:,.4g}" for v in (r.value, r.peer_value)]
            rows.append((r.case, numbers[0], r.unit, r.peer or "", numbers[1], ratio, r.goal or "", holds))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(c.ljust(w) for c, w in zip(r, widths, strict=True)).rstrip() for r in rows]
        return "\n".join([self.name, *lines])

    def as_dict(self) -> dict:
        """The report as it is written to JSON."""
        return {
            "name": self.name,
            "date": date.today().isoformat(),
            "machine": machine(),
            "versions": {
                "python": platform.python_version(),
                "torch": version("torch"),
                "diffusers": version("diffusers"),
            },
            "results": [asdict(r) for r in self.results],
        }

    def write(self, path: Path) -> None:
        """Write the JSON whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            temporary.write_text(dumps(self.as_dict(), indent=1) + "\n")


def keep_freed_memory() -> None:
    """Tell glibc to keep what is freed.

    Else some allocations get fresh pages from the system again and again. That costs as much as a
    pass over the data, and which side's allocations it hits is luck.
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        trim_threshold, mmap_threshold = -1, -3  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD of malloc.h
        libc.mallopt(trim_threshold, 2**31 - 1)
        libc.mallopt(mmap_threshold, 2**30)


def report_head(name: str, *packages: str) -> dict:
    """What every JSON begins with: name, date, machine, versions of the packages."""
    return {
        "name": name,
        "date": date.today().isoformat(),
        "machine": machine(),
        "versions": {package: version(package) for package in packages},
    }


def machine() -> dict:
    """The processor, its cores, memory in GiB and the threads that torch uses."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")  # Linux alone says the model's name there
    if info.is_file() and (match := re.search(r"^model name\s*:\s*(.+)$", info.read_text(), re.M)):
        cpu = match[1]
    try:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    except (AttributeError, ValueError, OSError):  # Windows has no sysconf, macOS not these names
        memory = None
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "memory_gb": memory and round(memory, 1),
        "threads": torch.get_num_threads(),
    }


def main(name: str, measure: Callable[[Report, int], None], rounds: int, argv=None) -> Report:
    """Run a benchmark from the command line: ``--rounds N`` and ``--json OUT``.

    Args:
        name: of the benchmark.
        measure: fills the report, given it and the number of rounds.
        rounds: default number of rounds.
        argv: arguments instead of the command line's.
    """
    parser = argparse.ArgumentParser(description=f"Benchmark: {name}.")
    parser.add_argument("--rounds", type=int, default=rounds, help="samples of each side")
    parser.add_argument("--json", type=Path, help="also write the report to this file")
    arguments = parser.parse_args(argv)
    if arguments.rounds < 1:
        parser.error("--rounds takes a number from 1 on.")
    keep_freed_memory()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    report = Report(name)
    measure(report, arguments.rounds)
    print(report.table())
    if arguments.json is not None:
        report.write(arguments.json)
    return report
