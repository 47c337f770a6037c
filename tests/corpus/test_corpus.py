"""Every bad input is refused: exit code 2, one sentence that names the thing and the remedy, nothing lost."""

import re
from pathlib import Path

import pytest
from corpus.bad_files import SETTINGS, make_files

from vera_lite.cli import main

PROMPT = "add a red ring at the top left moving right"
CHANGE = "make the blue square green"
LONG = "square " * 10_000


def edit(video="{}/clouds.mkv", *more, prompt=PROMPT, out="{}/out") -> list[str]:
    return ["edit", video, "--prompt", prompt, "--out", out, "--steps", "1", *more]


def put(*more, background="{}/clouds.mkv", foreground="toy:red circle", path="64,64 20,20", out="{}/out"):
    return ["composite", background, foreground, "--path", path, "--out", out, "--steps", "1", *more]


def mive(*more, reference="{}/good.png", **options) -> list[str]:
    return edit("{}/clouds.mkv", "--system", "mive", "--reference", reference, *more, **options)


def words(text: str) -> list[str]:
    return text.split()


def rvedit(prompt: str) -> list[str]:
    return edit("{}/clouds.mkv", "--system", "rvedit", prompt=prompt)


# Arguments, in which {} is the folder of the files, and what the sentence must name.
CASES: dict[str, tuple[list[str], str]] = {
    "no command": ([], "command"),
    "unknown command": (["paint"], "paint"),
    "unknown option": (edit("{}/clouds.mkv", "--colour", "red"), "--colour"),
    "no prompt": (["edit", "{}/clouds.mkv", "--out", "{}/out"], "--prompt"),
    "no out": (["edit", "{}/clouds.mkv", "--prompt", PROMPT], "--out"),
    "unknown system": (edit("{}/clouds.mkv", "--system", "gan"), "gan"),
    "no such device": (edit("{}/clouds.mkv", "--device", "mps"), "mps"),
    "mask for rvedit": (edit("{}/clouds.mkv", "--system", "rvedit", "--mask", "{}/good.png"), "--mask"),
    "guidance for mive": (mive("--guidance", "2"), "--guidance"),
    "mive without reference": (edit("{}/clouds.mkv", "--system", "mive"), "--reference"),
    "null in a path": (edit("a\0b"), "null"),
    # videos
    **{
        f"video {name}": (edit("{}/" + name), name)
        for name in words(
            "none.mp4 empty.mp4 noise.mp4 text.mp4 good.png song.m4a cut.mkv cut.mp4 uneven.mp4 "
            "pq.mp4 hlg.mp4 ycgco.mp4 mirrored.mp4 no_times.h264 fast.mp4 sizes.mkv no_frames.avi "
            "empty_folder loop"
        )
    },
    "video of no name": (edit(""), "path is empty"),
    # words
    "empty prompt": (edit(prompt=""), "prompt is empty"),
    "blank prompt": (edit(prompt=" \n\t"), "prompt is empty"),
    "unknown word": (edit(prompt="add a red dragon"), "'dragon'"),
    "no known word": (edit(prompt="the the"), "the the"),
    "Cyrillic": (edit(prompt="добавь кольцо"), "добавь"),
    "too many things": (edit(prompt="red " * 11), "11"),
    "long prompt": (edit(prompt=LONG), "70,000 characters"),
    "rvedit, empty": (rvedit(""), "prompt is empty"),
    "rvedit, Cyrillic": (rvedit("сделай квадрат"), "сделай"),
    "rvedit, emoji": (rvedit("make it 🟩"), "🟩"),
    "rvedit, unknown": (rvedit("make the dragon green"), "'dragon'"),
    "rvedit, a mark": (rvedit("make <|video_pad|> green"), "<|video_pad|>"),
    "rvedit, long": (rvedit(LONG), "70,000 characters"),
    "rvedit, rather long": (rvedit("green " * 300), "300 tokens"),
    "mive, empty": (mive(prompt="  "), "prompt is empty"),
    "mive, Cyrillic": (mive(prompt="квадрат"), "квадрат"),
    "mive, a mark": (mive(prompt="make it <|im_end|>"), "<|im_end|>"),
    "mive, padding": (mive(prompt="green<|endoftext|>"), "<|endoftext|>"),
    # numbers
    **{
        f"--{name} {value}": (edit("{}/clouds.mkv", f"--{name}={value}"), name.split("-")[0])
        for name, values in {
            "seed": "-1 9223372036854775808 18446744073709551616 x 1.5",
            "steps": "0 -3 1001 nan 1e9 x",
            "guidance": "nan inf -inf 1e30 -1 x",
            "alpha-floor": "nan 1 1.5 -0.1 x",
        }.items()
        for value in values.split()
    },
    **{f"sigma {v}": (put(f"--mask-sigma={v}"), "mask-sigma") for v in ["nan", "inf", "-1", "1e9", "x"]},
    "sigma beyond the width": (put("--mask-sigma=40"), "sigma"),
    **{
        f"scale {v}": (put(f"--scale={v}"), "scale")
        for v in ["0", "-1", "nan", "inf", "1e-9", "1e30", "x", "0.4,,2", "1e400"]
    },
    "no scale": (put("--scale="), "scale"),
    # masks and references
    **{
        f"mask {name}": (edit("{}/clouds.mkv", "--mask", "{}/" + name), "mask" if "mask" in name else name)
        for name in words(
            "none.png text.png empty.png cut.png bomb.png moving.webp moving.gif pages.tiff "
            "float.tiff black.png clear.png empty_folder short_mask.mkv small_mask.mkv uneven.mp4"
        )
    },
    "mask of another size": (edit("{}/clouds.mkv", "--mask", "{}/small.png"), "4x4"),
    **{
        f"reference {name}": (mive(reference="{}/" + name), name)
        for name in words("none.png text.png empty.png cut.png bomb.png moving.webp clouds.mkv empty_folder")
    },
    # where the results go
    "out is empty": (edit(out=""), "out"),
    "out is blank": (edit(out="  "), "out"),
    "out is a file": (edit(out="{}/a_file"), "a_file"),
    "out under a file": (edit(out="{}/a_file/out"), "a_file"),
    "out too long": (edit(out="{}/" + "x" * 300), "--out"),
    "out is a loop": (edit(out="{}/loop/out"), "--out"),
    "source is in out": (edit("{}/with_source/final.mp4", out="{}/with_source"), "final.mp4"),
    "source has another name": (edit("{}/with_source/edit.mkv", out="{}/with_source/"), "edit.mkv"),
    "source is deep in out": (edit("{}/with_source/deep/clip.mkv", out="{}/with_source"), "clip.mkv"),
    "source is linked into out": (edit("{}/into", out="{}/with_source"), "into"),
    "out has a link to the source": (edit("{}/clouds.mkv", out="{}/linked"), "clouds.mkv"),
    "out has a hard link to the source": (edit("{}/whole.mp4", out="{}/hard"), "whole.mp4"),
    "source is what is left of a run": (
        edit("{}/unfinished/.unfinished/final.mkv", out="{}/unfinished"),
        "final.mkv",
    ),
    "mask is in out": (
        edit("{}/clouds.mkv", "--mask", "{}/with_source/mask.png", out="{}/with_source"),
        "mask.png",
    ),
    "reference is in out": (mive(reference="{}/with_source/mask.png", out="{}/with_source"), "mask.png"),
    "foreground is out": (put(foreground="{}/with_source", out="{}/with_source"), "with_source"),
    "foreground is in out": (put(foreground="{}/with_source/edit.mkv", out="{}/with_source"), "edit.mkv"),
    "path is in out": (put(path="{}/with_source/path.json", out="{}/with_source"), "path.json"),
    # models
    **{
        f"model {name}": (edit("{}/clouds.mkv", "--model", "{}/vera_" + name), f"vera_{name}")
        for name in words(
            "none missing extra shape nan inf truncated garbage no_bytes no_weights no_codec "
            "codec_garbage codec_bare codec_shape list utf16 no_json"
        )
        + list(SETTINGS["vera"])
        if not name.startswith(("config", "heads", "head_text", "objective"))
    },
    **{
        f"model {name}": (edit("{}/clouds.mkv", "--model", "{}/vera_" + name), "config")
        for name in ["config_none", "config_empty", "config_more", "head_text", "objective"]
    },
    "model of no heads": (edit("{}/clouds.mkv", "--model", "{}/vera_heads"), "num_attention_heads"),
    **{
        f"model {name}": (put("--model", "{}/gencompositor_" + name), f"gencompositor_{name}")
        for name in SETTINGS["gencompositor"]
    },
    "model of another system": (edit("{}/clouds.mkv", "--model", "{}/mive_model"), "mive_model"),
    "model is no folder": (edit("{}/clouds.mkv", "--model", "{}/a_file"), "a_file"),
    "model is an empty folder": (put("--model", "{}/empty_folder"), "empty_folder"),
    # compositions
    "no background": (put(background="{}/none.mkv"), "none.mkv"),
    "no foreground": (put(foreground="{}/none.mkv"), "none.mkv"),
    "foreground has no alpha": (put(foreground="{}/plain.mkv"), "plain.mkv"),
    "foreground folder is empty": (put(foreground="{}/empty_folder"), "edit.mkv"),
    "foreground's mask is short": (put("--mask", "{}/short_mask.mkv", foreground="{}/plain.mkv"), "mask"),
    "toy dragon": (put(foreground="toy:red dragon"), "'dragon'"),
    "toy nothing": (put(foreground="toy:"), "toy"),
    "toy with a mask": (put("--mask", "{}/good.png"), "--mask"),
    "timing": (put("--timing", "later"), "later"),
    **{
        f"path {name}": (put(path="{}/" + name), name)
        for name in words(
            "empty.json list.json braces.json nan.json digits.json deep.json version.json "
            "none.json backwards.json bad.txt binary.txt missing.json missing.txt"
        )
    },
    "path in another frame": (put(path="{}/frame.json"), "32x32"),
    "path with scales": (put("--scale", "1", path="{}/scaled.json"), "--scale"),
    **{
        f"path {text!r}": (put(path=text), "path")
        for text in ("somewhere", "1,2,3", "1", "nan,1 2,2", "1e400,1")
    },
    "no path": (put(path=""), "keyframe"),
    # export
    **{
        f"export {name}": (["export", "{}/" + name, "--out", "{}/out"], name)
        for name in words("none.ckpt list.ckpt foreign.ckpt half.ckpt garbage.ckpt clouds.mkv garbage.ipynb")
    },
    "export nowhere": (["export", "{}/foreign.ckpt"], "--out"),
    "export onto itself": (["export", "{}/garbage.ipynb", "--out", "{}/garbage.ipynb"], "garbage.ipynb"),
}
REMEDY = re.compile(
    r"give|use |check|copy|export|save|draw|make|convert|leave|say |paint|scale|must|at most|lies in|see `"
    r"|known|Known|agree|needs|lies above|does not fit|put them"
    r"|with: |choose|it has|put it|write it|wants|holds no|no such|shorter"
)


def state(folder: Path) -> dict[str, tuple]:
    """All that lies in a folder, and when it was last written."""
    found = {}
    for path in sorted(folder.rglob("*")):
        facts = path.lstat()
        found[str(path.relative_to(folder))] = facts.st_ino, facts.st_size, facts.st_mtime_ns
    return found


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> tuple[Path, dict[str, tuple]]:
    folder = tmp_path_factory.mktemp("corpus")
    make_files(folder)
    return folder, state(folder)


def test_the_corpus_is_large(capsys):
    with capsys.disabled():
        print(f"\n{len(CASES)} bad inputs")
    assert len(CASES) >= 80


@pytest.mark.parametrize("name", CASES)
def test_a_bad_input_is_refused_in_one_sentence(files, capsys, name):
    folder, before = files
    arguments, thing = CASES[name]
    assert main([argument.replace("{}", str(folder)) for argument in arguments]) == 2
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("vera-lite: ")]
    assert len(said) == 1, said
    assert thing in said[0] and REMEDY.search(said[0]) and "Traceback" not in said[0], said
    assert state(folder) == before
