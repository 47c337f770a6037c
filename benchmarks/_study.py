"""Shared by all ablations: train every case with every seed, keep the results as JSON, resume, and compare.

A script says what its cases are, how one is measured, and how the runs become a table. It ends in

    _study.main(__doc__, "example", CASES, measure, settings(), summarise, table)

and leaves ``benchmarks/results/example.json`` with one run per case and seed.
"""

import argparse
import fcntl
import json
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean

import lightning as L
import torch
from _harness import report_head, write_json
from safetensors.torch import load_file, save_file
from torch import Tensor

from vera_lite.evaluation.statistics import seed_interval, verdict
from vera_lite.media.files import replacing
from vera_lite.training import EditingModule
from vera_lite.training.fit import fit

RESULTS = Path(__file__).parent / "results"
RUNS = Path(__file__).parents[1] / "runs"
SEEDS = (0, 1, 2)
WINDOW = 50  # steps over which a point of the loss curve is averaged


class LossCurve(L.Callback):
    """Mean training loss of every :data:`WINDOW` steps, kept in the checkpoint."""

    def __init__(self):
        self.sums: list[float] = []

    def on_train_batch_end(self, trainer, module, outputs, *_):
        if (trainer.global_step - 1) % WINDOW == 0:
            self.sums.append(0.0)
        self.sums[-1] += float(outputs["loss"]) / WINDOW

    def state_dict(self):
        return {"sums": self.sums}

    def load_state_dict(self, state):
        self.sums = state["sums"]

    def end(self) -> float:
        """Mean of the last fifth, where the learning rate is nearly zero."""
        return fmean(self.sums[-len(self.sums) // 5 :])

    def rounded(self) -> list[float]:
        """The curve as a report keeps it."""
        return [round(v, 5) for v in self.sums]


def train(
    system: torch.nn.Module,
    data: L.LightningDataModule,
    steps: int,
    folder: Path,
    seed: int,
    lr: float = 2e-3,
    ema_decay: float = 0.99,
) -> tuple[EditingModule, LossCurve]:
    """Train, or continue from the folder's checkpoint. Muon has ten times AdamW's learning rate."""
    curve = LossCurve()
    module = fit(
        system,
        data,
        steps,
        folder=folder,
        precision="bf16-mixed",
        progress=False,
        callbacks=(curve,),
        checkpoint_every=steps // 3,  # and so at the end
        seed=seed,
        lr=lr,
        muon_lr=10 * lr,
        ema_decay=ema_decay,
    )
    return module, curve


def remembered(path: Path, compute: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """The result of ``compute``, kept in a file: a frozen model reads each clip once for all runs."""
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        tensors = {name: tensor.contiguous() for name, tensor in compute().items()}
        with replacing(path) as temporary:
            save_file(tensors, temporary)
    return load_file(path)


def by_seed(runs: list[dict], **case) -> dict[int, dict]:
    """Metrics of a case's runs: {seed: metrics}."""
    return {r["seed"]: r["metrics"] for r in runs if case.items() <= r.items()}


def cell(values: Sequence[float], digits: int) -> str:
    """Mean +- half of the range."""
    return f"{fmean(values):.{digits}f} +-{(max(values) - min(values)) / 2:.{digits}f}"


def ahead(gains: Sequence[float]) -> str:
    """In how many seeds a gain is positive."""
    return f"{sum(g > 0 for g in gains)} of {len(gains)}" if gains else ""


def compare(
    case: str,
    ours: dict,
    theirs: dict,
    metric: str,
    lower_is_better: bool = False,
    smallest_effect: float = 0.0,
) -> dict:
    """One row of results: how much better ours is, paired by seed.

    Args:
        case: what is compared.
        ours, theirs: of :func:`by_seed`, with at least one seed in common.
        metric: which of their metrics.
        lower_is_better: of that metric.
        smallest_effect: the smallest gain that would matter, chosen before the runs.
    """
    sign = -1 if lower_is_better else 1
    gains = [sign * (ours[s][metric] - theirs[s][metric]) for s in sorted(ours.keys() & theirs.keys())]
    low, high = seed_interval(gains)
    finite = len(gains) > 1  # one seed leaves everything open, which JSON cannot say
    return {
        "case": case,
        "mean_gain": round(fmean(gains), 5),
        "interval": [round(low, 5), round(high, 5)] if finite else None,
        "gains": [round(g, 5) for g in gains],
        "verdict": verdict(low, high, smallest_effect),
    }


def compare_with_all(
    runs: list[dict],
    ours: str,
    variants: Iterable[str],
    metrics: Sequence[str],
    claimed: str,
    lower_is_better: Iterable[str] = (),
    **study: str,
) -> list[dict]:
    """Rows of results: variant ``ours`` against each other one in each metric; ``claimed`` is marked."""
    found, results = by_seed(runs, variant=ours, **study), []
    for variant in variants:
        theirs = by_seed(runs, variant=variant, **study)
        if variant == ours or not found.keys() & theirs.keys():
            continue
        for metric in metrics:
            case = ": ".join((*study.values(), f"{ours} against {variant}", metric))
            row = compare(case, found, theirs, metric, metric in lower_is_better)
            results.append(row | {"claimed": metric == claimed})
    return results


@contextmanager
def claim(place: Path, wait: bool = False) -> Iterator[bool]:
    """Whether ``place`` is ours alone: a lock on a file beside it, which ends with the process."""
    place.parent.mkdir(parents=True, exist_ok=True)
    lock = place.with_name(f".{place.name}.lock")
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
        else:
            yield True


def _report(path: Path) -> dict:
    return json.loads(path.read_text()) if path.is_file() else {}


def _kept(path: Path, settings: dict) -> list[dict]:
    """Runs of the report that were made with these settings."""
    report = _report(path)
    return report["runs"] if report and settings.items() <= report.items() else []


def main(
    doc: str,
    name: str,
    cases: Sequence[dict[str, str]],
    measure: Callable[..., dict],
    settings: dict,
    summarise: Callable[[list[dict]], list[dict]],
    table: Callable[[dict], str],
    seeds: Sequence[int] = SEEDS,
    argv=None,
) -> None:
    """Measure what is missing, if asked, and print the table.

    Several processes may measure at once: each takes cases that no other has begun.

    Args:
        doc: the script's docstring.
        name: of the benchmark, its JSON and its folder of training runs.
        cases: the parameters of each case, such as {"variant": "full"}.
        measure: called as measure(**case, seed=seed, folder=folder) right after seeding torch. It trains in
            ``folder``, or continues there, and returns what it found: at least "metrics".
        settings: everything that a run's numbers depend on. Runs with other settings are measured again, but
            training continues from their folders: after a change to training use --fresh.
        summarise: runs -> the report's "results".
        table: report -> text.
        seeds: of the runs.
        argv: arguments instead of the command line's.
    """
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", action="store_true", help="measure what is missing and write the JSON")
    parser.add_argument("--fresh", action="store_true", help="with --run: train and measure everything anew")
    parser.add_argument("--report", action="store_true", help="print the tables of the JSON (the default)")
    arguments = parser.parse_args(argv)
    path, folder = RESULTS / f"{name}.json", RUNS / name
    if arguments.run:
        if arguments.fresh:
            shutil.rmtree(folder, ignore_errors=True)
            path.unlink(missing_ok=True)
        settings = json.loads(json.dumps(settings))  # as a report gives them back
        # All cases of a seed come before the next seed, so that an interrupted study can be compared.
        for case, seed in ((case, seed) for seed in seeds for case in cases):
            *parents, last = (value.replace(" ", "-") for value in case.values())
            place = folder.joinpath(*parents, f"{last}-{seed}")
            with claim(place) as ours:
                if not ours or seed in by_seed(_kept(path, settings), **case):
                    continue
                torch.manual_seed(seed)
                start = time.process_time()
                found = measure(**case, seed=seed, folder=place)
                seconds = round(time.process_time() - start, 1)
                with claim(folder / "report", wait=True):  # another process may have written meanwhile
                    runs = [*_kept(path, settings), {**case, "seed": seed, "cpu_seconds": seconds, **found}]
                    head = report_head(name, "torch", "lightning", "diffusers") | settings
                    write_json(head | {"results": summarise(runs), "runs": runs}, path)
            print(f"{', '.join(case.values())}, seed {seed}: {seconds} s", flush=True)
    report = _report(path)
    if not report:
        parser.exit(2, "there is no result yet: run with --run.\n")
    print(table(report))
