"""The ledger: inputs = kept + rejected + quarantined + pending, for every stage and category."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field

from vera_lite.dataset.chain import samples_of
from vera_lite.dataset.stage import Choice, Sample, Stage, digest, task_key
from vera_lite.dataset.store import Store, manifest_row

STATUSES = ("kept", "rejected", "quarantined", "pending")


@dataclass
class Ledger:
    """What became of every sample.

    Attributes:
        counts: how many samples each (stage, category) has of each status, in the order of the stages. The
            first stage is "input": files that were given, of which copies are rejected.
        inputs: how many samples each (stage, category) was given, counted from what the one before handed on.
        reasons: how many samples each (stage, status, reason) has.
        quarantined: rows of quarantined samples.
        names: what inputs were called where they came from, by their keys.
        problems: what must not be, a sentence each; none in a sound store.
        notes: what is worth knowing, a sentence each.
    """

    counts: dict[tuple[str, str], Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    inputs: Counter[tuple[str, str]] = field(default_factory=Counter)
    reasons: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    quarantined: list[dict] = field(default_factory=list)
    names: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def pending(self) -> int:
        """Samples that no stage has decided yet."""
        return sum(counts["pending"] for counts in self.counts.values())

    def table(self) -> str:
        """The ledger as aligned text, with its reasons under it."""
        head = ("stage", "category", "inputs", "=", "kept", "rejected", "quarantined", "pending")
        rows = [head]
        for (stage, category), counts in self.counts.items():
            numbers = [str(counts[status]) for status in STATUSES]
            rows.append((stage, category, str(self.inputs[stage, category]), "=", *numbers))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        form = "  ".join(f"{{:{'<' if i < 2 else '>'}{width}}}" for i, width in enumerate(widths))
        lines = [form.format(*row) for row in rows]
        for (stage, status, reason), count in sorted(self.reasons.items()):
            lines.append(f"{status} by {stage}: {count} x {reason}")
        return "\n".join(lines)


def walk(
    store: Store, stages: Sequence[Stage | Choice]
) -> Iterator[tuple[Stage | Choice, Sample, str, dict | None]]:
    """Every sample at every stage that it reaches, with its task and, if it is done, its outcome.

    Stage after stage; within one, samples sorted by category and key.
    """
    samples = store.inputs()
    for stage in stages:
        following = []
        for sample, task in tasks_of(stage, samples):
            row = store.outcome(task)
            yield stage, sample, task, row
            following += samples_of(row or {})
        samples = sorted(following, key=lambda s: (s.category, s.key))


def tasks_of(stage: Stage | Choice, samples: Sequence[Sample]) -> list[tuple[Sample, str]]:
    """The tasks of a stage; those of a :class:`Choice` depend on all its samples."""
    tasks = [(sample, task_key(sample, stage)) for sample in samples]
    if isinstance(stage, Choice):
        among = digest(sorted(task for _, task in tasks))
        tasks = [(sample, digest(task, among)) for sample, task in tasks]
    return tasks


def finished(store: Store, stages: Sequence[Stage | Choice]) -> list[Sample]:
    """Samples that came through all stages, sorted by category and key."""
    if not stages:
        return store.inputs()
    rows = [row for stage, _, _, row in walk(store, stages) if stage is stages[-1] and row is not None]
    return sorted((s for row in rows for s in samples_of(row)), key=lambda s: (s.category, s.key))


def audit(store: Store, stages: Sequence[Stage | Choice], files: bool = True) -> Ledger:
    """Count what became of every sample, and look for anything lost.

    Args:
        store: the store.
        stages: of its last run; names, versions and configurations alone are used.
        files: read every file that a finished or waiting sample names, and compare its sha256.
    """
    ledger = Ledger()
    _count_inputs(store, ledger)
    expected = Counter(sample.category for sample in store.inputs())
    reached, names = set(), set()
    handed_on: dict[str, Counter[str]] = defaultdict(Counter)
    for stage, sample, task, row in walk(store, stages):
        reached.add(task)
        names |= set(sample.files.values())
        status = row["status"] if row else "pending"
        ledger.counts[stage.name, sample.category][status] += 1
        if status in ("rejected", "quarantined"):
            ledger.reasons[stage.name, status, row["reason"]] += 1
        if status == "quarantined":
            ledger.quarantined.append(row)
        after = samples_of(row or {})
        handed_on[stage.name].update(s.category for s in after)
        for made in after:
            ledger.names.setdefault(made.key, ledger.names.get(sample.key, sample.key[:12]))
        names |= {name for s in after for name in s.files.values()}
        if len({digest(manifest_row(row)) for row in store.outcomes(task)}) > 1:
            ledger.problems.append(
                f"{stage.name} gave two outcomes for {sample.key[:12]}: it is no pure function, or its "
                "version was not raised"
            )
    for stage in stages:
        for category, count in expected.items():
            ledger.inputs[stage.name, category] = count
            if sum(ledger.counts[stage.name, category].values()) != count:
                ledger.problems.append(f"{stage.name}, {category}: the ledger does not add up")
        expected = handed_on[stage.name]
    ledger.problems += [f"line of the journal that cannot be read: {line}" for line in store.damaged]
    _compare_manifest(store, reached, ledger)
    if files:
        for name in sorted(names):
            wrong = store.check_file(name)
            if wrong:
                ledger.problems.append(f"{name} is {wrong}")
    earlier = len(set(store.tasks) - reached)
    if earlier:
        ledger.notes.append(f"{earlier} outcomes belong to other stages or settings and are not counted")
    return ledger


def _count_inputs(store: Store, ledger: Ledger) -> None:
    """The line "input": every file that was given under a name of its own."""
    given = {(row["category"], row["key"], row["given"]) for row in store.input_rows}
    ledger.names = {row["key"]: row["given"] for row in store.input_rows}
    for category, count in sorted(Counter(category for category, _, _ in given).items()):
        kept = len({key for c, key, _ in given if c == category})
        ledger.inputs["input", category] = count
        ledger.counts["input", category].update(kept=kept, rejected=count - kept)
        if count > kept:
            ledger.reasons["input", "rejected", "copy_of_another"] += count - kept


def _compare_manifest(store: Store, reached: set[str], ledger: Ledger) -> None:
    """Rows that the manifest of the last run has must still be in the journal."""
    path = store.folder / "manifest.jsonl"
    if not path.is_file():
        return
    inputs = {(sample.category, sample.key) for sample in store.inputs()}
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if row["stage"] == "input":
            is_lost = (row["category"], row["key"]) not in inputs
        else:
            task = row["task"]
            is_lost = task in reached and store.outcome(task) is None and not store.was_retried(task)
        if is_lost:
            ledger.problems.append(f"the journal has lost a row: {row['stage']} of {row['key'][:12]}")


def manifest_rows(store: Store, stages: Sequence[Stage | Choice]) -> Iterator[dict]:
    """Inputs, then every outcome of these stages; equal for equal runs, whatever made them."""
    for sample in store.inputs():
        yield {"stage": "input", **asdict(sample)}
    for _, _, _, row in walk(store, stages):
        if row is not None:
            yield manifest_row(row)
