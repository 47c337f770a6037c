"""Let a model judge edited videos: methods x clips -> records -> a table."""

from pathlib import Path
from typing import TYPE_CHECKING

from vera_lite.errors import UserError
from vera_lite.media.files import replacing

if TYPE_CHECKING:
    from vera_lite.evaluation.judges import Protocol

RECORDS, TABLE = "records.jsonl", "table.md"
_ENDINGS = (".mkv", ".mp4", ".mov", ".webm")


def judge_files(
    clips: Path,
    methods: dict[str, Path],
    protocol: str,
    out: Path,
    model: str | None = None,
    server: str | None = None,
    device: str | None = None,
) -> list[Path]:
    """Judge the results of some methods on the same clips. Replies that ``out`` holds are not asked for
    again.

    Args:
        clips: JSON list of objects with ``id``, ``category``, ``instruction``, ``source`` and, if the editor
            was given one, ``reference``; paths are relative to the file.
        methods: name -> folder that holds ``ID.mkv`` (or mp4, mov, webm), or ``ID/final.mkv`` as
            `vera-lite edit` writes it.
        protocol: see :func:`protocols`.
        out: folder for the records and the table.
        model: of the server; or a folder, loaded here; None: the toy model in the package.
        server: URL of an OpenAI-compatible server, up to its ``/v1``.
        device: of a model that is loaded here: "cpu", "cuda" or "mps"; None: the best there is.

    Returns:
        The table and the records.

    Raises:
        UserError: something is missing or cannot be read, before any question is asked; no server answers; or
            the records in ``out`` are of another protocol.
    """
    import torch
    from tqdm import tqdm

    from vera_lite.apps.inputs import check_out, read_picture
    from vera_lite.evaluation import judging
    from vera_lite.evaluation.judge_table import check_same, markdown
    from vera_lite.evaluation.judges import Case
    from vera_lite.media.clip import to_float
    from vera_lite.media.video import check_video, read_video

    chosen = _protocol(protocol)
    if server and model is None:
        raise UserError("--server needs --model: what the server calls the judge.")
    out = check_out(out, clips)
    work = []
    for entry in _read_clips(clips, chosen):
        reference = clips.parent / entry["reference"] if "reference" in entry else None
        if reference is not None:
            read_picture(reference, "reference")
        source = clips.parent / entry["source"]
        results = {method: _result(folder, entry["id"]) for method, folder in methods.items()}
        fps, *_ = (float(check_video(path).fps) for path in (source, *results.values()))
        facts = {k: entry[k] for k in ("id", "category", "instruction")} | {"fps": fps}
        work.append((facts, source, reference, results))
    judge = judging.ServerJudge(server, str(model)) if server else judging.LocalJudge(model, device or "auto")
    out.mkdir(parents=True, exist_ok=True)
    log = judging.Log(out / RECORDS)
    check_same(log.records, chosen)
    with tqdm(total=len(work) * len(methods), desc=chosen.name, unit="clip") as bar:
        for facts, path, picture, results in work:
            source, reference = to_float(read_video(path)[0]), None
            if picture is not None:
                reference = to_float(torch.from_numpy(read_picture(picture, "reference")))
            for method, result in results.items():
                edited = to_float(read_video(result)[0])
                case = Case(**facts, source=source, edited=edited, reference=reference)
                judging.judge_clip(case, method, chosen, judge, log)
                bar.update()
    text = markdown(log.records, chosen)
    with replacing(out / TABLE) as temporary:
        temporary.write_text(text, encoding="utf-8")
    print(text)
    return [out / TABLE, out / RECORDS]


def replay(folder: Path) -> bool:
    """Print the table of the records in a folder, made anew; whether it is the one that is kept there.

    Raises:
        UserError: there are no records, or they cannot share a table.
    """
    from vera_lite.evaluation.judge_table import markdown
    from vera_lite.evaluation.judging import read_records

    records = read_records(folder / RECORDS)
    if not records:
        raise UserError(f"{folder / RECORDS} is empty.")
    text = markdown(records, _protocol(records[0].protocol))
    print(text)
    kept = folder / TABLE
    return not kept.is_file() or kept.read_text(encoding="utf-8") == text


def protocols() -> "dict[str, Protocol]":
    """All protocols by name: those of the papers, and the toy world's."""
    from vera_lite.evaluation.judges import PROTOCOLS
    from vera_lite.evaluation.toy.vqa import TOY_VQA

    return PROTOCOLS | {TOY_VQA.name: TOY_VQA}


def _protocol(name: str) -> "Protocol":
    known = protocols()
    if name not in known:
        raise UserError(f"there is no protocol {name!r}; choose among {', '.join(known)}.")
    return known[name]


def _read_clips(path: Path, protocol: "Protocol") -> list[dict]:
    import json

    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is no JSON text in UTF-8: save it again.") from error
    needed = ("id", "category", "instruction", "source")
    if not isinstance(entries, list) or not entries:
        raise UserError(f"{path} must be a list of clips with {', '.join(needed)}.")
    for number, entry in enumerate(entries, 1):
        texts = [*needed, "reference"] if isinstance(entry, dict) and "reference" in entry else needed
        if not isinstance(entry, dict) or not all(isinstance(entry.get(k), str) and entry[k] for k in texts):
            raise UserError(f"clip {number} of {path} needs the texts {', '.join(texts)}.")
        protocol.check(entry["category"], entry["instruction"])
    ids = [entry["id"] for entry in entries]
    twice = next((i for i in ids if ids.count(i) > 1), None)
    if twice is not None:
        raise UserError(f"two clips of {path} are called {twice!r}; rename one.")
    return entries


def _result(folder: Path, clip: str) -> Path:
    places = [place for end in _ENDINGS for place in (folder / f"{clip}{end}", folder / clip / f"final{end}")]
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        raise UserError(f"{folder} holds no result of clip {clip!r}: it needs {places[0]} or {places[1]}.")
    return found
