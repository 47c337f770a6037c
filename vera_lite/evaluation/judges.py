"""How the papers let a large model judge an edit: five protocols that are never mixed.

A protocol is what it shows, what it asks, how it reads the reply and how it makes one number of many. Each
has its own scale, and rules that change scores, so numbers of two protocols share no table. What a paper
leaves open is decided here and said in the class's docstring; the wording of every rubric is ours
(``rubrics.toml``).

Videos are shown as single frames: servers sample video files in ways of their own.
"""

import hashlib
import json
import math
import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

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
        source, edited: (T, 3, H, W) in [0, 1].
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


#: A message's part: a string, or a frame (3, H, W).
Part = str | Tensor


class Protocol:
    """What all protocols share: one call a clip, frames of both videos, scores by line."""

    name: ClassVar[str]
    axes: ClassVar[dict[str, str]]  #: key -> its name in the reply
    scale: ClassVar[tuple[float, float]]
    categories: ClassVar[tuple[str, ...]] = ()  #: empty: any
    side: ClassVar[int | None] = 512  #: longest side of a frame in pixels; smaller ones are not enlarged
    quality: ClassVar[int | None] = 85  #: of JPEG; None: PNG
    attempts: ClassVar[int] = 3  #: in all, until a reply parses
    options: ClassVar[dict[str, Any]] = {"max_tokens": 2048}  #: of sampling, as a server takes them
    macro: ClassVar[bool] = True  #: overall is the mean of the categories' means, not of all clips
    pooled: ClassVar[bool] = False  #: several judges make one number; otherwise each has its own rows
    rubric_is_system: ClassVar[bool] = True
    shows_reference: ClassVar[bool] = False

    @property
    def calls(self) -> tuple[str, ...]:
        """What is asked of one clip, each in a request of its own."""
        return ("all",)

    @property
    def rubric(self) -> str:
        """Hash of everything that a score depends on beside the clip and the judge."""
        settings = {k: getattr(self, k) for k in ("axes", "scale", "side", "quality", "attempts", "options")}
        text = json.dumps([_rubrics().get(self.name), settings, self.calls], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def check(self, category: str) -> None:
        """UserError if the protocol does not know a category."""
        if self.categories and category not in self.categories:
            raise UserError(
                f"{self.name} has no category {category!r}; it has {', '.join(map(repr, self.categories))}."
            )

    def chosen(self, frames: int, fps: float) -> list[int]:
        """Which frames are shown of a video: 5, evenly from the first to the last."""
        return evenly(5, frames)

    def prompt(self, case: Case, call: str) -> str:
        """The rubric with the instruction put in, word for word and last: it may hold braces itself."""
        table = _rubrics()[self.name]
        text = table["prompt"].strip()
        text = text.replace("{category}", table.get("categories", {}).get(case.category, "").strip())
        text = text.replace("{axis}", table.get("axes", {}).get(call, "")).replace("{code}", call)
        return text.replace("{edit_prompt}", case.instruction)

    def messages(self, case: Case, call: str) -> list[tuple[str, list[Part]]]:
        """Role and parts of each message; the source comes first."""
        self.check(case.category)
        shown: list[Part] = []
        for title, video in (("before", case.source), ("after", case.edited)):
            frames = self.chosen(len(video), case.fps)
            shown += [f"Frames of the video {title} the edit, in order:", *(video[t] for t in frames)]
        if self.shows_reference and case.reference is not None:
            shown += ["Reference picture:", case.reference]
        closing = "Compare the two videos by these frames and give the scores in the form asked for."
        rubric = self.prompt(case, call)
        if self.rubric_is_system:
            return [("system", [rubric]), ("user", [*shown, closing])]
        return [("user", [rubric, *shown])]

    def parse(self, reply: str, call: str, instruction: str) -> dict[str, float]:
        """Scores of a reply by axis; ``instruction`` is the case's.

        Raises:
            Unparsable: there is not exactly one score in range for each axis.
        """
        raise NotImplementedError

    def score(self, scores: dict[str, float]) -> Decimal:
        """One clip's number from the scores of all its calls: their mean."""
        return mean(decimal(v) for v in scores.values())


class OpenVEOfficial(Protocol):
    """The scorer that OpenVE-Bench publishes, flaws included: its numbers compare with its paper's alone.

    It takes the mean of *every* number after a colon, two decimals, kept if in [1, 5]: a time such as 0:05 in
    the reason counts, and ``**4**`` does not. The rule that no score exceeds the first is only asked for.
    Gemini samples files at one frame a second, so that is what is shown. The rubric comes before the frames.
    """

    name = "openve_official"
    axes = {"score": "mean of all numbers"}
    scale = (1, 5)
    attempts = 5
    options = {"temperature": 0.7, "max_tokens": 8192}
    macro = False
    rubric_is_system = False
    categories = (
        "global style",
        "background change",
        "local change",
        "local remove",
        "local add",
        "creative edit",
        "camera change",
        "subtitle",
    )

    def chosen(self, frames: int, fps: float) -> list[int]:
        return one_a_second(frames, fps)

    def parse(self, reply: str, call: str, instruction: str) -> dict[str, float]:
        found = re.findall(r":\s*(\d+(?:\.\d+)?)", _short_enough(reply))
        if not found:
            raise Unparsable("no number after a colon")
        value = round(float(mean(Decimal(number) for number in found)), 2)
        return {"score": _in_range(value, self.scale)}


class OpenVEKiwi(Protocol):
    """Kiwi-Edit's scorer of five OpenVE categories.

    A line counts if it begins with the axis's name: Markdown or a space before it loses the clip. Decimals
    are cut off. We refuse a name that comes twice, and what is not in [1, 5]; one frame a second is shown.
    """

    name = "openve_kiwi"
    axes = {
        "IC": "Instruction Compliance",
        "CF": "Consistency & Detail Fidelity",
        "VQ": "Visual Quality & Stability",
    }
    scale = (1, 5)
    categories = OpenVEOfficial.categories[:5]

    def chosen(self, frames: int, fps: float) -> list[int]:
        return one_a_second(frames, fps)

    def parse(self, reply: str, call: str, instruction: str) -> dict[str, float]:
        scores = {}
        lines = _short_enough(reply).split("\n")
        for axis, label in self.axes.items():
            found = [line[len(label) + 1 :] for line in lines if line.startswith(label + ":")]
            try:
                value = int(float(_only(found, label)))
            except (ValueError, OverflowError) as error:
                raise Unparsable(f"no number behind {label!r}") from error
            scores[axis] = _in_range(value, self.scale)
        return scores


class RVEDiTJudge(Protocol):
    """RVEDiT's protocol (arXiv 2605.24674, appendix D.3): four categories, independent scores from 1 to 100.

    Left open there and decided here: 3 attempts in all; frames ``round(linspace(0, T - 1, 5))``; no
    enlarging; a score is rounded half up before its range is tested; a name that comes twice is a failure;
    judges are reported apart.
    """

    name = "rvedit"
    axes = OpenVEKiwi.axes
    scale = (1, 100)
    categories = ("local change", "local remove", "local add", "global style")

    def parse(self, reply: str, call: str, instruction: str) -> dict[str, float]:
        found = score_lines(reply, self.axes, self.scale[1])
        return {axis: _in_range(int(half_up(v, 0)), self.scale) for axis, v in found.items()}


class MiVEJudge(Protocol):
    """MiVE's protocol (arXiv 2605.14664, appendix C): six axes from 0 to 10, a request and a JSON reply each.

    40 frames of each video, fewer if it is shorter. "No more than 6 if nothing has changed" is asked for and
    not enforced. Left open there and decided here: 3 attempts, frames of at most 512 pixels.
    """

    name = "mive"
    axes = {
        "IA": "Instruction Adherence",
        "CC": "Content Consistency",
        "TS": "Temporal Smoothness",
        "PR": "Physical Realism",
        "VA": "Visual Aesthetics",
        "SC": "Style Coherence",
    }
    scale = (0, 10)
    shows_reference = True

    @property
    def calls(self) -> tuple[str, ...]:
        return tuple(self.axes)

    def chosen(self, frames: int, fps: float) -> list[int]:
        return evenly(40, frames)

    def parse(self, reply: str, call: str, instruction: str) -> dict[str, float]:
        key = f"{call}_score"
        value = _only([found[key] for found in json_objects(answer_text(reply)) if key in found], key)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise Unparsable(f"{key} is no number")
        return {call: _in_range(value, self.scale)}


class VeraVQA(Protocol):
    """Vera's three questions (arXiv 2606.23610): composition in space and time, and the instruction, 1 to 5.

    Each is the mean over three judges; a clip counts if all of them answered. Left open there and decided
    here: 5 frames, 3 attempts, decimals are kept, all three in one request.
    """

    name = "vera_vqa"
    axes = {
        "CS": "Spatial composition",
        "CT": "Temporal composition",
        "IS": "Instruction satisfaction",
    }
    scale = (1, 5)
    categories = ("object addition", "background change")
    pooled = True

    def parse(self, reply: str, call: str, instruction: str) -> dict[str, float]:
        found = score_lines(reply, self.axes, self.scale[1])
        return {axis: _in_range(float(v), self.scale) for axis, v in found.items()}


PROTOCOLS: dict[str, Protocol] = {
    protocol.name: protocol() for protocol in (OpenVEOfficial, OpenVEKiwi, RVEDiTJudge, MiVEJudge, VeraVQA)
}


# --- reading replies -----------------------------------------------------------------------------


def score_lines(reply: str, axes: dict[str, str], top: float) -> dict[str, Decimal]:
    """The one score behind each axis's name at the start of a line.

    List marks, emphasis, "/100" and words behind the number are passed over; a second number in the line is
    not. The reason is never read.
    """
    text, blank = answer_text(reply), r"[^\S\n]"
    # The number, "/100" or "out of 100", and words without digits.
    number = rf"[\s*_`<\[]*(\d{{1,9}}(?:\.\d{{1,9}})?)(?!\w)[\s*_`]*(?:(?:/|\(?out of)\s*{top:g}\b)?[^\d]*"
    scores = {}
    for axis, label in axes.items():
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
    the word "assistant" behind one.

    Raises:
        Unparsable: it is far too long, or ends while thinking.
    """
    text = re.sub(r"<\|[^|>\n]*\|>(?:\s*assistant)?", "", _short_enough(reply))
    text = re.sub(r"<think>.*?</think>", "", text, flags=re.DOTALL)
    if "<think>" in text:
        raise Unparsable("the reply ends while thinking")
    return text


def _short_enough(reply: str) -> str:
    if len(reply) > LONGEST_REPLY:
        raise Unparsable(f"the reply has {len(reply):,} characters")
    return reply


def _only(found: Sequence, name: str):
    if len(found) != 1:
        raise Unparsable(f"{name!r} comes {len(found)} times")
    return found[0]


def _in_range(value: float, scale: tuple[float, float]) -> float:
    if not scale[0] <= value <= scale[1] or math.isnan(value):
        raise Unparsable(f"{value} is not in [{scale[0]:g}, {scale[1]:g}]")
    return value


# --- numbers and frames --------------------------------------------------------------------------


def decimal(value: float) -> Decimal:
    """A number as it is printed, so that means of printed numbers are exact."""
    return Decimal(repr(value))


def mean(values) -> Decimal:
    """Exact to 28 digits."""
    values = list(values)
    return sum(values, Decimal(0)) / len(values)


def half_up(value: Decimal, digits: int) -> Decimal:
    """Rounded as people do it; floats round half to even, and 16.655 down or up by accident."""
    return value.quantize(Decimal(1).scaleb(-digits), ROUND_HALF_UP)


def evenly(count: int, frames: int) -> list[int]:
    """At most ``count`` of the frames, from the first to the last, half up."""
    count = min(count, frames)
    return [math.floor(i * (frames - 1) / max(1, count - 1) + 0.5) for i in range(count)]


def one_a_second(frames: int, fps: float) -> list[int]:
    """The frame at each full second."""
    seconds = range(math.ceil(frames / fps - 1e-9))
    return [min(frames - 1, math.floor(second * fps + 0.5)) for second in seconds]


@cache
def _rubrics() -> dict:
    return tomllib.loads((Path(__file__).parent / "rubrics.toml").read_text(encoding="utf-8"))
