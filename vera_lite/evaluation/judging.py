"""Ask a judge about edits, keep every reply, and make tables of what was kept.

One record is one reply: to one call about one clip of one method, at one attempt. Scores come only from
replies that parse; a clip without them counts in the denominator and never as a number. Tables are made of
records alone, so they can be made again without judge and network.
"""

import base64
import hashlib
import io
import json
import os
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from decimal import Decimal
from pathlib import Path
from typing import Any
from typing import Protocol as Interface

import numpy as np
import torch
from torch import Tensor

from vera_lite.errors import UserError
from vera_lite.evaluation.judges import Case, Part, Protocol, Unparsable, decimal, half_up, mean
from vera_lite.media.clip import to_uint8

Messages = list[tuple[str, list[Part]]]
#: Outcomes that another run may mend.
TRANSIENT = ("transport", "timeout")


@dataclass(frozen=True)
class Reply:
    """What came back; ``outcome`` is "answered", or why there is no answer."""

    text: str = ""
    outcome: str = "answered"
    reason: str = ""
    finish_reason: str | None = None
    tokens: int | None = None


class Judge(Interface):
    """A model that answers. ``name`` holds its revision; a greedy one gives one answer however often it is
    asked."""

    name: str
    greedy: bool

    def ask(self, messages: Messages, protocol: Protocol) -> Reply: ...


class ServerJudge:
    """A model behind an OpenAI-compatible server, such as `transformers serve` or vLLM.

    Args:
        url: of the server, with its ``/v1``. The key is read from OPENAI_API_KEY, if the server wants one.
        model: as the server calls it; of a local folder the name and a hash of its weights are kept.
        timeout: seconds for one reply.

    Raises:
        UserError: the client is not installed.
    """

    greedy = False

    def __init__(self, url: str, model: str, timeout: float = 600):
        try:
            import openai
        except ImportError as error:
            raise UserError("a judge behind a server needs: pip install 'vera-lite[judge]'.") from error
        self.url, self.model, self.name, self.errors = url, model, revision(model), openai
        key = os.environ.get("OPENAI_API_KEY", "none")
        self.client = openai.OpenAI(base_url=url, api_key=key, timeout=timeout, max_retries=0)

    def ask(self, messages: Messages, protocol: Protocol) -> Reply:
        """Raises UserError if no server answers, or it does not know the model."""

        def part(part: Part) -> dict[str, Any]:
            if isinstance(part, str):
                return {"type": "text", "text": part}
            data, kind = encoded(part, protocol.side, protocol.quality)
            url = f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
            return {"type": "image_url", "image_url": {"url": url}}

        sent: Any = [{"role": role, "content": [part(p) for p in parts]} for role, parts in messages]
        try:
            found = self.client.chat.completions.create(model=self.model, messages=sent, **protocol.options)
        except self.errors.APITimeoutError:
            return Reply(outcome="timeout")
        except self.errors.APIConnectionError as error:
            raise UserError(f"no judge answers at {self.url}: start its server, then run again.") from error
        except self.errors.APIStatusError as error:
            if error.status_code in (401, 403, 404):
                refusal = f"the server at {self.url} refuses {self.name!r} (HTTP {error.status_code})."
                raise UserError(refusal) from error
            return Reply(outcome="transport", reason=f"HTTP {error.status_code}")
        tokens = getattr(found.usage, "completion_tokens", None)
        if not found.choices:
            return Reply(outcome="blocked", reason="no choices", tokens=tokens)
        choice = found.choices[0]
        text, reason = choice.message.content, choice.finish_reason
        if not text or reason == "content_filter":
            why = getattr(choice.message, "refusal", None) or reason or "empty"
            return Reply(text or "", "blocked", why, reason, tokens)
        return Reply(text, finish_reason=reason, tokens=tokens)


class LocalJudge:
    """A vision-language model in this process, asked greedily.

    Args:
        folder: of a transformers model, None: the toy one in the package.
        limit: of a reply, in tokens.
    """

    greedy = True

    def __init__(self, folder: str | Path | None = None, limit: int = 512):
        from vera_lite.conditioning.vision_language import TOY_VLM, VisionLanguageModel

        self.vlm, self.name = VisionLanguageModel.from_pretrained(folder), revision(str(folder or TOY_VLM))
        self.limit = limit

    @torch.inference_mode()
    def ask(self, messages: Messages, protocol: Protocol) -> Reply:
        from PIL import Image

        def part(part: Part) -> dict[str, Any]:
            if isinstance(part, str):
                return {"type": "text", "text": part}
            data, _ = encoded(part, protocol.side, protocol.quality)
            return {"type": "image", "image": Image.open(io.BytesIO(data)).convert("RGB")}

        inputs = self.vlm.processor.apply_chat_template(
            [{"role": role, "content": [part(p) for p in parts]} for role, parts in messages],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        ).to(self.vlm.model.device)
        limit = min(self.limit, protocol.options.get("max_tokens", self.limit))
        tokens = self.vlm.model.generate(**inputs, max_new_tokens=limit, do_sample=False)
        tokens = tokens[0, inputs["input_ids"].shape[1] :]
        text = self.vlm.processor.decode(tokens, skip_special_tokens=True)
        return Reply(text, finish_reason="length" if len(tokens) >= limit else "stop", tokens=len(tokens))


def revision(model: str) -> str:
    """The name of a model; of a folder its last part and a hash of its weights, without the path."""
    folder = Path(model)
    if not folder.is_dir():
        return model
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return f"{folder.name}@{digest.hexdigest()[:12]}"


def encoded(frame: Tensor, side: int | None, quality: int | None) -> tuple[bytes, str]:
    """A frame (3, H, W) in [0, 1] as a file: JPEG of a quality, or PNG; larger sides than ``side`` are shrunk
    (Lanczos)."""
    from PIL import Image

    image = Image.fromarray(to_uint8(frame.float()).permute(1, 2, 0).numpy())
    longest = max(image.size)
    if side is not None and longest > side:
        width, height = (max(1, round(length * side / longest)) for length in image.size)
        image = image.resize((width, height), Image.Resampling.LANCZOS)
    file, kind = io.BytesIO(), "png" if quality is None else "jpeg"
    image.save(file, kind, **({} if quality is None else {"quality": quality}))
    return file.getvalue(), kind


# --- records -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Record:
    """One reply, and everything that it depends on.

    ``request`` is a hash of protocol, judge, text and frames; the same request at the same attempt is not
    sent twice. ``outcome``: ok, parse_fail, blocked, transport or timeout.
    """

    item: str
    category: str
    instruction: str
    method: str
    protocol: str
    rubric: str
    judge: str
    call: str
    attempt: int
    request: str
    prompt: str  #: hash of the text
    frames: list[str]  #: hashes of the pixels, in the order shown
    reply: str
    outcome: str
    reason: str = ""
    scores: dict[str, float] = field(default_factory=dict)
    finish_reason: str | None = None
    tokens: int | None = None
    seconds: float | None = None


class Log:
    """Records in a JSONL file that only grows: a run that was killed loses at most the reply under way."""

    def __init__(self, path: Path):
        self.path, self.records = path, []
        if path.exists():
            self.records = read_records(path)
            os.truncate(path, path.read_bytes().rfind(b"\n") + 1)  # a line that a kill cut
        self._done = {(r.request, r.attempt): r for r in self.records}

    def find(self, request: str, attempt: int) -> Record | None:
        """The reply that is there, unless another try may mend it."""
        record = self._done.get((request, attempt))
        return None if record is None or record.outcome in TRANSIENT else record

    def add(self, record: Record) -> None:
        """Append it, and only then count it."""
        line = json.dumps(asdict(record), ensure_ascii=False) + "\n"
        with self.path.open("ab") as file:
            file.write(line.encode())
            file.flush()
            os.fsync(file.fileno())
        self.records.append(record)
        self._done[record.request, record.attempt] = record


def read_records(path: Path) -> list[Record]:
    """Records of a JSONL file; a last line that was cut is passed over.

    Raises:
        UserError: there is no such file, or another line is no record.
    """
    if not path.is_file():
        raise UserError(f"there are no records {path}; check the path.")
    whole, _, _ = path.read_bytes().rpartition(b"\n")
    records = []
    for number, line in enumerate(whole.decode(errors="replace").splitlines(), 1):
        try:
            records.append(Record(**json.loads(line)))
        except (ValueError, TypeError) as error:
            raise UserError(f"line {number} of {path} is no record of this version.") from error
    return records


def read_reply(protocol: Protocol, record: Record) -> Record:
    """The record as this version's parser reads its reply."""
    if record.outcome not in ("ok", "parse_fail"):
        return record
    try:
        if record.finish_reason == "length":
            raise Unparsable("the reply was cut off")
        scores = protocol.parse(record.reply, record.call, record.instruction)
    except Unparsable as error:
        return replace(record, outcome="parse_fail", reason=str(error)[:200], scores={})
    return replace(record, outcome="ok", reason="", scores=scores)


def judge_clip(case: Case, method: str, protocol: Protocol, judge: Judge, log: Log) -> None:
    """Ask everything about one clip that the log does not know yet."""
    for call in protocol.calls:
        messages = protocol.messages(case, call)
        parts = [part for _, parts in messages for part in parts]
        prompt = hashlib.sha256("\0".join(p for p in parts if isinstance(p, str)).encode()).hexdigest()[:16]
        frames = [_pixels(p) for p in parts if not isinstance(p, str)]
        key = json.dumps([protocol.name, protocol.rubric, judge.name, call, prompt, frames, case.id, method])
        request = hashlib.sha256(key.encode()).hexdigest()[:16]
        for attempt in range(1, 2 if judge.greedy else protocol.attempts + 1):
            record = log.find(request, attempt)
            if record is None:
                start = time.monotonic()
                reply = judge.ask(messages, protocol)
                answered = reply.outcome == "answered"
                record = Record(
                    case.id, case.category, case.instruction, method, protocol.name, protocol.rubric,
                    judge.name, call, attempt, request, prompt, frames, reply.text,
                    "ok" if answered else reply.outcome, reply.reason,
                    finish_reason=reply.finish_reason, tokens=reply.tokens,
                    seconds=round(time.monotonic() - start, 2),
                )  # fmt: skip
                log.add(read_reply(protocol, record))
                record = log.records[-1]
            if read_reply(protocol, record).outcome == "ok":
                break


def _pixels(frame: Tensor) -> str:
    pixels = to_uint8(frame.float()).contiguous().numpy()
    return hashlib.sha256(repr(pixels.shape).encode() + pixels.tobytes()).hexdigest()[:12]


# --- tables --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cell:
    """A mean over clips, its 95 % bootstrap interval (None below two clips), and how many clips it has."""

    value: Decimal | None
    low: float | None
    high: float | None
    valid: int
    total: int

    def __str__(self) -> str:
        if self.value is None:
            return f"– ({self.valid}/{self.total})"
        ends = "" if self.low is None else f" [{self.low:.2f}, {self.high:.2f}]"
        return f"{half_up(self.value, 2)}{ends} ({self.valid}/{self.total})"


def table(records: Iterable[Record], protocol: Protocol) -> dict[tuple[str, str], dict[str, Cell]]:
    """(judge, method) -> column -> cell: overall, each category, each axis, and overall over the clips that
    are valid for all methods (drops that differ would favour a method).

    Raises:
        UserError: there are no records, or they are of several protocols or rubrics.
    """
    records = [read_reply(protocol, r) for r in records]
    kinds = {(r.protocol, r.rubric) for r in records}
    if kinds != {(protocol.name, protocol.rubric)}:
        found = ", ".join(sorted(f"{name} (rubric {rubric})" for name, rubric in kinds)) or "nothing"
        raise UserError(
            f"a table of {protocol.name} (rubric {protocol.rubric}) cannot be made of {found}: their scales "
            "and rules differ."
        )
    items = {r.item: r.category for r in records}
    answers: dict[tuple, dict[str, dict]] = defaultdict(dict)
    for r in records:
        if r.outcome == "ok":
            answers[r.judge, r.method, r.item][r.call] = r.scores
    judges, methods = sorted({r.judge for r in records}), list(dict.fromkeys(r.method for r in records))

    def scores(group: Sequence[str], method: str) -> dict[str, dict[str, Decimal]]:
        """Item -> axis -> mean over the judges of the group, of what all of them answered whole."""
        found = {}
        for item in items:
            replies = [answers.get((judge, method, item), {}) for judge in group]
            if all(reply.keys() == set(protocol.calls) for reply in replies):
                merged = [{a: v for call in reply.values() for a, v in call.items()} for reply in replies]
                found[item] = {a: mean(decimal(m[a]) for m in merged) for a in protocol.axes}
        return found

    rows = {}
    for group in [judges] if protocol.pooled else [[judge] for judge in judges]:
        by_method = {method: scores(group, method) for method in methods}
        shared = set.intersection(*(set(found) for found in by_method.values()))
        for method, found in by_method.items():
            means = {item: mean(by_axis.values()) for item, by_axis in found.items()}
            row = {"overall": _cell(means, items, protocol.macro)}
            for category in dict.fromkeys(items.values()):
                members = {i: c for i, c in items.items() if c == category}
                row[category] = _cell({i: v for i, v in means.items() if i in members}, members, False)
            if len(protocol.axes) > 1:
                for axis in protocol.axes:
                    row[axis] = _cell({i: v[axis] for i, v in found.items()}, items, protocol.macro)
            row["valid for all"] = _cell({i: means[i] for i in shared}, items, protocol.macro)
            rows[" + ".join(group), method] = row
    return rows


def _cell(values: dict[str, Decimal], items: dict[str, str], macro: bool) -> Cell:
    """Mean over clips, or of the categories' means; a category without a valid clip leaves no macro mean."""
    groups: dict[str, list[Decimal]] = {c if macro else "": [] for c in items.values()}
    for item, value in values.items():
        groups[items[item] if macro else ""].append(value)
    if not all(groups.values()):
        return Cell(None, None, None, len(values), len(items))
    low = high = None
    if all(len(group) > 1 for group in groups.values()):
        from scipy import stats

        floats = [np.array([float(v) for v in group]) for group in groups.values()]
        low, high = stats.bootstrap(
            floats,
            lambda *drawn, axis: np.mean([d.mean(axis=axis) for d in drawn], axis=0),
            n_resamples=2000,
            method="percentile",
            vectorized=True,
            rng=np.random.default_rng(0),
        ).confidence_interval
    return Cell(mean(mean(group) for group in groups.values()), low, high, len(values), len(items))


def markdown(records: Sequence[Record], protocol: Protocol) -> str:
    """The table as text, with what it rests on above it and how replies ended below it."""
    rows = table(records, protocol)
    columns = list(next(iter(rows.values())))
    low, high = protocol.scale
    overall = "mean of the categories' means" if protocol.macro else "mean over all clips"
    outcomes = Counter(read_reply(protocol, r).outcome for r in records)
    lines = [
        f"# {protocol.name}, {low:g} to {high:g}",
        "",
        f"Rubric {protocol.rubric}; up to {protocol.attempts} attempts; overall: {overall}. A cell is the "
        "mean, its 95 % bootstrap interval over clips, and how many clips gave scores.",
        "",
        f"| judge | method | {' | '.join(columns)} |",
        "|" + "---|" * (len(columns) + 2),
        *(f"| {' | '.join([*names, *map(str, row.values())])} |" for names, row in rows.items()),
        "",
        "Replies: " + ", ".join(f"{n} {outcome}" for outcome, n in sorted(outcomes.items())) + ".",
    ]
    return "\n".join(lines) + "\n"
