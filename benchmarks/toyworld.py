"""How fast the toy world renders on one core, and what rendering many clips at once is worth.

python benchmarks/toyworld.py [--json OUT]
"""

from statistics import median

from _harness import Report, cpu_seconds, main

from vera_lite.toy.world import render

CLIPS, WANTED = 32, 300  # clips a call; clips a second that training from fresh clips asks for


def measure(report: Report, rounds: int) -> None:
    """One batch of 32 against 32 calls for one clip."""
    sides = {
        "batch": lambda: render(0, range(CLIPS)),
        "one by one": lambda: [render(0, [i]) for i in range(CLIPS)],
    }
    seconds = cpu_seconds(sides, rounds)
    rate = CLIPS / median(seconds["batch"])
    report.add("9x32x32", rate, "clips/s", peer="wanted", peer_value=WANTED, goal=">= 1")
    report.add_times("32 clips", seconds, "batch", "one by one", "< 1")


if __name__ == "__main__":
    main("toyworld", measure, rounds=15)
