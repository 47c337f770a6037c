"""`vera-lite data run | audit | retry | export | import`: layered training data from raw clips."""

from __future__ import annotations

import importlib
import json
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from statistics import median
from typing import Any

import yaml
from tqdm.auto import tqdm

from vera_lite.dataset.audit import Ledger, audit, finished
from vera_lite.dataset.run import Source, add_sources, new_run, recorded_stages
from vera_lite.dataset.run import run as run_stages
from vera_lite.dataset.stage import LAYERS, Choice, Sample, Stage, digest
from vera_lite.dataset.store import VIDEOS, Store, Writer
from vera_lite.errors import UserError

CONFIGS = Path(__file__).parents[1] / "configs"
_LIST = "clips.jsonl"


def run(
    inputs: Sequence[Path],
    out: Path,
    config: Path | None = None,
    category: str | None = None,
    **options: Any,
) -> int:
    """Take clips through the stages of a configuration; returns the exit code.

    Args:
        inputs: videos, or folders of videos. A ``clips.jsonl`` in a folder says more of each: an object per
            line with ``file``, ``category``, ``licence``, ``source`` and whatever else is to be carried on.
            None: continue what the store holds.
        out: the store, made if needed.
        config: YAML with ``stages``; None: the one of the store's last run, or of a new one Vera's.
        category: of the clips that no list describes.
        options: of :func:`vera_lite.dataset.run.run`.

    Raises:
        UserError: an input or the configuration cannot be used.
    """
    sources = [source for path in inputs for source in read_sources(path, category or "clip")]
    store = Store(out)
    if not sources and not store.input_rows:
        raise UserError("give at least one video or folder of videos.")
    configuration = _configuration(config, store)
    stages = build_stages(configuration)
    add_sources(store, sources)
    ledger = run_stages(store, stages, configuration=configuration, **options)
    sheet = contact_sheet(store, stages)
    code = report(ledger)
    print(f"\nLook at:\n  {sheet}\n  {store.folder / 'manifest.jsonl'}")
    return code


def audit_store(folder: Path) -> int:
    """Print the ledger of a store; returns 1 if anything is lost, else 0."""
    store = _existing(folder)
    return report(audit(store, recorded_stages(store)[0], progress=True))


def retry(folder: Path, reason: str | None = None, **options: Any) -> int:
    """Take quarantined samples up again, with the configuration of the last run; returns the exit code."""
    store = _existing(folder)
    recorded, configuration = recorded_stages(store)
    rows = [row for row in audit(store, recorded, files=False).quarantined if reason in (None, row["reason"])]
    if not rows:
        print("Nothing is quarantined" + (f" as {reason}." if reason else "."))
        return 0
    if configuration is None:
        raise UserError("this store was not made from a configuration: run its stages from Python again.")
    stages = build_stages(configuration)
    with store.lock(), closing(Writer(store, new_run())) as writer:
        for row in rows:
            writer.retry(row)
        store.forget_deaths(row["task"] for row in rows)
    ledger = run_stages(store, stages, configuration=configuration, **options)
    contact_sheet(store, stages)
    return report(ledger)


def export(folder: Path, out: Path, layout: str = "vera", name: str = "own") -> int:
    """Write the finished samples of a store for others.

    Args:
        folder: the store.
        out: where to; in layout "vera" the root of a dataset like ``netflix/Vera-Layered-Video-Dataset``
            (MP4, lossy), in layout "clips" of one lossless :class:`vera_lite.media.clip.LayeredClip` each.
        layout: "vera" or "clips".
        name: of the set, in layout "vera".
    """
    from vera_lite.dataset.layers import layer_files
    from vera_lite.dataset.vera_layout import write_vera

    samples = layer_files(_existing(folder).folder)
    if layout == "clips":
        for sample in tqdm(samples, "exporting", unit="clip"):
            _save_clip(sample, out / sample.key[:16])
    else:
        steps = write_vera(samples, out, name)
        for _ in tqdm(steps, "exporting", total=len(samples), unit="clip"):
            pass
        print("MP4 is lossy: `vera-lite data import` of it says what is left of alpha and recomposition.")
    print(f"wrote {len(samples)} samples to {out}")
    return 0


def _save_clip(sample, folder: Path) -> None:
    from vera_lite.media.clip import LayeredClip, to_float
    from vera_lite.media.video import read_grey, read_video

    pairs = {name: read_video(sample.files[name]) for name in ("source", "edit", "composite")}
    layers = {name: to_float(video) for name, (video, _) in pairs.items()}
    layers |= {name: to_float(read_grey(sample.files[name])) for name in ("alpha", "mask")}
    attributes = sample.facts | {"key": sample.key, "category": sample.category}
    fps = float(pairs["source"][1].fps)
    LayeredClip(**layers, instruction=sample.instruction, fps=fps, attributes=attributes).save(folder)


def import_vera(folder: Path, out: Path, **options: Any) -> int:
    """Copy a dataset in Vera's layout, or a part of it, into a store, and check every sample's layers."""
    from vera_lite.dataset.layers import CheckLayers
    from vera_lite.dataset.vera_layout import read_vera, whole_files

    found = read_vera(folder)
    if not found.rows:
        count = len(found.tests)
        raise UserError(f"{folder} holds no training rows to import, but {count} test rows.")
    store = Store(out)
    there, wanted = found.count()
    print(f"{there:,} of {wanted:,} files are there; the whole training set has {whole_files():,}.")
    for sentence in found.missing if found.is_published else ():
        print(f"missing: {sentence}")
    known = {row["given"] for row in store.input_rows}
    with store.lock(), closing(Writer(store, new_run())) as writer:
        for row in tqdm(found.rows, "importing", unit="row"):
            if row.key not in known and "absent" not in row.facts:
                files = {layer: writer.copy(path) for layer, path in row.files.items()}
                facts = row.facts | {"instruction": row.instruction}
                writer.add(Sample(digest(files), row.category, files, facts), row.key)
    stages = [CheckLayers()]
    configuration = {"stages": [{"class_path": "vera_lite.dataset.layers.CheckLayers"}]}
    code = report(run_stages(store, stages, configuration=configuration, **options))
    measured = [sample.facts for sample in finished(store, stages)]
    if measured:
        psnr = [facts["recomposition_psnr"] for facts in measured]
        floor = max(facts["alpha_floor"] for facts in measured)
        print(f"Recomposition: median {median(psnr):.1f} dB, worst {min(psnr):.1f} dB.")
        print(f"Far from every object alpha still reaches {floor:.3f}: take less than that for 0.")
    return code


def report(ledger: Ledger) -> int:
    """Print a ledger; returns 1 if it has problems, else 0."""
    print(ledger.table())
    for row in ledger.quarantined[:20]:
        name = ledger.names.get(row["key"], row["key"][:12])
        print(f"quarantined by {row['stage']}: {name}: {row['error']}")
    if len(ledger.quarantined) > 20:
        print(f"... and {len(ledger.quarantined) - 20} more")
    if ledger.quarantined:
        print("Once the cause is mended, `vera-lite data retry STORE` takes them up again.")
    for note in ledger.notes:
        print(f"note: {note}.")
    for problem in ledger.problems:
        print(f"PROBLEM: {problem}.")
    if ledger.pending:
        print(f"{ledger.pending} samples are pending: `vera-lite data run --out STORE` continues.")
    if not ledger.problems:
        print("The ledger adds up: inputs = kept + rejected + quarantined + pending, and no file is lost.")
    return 1 if ledger.problems else 0


# --- what is read -----------------------------------------------------------------------------------------


def _existing(folder: Path) -> Store:
    if not (folder / "journal").is_dir():
        raise UserError(f"{folder} holds no dataset; `vera-lite data run` makes one.")
    return Store(folder)


def read_sources(path: Path, category: str = "clip") -> list[Source]:
    """The clips of a file or a folder; ``category`` where no ``clips.jsonl`` says one.

    Raises:
        UserError: there is none.
    """
    if path.is_file():
        return [Source(path, path.name, category)]
    if not path.is_dir():
        raise UserError(f"there is no file or folder {path}; check the path.")
    if (path / _LIST).is_file():
        return _listed(path / _LIST, category)
    videos = sorted(file for file in path.rglob("*") if file.suffix.lower() in VIDEOS and file.is_file())
    if not videos:
        raise UserError(f"{path} holds no video ({', '.join(sorted(VIDEOS))}).")
    return [Source(video, video.relative_to(path).as_posix(), category) for video in videos]


def _listed(path: Path, category: str) -> list[Source]:
    sources = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            facts = json.loads(line)
            file = path.parent / facts.pop("file")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f'{path}, line {number}, is no JSON object with a "file".') from error
        if not file.is_file():
            raise UserError(f"{path}, line {number}: there is no file {file}.")
        own = str(facts.pop("category", category))
        sources.append(Source(file, file.relative_to(path.parent).as_posix(), own, facts))
    return sources


def _configuration(path: Path | None, store: Store) -> dict:
    if path is None and (store.folder / "pipeline.json").is_file():
        saved = recorded_stages(store)[1]
        if saved is not None:
            return saved
    path = path or CONFIGS / "dataset_vera.yaml"
    if not path.is_file():
        raise UserError(f"there is no configuration {path}; check the path.")
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is no YAML: {' '.join(str(error).split())}") from error


def build_stages(configuration: Any) -> list[Stage | Choice]:
    """The stages that a configuration lists by ``class_path`` and ``init_args``.

    Raises:
        UserError: a class is not there or is no stage, or its arguments do not fit.
    """
    try:
        rows = [(row["class_path"], row.get("init_args") or {}) for row in configuration["stages"]]
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError("the configuration needs a list `stages`, each with a `class_path`.") from error
    stages = []
    for name, arguments in rows:
        module, _, of = str(name).rpartition(".")
        try:
            kind = getattr(importlib.import_module(module), of)
        except (ImportError, AttributeError, ValueError) as error:
            if getattr(error, "name", None) in ("cv2", "pymatting", "scenedetect"):
                raise UserError(f"{error.name} is missing: pip install 'vera-lite[dataset]'.") from error
            raise UserError(f"there is no stage {name}: {error}") from error
        # A class of another kind is not even called: a configuration may come from someone else.
        methods = {method for base in getattr(kind, "__mro__", ()) for method in vars(base)}
        if not isinstance(kind, type) or not {"__call__", "choose"} & methods:
            raise UserError(f"{name} is no stage of a dataset.")
        try:
            stages.append(kind(**arguments))
        except (TypeError, ValueError) as error:
            raise UserError(f"{name} cannot be made: {error}") from error
    if not stages:
        raise UserError("the configuration lists no stage.")
    return stages


# --- the contact sheet ------------------------------------------------------------------------------------


def contact_sheet(store: Store, stages: Sequence, most: int = 40) -> Path:
    """Write ``sheet.png``: the middle frames of up to ``most`` finished samples, which nobody has picked.

    They are the first by their keys, which are hashes. Where an edit is transparent it shows a checkerboard.
    """
    import torch
    from PIL import Image, ImageDraw, ImageFont

    from vera_lite.media.clip import composite, to_float, to_uint8
    from vera_lite.media.files import replacing
    from vera_lite.media.video import VideoReader

    samples = sorted(finished(store, stages), key=lambda sample: sample.key)
    width, font = 190, ImageFont.load_default(13)
    strips = []
    for sample in samples[:most]:
        frames = {}
        for name, file in sample.files.items():
            if Path(file).suffix in VIDEOS and (name in LAYERS or name == "clip"):
                reader = VideoReader(store.path(file))
                middle = next(f for t, f in enumerate(reader.decode()) if t == len(reader) // 2)
                frames[name] = to_float(reader.to_tensor(middle))
        if "edit" in frames and "alpha" in frames:
            height, square = frames["edit"].shape[-2], max(1, frames["edit"].shape[-1] // 16)
            y, x = torch.arange(height)[:, None] // square, torch.arange(frames["edit"].shape[-1]) // square
            board = 0.6 + 0.25 * ((y + x) % 2)
            frames["edit"] = composite(frames["edit"], frames["alpha"][:1], board.expand(3, -1, -1))
        shown = {name: frames[name] for name in LAYERS if name in frames} or frames
        height = max(round(width * f.shape[-2] / f.shape[-1]) for f in shown.values())
        strip = Image.new("RGB", (len(LAYERS) * (width + 4), height + 36), "white")
        draw = ImageDraw.Draw(strip)
        text = sample.facts.get("instruction", sample.category)
        licence = sample.facts.get("licence", "licence unknown")
        draw.text((2, 2), f"{sample.key[:8]}  {text}"[:105] + f"  ({licence})", "black", font)
        for i, (name, frame) in enumerate(shown.items()):
            picture = Image.fromarray(to_uint8(frame).permute(1, 2, 0).numpy())
            strip.paste(picture.resize((width, height)), (i * (width + 4), 19))
            draw.rectangle((i * (width + 4), 19, i * (width + 4) + width - 1, 18 + height), outline="#999999")
            draw.text((i * (width + 4) + 2, height + 20), name, "#555555", font)
        strips.append(strip)
    columns = 2 if len(strips) > 6 else 1
    rows = [strips[i : i + columns] for i in range(0, len(strips), columns)]
    heights = [max(strip.height for strip in row) + 10 for row in rows]
    wide = len(LAYERS) * (width + 4)
    sheet = Image.new("RGB", (columns * (wide + 16), sum(heights) + 30), "white")
    title = f"{len(strips)} of {len(samples)} finished samples, not picked by hand; their middle frames"
    ImageDraw.Draw(sheet).text((8, 6), title, "black", ImageFont.load_default(15))
    top = 30
    for row, height in zip(rows, heights, strict=True):
        for i, strip in enumerate(row):
            sheet.paste(strip, (8 + i * (wide + 16), top))
        top += height
    with replacing(store.folder / "sheet.png") as path:
        sheet.save(path, format="png")
    return store.folder / "sheet.png"
