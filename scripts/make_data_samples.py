"""Render the clips in data_samples/ and write their checksums: `python scripts/make_data_samples.py`.

`--check` renders into a temporary folder and compares instead.
"""

import argparse
import hashlib
import json
import math
import sys
import tempfile
from pathlib import Path

import skimage.data
import torch
from PIL import Image
from torch.nn import functional as F
from vera_lite.toy.truth import truth_clip

from vera_lite.media.clip import to_uint8
from vera_lite.media.files import replacing
from vera_lite.media.video_writer import write_video
from vera_lite.toy.edits import EditConfig, render_edits
from vera_lite.toy.world import WorldConfig, render

FOLDER = Path(__file__).parents[1] / "data_samples"
WORLD = WorldConfig(frames=25, height=128, width=128, distractor=0.0)
SEED, FPS = 77, 8
CLIPS = {"clouds": 5, "coffee": 7, "triangle": 12}  # name -> index in the world
MASKS = ("triangle",)
SQUARE = 1014  # of the world of edits: "make the blue square green"
#: Clips for `vera-lite data run`, of ground truth by their numbers.
RAW = {"dog": 0, "cat": 5, "car": 1, "bird": 4}
RAW_SIZE, RAW_FRAMES, RAW_FPS = (136, 240), 25, 16


def write(folder: Path) -> list[Path]:
    """Write the sources, the subject's mask where there is one, and the first frame of an edit."""
    written = []
    for name, index in CLIPS.items():
        clip = render(SEED, [index], WORLD).clip(0)
        layers = {name: clip.source} | ({f"{name}_mask": clip.mask} if name in MASKS else {})
        for stem, layer in layers.items():
            path = folder / f"{stem}.mkv"
            write_video(path, to_uint8(layer), FPS, "lossless")
            written.append(path)
    size = EditConfig(WORLD.frames, WORLD.height, WORLD.width, categories=("local change",))
    square = render_edits(SEED, [SQUARE], size)
    written += [folder / "square.mkv", folder / "square_reference.png"]
    write_video(written[-2], to_uint8(square.source[0]), FPS, "lossless")
    Image.fromarray(to_uint8(square.target[0, 0]).permute(1, 2, 0).numpy()).save(written[-1])
    return written + write_raw(folder / "raw")


def write_raw(folder: Path) -> list[Path]:
    """Write raw clips, one of them cut short, and the list that says what they are."""
    folder.mkdir(exist_ok=True)
    written, rows = [], []
    for name, number in RAW.items():
        truth = truth_clip(number, RAW_FRAMES, RAW_SIZE)
        written.append(folder / f"{name}.mp4")
        write_video(written[-1], to_uint8(truth.composite), RAW_FPS, "preview")
        rows.append(
            {"file": written[-1].name, "category": "object_addition", "licence": "MIT, sprites OFL-1.1"}
        )
        rows[-1] |= {"source": "scripts/make_data_samples.py", "label": f"a {truth.attributes['noun']}"}
    written.append(folder / "astronaut.mp4")
    write_video(written[-1], astronaut(), RAW_FPS, "preview")
    rows.append({"file": "astronaut.mp4", "category": "background_change", "licence": "public domain"})
    rows[-1] |= {"source": "NASA, with scikit-image", "label": "the astronaut"}
    written.append(folder / "cut_short.mp4")
    whole = written[0].read_bytes()
    written[-1].write_bytes(whole[: len(whole) * 3 // 5])
    rows.append(rows[0] | {"file": "cut_short.mp4"})
    written.append(folder / "clips.jsonl")
    written[-1].write_text("".join(json.dumps(row) + "\n" for row in rows))
    return written


def astronaut() -> torch.Tensor:
    """A camera that moves over a photograph of Eileen Collins: uint8 (T, 3, H, W)."""
    picture = torch.from_numpy(skimage.data.astronaut().copy()).permute(2, 0, 1)[None].float()
    frames = []
    for t in range(RAW_FRAMES):
        x, y = 30 + t, round(2 + 2 * math.sin(t / 6))
        frames.append(F.interpolate(picture[..., y : y + 227, x : x + 400], RAW_SIZE, mode="area"))
    noise = torch.randn(RAW_FRAMES, 3, *RAW_SIZE, generator=torch.Generator().manual_seed(SEED))
    return (torch.cat(frames) + 1.2 * noise).round().clamp(0, 255).byte()


def checksums(paths: list[Path]) -> str:
    """Lines as `sha256sum -c` reads them."""
    folder = paths[0].parent
    return "".join(
        f"{hashlib.sha256(p.read_bytes()).hexdigest()}  {p.relative_to(folder).as_posix()}\n" for p in paths
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true")
    if not parser.parse_args().check:
        text = checksums(write(FOLDER))
        with replacing(FOLDER / "SHA256SUMS") as path:
            path.write_text(text)
        print(text, end="")
        return 0
    with tempfile.TemporaryDirectory() as folder:
        same = checksums(write(Path(folder))) == (FOLDER / "SHA256SUMS").read_text()
    print("same as committed" if same else "differs from the committed clips")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
