"""The command line: `vera-lite edit | composite | check | fit | validate | export`.

A mistake that the user can mend is one sentence on standard error and exit code 2.
"""

import argparse
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

from vera_lite.errors import UserError

TRAINING = ("fit", "validate")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        if arguments and arguments[0] in TRAINING:  # LightningCLI parses these itself
            from vera_lite.apps.train import train

            train(arguments)
            return 0
        return _run(_parser().parse_args(arguments))
    except UserError as error:
        return _fail(str(error))
    except FloatingPointError as error:  # a training met NaN
        print(f"vera-lite: {error}", file=sys.stderr)
        return 1
    except OSError as error:  # no such file, no permission, no space left
        return _fail(" ".join(str(error).split()))
    except KeyboardInterrupt:
        print("vera-lite: interrupted; finished files were kept.", file=sys.stderr)
        return 130
    except (MemoryError, RuntimeError) as error:
        out_of_memory = ("allocate memory", "out of memory")
        if isinstance(error, MemoryError) or any(text in str(error) for text in out_of_memory):
            return _fail("not enough memory: use a shorter or smaller video, or a smaller batch.")
        raise


def _fail(sentence: str) -> int:
    print(f"vera-lite: {sentence}", file=sys.stderr)
    return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="vera-lite", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)

    edit = commands.add_parser("edit", help="edit a video file by a sentence")
    edit.add_argument("video", type=Path, help="any video file")
    edit.add_argument(
        "--prompt",
        required=True,
        help='e.g. "add a red ring at the top left moving right"; of others, "make the blue square green"',
    )
    edit.add_argument(
        "--system",
        choices=("vera", "rvedit", "mive"),
        default="vera",
        help="vera (default) lays an edit over the untouched source; rvedit and mive draw every frame anew, "
        "mive after a --reference; --mask, --guidance and --alpha-floor are vera's",
    )
    edit.add_argument("--reference", type=Path, help="of mive: picture of the first frame as it is to look")
    edit.add_argument(
        "--mask", type=Path, help="video or picture, white where the object goes, or on the subject to keep"
    )
    edit.add_argument("--guidance", type=float, help="follow the prompt harder (default 1: off)")
    edit.add_argument("--alpha-floor", type=float, help="alpha below this is 0: the source stays untouched")

    compose = commands.add_parser(
        "composite", help="put a foreground video into a background video on a path"
    )
    compose.add_argument("background", type=Path, help="any video file")
    compose.add_argument(
        "foreground",
        help="a video with alpha; a video and --mask; a folder with edit.mkv and alpha.mkv, as `edit` makes; "
        'or a toy object such as "toy:spinning striped red square"',
    )
    compose.add_argument(
        "--path",
        required=True,
        help='where it goes: points "x,y x,y ..." in pixels of the background, a .json of the path editor, '
        "or a .txt of x,y lines; one point alone is followed through the background",
    )
    compose.add_argument(
        "--scale", help="size, or several with commas over the clip (default 1: its own pixels)"
    )
    compose.add_argument("--timing", help="of the path's segments: equal_frames (default) or constant_speed")
    compose.add_argument("--mask", type=Path, help="video or picture, white where the foreground's object is")
    compose.add_argument(
        "--paste-back", action="store_true", help="keep the background's own pixels outside the mask"
    )
    compose.add_argument(
        "--mask-sigma", type=float, help="room around the object, in the model's pixels; 0 for none"
    )

    for command, model in ((edit, "system"), (compose, "GenCompositor")):
        command.add_argument("--out", type=Path, required=True, help="folder for the results, made if needed")
        command.add_argument(
            "--model", type=Path, help=f"pipeline folder; default: the package's toy {model}"
        )
        command.add_argument("--seed", type=int, default=0, help="another seed is another result (default 0)")
        command.add_argument("--steps", type=int, default=12, help="denoising steps (default 12)")

    commands.add_parser("check", help="say whether this machine has what vera-lite needs")
    for name, text in zip(
        TRAINING, ("train a system", "measure a checkpoint's validation loss"), strict=True
    ):
        commands.add_parser(name, help=f"{text}; see `vera-lite {name} --help`", add_help=False)

    export = commands.add_parser(
        "export",
        help="turn a checkpoint into a pipeline folder, or a notebook into an offline page",
    )
    export.add_argument("file", type=Path, help="checkpoint of a training, or .ipynb")
    export.add_argument("--out", type=Path, help="folder; of a notebook, the HTML file (default: beside it)")
    export.add_argument("--full", action="store_true", help="float32 instead of float16 weights")
    return parser


def _run(options: argparse.Namespace) -> int:
    if options.command == "check":
        from vera_lite.apps.check import check

        return check()
    if options.command == "export":
        print(f"wrote {_export(options)}")
        return 0

    written = _composite(options) if options.command == "composite" else _edit(options)
    print("\nLook at:")
    for path in written:
        print(f"  {path}")
    return 0


def _edit(options: argparse.Namespace) -> list[Path]:
    from vera_lite.apps.edit import edit_file, redraw_file
    from vera_lite.pipelines import MiVEPipeline, RVEDiTPipeline, VeraPipeline

    names = ("reference", "mask", "guidance", "alpha_floor")
    given = {name: value for name in names if (value := getattr(options, name)) is not None}
    if options.system != "mive" and "reference" in given:
        raise UserError(f"--reference cannot be used with --system {options.system}: only mive looks at one.")
    foreign = ["--" + name.replace("_", "-") for name in given if name != "reference"]
    if options.system != "vera" and foreign:
        raise UserError(
            f"{', '.join(foreign)} cannot be used with --system {options.system}, which has no layers and no "
            "guidance."
        )
    if options.system == "mive" and "reference" not in given:
        raise UserError("--system mive needs --reference: a picture of the first frame as it is to look.")
    pipeline, edit = {
        "vera": (VeraPipeline, edit_file),
        "rvedit": (RVEDiTPipeline, redraw_file),
        "mive": (MiVEPipeline, redraw_file),
    }[options.system]
    return edit(
        pipeline.from_pretrained(options.model),
        options.video,
        options.prompt,
        options.out,
        seed=options.seed,
        steps=options.steps,
        **given,
    )


def _composite(options: argparse.Namespace) -> list[Path]:
    from vera_lite.apps.composite import composite_file
    from vera_lite.pipelines import GenCompositorPipeline

    pipe = GenCompositorPipeline.from_pretrained(options.model)
    if options.mask_sigma is not None:
        pipe.mask_sigma = options.mask_sigma or None
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_: print(f"vera-lite: {message}", file=sys.stderr)
        return composite_file(
            pipe,
            options.background,
            options.foreground,
            options.out,
            path=options.path,
            scale=options.scale,
            timing=options.timing,
            mask=options.mask,
            seed=options.seed,
            paste_back=options.paste_back,
            steps=options.steps,
        )


def _export(options: argparse.Namespace) -> Path:
    if options.file.suffix == ".ipynb":
        try:
            from vera_lite.apps.export_notebook import export_notebook
        except ImportError as error:
            raise UserError(f"{error}: pages need `pip install 'vera-lite[notebooks]'`.") from error
        return export_notebook(options.file, options.out)
    from vera_lite.apps.train import export

    if options.out is None:
        raise UserError("give --out FOLDER for the pipeline.")
    export(options.file, options.out, half=not options.full)
    return options.out


if __name__ == "__main__":
    sys.exit(main())
