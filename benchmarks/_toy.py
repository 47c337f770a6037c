"""What the scripts that measure shipped toy models share: their command line, and the facts of a training."""

import argparse
import csv
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import yaml

from vera_lite.media.files import replacing


def log_versions(run: Path) -> list[Path]:
    """Folders of a run's logs, in order: one a call of `vera-lite fit`."""
    return sorted(run.glob("log/version_*"), key=lambda p: int(p.name.rpartition("_")[2]))


def training_facts(run: Path, shipped: Path) -> dict:
    """What a finished run's files say.

    Args:
        run: its folder.
        shipped: the configuration that it must have been made with; but for the world of its data, which
            calls before the last may have had otherwise: the facts say so.
    """
    versions = log_versions(run)
    configs = [yaml.safe_load((v / "config.yaml").read_text()) for v in versions]
    wanted = yaml.safe_load(shipped.read_text())["data"]["init_args"].get("world", {})
    worlds = []
    for config in configs[:-1]:
        found = config["data"]["init_args"]
        if wanted and not includes(found["world"], wanted):
            worlds.append([config["trainer"]["max_steps"], found["world"]])
            found["world"] = wanted
    for config in configs:
        devices = config["trainer"]["devices"]  # each has its share of a batch
        config["data"]["init_args"]["batch_size"] *= devices if isinstance(devices, int) else 1
        for part in ("model", "data"):
            if not includes(config[part], yaml.safe_load(shipped.read_text())[part]):
                raise SystemExit(
                    f"{run} was not trained with the {part} of {shipped.name}; no card is written."
                )
    saved = torch.load(run / "last.ckpt", weights_only=True, map_location="cpu")
    rows = [r for v in versions for r in csv.DictReader((v / "metrics.csv").open()) if r.get("val")]
    seconds = [(v / "metrics.csv").stat().st_mtime - (v / "config.yaml").stat().st_mtime for v in versions]
    batch_size = configs[0]["data"]["init_args"]["batch_size"]
    return {
        "seed": configs[0]["seed_everything"],
        "steps": saved["global_step"],
        "stages": _stages([c["trainer"]["max_steps"] for c in configs], versions),
        **({"worlds": worlds} if worlds else {}),
        "batch_size": batch_size,
        "samples": saved["global_step"] * batch_size,
        "wall_minutes": round(sum(seconds) / 60),
        "threads": saved["vera_lite"].get("threads"),
        "precision": configs[0]["trainer"]["precision"],
        "validation_loss": [{"step": int(r["step"]) + 1, "loss": round(float(r["val"]), 4)} for r in rows],
    }


def _stages(planned: list[int], versions: list[Path]) -> list[list[int]]:
    """[planned steps, steps reached] of each stage; calls that resumed one are part of it."""
    starts = [[int(r["step"]) for r in csv.DictReader((v / "metrics.csv").open())][:1] for v in versions]
    stages = []
    for i, plan in enumerate(planned):
        # The first line that a call logged stands some steps after its start.
        after = next((start[0] for start in starts[i + 1 :] if start), plan)
        reached = min(plan, after // 500 * 500) if after < plan else plan
        if stages and stages[-1][0] == plan:
            stages[-1][1] = reached
        else:
            stages.append([plan, reached])
    return stages


def fit_commands(
    config: str, stages: list[list[int]], start: str = "", worlds: Sequence[tuple[int, dict]] = ()
) -> str:
    """The calls of `vera-lite fit` that a training consisted of, one a line; the first ends in ``start``.
    ``worlds`` has the world of stages, by their planned steps, that had not the configuration's."""
    lines, worlds = [], dict(worlds)
    for i, (planned, reached) in enumerate(stages):
        line = f"  vera-lite fit --config vera_lite/configs/{config} --trainer.max_steps {planned}"
        line += " --ckpt_path last" if i else start
        if planned in worlds:
            line += f" --data.world '{json.dumps(worlds[planned])}'"
        lines.append(line + (f"   # stopped at {reached:,}" if reached < planned else ""))
    return "\n".join(lines)


def category_cells(report: dict) -> list[tuple[str, list[str]]]:
    """Lines of a table by category: category and measure, then one cell a row of the report."""
    lines, rows = [], list(report["rows"].values())
    for category, found in rows[0].items():
        for measure in found:
            values = [row[category].get(measure) for row in rows]
            lines.append((f"{category}: {measure}", ["" if v is None else f"{v:.1f}" for v in values]))
    return lines


def category_table(report: dict) -> str:
    """One line a measure, one column a row of the report."""
    lines = [f"{report['clips_per_category']} unseen clips of each category, {report['sampler_steps']} steps"]
    lines.append(f"{'':42}" + "".join(f"{name:>26}" for name in report["rows"]))
    lines += [f"{name:42}" + "".join(f"{c:>26}" for c in cells) for name, cells in category_cells(report)]
    return "\n".join(lines)


def includes(whole: dict, part: dict) -> bool:
    """Whether every value of ``part`` stands in ``whole``."""
    return all(
        includes(whole.get(k, {}), v) if isinstance(v, dict) else whole.get(k) == v for k, v in part.items()
    )


def main(
    doc: str,
    folder: Path,
    measure: Callable[[Path], dict],
    facts: Callable[[Path], dict],
    table: Callable[[dict], str],
    card: Callable[[dict], str],
) -> None:
    """Measure a model folder; print, and write report and card if asked.

    Args:
        doc: the script's docstring.
        folder: the shipped model.
        measure: folder -> report.
        facts: folder of a training run -> the report's "training".
        table, card: of a report.
    """
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=folder, help="model folder; default: the shipped one")
    parser.add_argument("--run", type=Path, help="folder of the training run")
    parser.add_argument("--json", type=Path, help="where to write the report")
    parser.add_argument("--card", action="store_true", help="write the model card; needs --run")
    arguments = parser.parse_args()
    if arguments.card and arguments.run is None:
        parser.error("--card needs --run")
    torch.set_num_threads(1)
    training = {} if arguments.run is None else {"training": facts(arguments.run)}  # may refuse: first
    report = measure(arguments.model) | training
    print(table(report))
    if arguments.json is not None:
        with replacing(arguments.json) as path:
            path.write_text(json.dumps(report, indent=1) + "\n")
    if arguments.card:
        with replacing(arguments.model / "README.md") as path:
            path.write_text(card(report))
