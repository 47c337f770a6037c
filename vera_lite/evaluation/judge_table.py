"""Tables of what judges said, made of records alone.

A clip without scores counts in the denominator and never as a number.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal

import numpy as np

from vera_lite.errors import UserError
from vera_lite.evaluation.judges import Protocol, half_up, mean
from vera_lite.evaluation.judging import Record, read_reply

#: Item -> axis -> score.
Scores = dict[str, dict[str, Decimal]]


@dataclass(frozen=True)
class Cell:
    """A mean over clips, its 95 % bootstrap interval (None below two clips), and how many clips it has."""

    value: Decimal | None
    low: float | None
    high: float | None
    valid: int
    total: int

    def __str__(self) -> str:
        if self.value is None:
            return f"– ({self.valid}/{self.total})"
        shown = str(half_up(self.value, 2))
        if self.low is not None and self.high is not None:
            # Six decimals first: a tie must not hang on the last bit.
            low, high = (half_up(Decimal(f"{end:.6f}"), 2) for end in (self.low, self.high))
            shown += f" [{low}, {high}]"
        return f"{shown} ({self.valid}/{self.total})"


def table(records: Iterable[Record], protocol: Protocol) -> dict[tuple[str, str], dict[str, Cell]]:
    """(judge, method) -> column -> cell.

    Columns: overall; each category and each axis, if there are several; and overall of the clips that are
    valid for all methods, since drops that differ would favour a method.

    Raises:
        UserError: there are no records, or they are of several protocols or rubrics.
    """
    records = [read_reply(protocol, r) for r in records]
    check_same(records, protocol)
    if not records:
        raise UserError("there are no records to make a table of.")
    items = {r.item: r.category for r in records}
    judges, methods = sorted({r.judge for r in records}), list(dict.fromkeys(r.method for r in records))
    rows = {}
    for group in [judges] if protocol.pooled else [[judge] for judge in judges]:
        scores = {m: _scores([r for r in records if r.method == m], protocol, group) for m in methods}
        shared = set.intersection(*map(set, scores.values()))
        for method, found in scores.items():
            whole = {item: protocol.score(by_axis) for item, by_axis in found.items()}
            row = {"overall": _cell(whole, items, protocol.macro)}
            categories = dict.fromkeys(items.values())
            for category in categories if len(categories) > 1 else ():
                members = {item: c for item, c in items.items() if c == category}
                row[category] = _cell(whole, members, False)
            for axis in protocol.axes if len(protocol.axes) > 1 else ():
                row[axis] = _cell({i: by_axis[axis] for i, by_axis in found.items()}, items, protocol.macro)
            row["valid for all"] = _cell({i: whole[i] for i in shared}, items, protocol.macro)
            rows[" + ".join(group), method] = row
    return rows


def check_same(records: Iterable[Record], protocol: Protocol) -> None:
    """UserError if records are of another protocol, or of another rubric of this one."""
    others = {(r.protocol, r.rubric) for r in records} - {(protocol.name, protocol.rubric)}
    if others:
        found = ", ".join(sorted(f"{name} (rubric {rubric})" for name, rubric in others))
        raise UserError(
            f"{protocol.name} (rubric {protocol.rubric}) cannot share a table with {found}: their scales and "
            "rules differ."
        )


def _scores(records: Sequence[Record], protocol: Protocol, judges: Sequence[str]) -> Scores:
    """The mean over the judges, of the clips for which each of them answered every call."""
    answers: dict[tuple[str, str], dict[str, dict]] = defaultdict(dict)
    for r in records:
        if r.outcome == "ok":
            answers[r.item, r.judge][r.call] = r.scores
    found = {}
    for item in {r.item: None for r in records}:
        replies = [answers.get((item, judge), {}) for judge in judges]
        if all(reply.keys() == set(protocol.calls) for reply in replies):
            merged = [{a: v for scores in reply.values() for a, v in scores.items()} for reply in replies]
            # Numbers as they are printed, so that their means are exact.
            found[item] = {a: mean(Decimal(str(m[a])) for m in merged) for a in protocol.axes}
    return found


def _cell(values: dict[str, Decimal], items: dict[str, str], macro: bool) -> Cell:
    """Mean over the items, or of their categories' means, which takes a valid clip of each."""
    groups: dict[str, list[Decimal]] = {c if macro else "": [] for c in items.values()}
    for item in values.keys() & items.keys():
        groups[items[item] if macro else ""].append(values[item])
    valid = sum(map(len, groups.values()))
    if not all(groups.values()):
        return Cell(None, None, None, valid, len(items))
    low = high = None
    if min(map(len, groups.values())) > 1:
        from scipy import stats

        low, high = stats.bootstrap(
            [np.sort(np.array(group, float)) for group in groups.values()],
            lambda *drawn, axis: np.mean([d.mean(axis=axis) for d in drawn], axis=0),
            n_resamples=2000,
            method="percentile",
            rng=np.random.default_rng(0),
        ).confidence_interval
    return Cell(mean(mean(group) for group in groups.values()), low, high, valid, len(items))


def markdown(records: Sequence[Record], protocol: Protocol) -> str:
    """The table as text, with what it rests on above it and how replies ended below it."""
    rows = table(records, protocol)
    columns = list(next(iter(rows.values())))
    overall = "mean of the categories' means" if protocol.macro else "mean over all clips"
    outcomes = Counter(read_reply(protocol, r).outcome for r in records)
    lines = [
        f"# {protocol.name}, {protocol.scale[0]:g} to {protocol.scale[1]:g}",
        "",
        f"{protocol.source}. Decided here: {protocol.decided}. Rubric {protocol.rubric}.",
        "",
        "A cell is a mean, its 95 % bootstrap interval over clips, and how many clips gave scores. "
        f"Overall: {overall}.",
        "",
        f"| judge | method | {' | '.join(columns)} |",
        "|" + "---|" * (len(columns) + 2),
        *(f"| {' | '.join([*names, *map(str, row.values())])} |" for names, row in rows.items()),
        "",
        "Replies: " + ", ".join(f"{n} {outcome}" for outcome, n in sorted(outcomes.items())) + ".",
    ]
    return "\n".join(lines) + "\n"
