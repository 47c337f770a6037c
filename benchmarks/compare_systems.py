"""The four systems on one task, side by side: add an object, and leave the rest as it was.

    python benchmarks/compare_systems.py --report                   print the committed table
    python benchmarks/compare_systems.py --run                      measure it anew (about 5 minutes)
    python benchmarks/compare_systems.py --run --clips C --masks M  also on real clips with masks of a subject
    python benchmarks/compare_systems.py --picture                  draw docs/layers_or_regeneration.png anew
    python benchmarks/compare_systems.py --videos OUT               write what the systems made, for a judge

Each system is given what it is made for: all get the source; Vera, RVEDiT and MiVE the sentence, Vera also a
mask, MiVE the edited first frame, GenCompositor the object's video and its path. GenCompositor learned to
cast shadows, which the true edit has not: here they count as damage. Trivial answers stand in the same table,
because each of them is perfect by one measure. On real clips the object is drawn at the clip's own size, and
the systems see the clip as they see any video: shrunk to theirs, their layers enlarged.
"""

import argparse
import json
import resource
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import torch
from _harness import report_head, write_json
from torch import Tensor
from torch.nn import functional as F

from vera_lite.diagnostics.flops import counted_flops
from vera_lite.evaluation.metrics import erode, exclusivity
from vera_lite.evaluation.statistics import bootstrap
from vera_lite.evaluation.toy.edit_judge import judge_edits
from vera_lite.evaluation.toy.tally import TEST_SEED
from vera_lite.media.clip import to_uint8
from vera_lite.media.files import replacing
from vera_lite.media.masked_clips import read_masked_clips
from vera_lite.media.placement import object_extent
from vera_lite.media.trajectory import Keyframe, Trajectory
from vera_lite.media.video_writer import write_video
from vera_lite.pipelines import (
    GenCompositorPipeline,
    MiVEPipeline,
    Pipeline,
    RVEDiTPipeline,
    VeraPipeline,
    frame_choice,
)
from vera_lite.toy.drawing import ClipConfig, Draws, draw_sprite, name_sprite, put
from vera_lite.toy.edits import EditConfig, ToyEdits, told
from vera_lite.toy.words import MOTIONS, PLACES

ROOT = Path(__file__).parents[1]
REPORT = Path(__file__).parent / "results" / "compare_systems.json"
PICTURE = ROOT / "docs" / "layers_or_regeneration.png"
SIZE = 9, 32, 32  # of the shipped models
CLIPS = 48
#: The unseen clips; for the world of things on places put SceneEditConfig here, when the models know it.
WORLD = EditConfig(*SIZE, ("local add",))
#: Real clips are shown at this size.
REAL = 9, 270, 480

Draw = Callable[[ToyEdits, int], Tensor]


# --- what is compared ----------------------------------------------------------------------------


def matte(edits: ToyEdits, i: int) -> Tensor:
    """Where the object covers more than half of a pixel: its soft edge is two pixels wide."""
    return erode(edits.changed[i] > 0, 1).float()


def vera(pipe: VeraPipeline, mask: bool = True, layer: str = "final") -> Draw:
    def draw(edits: ToyEdits, i: int) -> Tensor:
        given = (matte(edits, i),) if mask else ()
        return getattr(pipe(edits.source[i], edits.instruction[i], *given, seed=i), layer)

    return draw


def rvedit(pipe: RVEDiTPipeline) -> Draw:
    return lambda edits, i: pipe(edits.source[i], edits.instruction[i], seed=i).final


def mive(pipe: MiVEPipeline) -> Draw:
    return lambda edits, i: pipe(edits.source[i], edits.instruction[i], edits.target[i, 0], seed=i).final


def gencompositor(pipe: GenCompositorPipeline, paste_back: bool = False) -> Draw:
    def draw(edits: ToyEdits, i: int) -> Tensor:
        target, alpha = edits.target[i], matte(edits, i)
        centres, _ = object_extent(alpha)
        path = Trajectory(tuple(Keyframe(x, y) for x, y in centres.tolist()), tuple(target.shape[-2:]))
        return pipe(edits.source[i], target, alpha, path, seed=i, paste_back=paste_back).final

    return draw


def shrunk(edits: ToyEdits, i: int) -> Tensor:
    """The truth at the models' size and enlarged again: all that a model that redraws frames can show."""
    frames, *size = SIZE
    target = edits.target[i]
    small = F.interpolate(target[frame_choice(len(target), frames)], size=size, mode="area")
    return F.interpolate(small, size=target.shape[-2:], mode="bilinear", align_corners=False)


def coded(pipe: Pipeline) -> Draw:
    def draw(edits: ToyEdits, i: int) -> Tensor:
        video = shrunk(edits, i)
        small = F.interpolate(video, size=SIZE[1:], mode="area")
        decoded = pipe.codec.decode(pipe.codec.encode(small[None]))[0]
        return F.interpolate(decoded, size=video.shape[-2:], mode="bilinear", align_corners=False)

    return draw


def rows(model: str) -> dict[str, Draw]:
    """The rows of the table that one model makes; those of "trivial" ask none but Vera's codec."""
    if model == "trivial":
        pipe = VeraPipeline.from_pretrained()
        return {
            "the source, untouched": lambda edits, i: edits.source[i],
            "the edited first frame, held": lambda edits, i: edits.target[i, :1].expand_as(edits.target[i]),
            "the truth": lambda edits, i: edits.target[i],
            "the truth, at 32 x 32 and through the codec": coded(pipe),
        }
    if model == "vera":
        pipe = VeraPipeline.from_pretrained()
        return {
            "Vera, with a mask: layer over the source": vera(pipe),
            "Vera, no mask: layer over the source": vera(pipe, mask=False),
            "Vera, with a mask: its own whole frame": vera(pipe, layer="composite"),
        }
    if model == "gencompositor":
        pipe = GenCompositorPipeline.from_pretrained()
        return {
            "GenCompositor: its whole frame": gencompositor(pipe),
            "GenCompositor: pasted back by the mask": gencompositor(pipe, paste_back=True),
        }
    if model == "rvedit":
        return {"RVEDiT: its whole frame": rvedit(RVEDiTPipeline.from_pretrained())}
    return {"MiVE: its whole frame": mive(MiVEPipeline.from_pretrained())}


MODELS = ("trivial", "vera", "gencompositor", "rvedit", "mive")
#: Rows in which the source's own pixels can survive.
LAYERED = ("layer over the source", "pasted back")


# --- clips ---------------------------------------------------------------------------------------


@dataclass
class RealClip:
    """A real clip with an object drawn on it, and the mask (T, 1, H, W) of its own subject."""

    name: str
    edits: ToyEdits
    subject: Tensor


def real_clips(clips: Path, masks: Path) -> Iterator[RealClip]:
    """Each clip four times, with four objects at four places."""
    frames, *size = REAL
    for name, video, subject, _ in read_masked_clips(clips, masks, frames, size):
        yield RealClip(name, draw_on(video, range(4)), subject > 0.5)


def draw_on(video: Tensor, indices) -> ToyEdits:
    """Objects of the toy world on one real video (T, 3, H, W), at its size."""
    config, draws = ClipConfig(*video[:, 0].shape), Draws(TEST_SEED, indices)
    place, motion = draws.choice(len(PLACES)), draws.choice(len(MOTIONS))
    sprite = draw_sprite(draws, config, place, motion)
    source = video.expand(len(indices), *video.shape)
    target, _ = put(sprite, torch.ones(len(indices), dtype=torch.bool), source, config)
    facts = {"category": "local add", "before": None, "other": None, "style": None}
    # The background is a photograph, which no instruction names.
    facts["background"] = {"colour": "grey", "pattern": "photograph"}
    attributes = [facts | {"after": thing} for thing in name_sprite(sprite, place, motion)]
    return told(source, target, attributes, torch.zeros(len(indices), dtype=torch.bool))


# --- measures ------------------------------------------------------------------------------------


def at_model_size(edits: ToyEdits, results: Tensor) -> tuple[ToyEdits, Tensor]:
    """What the judge sees: everything at the models' size."""
    if edits.source.shape[1:] == (SIZE[0], 3, *SIZE[1:]):
        return edits, results
    small = [
        F.interpolate(v.flatten(0, 1), size=SIZE[1:], mode="area").unflatten(0, v.shape[:2])
        for v in (edits.source, edits.target, results)
    ]
    return told(*small[:2], edits.attributes, torch.zeros(len(edits), dtype=torch.bool)), small[2]


def score(edits: ToyEdits, results: Tensor, subject: Tensor | None = None) -> dict[str, list[float]]:
    """Numbers by clip. Squared errors are of kept pixels against the source, and of changed ones against the
    truth."""
    found = defaultdict(list)
    for i, result in enumerate(results):
        source, kept = edits.source[i], edits.changed[i] == 0
        where = kept.expand_as(source)
        found["kept_error"].append(float((result - source)[where].double().square().mean()))
        same = to_uint8(result.clone()) == to_uint8(source.clone())
        found["kept_exactly"].append(float(same[where].float().mean()))
        found["edit_error"].append(float((result - edits.target[i])[~where].double().square().mean()))
        share = exclusivity(result, source, ~kept)
        found["exclusivity"].append(share if share == share else 0.0)  # nothing changed: nothing was edited
        if subject is not None:
            where = (subject & kept).expand_as(source)
            found["subject_error"].append(float((result - source)[where].double().square().mean()))
    judged = judge_edits(*at_model_size(edits, results))
    return found | {name: values.tolist() for name, values in judged.items()}


def measure(model: str, clips: Path | None, masks: Path | None) -> dict[str, dict]:
    """All rows of one model, in a process of its own."""
    torch.set_num_threads(1)
    edits = WORLD.render(TEST_SEED, range(CLIPS))
    found, draws = {}, rows(model)
    for row, draw in draws.items():
        draw(edits, 0)  # warm-up
        start = time.process_time()
        results = torch.stack([draw(edits, i) for i in range(CLIPS)])
        seconds = (time.process_time() - start) / CLIPS
        gflop = counted_flops(lambda draw=draw: draw(edits, 0)) / 1e9
        found[row] = {"seconds": seconds, "gflop": gflop, "toy": score(edits, results), "real": {}}
    unit = 2**20 if sys.platform == "darwin" else 2**10
    peak = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit)
    for row, draw in draws.items():
        found[row]["peak_mib"] = peak  # of toy clips; all rows of a model share it
        for clip in real_clips(clips, masks) if clips and masks else ():
            results = torch.stack([draw(clip.edits, i) for i in range(len(clip.edits))])
            found[row]["real"][clip.name] = score(clip.edits, results, clip.subject)
    return found


# --- report --------------------------------------------------------------------------------------


def decibels(error: float) -> float | None:
    """PSNR of a mean squared error; None for an exact copy, which JSON has no number for."""
    return None if error == 0 else -10 * torch.tensor(error).double().log10().item()


def summary(numbers: dict[str, list[float]]) -> dict:
    """Value, low and high of each measure; PSNRs pool the error over clips, as do the ends."""
    found = {}
    for name, values in numbers.items():
        interval = bootstrap(torch.tensor(values))
        ends = interval.mean.item(), interval.low.item(), interval.high.item()
        shown = name.replace("_error", "_psnr")
        if shown != name:
            mean, low, high = (decibels(v) for v in ends)
            ends = mean, high, low
        found[shown] = [None if v is None else round(v, 4) for v in ends]
    return found


def run(clips: Path | None, masks: Path | None) -> dict:
    """Measure every model, one process each, and write the report."""
    found = {}
    for model in MODELS:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            found |= pool.submit(measure, model, clips, masks).result()
        print(f"{model} is measured", flush=True)
    ours = found["Vera, with a mask: layer over the source"]
    table = {}
    for row, numbers in found.items():
        real = numbers.pop("real")
        difference = torch.tensor(numbers["toy"]["instruction_compliance"])
        difference = difference - torch.tensor(ours["toy"]["instruction_compliance"])
        paired = bootstrap(difference)
        table[row] = {
            "seconds_a_clip": round(numbers["seconds"], 4),
            "times_vera": round(numbers["seconds"] / ours["seconds"], 3),
            "gflop_a_clip": round(numbers["gflop"], 3),
            "peak_mib": numbers["peak_mib"],
            "toy": summary(numbers["toy"]),
            "compliance_minus_vera": [round(v.item(), 4) for v in (paired.mean, paired.low, paired.high)],
            "real": {name: summary(scores) for name, scores in real.items()},
        }
    head = report_head("compare_systems", "torch", "diffusers", "transformers")
    settings = {"world_seed": TEST_SEED, "clips": CLIPS, "size": SIZE, "real_size": REAL}
    return head | settings | {"rows": table}


#: Heading, measure, digits.
COLUMNS = (
    ("kept, dB", "kept_psnr", 1),
    ("kept exactly", "kept_exactly", 3),
    ("change inside", "exclusivity", 2),
    ("edit, dB", "edit_psnr", 1),
    ("instruction", "instruction_compliance", 0),
    ("quality", "visual_quality", 0),
)


def cell(values: list, digits: int, exact: str = "exact") -> str:
    value, low, high = (exact if v is None else f"{v:.{digits}f}" for v in values)
    return value if value == low == high else f"{value} [{low}, {high}]"


def table(report: dict) -> str:
    """The committed numbers; intervals are 95 % over clips."""
    size = "x".join(map(str, report["size"]))
    heads = "".join(f"{heading:>22}" for heading, *_ in COLUMNS)
    lines = [
        f"{report['clips']} unseen clips of {size}: add one object. Kept: pixels that the true edit does not",
        "change, against the source; edit: the others, against the truth. Instruction and quality: plain",
        "vision, 1 to 100. Brackets: 95 % over clips. Seconds are of one CPU thread, MiB of the process.",
        "",
        f"{'':46}{heads}{'s':>8}{'x Vera':>8}{'GFLOP':>8}{'MiB':>7}",
    ]
    for row, found in report["rows"].items():
        cells = "".join(f"{cell(found['toy'][name], digits):>22}" for _, name, digits in COLUMNS)
        cost = f"{found['seconds_a_clip']:8.3f}{found['times_vera']:8.2f}{found['gflop_a_clip']:8.2f}"
        lines.append(f"{row:46}{cells}{cost}{found['peak_mib']:7}")
    for name in next(iter(report["rows"].values()))["real"]:
        height, width = report["real_size"][1:]
        lines += ["", f"the real clip {name}, {width}x{height}, four objects; subject: what its mask covers"]
        columns = (*COLUMNS, ("subject, dB", "subject_psnr", 1))
        lines.append(f"{'':46}" + "".join(f"{heading:>22}" for heading, *_ in columns))
        for row, found in report["rows"].items():
            real = found["real"][name]
            lines.append(
                f"{row:46}" + "".join(f"{cell(real[key], digits):>22}" for _, key, digits in columns)
            )
    return "\n".join(lines)


# --- picture -------------------------------------------------------------------------------------


def picture() -> None:
    """What changed that nobody asked for, on a toy clip and on the sample photograph."""
    from vera_lite.media.clip import to_float
    from vera_lite.media.video import read_video
    from vera_lite.viz import contact_sheet

    coffee = to_float(read_video(ROOT / "data_samples" / "coffee.mkv")[0])[::3]
    clips = WORLD.render(TEST_SEED, [6]), draw_on(coffee, [5])
    report = json.loads(REPORT.read_text())
    models = {model: rows(model) for model in MODELS}
    shown = {
        "the truth": ("trivial", "the truth"),
        "the truth at\n32 x 32 pixels": ("trivial", "the truth, at 32 x 32 and through the codec"),
        "Vera: a layer\nover the source": ("vera", "Vera, with a mask: layer over the source"),
        "RVEDiT: every\nframe anew": ("rvedit", "RVEDiT: its whole frame"),
        "MiVE: every\nframe anew": ("mive", "MiVE: its whole frame"),
        "GenCompositor:\nevery frame anew": ("gencompositor", "GenCompositor: its whole frame"),
    }
    sheet = {}
    for title, (model, row) in shown.items():
        frames = []
        for edits in clips:
            middle = edits.source.shape[1] // 2
            result = models[model][row](edits, 0)[middle]
            kept = edits.changed[0, middle] == 0
            change = (result - edits.source[0, middle]).abs().amax(0, keepdim=True)
            frames += [result, (5 * change * kept).clamp(0, 1)]
        share = report["rows"][row]["toy"]["kept_exactly"][0]
        sheet[f"{title}\nuntouched: {100 * share:.3g} %"] = frames
    unasked = "changed, not asked\n(brighter: more)"
    figure = contact_sheet(
        sheet,
        ["a toy clip:\nresult", unasked, "a photograph:\nresult", unasked],
        "Add one object: a layer over the source keeps the rest, redrawing the frame changes all of it\n"
        f"(untouched: share of all other pixels of {report['clips']} toy clips that stays exactly the same)",
        side=1.6,
    )
    with replacing(PICTURE) as path:
        figure.savefig(path, format="png", dpi=110)
    print(f"wrote {PICTURE.relative_to(ROOT)}")


# --- for a judge ---------------------------------------------------------------------------------


def videos(out: Path, clips: int = 24) -> None:
    """Write clips.json and a folder of results for each method, as `vera-lite judge` reads them."""
    edits = WORLD.render(TEST_SEED, range(clips))
    methods = {
        "source": rows("trivial")["the source, untouched"],
        "truth": rows("trivial")["the truth"],
        "vera": vera(VeraPipeline.from_pretrained()),
        "gencompositor": gencompositor(GenCompositorPipeline.from_pretrained()),
        "rvedit": rvedit(RVEDiTPipeline.from_pretrained()),
        "mive": mive(MiVEPipeline.from_pretrained()),
    }
    entries = [
        {"id": f"{i:02}", "category": "local add", "instruction": text, "source": f"source/{i:02}.mkv"}
        for i, text in enumerate(edits.instruction)
    ]
    for name, draw in methods.items():
        (out / name).mkdir(parents=True, exist_ok=True)
        for i in range(clips):
            write_video(out / name / f"{i:02}.mkv", to_uint8(draw(edits, i).clone()), 8.0, "lossless")
    write_json(entries, out / "clips.json")
    named = " ".join(f"--method {name}={out / name}" for name in methods)
    print(f"vera-lite judge {out / 'clips.json'} {named} --protocol toy_vqa --out results/judge/toy_vqa")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", action="store_true", help="measure and write the JSON")
    parser.add_argument("--report", action="store_true", help="print the table of the JSON (the default)")
    parser.add_argument("--picture", action="store_true", help="draw the picture")
    parser.add_argument("--videos", type=Path, metavar="OUT", help="write videos for `vera-lite judge`")
    parser.add_argument("--clips", type=Path, help="folder of real videos, NAME.mp4 ...")
    parser.add_argument("--masks", type=Path, help="folder of their masks, NAME.mask.mkv")
    arguments = parser.parse_args()
    if bool(arguments.clips) != bool(arguments.masks):
        parser.error("--clips and --masks go together.")
    if arguments.run:
        write_json(run(arguments.clips, arguments.masks), REPORT)
    if arguments.picture:
        picture()
    if arguments.videos:
        videos(arguments.videos)
        return
    if not REPORT.is_file():
        parser.exit(2, "there is no result yet: run with --run.\n")
    print(table(json.loads(REPORT.read_text())))


if __name__ == "__main__":
    main()
