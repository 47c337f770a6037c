"""Shared by all benchmarks: fair timing of two things side by side, a table, a JSON report.

Times are CPU seconds of this process on one thread; wall clock would also count other programs on a shared
machine. Other programs still change CPU time a little (caches, clock rate). So all sides take turns within a
round, every second round in reverse order, and each round gives a ratio. The report has the median, lowest
and highest ratio.
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
from timeit import Timer

import torch

from vera_lite.media.files import replacing

#: The shortest sample in seconds; faster functions are called several times.
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
    """Time functions in turns: A B, B A, A B, ...

    :class:`timeit.Timer` does it, which holds garbage collection back. ``torch.utils.benchmark`` has no
    rounds, and it would call every function twice more before each sample.

    Args:
        functions: what to call, by name.
        rounds: samples of each.

    Returns:
        CPU seconds per call, by name, one for each round.
    """
    timers = {name: Timer(function, timer=time.process_time) for name, function in functions.items()}
    calls = {}
    for name, timer in timers.items():
        timer.timeit(1)  # warm-up: allocator, kernels' one-time choices
        calls[name] = max(1, round(SAMPLE_SECONDS / max(timer.timeit(1), 1e-6)))
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    gc.freeze()  # modules need no looking through
    try:
        for turn in range(rounds):
            gc.collect()
            for name in list(functions)[:: -1 if turn % 2 else 1]:
                seconds[name].append(timers[name].timeit(calls[name]) / calls[name])
    finally:
        gc.unfreeze()
    return seconds


@dataclass(frozen=True)
class Result:
    """One row of a report.

    Attributes:
        case: what was measured, at which size.
        value: ours, in ``unit``.
        peer: the other side of the comparison, if any.
        peer_value: the peer's value, in ``unit``.
        ratio: ours / peer. For times the median over rounds, so not exactly value / peer_value.
        goal: what the ratio should meet, such as ``"<= 1.10"``; None: the row is context.
        holds: whether it does.
        spread: lowest and highest ratio of the rounds; None for a single measurement.
    """

    case: str
    value: float
    unit: str
    peer: str | None = None
    peer_value: float | None = None
    ratio: float | None = None
    goal: str | None = None
    holds: bool | None = None
    spread: tuple[float, float] | None = None


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
        goal: str | None = None,
        ratios: list[float] | None = None,
    ) -> None:
        """Add a row; see :class:`Result`. ``ratios``, one for each round, give ratio and spread; without
        them the ratio is value / peer_value."""
        ratio = None
        if ratios:
            ratio = median(ratios)
        elif peer_value is not None:
            ratio = Fraction(value) / Fraction(peer_value)  # FLOPs have more digits than floats
        if goal is not None and ratio is None:
            raise ValueError(f"{case}: a goal needs something to compare with.")
        holds = meets(ratio, goal) if goal is not None else None
        ratio = None if ratio is None else float(ratio)
        spread = (min(ratios), max(ratios)) if ratios else None
        self.results.append(Result(case, value, unit, peer, peer_value, ratio, goal, holds, spread))

    def add_times(
        self,
        case: str,
        seconds: dict[str, list[float]],
        ours: str,
        peer: str,
        goal: str | None = None,
    ) -> None:
        """Add a row from :func:`cpu_seconds`: median milliseconds, ratios over rounds."""
        self.add(
            case,
            1000 * median(seconds[ours]),
            "ms CPU",
            peer=peer,
            peer_value=1000 * median(seconds[peer]),
            goal=goal,
            ratios=[a / b for a, b in zip(seconds[ours], seconds[peer], strict=True)],
        )

    @property
    def holds(self) -> bool:
        """Whether every goal is met."""
        return all(r.holds is not False for r in self.results)

    def table(self) -> str:
        """The rows as aligned text."""
        rows = [("case", "value", "unit", "peer", "peer value", "ratio", "spread", "goal", "holds")]
        for r in self.results:
            holds = "" if r.holds is None else "yes" if r.holds else "NO"
            ratio = "" if r.ratio is None else f"{r.ratio:.3f}"
            spread = "" if r.spread is None else "{:.3f} .. {:.3f}".format(*r.spread)
            value, peer_value = ("" if v is None else f"{v:,.4g}" for v in (r.value, r.peer_value))
            rows.append((r.case, value, r.unit, r.peer or "", peer_value, ratio, spread, r.goal or "", holds))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(c.ljust(w) for c, w in zip(r, widths, strict=True)).rstrip() for r in rows]
        return "\n".join([self.name, *lines])

    def as_dict(self) -> dict:
        """The report as it is written to JSON; rows that were measured once have no ``spread``."""
        rows = [asdict(r) for r in self.results]
        return report_head(self.name, "torch", "diffusers") | {
            "results": [{k: v for k, v in row.items() if k != "spread" or v} for row in rows]
        }


def report_head(name: str, *packages: str) -> dict:
    """The start of every JSON: name, date, machine, versions of Python and the packages."""
    return {
        "name": name,
        "date": date.today().isoformat(),
        "machine": machine(),
        "versions": {"python": platform.python_version()} | {p: version(p) for p in packages},
    }


def write_json(report: dict, path: Path) -> None:
    """Write a report whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        temporary.write_text(dumps(report, indent=1) + "\n")


def machine() -> dict:
    """The processor, its cores, memory in GiB and the threads that torch uses."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")  # Linux alone gives the model's name there
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


def keep_freed_memory() -> None:
    """Tell glibc to keep freed memory.

    Otherwise some allocations repeatedly get new pages from the system. That costs as much as a pass over the
    data, and hits one side or the other by chance.
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        trim_threshold, mmap_threshold = -1, -3  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD of malloc.h
        libc.mallopt(trim_threshold, 2**31 - 1)
        libc.mallopt(mmap_threshold, 2**30)


def main(name: str, measure: Callable[[Report, int], None], rounds: int, argv=None) -> None:
    """Run a benchmark from the command line (``--rounds N``, ``--json OUT``); exit 1 if a goal is missed.

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
        write_json(report.as_dict(), arguments.json)
    if not report.holds:
        raise SystemExit(1)
