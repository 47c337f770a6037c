"""Files that appear whole or not at all, and checks of a model's files."""

import glob
import json
import os
import platform
import shutil
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from vera_lite.errors import UserError

#: Name of the folder, inside a folder of results, where the next set is made.
UNFINISHED = ".unfinished"


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path`` to write to, and put it in place if the block succeeds.

    If the block fails, nothing is left behind, and an older file at ``path`` stays. The next process on this
    computer removes what a killed process left behind. If two processes write at the same time, the last one
    to finish wins.
    """
    path = Path(path)
    start = f".{path.name}.{zlib.crc32(platform.node().encode()):08x}-"
    for left in path.parent.glob(f"{glob.escape(start)}*{UNFINISHED}"):
        if not _is_running(left.name.removesuffix(UNFINISHED).rpartition("-")[2]):
            left.unlink(missing_ok=True)
    temporary = path.with_name(f"{start}{os.getpid()}{UNFINISHED}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def replacing_set(folder: str | Path, names: Sequence[str]) -> Iterator[Path]:
    """Yield a temporary folder to write to, and put its files into ``folder`` if the block succeeds.

    All files are finished before the first one is put in place. The last of ``names`` describes the others:
    it is removed first and put in place last, so an interrupted replacement leaves a folder without it. The
    next run removes what a killed run left behind.

    Args:
        folder: made if needed. Files with other names stay.
        names: of all files that the set may have; those that the block does not write are removed.

    Raises:
        UserError: ``folder`` is a file, or another process is writing such a set to it.
    """
    from filelock import FileLock, Timeout

    folder = Path(folder).absolute()
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file; give a folder.")
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    temporary = folder / UNFINISHED  # inside, because a folder beside it may be on another disk
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / f"{UNFINISHED}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise UserError(f"another run is writing to {folder}: wait, or give another folder.") from error
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        for name in reversed(names):
            (folder / name).unlink(missing_ok=True)
        for name in names:
            if (temporary / name).exists():
                os.replace(temporary / name, folder / name)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        with suppress(OSError):  # Windows keeps a file that is open
            os.unlink(lock.lock_file)
        lock.release()
        for path in missing:  # only empty folders can be removed
            with suppress(OSError):
                path.rmdir()


def _is_running(pid: str) -> bool:
    if os.name == "nt":  # where signal 0 is Ctrl+C
        return True
    try:
        os.kill(int(pid), 0)
    except (ValueError, ProcessLookupError):
        return False
    except PermissionError:  # it is another user's
        return True
    return True


def read_json(path: str | Path) -> dict:
    """The object in a JSON file.

    Raises:
        UserError: there is no such file, or it holds anything else.
    """
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"there is no file {path}; check the path.") from error
    except (ValueError, RecursionError) as error:  # no UTF-8, or no JSON
        raise UserError(f"{path} is no JSON text in UTF-8: save it again.") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} holds a {type(value).__name__}, not an object in braces: save it again.")
    return value


def check_safetensors(path: str | Path) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors in a safetensors file, by name; only its header is read.

    Raises:
        UserError: there is no such file, or it is cut short, damaged or of another kind.
    """
    from safetensors import SafetensorError, safe_open

    if not Path(path).is_file():
        raise UserError(f"there is no file {path}; check the path.")
    try:
        with safe_open(path, framework="numpy") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise UserError(f"{path} is damaged or no safetensors file: copy or export it again.") from error
