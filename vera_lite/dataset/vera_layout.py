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

from vera_lite.dataset.stage import KINDS, LayerFiles
from vera_lite.errors import UserError
from vera_lite.media.files import replacing

#: Published rows of each list, by the folder of its frames and its name.
PUBLISHED = {
    "49-frames/realistic-set1-bg-change": 914,
    "49-frames/realistic-set1-obj-add": 470,
    "49-frames/realistic-set2-obj-add": 770,
    "49-frames/synthetic-bg-change": 4994,
    "49-frames/synthetic-obj-add": 4848,
    "81-frames/realistic-set1-bg-change": 457,
    "81-frames/realistic-set1-obj-add": 235,
    "81-frames/realistic-set2-obj-add": 385,
    "81-frames/synthetic-bg-change": 2497,
    "81-frames/synthetic-obj-add": 2431,
}
PUBLISHED_TESTS = {"test/bg-change": 69, "test/obj-add": 72}
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
_EDITS = {"background_replace": "background_change", "obj_add": "object_addition"}
_LICENCE = {"licence": "Apache-2.0", "source": "netflix/Vera-Layered-Video-Dataset"}
CATEGORIES = {"bg-change": "background_change", "obj-add": "object_addition"}


def whole_files() -> int:
    """Files of the whole training set: five videos per row, and the JSON-lines files (90,015)."""
    return len(COLUMNS) * sum(PUBLISHED.values()) + len(PUBLISHED)


@dataclass
class VeraFolder:
    """A copy of the dataset, or a part of it.

    The key of a row is its list and its line, from 0: "49-frames/synthetic-obj-add/12" or "test/obj-add/0".
    Its fact "absent" names the layers whose files are not there; it is missing if all are.

    Attributes:
        rows: of training.
        lists: of training rows, the JSON-lines files.
        tests: test rows; of their layers only the source is always named.
    """

    rows: list[LayerFiles] = field(default_factory=list)
    lists: list[Path] = field(default_factory=list)
    tests: list[LayerFiles] = field(default_factory=list)

    @property
    def is_published(self) -> bool:
        """Whether any of it is of the published set, and not someone's own in the same layout."""
        return any(_list_of(row) in PUBLISHED for row in self.rows) or bool(self.tests)

    @property
    def missing(self) -> list[str]:
        """What the published sets have and this one lacks, a sentence each; empty if it has all of a set.

        Training rows and test rows are asked for if there are some.
        """
        sentences, expected = [], (PUBLISHED if self.rows else {}) | (PUBLISHED_TESTS if self.tests else {})
        for name, published in expected.items():
            rows = [row for row in (*self.rows, *self.tests) if _list_of(row) == name]
            if not rows:
                sentences.append(f"{name} is not there ({published} rows)")
            elif len(rows) != published:
                sentences.append(f"{name} has {len(rows)} of {published} rows")
            absent = sum(len(row.facts.get("absent", ())) for row in rows)
            if absent:
                there = sum(len(row.files) for row in rows)
                sentences.append(f"{name} lacks {absent} of {absent + there} videos")
        return sentences

    def count(self) -> tuple[int, int]:
        """Files that are there, and files that its own rows ask for: 5 x rows + lists."""
        videos = {path for row in self.rows for path in row.files.values()}
        return len(videos) + len(self.lists), len(COLUMNS) * len(self.rows) + len(self.lists)


def _list_of(row: LayerFiles) -> str:
    return row.key.rpartition("/")[0]


def is_vera(folder: Path) -> bool:
    """Whether a folder holds training rows of this layout."""
    return any(_columns(path) is COLUMNS for path in _lists(folder))


def read_vera(folder: str | Path) -> VeraFolder:
    """Read all training and test rows below a folder; no video is opened.

    Raises:
        UserError: there is no such folder, it holds no rows, or a row is damaged.
    """
    folder, found = Path(folder), VeraFolder()
    for path in _lists(folder):
        columns = _columns(path)
        if columns is None:
            continue
        category = next((c for end, c in CATEGORIES.items() if path.stem.endswith(end)), None)
        if category is None:
            raise UserError(f"{path}: the name must end in bg-change or obj-add.")
        frames = next((part for part in reversed(path.parts) if part.endswith("-frames")), "")
        if columns is COLUMNS:
            found.lists.append(path)
        else:
            frames = "test"
        name = f"{frames}/{path.stem}"
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines()):
            try:
                row = dict(json.loads(line))
                if columns is TEST_COLUMNS and _EDITS[row["edit_type"]] != category:
                    raise ValueError("its edit_type is another than that of the list")
                facts = dict(_LICENCE) if name in PUBLISHED else {}
                facts |= {k: v for k, v in row.items() if k not in columns.values()}
                instruction = str(facts.pop("edit_instruction" if columns is COLUMNS else "prompt"))
                # A test row may leave out all but its source, or name it with null.
                must = COLUMNS if columns is COLUMNS else ("source",)
                named = {layer: row[c] for layer, c in columns.items() if layer in must or row.get(c)}
                files = {layer: _find(file, path, folder) for layer, file in named.items()}
            except (ValueError, KeyError, TypeError) as error:
                raise UserError(f"{path}, line {number + 1}, is no row of Vera's ({error}).") from error
            there = {layer: file for layer, file in files.items() if file is not None}
            if len(there) < len(files):
                facts |= {"absent": sorted(files.keys() - there.keys())}
            kept = found.rows if columns is COLUMNS else found.tests
            kept.append(LayerFiles(f"{name}/{number}", category, instruction, there, facts))
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
