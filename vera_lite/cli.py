"""The command line: `vera-lite edit | check | fit | validate | export`.

A mistake that the user can mend is one sentence on standard error and exit code 2.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from vera_lite.errors import UserError

TRAINING = ("fit", "validate")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        if arguments and arguments[0] in TRAINING:  # LightningCLI parses these itself
            from vera_lite.training.cli import train

            train(arguments)
            return 0
        return _run(_parser().parse_args(arguments))
    except UserError as error:
        return _fail(str(error))
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

    edit = commands.add_parser("edit", help="edit a video file as layers over the untouched source")
    edit.add_argument("video", type=Path, help="any video file")
    edit.add_argument("--prompt", required=True, help='e.g. "add a red ring at the top left moving right"')
    edit.add_argument(
        "--mask", type=Path, help="video or picture, white where the object goes, or on the subject to keep"
    )
    edit.add_argument("--out", type=Path, required=True, help="folder for the results, made if needed")
    edit.add_argument("--model", type=Path, help="pipeline folder; default: the toy Vera in the package")
    edit.add_argument("--seed", type=int, default=0, help="another seed is another edit (default 0)")
    edit.add_argument("--steps", type=int, default=12, help="denoising steps (default 12)")
    edit.add_argument("--guidance", type=float, default=1.0, help="follow the prompt harder (default 1: off)")
    edit.add_argument("--alpha-floor", type=float, help="alpha below this is 0: the source stays untouched")

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
        from vera_lite.check import check

        return check()
    if options.command == "export":
        print(f"wrote {_export(options)}")
        return 0

    from vera_lite.edit_file import edit_file
    from vera_lite.pipelines import VeraPipeline

    written = edit_file(
        VeraPipeline.from_pretrained(options.model),
        options.video,
        options.prompt,
        options.out,
        mask=options.mask,
        seed=options.seed,
        steps=options.steps,
        guidance=options.guidance,
        **({} if options.alpha_floor is None else {"alpha_floor": options.alpha_floor}),
    )
    print("\nLook at:")
    for path in written:
        print(f"  {path}")
    return 0


def _export(options: argparse.Namespace) -> Path:
    if options.file.suffix == ".ipynb":
        try:
            from vera_lite.widgets.export_notebook import export_notebook
        except ImportError as error:
            raise UserError(f"{error}: pages need `pip install 'vera-lite[notebooks]'`.") from error
        return export_notebook(options.file, options.out)
    from vera_lite.training.cli import export

    if options.out is None:
        raise UserError("give --out FOLDER for the pipeline.")
    export(options.file, options.out, half=not options.full)
    return options.out


if __name__ == "__main__":
    sys.exit(main())
