"""A folder that holds a dataset while it is made: files named by their content, and a journal.

::

    files/ab/abcd….mkv    every file, by the sha256 of its bytes
    journal/RUN-….jsonl   one segment per process, append-only: inputs, outcomes, retries
    running/RUN-…         what each process is at; left over, it says which task killed its process
    pipeline.json         the stages of the last run
    manifest.jsonl        what the journal comes to, sorted and free of clocks: equal runs, equal bytes

A new file is written into ``tmp/``, synchronised to disk, decoded whole, hashed, and only then renamed into
``files/``; its row follows. A kill at any moment leaves either no row, and the task is done again, or a row
whose files are there. So the store is the checkpoint, whichever engine runs the stages.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path

from filelock import FileLock, Timeout

from vera_lite.dataset.stage import Sample
from vera_lite.errors import UserError
from vera_lite.media.files import replacing

#: A task is given up when this many processes have died of it.
DEATHS = 3
VIDEOS = {".avi", ".m4v", ".mkv", ".mov", ".mp4", ".webm"}
_PICTURES = {".jpg", ".jpeg", ".png"}


class Store:
    """Read side of a store: inputs, outcomes, real paths.

    Args:
        folder: made by the first writer.

    Raises:
        UserError: ``folder`` is a file, or a folder of something else.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder).absolute()
        if self.folder.is_file():
            raise UserError(f"{folder} is a file; give a folder for the dataset.")
        if self.folder.is_dir() and any(self.folder.iterdir()) and not (self.folder / "journal").is_dir():
            raise UserError(f"{folder} holds other things and no dataset; give a new folder.")
        self._read: dict[str, int] = {}  # bytes of each segment that are read
        self._rows: dict[str, list[dict]] = {}  # outcomes by task
        self._voided: set[tuple[str, str]] = set()
        #: Rows of inputs, the oldest first; of one file that was given twice there are two.
        self.input_rows: list[dict] = []
        #: Lines of the journal that are no rows, as "segment: line".
        self.damaged: list[str] = []
        #: Outcomes by (run, stage).
        self.done: Counter[tuple[str, str]] = Counter()
        self.refresh()

    # --- journal -----------------------------------------------------------------------------------------

    def refresh(self) -> None:
        """Read what all processes have written since the last call."""
        try:
            segments = sorted(os.scandir(self.folder / "journal"), key=lambda entry: entry.name)
        except FileNotFoundError:
            return
        for segment in segments:
            start = self._read.get(segment.name, 0)
            if segment.stat().st_size <= start:
                continue
            with open(segment.path, "rb") as file:
                file.seek(start)
                text = file.read()
            whole = text[: text.rfind(b"\n") + 1]  # a killed process leaves half a line
            self._read[segment.name] = start + len(whole)
            for line in whole.splitlines():
                try:
                    self._take(json.loads(line))
                except (ValueError, KeyError, TypeError):
                    self.damaged.append(f"{segment.name}: {line[:60].decode(errors='replace')}")

    def _take(self, row: dict) -> None:
        if row["kind"] == "input":
            names = ("key", "category", "files", "facts", "given", "stamp")
            self.input_rows.append({name: row[name] for name in names})
        elif row["kind"] == "retry":
            self._voided.add((row["task"], row["run"]))
        elif row["kind"] == "outcome" and row["status"] in ("kept", "rejected", "quarantined"):
            self._rows.setdefault(row["task"], []).append(row)
            self.done[row["run"], row["stage"]] += 1
        else:
            raise ValueError("no such kind of row")

    def outcome(self, task: str) -> dict | None:
        """The row of a task that is done."""
        return next(iter(self.outcomes(task)), None)

    def outcomes(self, task: str) -> list[dict]:
        """All rows of a task but those that a retry has voided. More than one: it was done twice."""
        return [row for row in self._rows.get(task, ()) if (task, row["run"]) not in self._voided]

    def was_retried(self, task: str) -> bool:
        """Whether an outcome of a task was voided."""
        return any((task, row["run"]) in self._voided for row in self._rows.get(task, ()))

    @property
    def tasks(self) -> list[str]:
        """All tasks that ever had an outcome, those of earlier configurations too."""
        return list(self._rows)

    def inputs(self) -> list[Sample]:
        """Every input once, sorted by category and key; the last row says what is known of it."""
        unique = {(row["category"], row["key"]): row for row in self.input_rows}
        return [
            Sample(row["key"], row["category"], row["files"], row["facts"])
            for _, row in sorted(unique.items())
        ]

    # --- files -------------------------------------------------------------------------------------------

    def path(self, name: str) -> Path:
        """Real path of a file of the store.

        Raises:
            ValueError: ``name`` leads out of ``files/``.
        """
        if not name.startswith("files/") or ".." in name.split("/"):
            raise ValueError(f"{name!r} is no file of the store.")
        return self.folder / name

    def check_file(self, name: str) -> str | None:
        """What is wrong with a file, judged by its sha256; None if nothing is."""
        path = self.path(name)
        if not path.is_file():
            return "missing"
        return None if sha256(path) == path.stem else "changed"

    # --- deaths ------------------------------------------------------------------------------------------

    def deaths(self, run: str) -> Counter[str]:
        """How many processes died of each task, in all runs.

        Within one run every process that is gone without an outcome died by itself, as the run went on. Of an
        earlier run the last of them does not count: there the whole run may have been killed.
        """
        per_run: Counter[tuple[str, str]] = Counter()
        for marker in self._markers():
            task = marker.read_text(errors="replace").partition("\n")[0]
            per_run[marker.name.partition("-")[0], task] += 1
        counts: Counter[str] = Counter()
        for (name, task), count in per_run.items():
            counts[task] += count - (name != run)
        return counts

    def last_words(self, task: str) -> str:
        """The trace that the last process to die of a task has left, if it could."""
        texts = [marker.read_text(errors="replace").partition("\n") for marker in self._markers()]
        return next((words.strip() for key, _, words in texts if key == task and words.strip()), "")

    def _markers(self) -> list[Path]:
        folder = self.folder / "running"
        return sorted(folder.iterdir()) if folder.is_dir() else []

    def forget_deaths(self, tasks: Iterable[str]) -> None:
        """Remove what is left of processes that died of these tasks."""
        tasks = set(tasks)
        for marker in self._markers():
            if marker.read_text(errors="replace").partition("\n")[0] in tasks | {""}:
                marker.unlink(missing_ok=True)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Only one run at a time.

        Raises:
            UserError: another run is at it.
        """
        for name in ("files", "journal", "running", "tmp"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(self.folder / ".lock", timeout=0):
                yield
        except Timeout as error:
            raise UserError(f"another run is working on {self.folder.name}; wait until it ends.") from error


class Writer:
    """Write side of a store, one per process: its own segment of the journal, its own temporary folder.

    Args:
        store: to write to.
        run: name of the run; letters and digits.
    """

    def __init__(self, store: Store, run: str):
        self.store, self.run = store, run
        name = f"{run}-{socket.gethostname()}-{os.getpid()}"
        self._segment = store.folder / "journal" / f"{name}.jsonl"
        self._marker = store.folder / "running" / name
        self._temporary = store.folder / "tmp" / name
        self._journal: int | None = None
        self._temporary.mkdir(parents=True, exist_ok=True)
        self._marker.parent.mkdir(exist_ok=True)
        #: Open file that says what this process is at; a trace of its death may be appended to it.
        self.marker = self._marker.open("w")

    def begin(self, task: str) -> int:
        """Note that this process starts a task; returns how many processes died of it before."""
        self._say("")
        deaths = self.store.deaths(self.run)[task]
        self._say(f"{task}\n")
        return deaths

    def _say(self, text: str) -> None:
        self.marker.seek(0)
        self.marker.truncate()
        self.marker.write(text)
        self.marker.flush()

    @contextmanager
    def temporary(self) -> Iterator[Path]:
        """An empty folder."""
        self._temporary.mkdir(parents=True, exist_ok=True)
        try:
            yield self._temporary
        finally:
            for path in self._temporary.iterdir():
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    def keep(self, path: Path) -> str:
        """Check a finished file of the temporary folder and move it into the store; returns its path there.

        Raises:
            UserError: a video or picture does not decode whole.
            ValueError: the file is empty or no plain file.
        """
        if not path.is_file() or path.is_symlink() or not path.stat().st_size:
            raise ValueError(f"the stage wrote no file {path.name}, or an empty one.")
        _check_decodes(path)
        return self._place(path)

    def copy(self, path: Path) -> str:
        """Copy a file into the store as it is, whatever it holds; returns its path there."""
        with self.temporary() as folder:
            return self._place(Path(shutil.copyfile(path, folder / f"input{path.suffix}")))

    def _place(self, path: Path) -> str:
        with open(path, "rb+") as file:
            os.fsync(file.fileno())
        name = sha256(path)
        target = self.store.folder / "files" / name[:2] / (name + path.suffix.lower())
        target.parent.mkdir(exist_ok=True)
        os.replace(path, target)
        _sync_folder(target.parent)
        return target.relative_to(self.store.folder).as_posix()

    def add(self, sample: Sample, given: str, stamp: list | None = None) -> None:
        """Write the row of an input; lost in a power failure, it is written by the next run.

        Args:
            sample: the input; its files are in the store.
            given: what it was called where it came from.
            stamp: size and time of change of the file, by which the next run knows it again.
        """
        self._append({"kind": "input", **asdict(sample), "given": given, "stamp": stamp}, sync=False)

    def record(self, row: dict) -> dict:
        """Write an outcome. A row that names new files is on the disk when this returns; another one, lost in
        a power failure, costs no more than its repetition."""
        row = {"kind": "outcome", **row, "run": self.run}
        self._append(row, sync=bool(row.get("bytes")))
        return row

    def retry(self, row: dict) -> None:
        """Void an outcome, so that its task is pending again."""
        self._append({"kind": "retry", "task": row["task"], "run": row["run"]}, sync=True)

    def _append(self, row: dict, sync: bool) -> None:
        if self._journal is None:
            self._segment.parent.mkdir(exist_ok=True)
            self._journal = os.open(self._segment, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        line = (json.dumps(row, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n").encode()
        if os.write(self._journal, line) < len(line):
            raise OSError(f"no space left for {self._segment.name}")
        if sync:
            os.fsync(self._journal)
        self.store.refresh()

    def close(self) -> None:
        """Leave nothing in flight."""
        if self._journal is not None:
            os.fsync(self._journal)
            os.close(self._journal)
            self._journal = None
        self.marker.close()
        self._marker.unlink(missing_ok=True)
        shutil.rmtree(self._temporary, ignore_errors=True)


def manifest_row(row: dict) -> dict:
    """What of an outcome is the same in every run: no clock, no process, no trace."""
    kept = ("task", "stage", "key", "category", "status", "reason", "error", "facts", "samples", "bytes")
    return {name: row[name] for name in kept if name in row}


def write_manifest(store: Store, rows: Iterable[dict]) -> str:
    """Write ``manifest.jsonl``; returns its sha256."""
    lines = [json.dumps(row, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n" for row in rows]
    with replacing(store.folder / "manifest.jsonl") as path:
        path.write_text("".join(lines), encoding="utf-8")
    return sha256(store.folder / "manifest.jsonl")


def sha256(path: Path) -> str:
    """Of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_decodes(path: Path) -> None:
    if path.suffix.lower() in VIDEOS:
        from vera_lite.media.video import VideoReader

        for _ in VideoReader(path).decode():
            pass
    elif path.suffix.lower() in _PICTURES:
        from PIL import Image

        with Image.open(path) as picture:
            picture.load()


def _sync_folder(folder: Path) -> None:
    with suppress(PermissionError):  # Windows opens no folders
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
