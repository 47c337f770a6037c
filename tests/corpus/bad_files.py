"""Bad inputs, made by code: files that are not what they should be, each with a path under one folder."""

import io
import json
import os
import shutil
import struct
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch
from av.video.reformatter import ColorPrimaries, ColorTrc
from PIL import Image
from safetensors.torch import load_file, save_file

from vera_lite.media.video_writer import write_video

ASSETS = Path(__file__).parents[2] / "vera_lite" / "assets"
SAMPLES = Path(__file__).parents[2] / "data_samples"


def frames(count: int, channels: int = 3, height: int = 32, width: int = 48) -> torch.Tensor:
    generator = torch.Generator().manual_seed(count)
    return torch.randint(0, 256, (count, channels, height, width), generator=generator, dtype=torch.uint8)


def encode(path: Path, times, rate=30, codec="libx264", prepare=lambda stream: None, **options) -> Path:
    """Frames at the given times (in frames of ``rate``), written with FFmpeg directly."""
    with av.open(str(path), "w", **options) as container:
        stream = container.add_stream(codec, rate=rate)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        prepare(stream)
        for time, frame in zip(times, frames(len(times)), strict=True):
            picture = av.VideoFrame.from_ndarray(frame.permute(1, 2, 0).numpy().copy(), "rgb24")
            picture.pts, picture.time_base = time, Fraction(1, rate)
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
    return path


def coded(**colour) -> Callable:
    def prepare(stream):
        for name, value in colour.items():
            setattr(stream.codec_context, name, value)

    return prepare


def jpegs(path: Path, sizes) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mjpeg", rate=10)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuvj420p"
        for time, size in enumerate(sizes):
            file = io.BytesIO()
            Image.new("RGB", size).save(file, "jpeg")
            packet = av.Packet(file.getvalue())
            packet.stream, packet.time_base = stream, Fraction(1, 10)
            packet.pts = packet.dts = time
            packet.is_keyframe = True
            container.mux(packet)
    return path


def make_files(folder: Path) -> None:
    """All files that the cases name."""
    (folder / "empty.mp4").write_bytes(b"")
    (folder / "noise.mp4").write_bytes(frames(4).numpy().tobytes())
    (folder / "text.mp4").write_text("not a video\n" * 50)
    shutil.copy(SAMPLES / "clouds.mkv", folder / "clouds.mkv")
    (folder / "cut.mkv").write_bytes((SAMPLES / "clouds.mkv").read_bytes()[:100_000])
    whole = encode(folder / "whole.mp4", range(40), container_options={"movflags": "faststart"})
    (folder / "cut.mp4").write_bytes(whole.read_bytes()[:-2000])
    encode(folder / "uneven.mp4", [0, 1, 2, 3, 7, 8, 9, 10, 11, 12])
    encode(folder / "pq.mp4", range(5), prepare=coded(color_trc=ColorTrc.SMPTE2084))
    encode(folder / "hlg.mp4", range(5), prepare=coded(color_trc=18, color_primaries=ColorPrimaries.BT2020))
    encode(folder / "ycgco.mp4", range(5), prepare=coded(colorspace=8))
    encode(folder / "mirrored.mp4", range(3), prepare=lambda s: s.set_display_rotation(0, hflip=True))
    encode(folder / "no_times.h264", range(5))
    encode(folder / "fast.mp4", range(20), rate=480)
    jpegs(folder / "sizes.mkv", [(48, 32)] * 5 + [(64, 32)] * 3)
    with av.open(str(folder / "no_frames.avi"), "w") as container:
        stream = container.add_stream("mpeg4", rate=30)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        container.start_encoding()
    with av.open(str(folder / "song.m4a"), "w", format="mp4") as container:
        audio = container.add_stream("aac", rate=8000, layout="mono")
        tone = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.float32), "fltp", "mono")
        tone.rate = 8000
        container.mux(audio.encode(tone))
        container.mux(audio.encode(None))
    write_video(folder / "plain.mkv", frames(9), 8, "lossless")
    write_video(folder / "short_mask.mkv", frames(3, 1, 128, 128), 8, "lossless")
    write_video(folder / "small_mask.mkv", frames(25, 1), 8, "lossless")
    make_pictures(folder)
    make_paths(folder)
    make_models(folder)
    for name in ("empty_folder", "with_source", "linked", "hard"):
        (folder / name).mkdir()
    (folder / "with_source" / "deep").mkdir()
    for name in ("final.mp4", "edit.mkv", "deep/clip.mkv", "mask.png", "path.json"):
        shutil.copy(SAMPLES / "clouds.mkv", folder / "with_source" / name)
    Image.new("L", (128, 128), 255).save(folder / "with_source" / "mask.png")
    shutil.copy(folder / "good.json", folder / "with_source" / "path.json")
    (folder / "linked" / "final.mkv").symlink_to(folder / "clouds.mkv")
    (folder / "into").symlink_to(folder / "with_source" / "final.mp4")
    os.link(folder / "whole.mp4", folder / "hard" / "final.mp4")
    (folder / "loop").symlink_to(folder / "loop")
    (folder / "unfinished" / ".unfinished").mkdir(parents=True)
    shutil.copy(SAMPLES / "clouds.mkv", folder / "unfinished" / ".unfinished" / "final.mkv")
    (folder / "a_file").write_text("mine")
    torch.save([], folder / "list.ckpt")
    torch.save({"state_dict": {}}, folder / "foreign.ckpt")
    torch.save({"vera_lite": {"system": "vera"}, "state_dict": {}}, folder / "half.ckpt")
    (folder / "garbage.ckpt").write_bytes(b"\x80\x02" + bytes(100))
    (folder / "garbage.ipynb").write_text("{")


def make_pictures(folder: Path) -> None:
    good = Image.new("L", (128, 128), 255)
    good.save(folder / "good.png")
    (folder / "text.png").write_text("hello")
    (folder / "empty.png").write_bytes(b"")
    noise = Image.fromarray(frames(1, 3, 128, 128)[0].permute(1, 2, 0).numpy())
    noise.save(folder / "noise.png")
    (folder / "cut.png").write_bytes((folder / "noise.png").read_bytes()[:9000])
    file = io.BytesIO()
    Image.new("L", (1, 1)).save(file, "png")
    bomb = bytearray(file.getvalue())
    bomb[16:24] = struct.pack(">II", 30000, 30000)
    import zlib

    bomb[29:33] = struct.pack(">I", zlib.crc32(bytes(bomb[12:29])))
    (folder / "bomb.png").write_bytes(bytes(bomb))
    two = [Image.new("RGB", (128, 128), colour) for colour in ("red", "blue")]
    for name in ("moving.webp", "moving.gif", "pages.tiff"):
        two[0].save(folder / name, save_all=True, append_images=two[1:])
    Image.fromarray(np.ones((128, 128), np.float32)).save(folder / "float.tiff")
    Image.new("L", (4, 4), 255).save(folder / "small.png")
    Image.new("L", (128, 128), 0).save(folder / "black.png")
    Image.new("RGBA", (128, 128), (255, 255, 255, 0)).save(folder / "clear.png")


def make_paths(folder: Path) -> None:
    good = {"version": 1, "keyframes": [{"x": 3, "y": 3}, {"x": 60, "y": 60}], "size": [128, 128]}
    texts = {
        "good": json.dumps(good),
        "empty": "",
        "list": "[]",
        "braces": "{}",
        "nan": json.dumps(good | {"keyframes": [{"x": float("nan"), "y": 3}]}),
        "digits": '{"version": 1, "size": [128, 128], "keyframes": [{"x": 1' + "0" * 400 + ', "y": 3}]}',
        "deep": "[" * 100_000,
        "version": json.dumps(good | {"version": 2}),
        "frame": json.dumps(good | {"size": [32, 32], "keyframes": [{"x": 3, "y": 3}]}),
        "scaled": json.dumps(good | {"scales": [0.5]}),
        "none": json.dumps(good | {"keyframes": []}),
        "backwards": json.dumps(good | {"keyframes": [{"x": 1, "y": 1, "time": t} for t in (0.9, 0.1)]}),
    }
    for name, text in texts.items():
        (folder / f"{name}.json").write_text(text)
    (folder / "bad.txt").write_text("1,2\nx,y\n")
    (folder / "binary.txt").write_bytes(b"\xff\xfe\x00")


def make_models(folder: Path) -> None:
    """Copies of shipped models, each broken in one way."""
    for name in ("vera", "gencompositor", "mive"):
        source = ASSETS / f"{name}_toy"
        saved = json.loads((source / "pipeline.json").read_text())
        (folder / f"{name}_model").mkdir()
        for file in ("pipeline.json", "system.safetensors", "codec.safetensors"):
            shutil.copy(source / file, folder / f"{name}_model" / file)
        if name == "mive":
            continue
        for change, value in SETTINGS[name].items():
            text = json.dumps(value(saved) if callable(value) else saved | value)
            change_model(folder, name, change, {"pipeline.json": text.encode()})
    raw = (ASSETS / "vera_toy" / "pipeline.json").read_text()
    codec = ASSETS / "vera_toy" / "codec.safetensors"
    tensors = load_file(ASSETS / "vera_toy" / "system.safetensors")
    first = next(name for name, value in tensors.items() if value.ndim == 2)
    weights = {
        "missing": {n: v for n, v in tensors.items() if n != first},
        "extra": tensors | {"more": torch.ones(1)},
        "shape": tensors | {first: tensors[first][:, 1:].clone()},
        "nan": tensors | {first: tensors[first] * float("nan")},
        "inf": tensors | {first: tensors[first] + float("inf")},
    }
    for name, changed in weights.items():
        save_file(changed, folder / "changed")
        change_model(folder, "vera", name, {"system.safetensors": (folder / "changed").read_bytes()})
    save_file(load_file(codec), folder / "changed")
    bare = (folder / "changed").read_bytes()
    save_file(load_file(codec) | {"first_mean": torch.zeros(3)}, folder / "changed", {"patch": "4"})
    half = (folder / "changed").read_bytes()
    (folder / "changed").unlink()
    whole = (ASSETS / "vera_toy" / "system.safetensors").read_bytes()
    for name, files in {
        "truncated": {"system.safetensors": whole[: len(whole) // 2]},
        "garbage": {"system.safetensors": b"\xff" * 1000},
        "no_bytes": {"system.safetensors": b""},
        "no_weights": {"system.safetensors": None},
        "no_codec": {"codec.safetensors": None},
        "codec_garbage": {"codec.safetensors": b"codec"},
        "codec_bare": {"codec.safetensors": bare},
        "codec_shape": {"codec.safetensors": half},
        "list": {"pipeline.json": b"[]"},
        "utf16": {"pipeline.json": raw.encode("utf-16")},
        "no_json": {"pipeline.json": raw[:-20].encode()},
    }.items():
        change_model(folder, "vera", name, files)


def _config(**changes) -> Callable[[dict], dict]:
    return lambda saved: saved | {"config": saved["config"] | changes}


def _backbone(**changes) -> Callable[[dict], dict]:
    return lambda saved: _config(backbone=saved["config"]["backbone"] | changes)(saved)


def _sampling(**changes) -> Callable[[dict], dict]:
    return lambda saved: saved | {"sampling": saved["sampling"] | changes}


SETTINGS = {
    "vera": {
        "unknown": {"system": "other"},
        "nothing": {"system": None},
        "config_none": {"config": None},
        "config_empty": {"config": {}},
        "config_more": _config(surprise=1),
        "layers": _backbone(num_layers=1),
        "heads": _backbone(num_attention_heads=0),
        "head_text": _backbone(attention_head_dim="x"),
        "objective": _config(objective={"prediction": "what"}),
        "size_text": {"clip_size": "x"},
        "size_zero": {"clip_size": [0, 32, 32]},
        "size_two": {"clip_size": [9, 32]},
        "size_odd": {"clip_size": [9, 33, 32]},
        "size_frames": {"clip_size": [8, 32, 32]},
        "size_float": {"clip_size": [9.0, 32, 32]},
        "sampling_none": {"sampling": {}},
        "sampling_text": _sampling(steps="many"),
        "sampling_nan": _sampling(shift=float("nan")),
        "sampling_more": _sampling(surprise=1),
        "setting_more": {"surprise": 1},
        "words_none": {"text_encoder": None},
        "words_few": lambda saved: saved | {"text_encoder": saved["text_encoder"] | {"phrases": ["add"]}},
        "words_more": lambda saved: saved | {"text_encoder": saved["text_encoder"] | {"more": 1}},
    },
    "gencompositor": {
        "sigma_text": {"mask_sigma": "x"},
        "sigma_minus": {"mask_sigma": -1},
        "sigma_nan": {"mask_sigma": float("nan")},
    },
}


def change_model(folder: Path, name: str, change: str, files: dict[str, bytes | None]) -> None:
    """A model of which some files are others, or none; the rest is linked."""
    good, bad = folder / f"{name}_model", folder / f"{name}_{change}"
    bad.mkdir()
    for file in good.iterdir():
        if file.name not in files:
            os.link(file, bad / file.name)
        elif files[file.name] is not None:
            (bad / file.name).write_bytes(files[file.name])
