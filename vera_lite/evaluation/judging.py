"""Ask a judge about edits, and keep every reply.

One record is one reply: to one call about one clip of one method, at one attempt. Scores come only from
replies that parse. Tables are made of records alone (:mod:`vera_lite.evaluation.judge_table`), so they can be
made again without judge and network.
"""

import base64
import hashlib
import io
import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any
from typing import Protocol as Interface

import torch
from torch import Tensor

from vera_lite.errors import UserError
from vera_lite.evaluation.judges import Case, Messages, Protocol, Unparsable
from vera_lite.media.clip import to_uint8

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
    """A model that answers. ``name`` holds its revision. A ``greedy`` one is asked once, as it would repeat
    itself."""

    name: str
    greedy: bool

    def ask(self, messages: Messages, protocol: Protocol) -> Reply: ...


class ServerJudge:
    """A model behind an OpenAI-compatible server, such as `transformers serve` or vLLM.

    Args:
        url: of the server, with its ``/v1``. The key is read from OPENAI_API_KEY, if the server wants one.
        model: as the server calls it.
        timeout: seconds for one reply.
        retries: of a request that a busy or broken server did not answer, with growing pauses; no attempts of
            the protocol.

    Raises:
        UserError: the client is not installed.
    """

    greedy = False

    def __init__(self, url: str, model: str, timeout: float = 600, retries: int = 3):
        try:
            import openai
        except ImportError as error:
            raise UserError("a judge behind a server needs: pip install 'vera-lite[judge]'.") from error
        self.url, self.model, self.name, self.errors = url, model, revision(model), openai
        key = os.environ.get("OPENAI_API_KEY", "none")
        self.client = openai.OpenAI(base_url=url, api_key=key, timeout=timeout, max_retries=retries)

    def ask(self, messages: Messages, protocol: Protocol) -> Reply:
        """Raises UserError if no server answers, or if it refuses the model or the key."""

        def image(data: bytes, kind: str) -> dict:
            url = f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
            return {"type": "image_url", "image_url": {"url": url}}

        sent: Any = written(messages, protocol, image)
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
            return Reply(outcome="transport", reason=f"HTTP {error.status_code}: {error.message}"[:200])
        tokens = getattr(found.usage, "completion_tokens", None)
        if not found.choices:
            return Reply(outcome="blocked", reason="no choices", tokens=tokens)
        message, finish = found.choices[0].message, found.choices[0].finish_reason
        if not message.content or finish == "content_filter":
            return Reply(message.content or "", "blocked", message.refusal or finish or "", finish, tokens)
        return Reply(message.content, finish_reason=finish, tokens=tokens)


class LocalJudge:
    """A vision-language model in this process, asked greedily.

    Args:
        folder: of a transformers model; None: the toy one in the package.
        device: "auto", "cpu", "cuda" or "mps".
        limit: of a reply, in tokens.
    """

    greedy = True

    def __init__(self, folder: str | Path | None = None, device: str = "auto", limit: int = 512):
        from vera_lite.conditioning.vision_language import TOY_VLM, VisionLanguageModel
        from vera_lite.pipelines import pick_device

        self.name, self.limit = revision(str(folder or TOY_VLM)), limit
        self.vlm = VisionLanguageModel.from_pretrained(folder)
        self.vlm.model.to(pick_device(device))

    @torch.inference_mode()
    def ask(self, messages: Messages, protocol: Protocol) -> Reply:
        """As `transformers serve` does it."""
        from PIL import Image

        def image(data: bytes, kind: str) -> dict:
            return {"type": "image", "image": Image.open(io.BytesIO(data)).convert("RGB")}

        processor, model = self.vlm.processor, self.vlm.model
        inputs = processor.apply_chat_template(
            written(messages, protocol, image),
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        ).to(model.device)
        limit = min(self.limit, protocol.options.get("max_tokens", self.limit))
        tokens = model.generate(**inputs, max_new_tokens=limit, do_sample=False)
        tokens = tokens[0, inputs["input_ids"].shape[1] :]
        finish = "length" if len(tokens) >= limit else "stop"
        text = processor.decode(tokens, skip_special_tokens=True)
        return Reply(text, finish_reason=finish, tokens=len(tokens))


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


def written(messages: Messages, protocol: Protocol, image: Callable[[bytes, str], dict]) -> list[dict]:
    """Messages as servers and chat templates take them; ``image`` makes a part of a frame's file and kind."""

    def part(part: str | Tensor) -> dict:
        if isinstance(part, str):
            return {"type": "text", "text": part}
        return image(*encoded(part, protocol.side, protocol.quality))

    return [{"role": role, "content": [part(p) for p in parts]} for role, parts in messages]


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
        self.path, self.records = path, read_records(path) if path.exists() else []
        if path.exists():
            os.truncate(path, path.read_bytes().rfind(b"\n") + 1)  # a line that a kill cut
        self._done = {(r.request, r.attempt): r for r in self.records}

    def find(self, request: str, attempt: int) -> Record | None:
        """The reply that is there, unless another try may mend it."""
        record = self._done.get((request, attempt))
        return None if record is None or record.outcome in TRANSIENT else record

    def add(self, record: Record) -> None:
        """Append it, and only then count it."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(record), ensure_ascii=False) + "\n")
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
    for number, line in enumerate(whole.decode(errors="replace").split("\n") if whole else (), 1):
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
        about: dict[str, Any] = {
            "item": case.id,
            "category": case.category,
            "instruction": case.instruction,
            "method": method,
            "protocol": protocol.name,
            "rubric": protocol.rubric,
            "judge": judge.name,
            "call": call,
            "prompt": _hash("\0".join(p for p in parts if isinstance(p, str)).encode()),
            "frames": [_hash(_pixels(p)) for p in parts if not isinstance(p, str)],
        }
        request = _hash(json.dumps(about, sort_keys=True).encode())
        for attempt in range(1, 2 if judge.greedy else protocol.attempts + 1):
            record = log.find(request, attempt)
            if record is None:
                start = time.monotonic()
                reply = judge.ask(messages, protocol)
                record = Record(
                    **about,
                    attempt=attempt,
                    request=request,
                    reply=reply.text,
                    outcome="ok" if reply.outcome == "answered" else reply.outcome,
                    reason=reply.reason,
                    finish_reason=reply.finish_reason,
                    tokens=reply.tokens,
                    seconds=round(time.monotonic() - start, 2),
                )
                record = read_reply(protocol, record)
                log.add(record)
            if read_reply(protocol, record).outcome == "ok":
                break


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def _pixels(frame: Tensor) -> bytes:
    pixels = to_uint8(frame.float()).contiguous().numpy()
    return repr(pixels.shape).encode() + pixels.tobytes()
