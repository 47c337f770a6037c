"""Take one sample through stages, and turn whatever happens into a row of the store."""

from __future__ import annotations

import errno
import faulthandler
import json
import time
import traceback
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from vera_lite.dataset.stage import Fail, Ok, Reject, Sample, Stage, task_key
from vera_lite.dataset.store import DEATHS, Store, Writer
from vera_lite.errors import UserError

#: Seconds before the second and the third try, when the machine and not the sample was at fault.
_PAUSES = (0.2, 1.0)
#: No sample's fault and no passing trouble: the run stops.
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


def process(
    writer: Writer, stages: Sequence[Stage], sample: Sample, timeout: float | None = None
) -> list[Sample]:
    """Take a sample through all stages; what is done already is not done again.

    Nothing that a stage does to itself ends the run: an exception is an outcome, too. After ``timeout``
    seconds in one stage this process ends itself, even out of C code that never returns.

    Returns:
        The samples that came through: one, several where a stage makes more of one, or none.

    Raises:
        OSError: the disk is full or read-only.
    """
    writer.store.refresh()
    samples = [sample]
    for stage in stages:
        samples = [after for before in samples for after in _step(writer, stage, before, timeout)]
    return samples


def results(store: Store, stages: Sequence[Stage], sample: Sample) -> list[Sample] | None:
    """What came through all stages, as far as the store knows; None while something is undecided."""
    samples = [sample]
    for stage in stages:
        rows = [store.outcome(task_key(before, stage)) for before in samples]
        if None in rows:
            return None
        samples = [after for row in rows for after in samples_of(row)]
    return samples


def samples_of(row: dict) -> list[Sample]:
    """The samples that an outcome hands on."""
    return [Sample(**sample) for sample in row.get("samples", ())]


def _step(writer: Writer, stage: Stage, sample: Sample, timeout: float | None) -> list[Sample]:
    task = task_key(sample, stage)
    row = writer.store.outcome(task)
    if row is None:
        started = time.perf_counter()
        deaths = writer.begin(task)
        if deaths >= DEATHS:
            words = writer.store.last_words(task)
            late = words.startswith("Timeout")
            error = f"{deaths} processes {'ran out of time' if late else 'died'} at this sample."
            outcome = _quarantined("timed_out" if late else "process_died", error, words)
        else:
            outcome = _attempt(writer, stage, sample, timeout)
        facts = {"task": task, "stage": stage.name, "key": sample.key, "category": sample.category}
        seconds = round(time.perf_counter() - started, 4)
        row = writer.record(facts | outcome | {"seconds": seconds, "deaths": deaths})
    return samples_of(row)


def _attempt(writer: Writer, stage: Stage, sample: Sample, timeout: float | None) -> dict:
    for pause in (*_PAUSES, None):
        with writer.temporary() as out:
            try:
                if timeout is not None:
                    faulthandler.dump_traceback_later(timeout, exit=True, file=writer.marker)
                try:
                    result = stage(sample, lambda name: writer.store.path(sample.files[name]), out)
                finally:
                    faulthandler.cancel_dump_traceback_later()
                return _outcome(writer, sample, result, out)
            except (MemoryError, OSError) as error:  # the machine's fault, perhaps for a moment only
                if getattr(error, "errno", None) in _DISK:
                    raise
                if pause is None:
                    name = "out_of_memory" if isinstance(error, MemoryError) else "input_output_error"
                    return _quarantined(name, _sentence(writer, sample, error, out), traceback.format_exc())
                time.sleep(pause)
            except UserError as error:  # of our readers: what is wrong with the file
                return _quarantined("damaged_file", _sentence(writer, sample, error, out))
            except Exception as error:  # a mistake in the stage; the same call would make it again
                sentence = _sentence(writer, sample, error, out)
                return _quarantined("stage_error", sentence, traceback.format_exc())
    raise AssertionError("the last pause is None")


def _outcome(writer: Writer, sample: Sample, result: Ok | Reject | Fail, out: Path) -> dict:
    if isinstance(result, Fail):
        return _quarantined("failed", _sentence(writer, sample, UserError(result.error), out))
    if isinstance(result, Reject):
        json.dumps(result.facts, allow_nan=False)
        return {"status": "rejected", "reason": result.reason, "facts": result.facts}
    if not isinstance(result, Ok):
        raise TypeError(f"a stage gives Ok, Reject or Fail, not {type(result).__name__}.")
    if result.sample.key != sample.key and not result.more:
        raise ValueError("a stage must not change the key of its one sample.")
    samples, placed = (result.sample, *result.more), {}
    if len({(s.key, s.category) for s in samples}) < len(samples):
        raise ValueError("two samples of one stage have the same key.")
    json.dumps([s.facts for s in samples], allow_nan=False)
    names = sorted({name for s in samples for name in s.files.values() if "/" not in name})
    sizes = {}
    for name in names:
        try:
            size = (out / name).stat().st_size if (out / name).is_file() else 0
            placed[name] = writer.keep(out / name)
        except (UserError, ValueError) as error:
            return _quarantined("bad_output", f"{name}: {_sentence(writer, sample, error, out)}")
        sizes[placed[name]] = size
    samples = [replace(s, files={k: placed.get(v, v) for k, v in s.files.items()}) for s in samples]
    return {"status": "kept", "samples": [asdict(s) for s in samples], "bytes": sizes}


def _quarantined(reason: str, error: str, trace: str = "") -> dict:
    return {"status": "quarantined", "reason": reason, "error": error, "trace": trace}


def _sentence(writer: Writer, sample: Sample, error: BaseException, out: Path) -> str:
    """The error in words that are the same on every machine: files by their names in the sample."""
    text = " ".join(str(error).split()) or type(error).__name__
    if not isinstance(error, UserError):
        text = f"{type(error).__name__}: {text}" if text != type(error).__name__ else text
    text = text.replace(f"{out}/", "").replace(f"{writer.store.folder}/", "")
    for name, path in sample.files.items():
        text = text.replace(path, f"its {name}")
    return text
