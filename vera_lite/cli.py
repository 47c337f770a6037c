"""The command line: `vera-lite edit | layers | composite | data | judge | claims | plan | fit | export ...`.

A user's mistake is one sentence on standard error and exit code 2. Nothing heavy is imported before the
arguments are parsed and their files are known to exist.
"""

# argparse, not jsonargparse: here an option can be required, and a mistake stays one sentence.
import argparse
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

from vera_lite.errors import RANGES, Notice, UserError, check_number

TRAINING = {"fit": "train a system", "validate": "measure a checkpoint's validation loss"}
#: Systems of `edit`: the pipeline, and the options that only some systems take.
SYSTEMS = {
    "vera": ("VeraPipeline", {"mask", "subject", "download", "guidance", "alpha_floor"}),
    "rvedit": ("RVEDiTPipeline", set()),
    "mive": ("MiVEPipeline", {"reference"}),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        if arguments and arguments[0] in TRAINING:  # LightningCLI parses these itself
            from vera_lite.apps.train import train

            train(arguments)
            return 0
        return _run(vars(_parser().parse_args(arguments)))
    except UserError as error:
        return _fail(str(error))
    except FloatingPointError as error:  # a training met NaN
        print(f"vera-lite: {error}", file=sys.stderr)
        return 1
    except OSError as error:  # no such file, no permission, no space left
        return _fail(" ".join(str(error).split()))
    except KeyboardInterrupt:
        print("vera-lite: interrupted.", file=sys.stderr)
        return 130
    except (MemoryError, RuntimeError) as error:
        out_of_memory = ("allocate memory", "out of memory")
        if isinstance(error, MemoryError) or any(text in str(error) for text in out_of_memory):
            return _fail("not enough memory: use a shorter or smaller video, or a smaller batch.")
        raise


def _fail(sentence: str) -> int:
    print(f"vera-lite: {sentence}", file=sys.stderr)
    return 2


def _path(text: str) -> Path:
    if not text.strip() or "\0" in text:
        raise argparse.ArgumentTypeError("the path is empty or holds a null character")
    return Path(text)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str):
        raise UserError(f"{message}; see `{self.prog} --help`.")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="vera-lite", description=(__doc__ or "").partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)

    edit = commands.add_parser("edit", help="edit a video file by a sentence")
    add = edit.add_argument
    add("video", type=_path, help="any video file")
    add("--prompt", required=True, help='e.g. "add a red ring at the top left moving right"')
    add(
        "--system",
        choices=tuple(SYSTEMS),
        default="vera",
        help="vera (default) lays an edit over the untouched source; rvedit and mive draw every frame anew, "
        'after a sentence such as "make the blue square green", and mive also after a --reference',
    )
    add("--reference", type=_path, help="mive: picture of the edited first frame")
    add(
        "--mask",
        type=_path,
        help="vera: video or picture, white where the object goes, which takes its shape, or on what to keep",
    )
    add(
        "--subject",
        help="vera, instead of --mask: what to keep: person, moving, moving:X,Y,W,H, X,Y,W,H or sam2:WORDS",
    )
    add("--guidance", type=float, help="vera: follow the prompt harder; 1 is off")
    add("--alpha-floor", type=float, help="vera: alpha below this is 0, and the source stays untouched")

    compose = commands.add_parser(
        "composite", help="put a foreground video into a background video on a path"
    )
    add = compose.add_argument
    add("background", type=_path, help="any video file")
    add(
        "foreground",
        help="a video with alpha; a video and --mask; a folder with edit.mkv and alpha.mkv, as `edit` makes; "
        'or a toy object such as "toy:spinning striped red square"',
    )
    add(
        "--path",
        required=True,
        help='where it goes: points "x,y x,y ..." in pixels of the background, a .json of the path editor, '
        "or a .txt of x,y lines; one point alone is followed through the background",
    )
    add("--scale", help="size, or several with commas over the clip (default 1: its own pixels)")
    add("--timing", help="of the path's segments: equal_frames (default) or constant_speed")
    add("--mask", type=_path, help="video or picture, white where the foreground's object is")
    add(
        "--paste-back",
        action="store_true",
        default=None,
        help="keep the background's own pixels outside the mask",
    )
    add("--mask-sigma", type=float, help="room around the object, in the model's pixels; 0 for none")

    layers = commands.add_parser(
        "layers", help="take a subject out of a video: layer, matte, and what is behind"
    )
    add = layers.add_argument
    add("video", type=_path, help="any video file")
    add(
        "--subject",
        default="person",
        help="person (default); moving; moving:X,Y,W,H, what moves in a box; X,Y,W,H, what is in a box in "
        "the first frame of a short clip; or, by SAM 2, sam2:X,Y,W,H, sam2:X,Y and sam2:WORDS",
    )
    add("--out", type=_path, required=True, help="folder for the results, made if needed")
    add("--width", type=int, help="pixels of the outline that may be soft, on either side")

    for command in (edit, layers):
        add = command.add_argument
        add("--download", action="store_true", default=None, help="fetch SAM 2 if the subject needs it")
    for command in (edit, compose):
        add = command.add_argument
        add("--out", type=_path, required=True, help="folder for the results, made if needed")
        add("--model", type=_path, help="pipeline folder; default: the toy model in the package")
        add("--seed", type=int, default=0, help="another seed is another result (default 0)")
        add("--steps", type=int, help="denoising steps (default: the model's own)")
        add("--device", default="auto", choices=("auto", "cpu", "cuda", "mps"), help="where the model runs")

    judge = commands.add_parser("judge", help="let a model judge edited videos, or rebuild a kept table")
    add = judge.add_argument
    add("clips", type=_path, nargs="?", help="JSON list of clips: id, category, instruction, source")
    add(
        "--method",
        action="append",
        metavar="NAME=FOLDER",
        help="a method and its results, ID.mkv or ID/final.mkv each; once per method",
    )
    add("--protocol", help="openve_official, openve_kiwi, rvedit, mive, mive_data, vera_vqa or toy_vqa")
    add("--server", help="URL of an OpenAI-compatible server, such as http://127.0.0.1:8000/v1")
    add("--model", help="what the server calls it, or a folder; default: the toy model in the package")
    add(
        "--device", choices=("auto", "cpu", "cuda", "mps"), help="where a folder's model runs (default: auto)"
    )
    add("--out", type=_path, help="folder for replies and table; replies that it holds are not asked again")
    add("--replay", type=_path, metavar="FOLDER", help="rebuild the table of kept replies, offline")

    _add_data(commands)
    commands.add_parser("check", help="say whether this machine has what vera-lite needs")
    claims = commands.add_parser("claims", help="what the four papers claim, and what holds")
    add = claims.add_argument
    add("claim", nargs="?", help="show this one in full (default: list all)")
    add("--paper", choices=("Vera", "GenCompositor", "RVEDiT", "MiVE"), help="only this paper's")
    verdicts = ("supported", "not supported", "undecided", "not testable here")
    add("--verdict", choices=verdicts, help="only these")
    add("--page", type=_path, help="write an HTML page of all, to be filtered in a browser")
    add("--check", action="store_true", help="hold each against its kept result; exit 1 if one has changed")
    add("--ledger", type=_path, dest="path", help="default: results/claims.yaml")
    for name, text in TRAINING.items():
        commands.add_parser(name, help=f"{text}; see `vera-lite {name} --help`", add_help=False)

    plan = commands.add_parser("plan", help="say what the training of a configuration needs: memory, days")
    add = plan.add_argument
    add("config", type=_path, help="of `vera-lite fit`")
    add("--gpus", type=int, help="all GPUs (default: those of the configuration)")
    add("--memory", type=float, default=141, help="of a GPU, in GB (default 141, an H200)")
    add("--device", default="H200", help="whose speed is assumed: A100, H100, H200 (default) or B200")
    add("--rate", type=float, help="price of a GPU per hour")
    add("--inference", action="store_true", help="plan the editing of one clip instead")

    encode = commands.add_parser(
        "encode", help="turn the clips of a table into latents and text features, once, for training"
    )
    add = encode.add_argument
    add("table", type=_path, help="JSON lines; `docs/full_scale.md` lists the columns")
    add("--out", type=_path, required=True, help="folder for the encoded clips")
    add("--system", required=True, choices=("vera", "gencompositor", "rvedit", "mive"))
    add("--config", type=_path, required=True, help="of `vera-lite fit`; its clip size is used")
    add("--vae", type=_path, required=True, help="folder of the VAE")
    add("--text", type=_path, help="folder with tokenizer and text_encoder (vera, gencompositor)")
    add("--device", default="auto", choices=("auto", "cpu", "cuda"))

    export = commands.add_parser(
        "export", help="turn a checkpoint into a pipeline folder, or a notebook into an offline page"
    )
    add = export.add_argument
    add("file", type=_path, help="checkpoint of a training, or .ipynb")
    add("--out", type=_path, help="folder; of a notebook, the HTML file (default: beside it)")
    add("--full", action="store_true", help="float32 instead of float16 weights")
    return parser


def _add_data(commands) -> None:
    """`data` and its own commands."""
    data = commands.add_parser("data", help="make layered training data from raw clips")
    actions = data.add_subparsers(dest="action", required=True)
    run = actions.add_parser("run", help="take clips through all stages; a run that was stopped goes on")
    run.add_argument("inputs", type=_path, nargs="*", help="videos, or folders of them; none: go on")
    run.add_argument("--out", type=_path, required=True, help="folder that holds the dataset")
    run.add_argument("--config", type=_path, help="stages as YAML (default: Vera's)")
    run.add_argument("--category", help='of the clips, where no clips.jsonl says it (default: "clip")')
    audit = actions.add_parser("audit", help="prove that nothing is lost; exit code 1 if something is")
    retry = actions.add_parser("retry", help="take quarantined samples up again")
    retry.add_argument("--reason", help="only those that were quarantined for this")
    export = actions.add_parser("export", help="write the finished samples for others")
    export.add_argument(
        "--layout", choices=("vera", "clips"), default="vera", help="MP4 as in Vera's, or lossless"
    )
    export.add_argument("--name", default="own", help='of the set (default "own")')
    for action in (audit, retry, export):
        action.add_argument("folder", type=_path, help="that holds the dataset")
    importing = actions.add_parser("import", help="read Vera's public dataset, or a part, and check it")
    importing.add_argument("folder", type=_path, help="its root, or a part of it")
    for action in (export, importing):
        action.add_argument("--out", type=_path, required=True, help="folder, made if needed")
    for action in (run, retry, importing):
        add = action.add_argument
        add("--executor", choices=("local", "ray"), default="local", help="processes here, or Ray")
        add("--workers", type=int, default=os.cpu_count() or 1, help="processes (default: one per core)")
        add("--address", help="of a Ray cluster to join; without it one is started here")
        add("--timeout", type=float, default=600.0, help="seconds for one stage of one clip (default 600)")


def _data(action: str, **options) -> int:
    if not 0 <= options.get("workers", 0) <= 1024 or not 0 < options.get("timeout", 1) <= 1e6:
        raise UserError("--workers lies in [0, 1024] and --timeout in (0, 1000000] seconds.")
    if options.get("address") and options["executor"] != "ray":
        raise UserError("--address needs --executor ray.")
    _check_files(**{"file or folder": options["folder"]} if "folder" in options else {})
    from vera_lite.apps import data

    commands = {"run": data.run, "audit": data.audit_store, "retry": data.retry}
    commands |= {"export": data.export, "import": data.import_vera}
    return commands[action](**options)


def _run(options: dict) -> int:
    command = options.pop("command")
    if command == "data":
        return _data(**options)
    if command == "check":
        from vera_lite.apps.check import check

        return check()
    if command == "plan":
        from vera_lite.apps.plan import plan

        print(plan(**options))
        return 0
    if command == "encode":
        _check_files(table=options["table"], configuration=options["config"])
        from vera_lite.apps.encode import encode_table

        print(encode_table(**options))
        return 0
    if command == "claims":
        from vera_lite.apps.claims import show_claims

        return show_claims(**{name: value for name, value in options.items() if value is not None})
    if command == "judge":
        return _judge(**options)
    if command == "export":
        print(f"wrote {_export(**options)}")
        return 0
    options = {name: value for name, value in options.items() if value is not None}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what libraries say to programmers
        warnings.simplefilter("always", Notice)
        warnings.showwarning = lambda message, *_: print(f"vera-lite: {message}", file=sys.stderr)
        written = {"composite": _composite, "edit": _edit, "layers": _layers}[command](**options)
    print("\nLook at:")
    for path in written:
        print(f"  {path}")
    return 0


def _judge(replay: Path | None, clips: Path | None, method: list[str] | None, **options) -> int:
    from vera_lite.apps import judge

    if replay is not None:
        if clips or method or any(options.values()):
            raise UserError("--replay takes a folder and nothing else.")
        if judge.replay(replay):
            return 0
        print(f"vera-lite: this is not the table that {replay} keeps.", file=sys.stderr)
        return 1
    if not (clips and method and options["protocol"] and options["out"]):
        raise UserError("give CLIPS, --method, --protocol and --out; or --replay FOLDER.")
    methods = {name: folder for name, _, folder in (text.partition("=") for text in method)}
    if len(methods) < len(method) or not all(name and folder for name, folder in methods.items()):
        raise UserError("--method is NAME=FOLDER, and each name comes once.")
    folders = {name: Path(folder) for name, folder in methods.items()}
    _check_files(clips=clips, **{f"folder of {name}": folder for name, folder in folders.items()})
    for path in judge.judge_files(clips, folders, **options):
        print(path)
    return 0


def _check_files(**paths: Path | None) -> None:
    for name, path in paths.items():
        if path is not None and not path.exists():
            raise UserError(f"there is no {name} {path}; check the path.")


def _sampling(options: dict, *more: str) -> dict:
    """Remove the sampling settings from all options, and return them."""
    changes = {name: options.pop(name) for name in ("steps", *more) if name in options}
    for name in RANGES.keys() & changes.keys():
        check_number(name, changes[name])
    return changes


def _edit(system: str, device: str, model: Path | None = None, **options) -> list[Path]:
    name, own = SYSTEMS[system]
    for option in set().union(*(others for _, others in SYSTEMS.values())) - own:
        if option in options:
            flag = option.replace("_", "-")
            raise UserError(f"--{flag} cannot be used with --system {system}: leave it out.")
    if system == "mive" and "reference" not in options:
        raise UserError("--system mive needs --reference: a picture of the edited first frame.")
    _check_files(model=model, **{name: options.get(name) for name in ("video", "mask", "reference")})
    changes = _sampling(options, "guidance", "alpha_floor")
    from vera_lite.apps.edit import Edit

    edit = Edit(**options)
    kinds = (system, "regeneration") if system == "vera" else (system,)
    return edit.run(_load(name, model, kinds, device), **changes)


def _layers(**options) -> list[Path]:
    _check_files(video=options["video"])
    from vera_lite.apps.layers import Layers

    return Layers(**options).run()


def _composite(
    device: str, model: Path | None = None, mask_sigma: float | None = None, **options
) -> list[Path]:
    _check_files(model=model, background=options["background"], mask=options.get("mask"))
    changes = _sampling(options, "paste_back")
    if mask_sigma is not None and not 0 <= mask_sigma < 1e4:
        raise UserError(f"--mask-sigma lies in [0, 10000), not {mask_sigma:g}.")
    from vera_lite.apps.composite import Composite

    composite = Composite(**options)
    pipe = _load("GenCompositorPipeline", model, ("gencompositor",), device)
    if mask_sigma is not None:
        pipe.mask_sigma = mask_sigma or None
    return composite.run(pipe, **changes)


def _load(pipeline: str, model: Path | None, systems: tuple[str, ...], device: str):
    """Load a model after a check of its files."""
    if model is not None:
        from vera_lite.apps.inputs import check_model

        check_model(model, systems)
    from vera_lite import pipelines

    place = pipelines.pick_device(device)
    return getattr(pipelines, pipeline).from_pretrained(model).to(place)


def _export(file: Path, out: Path | None, full: bool) -> Path:
    if out is not None and out.exists() and file.exists() and out.samefile(file):
        raise UserError(f"{file} is what is exported: give another --out.")
    if file.suffix == ".ipynb":
        try:
            from vera_lite.apps.export_notebook import export_notebook
        except ImportError as error:
            raise UserError(f"{error}: pages need `pip install 'vera-lite[notebooks]'`.") from error
        return export_notebook(file, out)
    from vera_lite.apps.train import export

    if out is None:
        raise UserError("give --out FOLDER for the pipeline.")
    export(file, out, half=not full)
    return out


if __name__ == "__main__":
    sys.exit(main())
