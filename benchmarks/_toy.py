"""Shared by the scripts that measure shipped toy models: command line, report, facts of a training, card."""

import argparse
import csv
import json
import textwrap
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch
import yaml
from _harness import report_head, write_json
from torch import Tensor

from vera_lite.evaluation.toy.tally import TEST_SEED
from vera_lite.media.files import replacing
from vera_lite.pipelines import ASSETS
from vera_lite.toy.edits import ToyEdits

CONFIGS = ASSETS.parent / "configs"
RUN = "  vera-lite fit --config vera_lite/configs/"


# --- a training, from the files that it left -------------------------------------------------------


def training_facts(run: Path, shipped: Path) -> dict:
    """Facts of a finished run, from its files.

    Args:
        run: its folder.
        shipped: the configuration that the run must have been made with. Calls before the last may have had
            another world; the facts then list these worlds.

    Raises:
        SystemExit: the run was made with another configuration.
    """
    versions = sorted(run.glob("log/version_*"), key=lambda p: int(p.name.rpartition("_")[2]))
    configs = [yaml.safe_load((v / "config.yaml").read_text()) for v in versions]
    wanted = yaml.safe_load(shipped.read_text())
    world, worlds = wanted["data"]["init_args"].get("world", {}), []
    for config in configs[:-1]:
        found = config["data"]["init_args"]
        if world and not includes(found["world"], world):
            worlds.append([config["trainer"]["max_steps"], found["world"]])
            found["world"] = world
    for config in configs:
        devices = config["trainer"]["devices"]  # each has its share of a batch
        config["data"]["init_args"]["batch_size"] *= devices if isinstance(devices, int) else 1
        for part in ("model", "data"):
            if not includes(config[part], wanted[part]):
                raise SystemExit(
                    f"{run} was not trained with the {part} of {shipped.name}; no card is written."
                )
    saved = torch.load(run / "last.ckpt", weights_only=True, map_location="cpu")
    rows = [r for v in versions for r in csv.DictReader((v / "metrics.csv").open()) if r.get("val")]
    seconds = [(v / "metrics.csv").stat().st_mtime - (v / "config.yaml").stat().st_mtime for v in versions]
    data = configs[0]["data"]["init_args"]
    return {
        "seed": configs[0]["seed_everything"],
        "steps": saved["global_step"],
        "stages": _stages([c["trainer"]["max_steps"] for c in configs], versions),
        **({"worlds": worlds} if worlds else {}),
        **({"clips_cached": data["clips"]} if data.get("clips") else {}),
        "batch_size": data["batch_size"],
        "samples": saved["global_step"] * data["batch_size"],
        "wall_minutes": round(sum(seconds) / 60),
        "threads": saved["vera_lite"].get("threads", 1),
        "precision": configs[0]["trainer"]["precision"],
        "validation_loss": [{"step": int(r["step"]) + 1, "loss": round(float(r["val"]), 4)} for r in rows],
    }


def _stages(planned: list[int], versions: list[Path]) -> list[list[int]]:
    """[planned steps, steps reached] of each stage; a stage includes the calls that resumed it."""
    starts = [[int(r["step"]) for r in csv.DictReader((v / "metrics.csv").open())][:1] for v in versions]
    stages = []
    for i, plan in enumerate(planned):
        # A call logs its first line some steps after its start.
        after = next((start[0] for start in starts[i + 1 :] if start), plan)
        # Checkpoints are 250 steps apart, or 500.
        reached = min(plan, after // 250 * 250) if after < plan else plan
        if stages and stages[-1][0] == plan:
            stages[-1][1] = reached
        else:
            stages.append([plan, reached])
    return stages


def includes(whole: dict, part: dict) -> bool:
    """Whether ``whole`` has every value of ``part``."""
    return all(
        includes(whole.get(k, {}), v) if isinstance(v, dict) else whole.get(k) == v for k, v in part.items()
    )


# --- cards -----------------------------------------------------------------------------------------


def weights(report: dict, parts: str = "the", vlm: str = "") -> str:
    """The contents of a pipeline's files, for a card's list."""
    return listed(
        f"**Weights**: `system.safetensors`, {report['parameters'] / 1e6:.2f} M parameters in "
        f"float16, {parts} "
        "exponential moving average of the training run; `codec.safetensors`, the patch codec. "
        f"{vlm}MIT licence."
    )


def training_sentence(report: dict, unit: str = "clips") -> str:
    """How much training on which machine, for a card's list."""
    t, m = report["training"], report["machine"]
    return listed(
        f"**Training**: {t['steps']:,} steps of {t['batch_size']} clips = {t['samples']:,} {unit}, "
        f"{t['precision']}, {t['wall_minutes']} minutes of wall time on {t['threads']} thread of a "
        f"{m['cores']}-core CPU ({m['cpu']}) that other work shared. One seed."
    )


def listed(text: str) -> str:
    """An entry of a card's list, in lines of the repository's width."""
    return textwrap.fill(f"- {text}", 110, subsequent_indent="  ", break_on_hyphens=False)


def fit_commands(
    config: str, stages: list[list[int]], start: str = "", worlds: Sequence[tuple[int, dict]] = ()
) -> str:
    """The `vera-lite fit` calls of a training, one per line.

    Args:
        config: name of the configuration.
        stages: [planned steps, steps reached] of each call.
        start: options of the first call.
        worlds: the world of each call that did not use the configuration's, by the call's planned steps.
    """
    lines, worlds = [], dict(worlds)
    for i, (planned, reached) in enumerate(stages):
        line = f"{RUN}{config} --trainer.max_steps {planned}" + (" --ckpt_path last" if i else start)
        if planned in worlds:
            line += f" --data.world '{json.dumps(worlds[planned])}'"
        lines.append(line + (f"   # stopped at {reached:,}" if reached < planned else ""))
    return "\n".join(lines)


def markdown(heads: Iterable[str], rows: Iterable[Sequence[str]]) -> str:
    """A table."""
    head, *lines = (f"| {' | '.join(line)} |" for line in (list(heads), *rows))
    return "\n".join([head, "|" + "---|" * (head.count("|") - 1), *lines])


def category_cells(report: dict) -> list[list[str]]:
    """Lines of a table by category: category and measure, then one cell for each row of the report."""
    lines, rows = [], list(report["rows"].values())
    for category, found in rows[0].items():
        for measure in found:
            values = [row[category].get(measure) for row in rows]
            lines.append([f"{category}: {measure}", *("" if v is None else f"{v:.1f}" for v in values)])
    return lines


def category_table(report: dict) -> str:
    """One line for each measure, one column for each row of the report."""
    lines = [f"{report['clips_per_category']} unseen clips of each category, {report['sampler_steps']} steps"]
    for label, *cells in (["", *report["rows"]], *category_cells(report)):
        lines.append(f"{label:42}" + "".join(f"{c:>26}" for c in cells))
    return "\n".join(lines)


# --- measuring -------------------------------------------------------------------------------------


def codec_only(pipe, edits: ToyEdits) -> Tensor:
    """The true edit through the codec and back: the score of a perfect network."""
    return pipe.codec.decode(pipe.codec.encode(edits.target))


def finite(rows: dict[str, dict[str, dict]]) -> dict:
    """Rows without their infinite numbers, which JSON cannot hold."""

    def kept(found: dict[str, float]) -> dict[str, float]:
        return {name: value for name, value in found.items() if value != float("inf")}

    return {row: {category: kept(found) for category, found in r.items()} for row, r in rows.items()}


def main(
    doc: str,
    name: str,
    load: Callable[[Path], object],
    measure: Callable[..., dict],
    facts: Callable[[Path], dict],
    table: Callable[[dict], str],
    card: Callable[[dict], str],
) -> None:
    """Measure a model folder; print, and write report and card if asked; exit 1 if a goal is missed.

    Args:
        doc: the script's docstring.
        name: of the report and the shipped model.
        load: folder -> pipeline, or vision-language model.
        measure: what was loaded -> what the report has of its own.
        facts: folder of a training run -> the report's "training".
        table, card: of a report.
    """
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=ASSETS / name, help="default: the shipped one")
    parser.add_argument("--run", type=Path, help="folder of the training run")
    parser.add_argument("--json", type=Path, help="where to write the report")
    parser.add_argument("--card", action="store_true", help="write the model card; needs --run")
    arguments = parser.parse_args()
    if arguments.card and arguments.run is None:
        parser.error("--card needs --run")
    torch.set_num_threads(1)
    training = {} if arguments.run is None else {"training": facts(arguments.run)}  # may refuse: first
    model = load(arguments.model)
    report = report_head(name, "torch", "lightning", "transformers", "diffusers")
    start = time.process_time()
    report |= {"world_seed": TEST_SEED} | sampling(model) | measure(model)
    report |= {"cpu_seconds": round(time.process_time() - start, 1)} | training
    print(table(report))
    if arguments.json is not None:
        write_json(report, arguments.json)
    if arguments.card:
        with replacing(arguments.model / "README.md") as path:
            path.write_text(card(report))
    if any(row["holds"] is False for row in report.get("results", ())):
        raise SystemExit(1)


def sampling(model) -> dict:
    """Size of a model, and how a pipeline samples it by default."""
    network = getattr(model, "system", None) or model.model
    found = {"parameters": sum(p.numel() for p in network.parameters())}
    if hasattr(model, "system"):
        found |= {"sampler_steps": model.sampling.steps, "shift": model.sampling.shift}
    return found
