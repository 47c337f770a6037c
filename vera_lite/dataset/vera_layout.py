"""The layout of ``netflix/Vera-Layered-Video-Dataset``: read it, check that it is whole, write it.

As its card describes it: ten JSON-lines files of training rows, each row naming five MP4 files, and two of
test rows, which name a source and what there is of a mask and an alpha. Three things differ from what one
might expect. Paths may start with a folder that is not there, as the card and a copy of the files disagree on
it. In background change, ``mask`` is white on the subject, which stays, while ``edit_alpha`` is white on the
new background. Mattes are MP4, so an alpha of 0 need not be exactly 0.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from vera_lite.dataset.stage import KINDS, LayerFiles
from vera_lite.errors import UserError
from vera_lite.media.files import replacing

#: Published rows of each training file, by frames and name.
PUBLISHED = {
    ("49-frames", "realistic-set1-bg-change"): 914,
    ("49-frames", "realistic-set1-obj-add"): 470,
    ("49-frames", "realistic-set2-obj-add"): 770,
    ("49-frames", "synthetic-bg-change"): 4994,
    ("49-frames", "synthetic-obj-add"): 4848,
    ("81-frames", "realistic-set1-bg-change"): 457,
    ("81-frames", "realistic-set1-obj-add"): 235,
    ("81-frames", "realistic-set2-obj-add"): 385,
    ("81-frames", "synthetic-bg-change"): 2497,
    ("81-frames", "synthetic-obj-add"): 2431,
}
#: Column of each layer in a training row.
COLUMNS = {
    "source": "input_video_path",
    "edit": "edit_rgb_path",
    "alpha": "edit_alpha_path",
    "mask": "mask_path",
    "composite": "composite_path",
}
#: The same for a test row; only the source is always there.
TEST_COLUMNS = {"source": "input_path", "mask": "mask_path", "alpha": "alpha_path"}
#: Published rows of each test list.
PUBLISHED_TESTS = {("test", "bg-change"): 69, ("test", "obj-add"): 72}
_EDITS = {"background_replace": "background_change", "obj_add": "object_addition"}
_LICENCE = {"licence": "Apache-2.0", "source": "netflix/Vera-Layered-Video-Dataset"}
CATEGORIES = {"bg-change": "background_change", "obj-add": "object_addition"}


def whole_files() -> int:
    """Files of the whole training set: five videos per row, and the JSON-lines files (90,015)."""
    return len(COLUMNS) * sum(PUBLISHED.values()) + len(PUBLISHED)


@dataclass(frozen=True)
class Row:
    """A row of a list, and its files on disk.

    Attributes:
        config: frames folder and name of its list, such as ("49-frames", "synthetic-obj-add"); of a test row
            ("test", "obj-add").
        number: its line, from 0.
        category: "background_change" or "object_addition".
        files: of each layer; None where there is no such file.
        facts: the instruction, and whatever else the row says, such as the captions of a test row.
    """

    config: tuple[str, str]
    number: int
    category: str
    files: dict[str, Path | None]
    facts: dict[str, Any]

    @property
    def name(self) -> str:
        """Such as "49-frames/synthetic-obj-add/12"."""
        return "/".join((*self.config, str(self.number)))


@dataclass
class VeraFolder:
    """A copy of the dataset, or a part of it.

    Attributes:
        folder: its root.
        rows: of training; all that its lists have.
        lists: of training rows, the JSON-lines files.
        tests: test rows.
    """

    folder: Path
    rows: list[Row] = field(default_factory=list)
    lists: list[Path] = field(default_factory=list)
    tests: list[Row] = field(default_factory=list)

    @property
    def is_published(self) -> bool:
        """Whether any of it is of the published set, and not someone's own in the same layout."""
        return any(row.config in PUBLISHED for row in self.rows) or bool(self.tests)

    @property
    def missing(self) -> list[str]:
        """What the published sets have and this one lacks, a sentence each; empty if it has all of a set.

        Training rows and test rows are asked for if there are some.
        """
        sentences, expected = [], (PUBLISHED if self.rows else {}) | (PUBLISHED_TESTS if self.tests else {})
        for config, published in expected.items():
            rows = [row for row in (*self.rows, *self.tests) if row.config == config]
            name = "/".join(config)
            if not rows:
                sentences.append(f"{name} is not there ({published} rows)")
            elif len(rows) != published:
                sentences.append(f"{name} has {len(rows)} of {published} rows")
            files = [path for row in rows for path in row.files.values()]
            if absent := files.count(None):
                sentences.append(f"{name} lacks {absent} of {len(files)} videos")
        return sentences

    def count(self) -> tuple[int, int]:
        """Files that are there, and files that its own rows ask for: 5 x rows + lists."""
        videos = {path for row in self.rows for path in row.files.values() if path is not None}
        return len(videos) + len(self.lists), len(COLUMNS) * len(self.rows) + len(self.lists)


def is_vera(folder: Path) -> bool:
    """Whether a folder holds training rows of this layout."""
    return any(_columns(path) is COLUMNS for path in _lists(folder))


def read_vera(folder: str | Path) -> VeraFolder:
    """Read all training and test rows below a folder; no video is opened.

    Raises:
        UserError: there is no such folder, it holds no rows, or a row is damaged.
    """
    found = VeraFolder(Path(folder))
    for path in _lists(found.folder):
        columns = _columns(path)
        if columns is None:
            continue
        is_test = columns is TEST_COLUMNS
        frames = next((part for part in reversed(path.parts) if part.endswith("-frames")), "")
        config = "test" if is_test else frames, path.stem
        category = next((c for end, c in CATEGORIES.items() if path.stem.endswith(end)), None)
        if category is None:
            raise UserError(f"{path}: the name must end in bg-change or obj-add.")
        if not is_test:
            found.lists.append(path)
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines()):
            try:
                row = json.loads(line)
                named = {n: row[c] for n, c in columns.items() if not is_test or n == "source" or row.get(c)}
                files = {layer: _find(name, path, found.folder) for layer, name in named.items()}
                facts = _LICENCE if config in PUBLISHED else {}
                facts = facts | {k: v for k, v in row.items() if k not in columns.values()}
                facts["instruction"] = str(facts.pop("prompt" if is_test else "edit_instruction"))
                if is_test and _EDITS[facts["edit_type"]] != category:
                    raise ValueError("its edit_type is another than the name of the list says")
            except (ValueError, KeyError, TypeError) as error:
                raise UserError(f"{path}, line {number + 1}, is no row of Vera's ({error}).") from error
            (found.tests if is_test else found.rows).append(Row(config, number, category, files, facts))
    if not found.lists and not found.tests:
        raise UserError(f"{folder} holds no rows of Vera's dataset (no .jsonl with edit_rgb_path).")
    return found


def _lists(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}; check the path.")
    return sorted(folder.rglob("*.jsonl"))


def _columns(path: Path) -> dict[str, str] | None:
    """The columns of a list's rows, by its first one; None if it is no list of this layout."""
    with path.open(encoding="utf-8", errors="replace") as file:
        first = file.readline()
    kinds = {"edit_rgb_path": COLUMNS, "prompt_id": TEST_COLUMNS}
    return next((columns for name, columns in kinds.items() if f'"{name}"' in first), None)


def _find(name: str, listed_in: Path, root: Path) -> Path | None:
    """The file that a row names: from its list's folder or any folder above it, down to the root; and with
    the first folders of its name left out."""
    parts = PurePosixPath(name).parts
    if PurePosixPath(name).is_absolute() or ".." in parts or not parts:
        raise ValueError(f"{name!r} leads out of the dataset")
    bases = [listed_in.parent, *(p for p in listed_in.parent.parents if p.is_relative_to(root))]
    for start in range(len(parts)):
        for base in bases:
            path = base.joinpath(*parts[start:])
            if path.is_file():
                return path
    return None


def write_vera(samples: Iterable[LayerFiles], folder: Path, name: str) -> Iterator[Path]:
    """Write samples in this layout; yields the folder of each sample when its videos are there.

    A video that is there already is left as it is, so an interrupted export continues. The lists come last.

    Args:
        samples: finished ones.
        folder: root of the dataset.
        name: of the set, such as "own": its lists are ``own-bg-change.jsonl`` and ``own-obj-add.jsonl``.

    Raises:
        UserError: the name is no plain word, or the layout has no place for a sample's category.
    """
    from vera_lite.media.video import VideoReader
    from vera_lite.media.video_writer import write_video

    if not re.fullmatch(r"[\w-]+", name):
        raise UserError(f"{name!r} is no name for a set: take letters, digits, - and _.")
    ends = {category: end for end, category in CATEGORIES.items()}
    samples = list(samples)
    strange = {sample.category for sample in samples} - ends.keys()
    if strange:
        raise UserError(
            f"Vera's layout has no place for the category {min(strange)}; export as clips instead."
        )
    lists: dict[Path, list[str]] = {}
    for sample in samples:
        readers = {layer: VideoReader(sample.files[layer], KINDS[layer]) for layer in COLUMNS}
        place = folder / "vera-train-set" / f"{len(readers['source'])}-frames"
        videos = place / f"{name}-{ends[sample.category]}" / sample.key[:16]
        videos.mkdir(parents=True, exist_ok=True)
        row = {"edit_instruction": sample.instruction}
        for layer, column in COLUMNS.items():
            path = videos / f"{column.removesuffix('_path')}.mp4"
            if not path.is_file():
                write_video(path, readers[layer], readers[layer].info.fps, "preview")
            row[column] = path.relative_to(place).as_posix()
        rows = lists.setdefault(place / f"{name}-{ends[sample.category]}.jsonl", [])
        rows.append(json.dumps(row | sample.facts, ensure_ascii=False) + "\n")
        yield videos
    for path, lines in lists.items():
        with replacing(path) as temporary:
            temporary.write_text("".join(lines), encoding="utf-8")
