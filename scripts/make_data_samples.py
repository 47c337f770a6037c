"""Render the clips in data_samples/ and write their checksums: `python scripts/make_data_samples.py`.

`--check` renders into a temporary folder and compares instead.
"""

import argparse
import hashlib
import sys
import tempfile
from pathlib import Path

from PIL import Image

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
    return written


def checksums(paths: list[Path]) -> str:
    """Lines as `sha256sum -c` reads them."""
    return "".join(f"{hashlib.sha256(p.read_bytes()).hexdigest()}  {p.name}\n" for p in paths)


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
