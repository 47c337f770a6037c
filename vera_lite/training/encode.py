"""Clips -> latents, text features and VLM readings, once and before training.

A table (JSON lines) names the files of each clip. Each clip becomes one safetensors file, written whole or
not at all, named by a digest of everything that it depends on. So an interrupted run goes on where it
stopped, and any number of processes share the work: process r of n takes the clips whose digest is r modulo
n. The last one to finish writes ``index.json``; no process waits for another.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F
from tqdm.auto import tqdm

from vera_lite.codecs import Codec, CogVideoXCodec, WanCodec, latent_mask
from vera_lite.conditioning.multiscale import read
from vera_lite.conditioning.umt5 import Umt5Encoder
from vera_lite.conditioning.vision_language import VisionLanguageModel
from vera_lite.errors import UserError
from vera_lite.media.files import replacing
from vera_lite.media.video import VideoReader
from vera_lite.training.encoded import Clip

#: Columns of a table for each system: of the videos, and of the sentences. Vera's are those of its public
#: dataset (netflix/Vera-Layered-Video-Dataset). GenCompositor's foreground is centred on white already.
COLUMNS = {
    "vera": (
        ("input_video_path", "edit_rgb_path", "edit_alpha_path", "mask_path", "composite_path"),
        ("edit_instruction",),
    ),
    "gencompositor": (("background_path", "foreground_path", "mask_path", "composite_path"), ("caption",)),
    "rvedit": (("source_path", "target_path"), ("instruction", "target_caption")),
    "mive": (("source_path", "target_path"), ("instruction",)),
}
_GREY = ("edit_alpha_path", "mask_path")


@dataclass(frozen=True)
class Encoders:
    """What turns clips into numbers.

    Attributes:
        codec: of the videos.
        text: prompts -> features (B, T, width); for Vera and GenCompositor.
        vlm: whose readings MiVE gets.
        vlm_layers: which of its layers, see :func:`vera_lite.conditioning.multiscale.read`.
    """

    codec: Codec
    text: Callable[[list[str]], Tensor] | None = None
    vlm: VisionLanguageModel | None = None
    vlm_layers: tuple[int, ...] = (1, -1)


def encode(
    table: Path, out: Path, system: str, clip: Clip, encoders: Encoders, rank: int = 0, ranks: int = 1
) -> tuple[int, int]:
    """Encode this process's part of a table.

    Args:
        table: JSON lines with the columns of :data:`COLUMNS`, whose paths are relative to it; or for Vera a
            folder of layered clips.
        out: folder, made if needed.
        system: whose training the clips are for.
        clip: size that the videos are brought to: their first frames, resampled.
        encoders: models.
        rank, ranks: which part, of how many.

    Returns:
        How many clips ``out`` holds, and how many could not be read; their reasons stand in ``NAME.failed``.

    Raises:
        UserError: the table cannot be used.
    """
    rows = read_table(table, system)
    out.mkdir(parents=True, exist_ok=True)
    settings = {"system": system, "clip": asdict(clip), "codec": encoders.codec.settings}
    names = [digest(row, settings) for row in rows]
    mine = [(n, row) for n, row in zip(names, rows, strict=True) if int(n, 16) % ranks == rank]
    for name, row in tqdm(mine, desc="encoding", unit="clip", disable=rank > 0):
        path, failed = out / f"{name}.safetensors", out / f"{name}.failed"
        if path.is_file():
            continue
        try:
            tensors = encode_clip(row, table if table.is_dir() else table.parent, system, clip, encoders)
        except UserError as error:  # one bad file is no reason to lose the rest
            failed.write_text(f"{error}\n")
            continue
        failed.unlink(missing_ok=True)
        sentences = {column.removesuffix("_path"): str(row[column]) for column in COLUMNS[system][1]}
        with replacing(path) as temporary:
            save_file({n: t.contiguous() for n, t in tensors.items()}, temporary, metadata=sentences)
    done = [name for name in names if (out / f"{name}.safetensors").is_file()]
    failures = sum((out / f"{name}.failed").is_file() for name in names)
    if len(done) + failures == len(names):  # all processes are through
        if not done:
            raise UserError(f"no clip of {table} could be read; the reasons stand in {out}/*.failed.")
        with replacing(out / "index.json") as temporary:
            temporary.write_text(json.dumps(settings | {"clips": sorted(done)}, indent=1) + "\n")
    return len(done), failures


def read_table(table: Path, system: str) -> list[dict]:
    """The rows of a table, once all are known to have their columns.

    Raises:
        UserError: there is no such file, a line is no JSON, a column is missing, or it is empty.
    """
    if system not in COLUMNS:
        raise UserError(f"clips are encoded for {', '.join(COLUMNS)}, not for {system!r}.")
    videos, sentences = COLUMNS[system]
    if table.is_dir() and system == "vera":
        return _layered_clips(table)
    if not table.is_file():
        raise UserError(f"there is no table {table}; check the path.")
    rows = []
    for number, line in enumerate(table.read_text().splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            missing = [column for column in (*videos, *sentences) if column not in row]
        except (ValueError, TypeError) as error:
            raise UserError(f"{table}, line {number} is no JSON object.") from error
        if missing:
            raise UserError(f"{table}, line {number} has no {missing[0]}.")
        rows.append(row)
    if not rows:
        raise UserError(f"{table} holds no clip.")
    return rows


def _layered_clips(folder: Path) -> list[dict]:
    """The rows of all clips that :meth:`vera_lite.media.clip.LayeredClip.save` wrote below a folder."""
    names = dict(zip(COLUMNS["vera"][0], ("source", "edit", "alpha", "mask", "composite"), strict=True))
    rows = []
    for facts in sorted(folder.rglob("clip.json")):
        place = facts.parent.relative_to(folder)
        row = {column: str(place / f"{layer}.mkv") for column, layer in names.items()}
        rows.append(row | {"edit_instruction": json.loads(facts.read_text())["instruction"]})
    if not rows:
        raise UserError(f"{folder} holds no layered clip.")
    return rows


def digest(row: dict, settings: dict) -> str:
    """Name of a clip: a digest of its row and of how it is encoded."""
    text = json.dumps([row, settings], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@torch.no_grad()
def encode_clip(row: dict, folder: Path, system: str, clip: Clip, encoders: Encoders) -> dict[str, Tensor]:
    """The tensors of one clip, without a batch axis; latents in float16.

    Raises:
        UserError: a file cannot be read, or is shorter than a clip.
    """
    videos, sentences = COLUMNS[system]
    pixels = {}
    for column in videos:
        kind = "grey" if column in _GREY else "rgb"
        pixels[column.removesuffix("_path")] = read_clip(folder / row[column], clip, kind)
    codec = encoders.codec

    def latents(video: Tensor) -> Tensor:
        return codec.encode(video[None])[0].half()

    tensors: dict[str, Tensor] = {}
    if system == "vera":
        for name, column in zip(("source", "edit", "alpha", "mask", "composite"), pixels, strict=True):
            tensors[name] = latents(pixels[column])
    elif system == "gencompositor":
        background, mask = pixels["background"], pixels["mask"]
        tensors = {name: latents(pixels[name]) for name in ("background", "foreground", "composite")}
        tensors["masked_background"] = latents(background.masked_fill(mask > 0.5, 0))
        tensors["blank"] = latents(torch.ones_like(background))
        tensors["mask"] = latent_mask(codec, mask[None])[0].half()
    else:
        source, target = pixels["source"], pixels["target"]
        tensors = {"source": latents(source), "target": latents(target)}
        if system == "mive":
            tensors["reference"] = latents(target[:1])
            tensors |= _reading(encoders, source, str(row[sentences[0]]), target[0])
        else:
            for name, video in (("source_video", source), ("target_video", target)):
                tensors[name] = (_small(video, clip) * 255).round().to(torch.uint8)
    if system in ("vera", "gencompositor"):
        if encoders.text is None:
            raise ValueError("these clips need a text encoder.")
        features = encoders.text([str(row[sentences[0]])])[0]
        used = int(features.any(-1).nonzero().max()) + 1 if features.any() else 1
        tensors["text"] = features[:used].half()  # the rest is padding
    return tensors


def _reading(encoders: Encoders, source: Tensor, instruction: str, reference: Tensor) -> dict[str, Tensor]:
    if encoders.vlm is None:
        raise ValueError("these clips need a vision-language model.")
    layers, text, visual = read(encoders.vlm, [source], [instruction], [reference], encoders.vlm_layers)
    tensors = {f"reading.layer{i}": layer[0].half() for i, layer in enumerate(layers)}
    return tensors | {"reading.text": text[0], "reading.visual": visual[0]}


def _small(video: Tensor, clip: Clip) -> Tensor:
    """What a VLM sees: fewer frames, fewer pixels."""
    frames, height, width = clip.vlm_size
    chosen = torch.linspace(0, len(video) - 1, min(frames, len(video))).round().long()
    return F.interpolate(video[chosen], (height, width), mode="area")


def read_clip(path: Path, clip: Clip, kind: str = "rgb") -> Tensor:
    """The first frames of a video at the clip's size, (T, 3 or 1, H, W) in [0, 1].

    Raises:
        UserError: the file cannot be read, or is too short.
    """
    reader = VideoReader(path, kind)
    if len(reader) < clip.frames:
        raise UserError(f"{path} has {len(reader)} frames, fewer than the {clip.frames} of a clip.")
    size = clip.height, clip.width

    def frames() -> Iterator[Tensor]:
        for frame in islice(reader, clip.frames):
            shrunk = F.interpolate(frame[None].float(), size, mode="bicubic", antialias=True)[0]
            yield (shrunk / 255).clamp(0, 1)

    return torch.stack(list(frames()))


def this_process() -> tuple[int, int]:
    """Rank and number of processes under torchrun or SLURM; (0, 1) alone."""
    for rank, ranks in (("RANK", "WORLD_SIZE"), ("SLURM_PROCID", "SLURM_NTASKS")):
        if rank in os.environ and ranks in os.environ:
            return int(os.environ[rank]), int(os.environ[ranks])
    return 0, 1


def load_encoders(
    system: str, clip: Clip, vae: Path, text: Path | None, vlm: str | None, device: Any
) -> Encoders:
    """Load what a system's clips need; bfloat16 on a GPU.

    Raises:
        UserError: a folder is missing.
    """
    if not (vae / "config.json").is_file():
        raise UserError(f"{vae} has no config.json: give the folder of a VAE.")
    dtype = torch.float32 if str(device) == "cpu" else torch.bfloat16
    kind = CogVideoXCodec if clip.codec == "cogvideox" else WanCodec
    loaded = kind.from_pretrained(vae, torch_dtype=dtype, local_files_only=True).to(device)
    if system == "mive":
        model = VisionLanguageModel.from_pretrained(vlm, dtype=dtype)
        model.model.to(device).requires_grad_(False)
        return Encoders(loaded, vlm=model)
    if system == "rvedit":
        return Encoders(loaded)
    if text is None:
        raise UserError(f"--system {system} needs --text: the folder with tokenizer and text_encoder.")
    if system == "gencompositor":  # CogVideoX's T5; as Wan's, it is zero past a prompt's end here
        from transformers import AutoTokenizer, T5EncoderModel

        tokenizer = AutoTokenizer.from_pretrained(text / "tokenizer", local_files_only=True)
        t5 = T5EncoderModel.from_pretrained(
            text / "text_encoder", local_files_only=True, use_safetensors=True, dtype=dtype
        )
        return Encoders(loaded, text=Umt5Encoder(tokenizer, t5.to(device), clip.text_tokens))
    encoder = Umt5Encoder.from_pretrained(text, dtype=dtype)
    encoder.model.to(device)
    return Encoders(loaded, text=encoder)
