"""What a stage of the dataset pipeline is, and the small records that go through it.

Nothing here holds pixels or opens a file. A stage is a pure function: the same sample, version and
configuration give the same outcome and the same bytes, in any process and on any machine. The store and the
engines rely on that: what is done is never done again, and what was lost is simply made anew.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

__all__ = ["Choice", "Fail", "Ok", "Reject", "Sample", "Stage", "digest", "task_key"]

#: Layers of a finished training sample, as in :class:`vera_lite.media.clip.LayeredClip`. The instruction is
#: ``facts["instruction"]``. In background change, ``alpha`` is 1 on the new background and ``mask`` is white
#: on the subject, which stays; in object addition both are white on the object.
LAYERS = ("source", "edit", "alpha", "composite", "mask")
#: How :class:`vera_lite.media.video.VideoReader` reads each of them.
KINDS = {name: "grey" if name in ("alpha", "mask") else "rgb" for name in LAYERS}


@dataclass(frozen=True)
class Sample:
    """One clip on its way to a training sample: names of files and facts about it.

    Attributes:
        key: sha256 of the input file. It stays the same through all stages; where a stage makes several
            samples out of one, each gets a key of its own, for which :func:`digest` is there.
        category: such as "object_addition"; the ledger counts each category.
        files: file of each layer, by name. Paths are relative to the store and hold the sha256 of their
            content; a stage asks for the real path and never builds one.
        facts: what else is known, in JSON values: sizes, scores, licence, source, caption.
    """

    key: str
    category: str
    files: dict[str, str] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class LayerFiles:
    """A finished training sample on disk.

    Attributes:
        key: unique in its dataset.
        category: "object_addition" or "background_change".
        instruction: the edit in words.
        files: of the five :data:`LAYERS`.
        facts: what else is known, in JSON values.
    """

    key: str
    category: str
    instruction: str
    files: dict[str, Path]
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Ok:
    """The sample goes on.

    Attributes:
        sample: with the stage's own files and facts added. A file that the stage has just written into
            ``out`` stands there under its bare name, such as ``"mask.mkv"``; the others stay as they came.
        more: further samples, for a stage that makes several of one.
    """

    sample: Sample
    more: tuple[Sample, ...] = ()


@dataclass(frozen=True)
class Reject:
    """The sample is whole, but no good for training.

    Attributes:
        reason: one word or a few, joined by underscores, such as "camera_moves"; the ledger counts reasons.
        facts: what was measured, in JSON values.
    """

    reason: str
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Fail:
    """The stage could not judge the sample, as its file is damaged, say; it is quarantined.

    Attributes:
        error: one sentence. An exception that leaves the stage counts as a Fail too.
    """

    error: str


@runtime_checkable
class Stage(Protocol):
    """One step for one sample.

    Attributes:
        name: unique in a pipeline.
        version: changes whenever the code would give another outcome.
        config: every setting that the outcome depends on, in JSON values; of a model its revision or the
            sha256 of its weights, too.
    """

    name: str
    version: str
    config: dict[str, Any]

    def __call__(self, sample: Sample, inputs: Callable[[str], Path], out: Path) -> Ok | Reject | Fail:
        """Process one sample.

        Args:
            sample: from the stage before.
            inputs: gives the real path of one of ``sample.files``, by its name.
            out: an empty folder for new files. The store checks them, puts them in place and renames them.
        """
        ...


@runtime_checkable
class Choice(Protocol):
    """A step that has to see all samples at once, such as "at most 4,000 of each category".

    It waits until every sample before it is decided. Attributes as of :class:`Stage`.
    """

    name: str
    version: str
    config: dict[str, Any]

    def choose(self, samples: Sequence[Sample]) -> dict[str, str]:
        """The reason of every sample that is left out, by its key. The order of the samples must not matter
        (they come sorted by key)."""
        ...


def digest(*parts: Any) -> str:
    """sha256 of JSON values; dicts that are equal have one digest, whatever their order."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def task_key(sample: Sample, stage: Stage | Choice) -> str:
    """Key of the outcome of one stage for one sample: whatever changes the outcome changes the key.

    The paths of the files hold their sha256, so the key covers their content.
    """
    return digest(
        sample.key, sample.category, sample.files, sample.facts, stage.name, stage.version, stage.config
    )
