"""How the papers let a large model judge an edit: protocols that are never mixed.

A protocol is what it shows, what it asks, how it reads the reply, and how it makes one number of many. Each
has its own scale and rules that change scores, so numbers of two protocols share no table. ``protocols.toml``
holds them, with what their papers leave open and we decided. Videos are shown as single frames: servers
sample video files in ways of their own.
"""

import hashlib
import json
import math
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path
from typing import Any

from torch import Tensor

from vera_lite.errors import UserError

#: Longer replies are no answer.
LONGEST_REPLY = 20_000


class Unparsable(ValueError):
    """A reply that holds no scores; the text says why. It never becomes a number."""


@dataclass(frozen=True)
class Case:
    """One edit to be judged.

    Attributes:
        id: of the clip, the same for all methods.
        category: of the edit, a word of the protocol's.
        instruction: what was asked for.
        source, edited: (T, 3, H, W) in [0, 1]; T, H and W may differ.
        fps: frames per second of both.
        reference: (3, H, W), the edited first frame, if the editor was given one.
    """

    id: str
    category: str
    instruction: str
    source: Tensor
    edited: Tensor
    fps: float = 8.0
    reference: Tensor | None = None


#: A message's role and its parts: strings, and frames (3, H, W).
Messages = list[tuple[str, list[str | Tensor]]]


@dataclass(frozen=True)
class Protocol:
    """One way to judge.

    Attributes:
        name: as tables and records say it.
        read: (reply, protocol, call, instruction) -> scores by axis; raises :class:`Unparsable`.
        source: where it is described.
        decided: what is left open there and decided here.
        axes: key -> name in the reply.
        scale: lowest and highest score.
        prompt: the rubric; see ``protocols.toml``.
        categories: of edits -> their part of the rubric; empty: any.
        asked: axis -> its part of the rubric, if each has a request of its own.
        frames: shown of each video, evenly from the first to the last; None: one for each second.
        side: longest side of a frame in pixels; smaller frames are not enlarged.
        quality: of JPEG; None: PNG.
        attempts: in all, until a reply parses.
        options: of sampling, as a server takes them.
        macro: overall is the mean of the categories' means, not of all clips.
        pooled: all judges make one number; otherwise each has its own rows.
        rubric_is_system: the rubric is a message of its own, not the beginning of the user's.
        shows_reference: the edited first frame is shown, if there is one.
    """

    name: str
    read: Callable[[str, "Protocol", str, str], dict[str, float]]
    source: str
    decided: str
    axes: dict[str, str]
    scale: Sequence[float]
    prompt: str = ""
    categories: dict[str, str] = field(default_factory=dict)
    asked: dict[str, str] = field(default_factory=dict)
    frames: int | None = None
    side: int | None = 512
    quality: int | None = 85
    attempts: int = 3
    options: dict[str, Any] = field(default_factory=lambda: {"max_tokens": 2048})
    macro: bool = True
    pooled: bool = False
    rubric_is_system: bool = True
    shows_reference: bool = False

    @property
    def calls(self) -> tuple[str, ...]:
        """What is asked of one clip, each in a request of its own."""
        return tuple(self.asked) or ("all",)

    @property
    def rubric(self) -> str:
        """Hash of everything that a score depends on beside clip, judge and parser."""
        told = ("read", "source", "decided")  # the parser, and words for people
        settings = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in told}
        return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]

    def check(self, category: str, instruction: str) -> None:
        """UserError if the protocol cannot judge such a clip."""
        if self.categories and category not in self.categories:
            raise UserError(
                f"{self.name} has no category {category!r}; it has {', '.join(map(repr, self.categories))}."
            )

    def chosen(self, frames: int, fps: float) -> list[int]:
        """Which of a video's frames are shown."""
        return one_a_second(frames, fps) if self.frames is None else evenly(self.frames, frames)

    def messages(self, case: Case, call: str) -> Messages:
        """What the judge is sent: the rubric, the source's frames, then the edit's.

        The instruction is put in word for word, and last, as it may hold braces itself.
        """
        self.check(case.category, case.instruction)
        rubric = self.prompt.strip().replace("{category}", self.categories.get(case.category, "").strip())
        rubric = rubric.replace("{axis}", self.asked.get(call, "")).replace("{code}", call)
        rubric = rubric.replace("{edit_prompt}", case.instruction)
        shown: list[str | Tensor] = []
        for title, video in (("before", case.source), ("after", case.edited)):
            frames = self.chosen(len(video), case.fps)
            shown += [f"Frames of the video {title} the edit, in order:", *(video[t] for t in frames)]
        if self.shows_reference and case.reference is not None:
            shown += ["Reference picture:", case.reference]
        if not self.rubric_is_system:
            return [("user", [rubric, *shown])]
        closing = "Compare the two videos by these frames and give the scores in the form asked for."
        return [("system", [rubric]), ("user", [*shown, closing])]

    def parse(self, reply: str, call: str, instruction: str) -> dict[str, float]:
        """Scores of a reply by axis, all of them in the scale.

        Raises:
            Unparsable: there is not exactly one score for each axis, or it is out of range.
        """
        if len(reply) > LONGEST_REPLY:
            raise Unparsable(f"the reply has {len(reply):,} characters")
        scores = self.read(reply, self, call, instruction)
        for value in scores.values():
            if not self.scale[0] <= value <= self.scale[1]:  # nan fails
                raise Unparsable(f"a score is not in [{self.scale[0]:g}, {self.scale[1]:g}]")
        return scores

    def score(self, scores: Mapping[str, float | Decimal]) -> Decimal:
        """One clip's number: the mean of its axes as they are printed."""
        return mean(Decimal(str(value)) for value in scores.values())


# --- reading replies -----------------------------------------------------------------------------


def openve_official(reply: str, protocol: Protocol, call: str, instruction: str) -> dict[str, float]:
    """The published parser, flaws included: the mean of *every* number after a colon, with two decimals.

    A time such as 0:05 in the reason counts, and ``**4**`` does not. So its numbers compare with its paper's
    alone. The rule that no score exceeds the first is only asked for.
    """
    found = re.findall(r":\s*(\d+(?:\.\d+)?)", reply)
    if not found:
        raise Unparsable("no number after a colon")
    return {"score": round(float(mean(map(Decimal, found))), 2)}


def openve_kiwi(reply: str, protocol: Protocol, call: str, instruction: str) -> dict[str, float]:
    """A line counts if it begins with the axis's name: Markdown or a space before it loses the clip. Decimals
    are cut off."""
    scores = {}
    for axis, label in protocol.axes.items():
        lines = [line[len(label) + 1 :] for line in reply.split("\n") if line.startswith(label + ":")]
        try:
            scores[axis] = int(float(_only(lines, label)))
        except (ValueError, OverflowError) as error:
            raise Unparsable(f"no number behind {label!r}") from error
    return scores


def rvedit(reply: str, protocol: Protocol, call: str, instruction: str) -> dict[str, float]:
    """Tolerant lines; decimals are rounded half up."""
    return {axis: int(half_up(value, 0)) for axis, value in score_lines(reply, protocol).items()}


def vera_vqa(reply: str, protocol: Protocol, call: str, instruction: str) -> dict[str, float]:
    """Tolerant lines; decimals are kept."""
    return {axis: float(value) for axis, value in score_lines(reply, protocol).items()}


def mive(reply: str, protocol: Protocol, call: str, instruction: str) -> dict[str, float]:
    """The number ``<axis>_score`` of the one JSON object that has it."""
    key = f"{call}_score"
    value = _only([found[key] for found in json_objects(answer_text(reply)) if key in found], key)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Unparsable(f"{key} is no number")
    return {call: value}


def mive_data(reply: str, protocol: Protocol, call: str, instruction: str) -> dict[str, float]:
    """The number ``data_score``, as :func:`mive` reads its own."""
    return mive(reply, protocol, call, instruction)


def score_lines(reply: str, protocol: Protocol) -> dict[str, Decimal]:
    """The one score behind each axis's name at the start of a line.

    List marks, emphasis, "/100" and words behind the number are passed over; a second number in the line is
    not. The reason is never read.
    """
    text, blank, top = answer_text(reply), r"[^\S\n]", protocol.scale[1]
    # The number, "/100" or "out of 100", and words without digits.
    number = rf"[\s*_`<\[]*(\d{{1,9}}(?:\.\d{{1,9}})?)(?!\w)[\s*_`]*(?:(?:/|\(?out of)\s*{top:g}\b)?[^\d]*"
    scores = {}
    for axis, label in protocol.axes.items():
        name = re.escape(label).replace("\\&", "(?:&|&amp;|and)")
        line = rf"^(?:{blank}|[>*_`#•\-\d.)(])*{name}(?:{blank}|[*_`])*[:：](.*)$"
        found = re.fullmatch(number, _only(re.findall(line, text, re.MULTILINE | re.IGNORECASE), label))
        if not found:
            raise Unparsable(f"no single number behind {label!r}")
        scores[axis] = Decimal(found[1])
    return scores


def json_objects(text: str) -> list[dict]:
    """The JSON objects that stand in a text, outermost ones only; a key that comes twice is a failure."""

    def once(pairs):
        if len(dict(pairs)) < len(pairs):
            raise Unparsable("a key comes twice")
        return dict(pairs)

    decoder, objects, at = json.JSONDecoder(object_pairs_hook=once), [], text.find("{")
    while at >= 0:
        try:
            value, end = decoder.raw_decode(text, at)
            objects.append(value)
        except Unparsable:
            raise
        except (ValueError, RecursionError):  # no JSON, a number of thousands of digits, nested too deep
            end = at + 1
        at = text.find("{", end)
    return objects


def answer_text(reply: str) -> str:
    """A reply without its thinking, and without what servers leak of the chat template: special tokens, and
    the word "assistant" behind one."""
    text = re.sub(r"<\|[^|>\n]*\|>(?:\s*assistant)?", "", reply)
    text = re.sub(r"<think>.*?</think>", "", text, flags=re.DOTALL)
    if "<think>" in text:
        raise Unparsable("the reply ends while thinking")
    return text


def _only(found: Sequence, name: str):
    if len(found) != 1:
        raise Unparsable(f"{name!r} comes {len(found)} times")
    return found[0]


# --- numbers and frames --------------------------------------------------------------------------


def mean(values: Iterable[Decimal]) -> Decimal:
    """Exact to 28 digits."""
    values = list(values)
    return sum(values, Decimal(0)) / len(values)


def half_up(value: Decimal, digits: int) -> Decimal:
    """Rounded as people do it; floats round half to even, and 16.655 down or up by accident."""
    return value.quantize(Decimal(1).scaleb(-digits), ROUND_HALF_UP)


def evenly(count: int, frames: int) -> list[int]:
    """At most ``count`` of the frames, from the first to the last, rounded half up."""
    count = min(count, frames)
    return [math.floor(i * (frames - 1) / max(1, count - 1) + 0.5) for i in range(count)]


def one_a_second(frames: int, fps: float) -> list[int]:
    """The frame at each full second."""
    seconds = range(math.ceil(frames / fps - 1e-9))
    return [min(frames - 1, math.floor(second * fps + 0.5)) for second in seconds]


def _protocols() -> dict[str, Protocol]:
    tables = tomllib.loads((Path(__file__).parent / "protocols.toml").read_text(encoding="utf-8"))
    readers = (openve_official, openve_kiwi, rvedit, mive, mive_data, vera_vqa)
    return {f.__name__: Protocol(f.__name__, f, **tables[f.__name__]) for f in readers}


PROTOCOLS = _protocols()
