"""Run stages over the inputs of a store until every sample is decided, on either engine."""

from __future__ import annotations

import json
import secrets
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from vera_lite.dataset.audit import Ledger, audit, manifest_rows, tasks_of, walk
from vera_lite.dataset.chain import results, samples_of
from vera_lite.dataset.engines import Worker, one_thread, run_here, run_local, run_ray
from vera_lite.dataset.stage import Choice, Fail, Ok, Reject, Sample, Stage
from vera_lite.dataset.store import Store, Writer, sha256, write_manifest
from vera_lite.errors import UserError
from vera_lite.media.files import read_json, replacing


@dataclass(frozen=True)
class Source:
    """A clip to start from.

    Attributes:
        path: of the file.
        given: its name in the ledger, such as its path below the folder that was given.
        category: such as "object_addition".
        facts: what is known of it: licence, source, caption.
    """

    path: Path
    given: str
    category: str
    facts: dict[str, Any] = field(default_factory=dict)


def add_sources(store: Store, sources: Iterable[Source], progress: bool = True) -> int:
    """Copy clips into a store; those that are there already, unchanged, are passed over.

    Returns:
        How many are new.

    Raises:
        OSError: a file cannot be read, or the disk is full.
        UserError: another run is at the store.
    """
    known = {(row["category"], row["given"], *(row["stamp"] or ())): row for row in store.input_rows}
    new = []
    for source in sources:
        state = source.path.stat()
        row = known.get((source.category, source.given, state.st_size, state.st_mtime_ns))
        if row is None or row["facts"] != source.facts:
            new.append((source, [state.st_size, state.st_mtime_ns]))
    if new:
        with store.lock(), closing(Writer(store, new_run())) as writer:
            for source, stamp in tqdm(new, "reading", unit="clip", disable=not progress):
                name = writer.copy(source.path)
                sample = Sample(Path(name).stem, source.category, {"clip": name}, source.facts)
                writer.add(sample, source.given, stamp)
    return len(new)


def add_samples(store: Store, samples: Mapping[str, Sample]) -> None:
    """Write rows of inputs that need no file, or whose files are in the store, by their names there.

    Raises:
        UserError: another run is at the store.
    """
    with store.lock(), closing(Writer(store, new_run())) as writer:
        for given, sample in samples.items():
            writer.add(sample, given)


def new_run() -> str:
    """Name of a run; later runs sort after earlier ones."""
    return f"{time.time_ns() // 1000:016x}{secrets.token_hex(2)}"


def run(
    store: Store,
    stages: Sequence[Stage | Choice],
    *,
    executor: str = "local",
    workers: int = 1,
    address: str | None = None,
    timeout: float = 600.0,
    progress: bool = True,
    configuration: dict | None = None,
) -> Ledger:
    """Take all inputs through all stages, and write the manifest.

    Args:
        store: holds the inputs and takes the results. What is done in it already is not done again.
        stages: what to do, in order.
        executor: "local" or "ray".
        workers: processes; 0 works in this process, where a crash or a time-out ends the run.
        address: of a Ray cluster to join.
        timeout: seconds for one stage of one sample.
        progress: show how far each stage is.
        configuration: that the stages were made from; kept, so that the run can be continued without it.

    Returns:
        The ledger; nothing in it is pending.

    Raises:
        UserError: two stages have the same name, another run is at the store, or Ray does not start.
        OSError: the disk is full.
    """
    if len({stage.name for stage in stages}) < len(stages) or any(stage.name == "input" for stage in stages):
        raise UserError('every stage needs a name of its own, and none may be called "input".')
    recorded: list[Any] = [Recorded.of(stage) for stage in stages]
    stages = recorded
    with store.lock(), one_thread():
        record_stages(store, stages, configuration)
        name, samples = new_run(), store.inputs()
        for group in _groups(stages):
            if isinstance(group[0], Choice):
                samples = _choose(store, name, group[0], samples)
                continue
            todo = [sample for sample in samples if results(store, group, sample) is None]
            worker = Worker(store.folder, name, group, timeout if workers else None)
            if executor == "ray":
                steps = run_ray(worker, todo, max(workers, 1), address)
            else:
                steps = run_local(worker, todo, workers) if workers else run_here(worker, todo)
            if todo:
                _follow(store, name, steps, len(todo), progress)
            done = [after for sample in samples for after in results(store, group, sample) or ()]
            samples = sorted(done, key=lambda sample: (sample.category, sample.key))
        store.forget_deaths(task for _, _, task, row in walk(store, stages) if row is not None)
        shutil.rmtree(store.folder / "tmp")  # of processes that died
        write_manifest(store, manifest_rows(store, stages))
        return audit(store, stages, progress=progress)


def _groups(stages: Sequence[Stage | Choice]) -> list[list]:
    """Stages that one process does one after the other; a choice stands alone, as it waits for all."""
    groups: list[list] = []
    for stage in stages:
        if isinstance(stage, Choice) or not groups or isinstance(groups[-1][0], Choice):
            groups.append([])
        groups[-1].append(stage)
    return groups


def _choose(store: Store, run: str, choice: Choice, samples: Sequence[Sample]) -> list[Sample]:
    """Let a choice decide on all samples, and write its outcomes; returns those that stay."""
    tasks = tasks_of(choice, samples)
    if not all(store.outcome(task) for _, task in tasks):
        reasons = choice.choose(samples)
        if set(reasons) - {sample.key for sample in samples}:
            raise ValueError(f"{choice.name} leaves out samples that it was not given.")
        with closing(Writer(store, run)) as writer:
            for sample, task in tasks:
                row = {"task": task, "stage": choice.name, "key": sample.key, "category": sample.category}
                if sample.key in reasons:
                    row |= {"status": "rejected", "reason": reasons[sample.key], "facts": {}}
                else:
                    row |= {"status": "kept", "samples": [vars(sample)], "bytes": {}}
                writer.record(row)
    return [after for _, task in tasks for after in samples_of(store.outcome(task))]


def _follow(store: Store, run: str, steps: Iterator[None], total: int, progress: bool) -> None:
    """Work, and show twice a second how many samples each stage has decided."""
    with tqdm(total=total, desc="clips", unit="clip", disable=not progress) as bar:
        shown = time.monotonic()
        for _ in steps:
            if time.monotonic() - shown > 0.5:
                shown = time.monotonic()
                store.refresh()
                stages = [f"{stage} {count}" for (of, stage), count in store.done.items() if of == run]
                bar.set_postfix_str(", ".join(stages), refresh=False)
            bar.update()
    store.refresh()


# --- stages as a store knows them -------------------------------------------------------------------------


@dataclass(frozen=True)
class Recorded:
    """A stage as the ledger knows it: its configuration is asked for once, as telling it may be costly.

    Attributes:
        name, version, config: of the stage.
        stage: does the work; None if only the ledger is read.
    """

    name: str
    version: str
    config: dict[str, Any]
    stage: Any = None

    @staticmethod
    def of(stage: Stage | Choice) -> Recorded:
        """Record a stage; isinstance would ask for its configuration once more."""
        kind = RecordedChoice if hasattr(stage, "choose") else Recorded
        return kind(stage.name, stage.version, stage.config, stage)

    def __call__(self, *arguments) -> Ok | Reject | Fail:
        return self.stage(*arguments)


class RecordedChoice(Recorded):
    """The same of a :class:`Choice`."""

    def choose(self, samples: Sequence[Sample]) -> dict[str, str]:
        return self.stage.choose(samples)


def record_stages(store: Store, stages: Sequence[Stage | Choice], configuration: dict | None) -> None:
    """Write ``pipeline.json``."""
    rows = [
        {"name": s.name, "version": s.version, "config": s.config, "choice": isinstance(s, Choice)}
        for s in stages
    ]
    with replacing(store.folder / "pipeline.json") as path:
        path.write_text(json.dumps({"stages": rows, "configuration": configuration}, indent=1) + "\n")


def recorded_stages(store: Store) -> tuple[list[Recorded], dict | None]:
    """The stages of the last run, and what they were made from.

    Raises:
        UserError: no run was started here.
    """
    path = store.folder / "pipeline.json"
    if not path.is_file():
        raise UserError(f"{store.folder.name} holds no dataset run yet: start with `vera-lite data run`.")
    saved = read_json(path)
    try:
        stages = [
            (RecordedChoice if row["choice"] else Recorded)(row["name"], row["version"], row["config"])
            for row in saved["stages"]
        ]
    except (KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged: run `vera-lite data run` again.") from error
    return stages, saved.get("configuration")


def manifest_hash(store: Store) -> str:
    """sha256 of the manifest of the last run."""
    return sha256(store.folder / "manifest.jsonl")
