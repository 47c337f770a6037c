"""Files that appear whole or not at all."""

import os
import shutil
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from vera_lite.errors import UserError


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Give a temporary path beside ``path`` to write to, and put it in place if the block succeeds.

    A block that fails leaves nothing behind, and an older file at ``path`` as it was.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def replacing_set(folder: str | Path, names: Sequence[str]) -> Iterator[Path]:
    """Give a temporary folder to write files to, and put them into ``folder`` together if the block succeeds.

    All files are finished before the first one is put in place. The last of ``names`` says what the others
    are: it is removed first and put in place last, so a folder caught between two sets has none. What a run
    that was killed left behind is removed by the next one.

    Args:
        folder: made if needed. Files of other names in it stay.
        names: of all files that such a set may have; those that the block does not write are removed.

    Raises:
        UserError: ``folder`` is a file.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file; give a folder.")
    temporary = folder.absolute().with_name(f".{folder.absolute().name}.unfinished")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        folder.mkdir(exist_ok=True)
        for name in reversed(names):
            (folder / name).unlink(missing_ok=True)
        for name in names:
            if (temporary / name).exists():
                os.replace(temporary / name, folder / name)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
