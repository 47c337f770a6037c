"""The benchmarks' harness, and the reports that are kept."""

import gc
import importlib
import json
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from scipy import stats

ROOT = Path(__file__).resolve().parent.parent
BENCHMARKS = ROOT / "benchmarks"
REPORTS = sorted((BENCHMARKS / "results").glob("*.json"))
RATIOS = {
    "attention_training",
    "mot_block",
    "rope",
    "checkpointing",
    "flops",
    "toyworld",
    "capture",
    "gencompositor",
    "infonce",
    "rvedit_reference_pass",
    "adaln",
    "context_tokens",
    "startup",
    "dataset",
    "metrics",
}  # written by the harness


@pytest.fixture
def harness(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import _harness

    return _harness


@pytest.fixture
def study(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import _study

    monkeypatch.setattr(_study, "RESULTS", tmp_path)
    monkeypatch.setattr(_study, "RUNS", tmp_path / "runs")
    return _study


def check_schema(harness, saved):
    """A report of the harness: every field there, every verdict the one its numbers give."""
    assert set(saved) == {"name", "date", "machine", "versions", "results"}
    assert set(saved["machine"]) == {"cpu", "cores", "memory_gb", "threads"}
    assert set(saved["versions"]) == {"python", "torch", "diffusers"}
    assert saved["results"]
    rows = [(r["case"], r["peer"]) for r in saved["results"]]
    assert len(set(rows)) == len(rows), "a case is there twice"
    for row in saved["results"]:
        assert set(row) | {"spread"} == set(harness.Result.__dataclass_fields__)
        assert row["value"] > 0
        if row["goal"] is None:
            assert row["holds"] is None
        else:
            assert row["holds"] == harness.meets(row["ratio"], row["goal"])


@pytest.mark.parametrize(
    ("ratio", "goal", "holds"),
    [
        (1.10, "<= 1.10", True),
        (1.11, "<= 1.10", False),
        (1.0, "< 1", False),
        (0.99, "< 1", True),
        (4.0, ">= 4", True),
        (3.9, ">= 4", False),
        (1.0, "== 1", True),
        (1.0 + 1e-15, "== 1", False),
    ],
)
def test_goals(harness, ratio, goal, holds):
    assert harness.meets(ratio, goal) is holds


@pytest.mark.parametrize("goal", ["1.10", "<=1.10", "=< 1", "<= fast", "<= 1.1 or so"])
def test_a_goal_that_is_no_comparison_is_refused(harness, goal):
    with pytest.raises(ValueError, match="should look like"):
        harness.meets(1.0, goal)


def test_ratio_is_the_median_of_the_rounds(harness):
    report = harness.Report("example")
    # The machine slows down fourfold after two rounds; the third round caught a hiccup of ours.
    seconds = {"ours": [2.0, 2.0, 80.0, 8.0, 8.0], "theirs": [1.0, 1.0, 4.0, 4.0, 4.0]}
    report.add_times("a", seconds, "ours", "theirs", "<= 1.10")
    (row,) = report.results
    assert (row.value, row.peer_value, row.ratio, row.spread) == (8000.0, 4000.0, 2.0, (2.0, 20.0))
    assert row.holds is False
    assert "NO" in report.table()


def test_whole_numbers_are_compared_to_the_last_digit(harness):
    report = harness.Report("example")
    report.add("off by one", 10**16 + 1, "FLOP", peer="count", peer_value=10**16, goal="== 1")
    assert report.results[0].holds is False  # though as floats they are equal


def test_a_goal_without_a_peer_is_refused(harness):
    with pytest.raises(ValueError, match="compare with"):
        harness.Report("example").add("a", 1.0, "s", goal="<= 1")


def test_functions_take_turns_and_fast_ones_are_repeated(harness):
    order = []

    def work(name, seconds):
        order.append(name)
        end = time.process_time() + seconds
        while time.process_time() < end:
            pass

    functions = {"slow": lambda: work("slow", 0.03), "fast": lambda: work("fast", 0.004)}
    frozen = gc.get_freeze_count()
    seconds = harness.cpu_seconds(functions, rounds=3)
    assert gc.get_freeze_count() == frozen and gc.isenabled()
    turns = [n for n, before in zip(order, [None, *order], strict=False) if n != before]
    assert turns == ["slow", "fast", "slow", "fast", "slow", "fast"]  # warm-up, then rounds in turned order
    assert order.count("slow") == 2 + 3
    assert order.count("fast") > 2 + 3
    assert all(len(s) == 3 for s in seconds.values())
    assert all(0.004 <= s < 0.03 for s in seconds["fast"])


def test_report_is_written_whole_or_not_at_all(harness, tmp_path, capsys):
    path = tmp_path / "new" / "example.json"

    def measure(report, rounds):
        report.add("a", 1.0, "s", peer="b", peer_value=2.0, goal="<= 0.25")
        report.add("context", float(rounds), "rounds")

    with pytest.raises(SystemExit) as left:
        harness.main("example", measure, rounds=7, argv=["--json", str(path), "--rounds", "3"])
    assert left.value.code == 1  # a goal is missed
    saved = json.loads(path.read_text())
    check_schema(harness, saved)
    assert [r["holds"] for r in saved["results"]] == [False, None]
    assert saved["results"][1]["value"] == 3
    assert "example" in capsys.readouterr().out

    report = harness.Report("example")
    report.add("a", object(), "s")  # JSON cannot hold it
    with pytest.raises(TypeError):
        harness.write_json(report.as_dict(), path)
    assert json.loads(path.read_text()) == saved
    assert list(path.parent.iterdir()) == [path]


def test_a_study_resumes_what_was_measured_with_the_present_settings(study, tmp_path, capsys):
    cases = [{"part": "size", "variant": "a b"}, {"part": "size", "variant": "c"}]
    measured, drawn, stop = [], [], None

    def measure(part, variant, seed, folder):
        if len(measured) == stop:
            raise KeyboardInterrupt
        measured.append(f"{part}, {variant}, {seed}")
        drawn.append(float(torch.rand(())))
        folder.mkdir(parents=True, exist_ok=True)
        return {"metrics": {"psnr": drawn[-1]}}

    def run(*options, steps=3):
        measured.clear()
        settings = {"steps": steps, "size": (9, 32)}  # a tuple, which JSON turns into a list
        study.main(
            "doc",
            "example",
            cases,
            measure,
            settings,
            lambda runs: [{"runs": len(runs)}],
            lambda report: f"{len(report['runs'])} runs",
            (0, 1),
            options,
        )
        return json.loads((tmp_path / "example.json").read_text())

    with pytest.raises(SystemExit, match="2"):
        run()
    assert "run with --run" in capsys.readouterr().err
    stop = 3
    with pytest.raises(KeyboardInterrupt):
        run("--run")
    order = ["size, a b, 0", "size, c, 0", "size, a b, 1", "size, c, 1"]
    assert measured == order[:3] and len(run()["runs"]) == 3 and not measured
    stop = None
    report = run("--run")
    assert measured == order[3:]
    assert [f"{r['part']}, {r['variant']}, {r['seed']}" for r in report["runs"]] == order
    assert [r["metrics"]["psnr"] for r in report["runs"]] == drawn
    assert drawn[0] == drawn[1] != drawn[2] == drawn[3]  # torch is seeded anew for each
    assert report["results"] == [{"runs": 4}]
    assert report["steps"] == 3 and {"name", "date", "machine", "versions"} < report.keys()
    assert (tmp_path / "runs" / "example" / "size" / "a-b-1").is_dir()
    assert {p.name for p in tmp_path.iterdir()} == {"runs", "example.json"}
    assert "size, c, seed 1: 0.0 s\n4 runs\n" in capsys.readouterr().out

    assert run("--run") == report and not measured
    (tmp_path / "runs" / "example" / "checkpoint").touch()
    run("--run", steps=4)
    assert measured == order and (tmp_path / "runs" / "example" / "checkpoint").exists()
    run("--run", "--fresh", steps=4)
    assert measured == order and not (tmp_path / "runs" / "example" / "checkpoint").exists()


def test_two_processes_share_a_study(study, tmp_path):
    """A second one that comes while the first is measuring takes the other case, and no result is lost."""
    measured = []

    def run():
        study.main(
            "doc", "example", [{"variant": "a"}, {"variant": "b"}], measure, {}, len, str, (0,), ["--run"]
        )

    def measure(variant, seed, folder):
        measured.append(variant)
        if len(measured) == 1:
            run()  # locks belong to open files: the same process counts as another
        return {"metrics": {"psnr": 0.0}}

    run()
    assert measured == ["a", "b"]
    report = json.loads((tmp_path / "example.json").read_text())
    assert sorted(r["variant"] for r in report["runs"]) == ["a", "b"] and report["results"] == 2


def test_a_comparison_is_paired_by_seed(study):
    ours, theirs = (
        {s: {"loss": v} for s, v in seeds} for seeds in (((0, 1), (1, 2), (3, 5)), ((1, 4), (3, 6)))
    )
    row = study.compare("a", ours, theirs, "loss", lower_is_better=True)
    assert row.pop("interval") == pytest.approx(stats.t.interval(0.95, 1, 1.5, 0.5), abs=1e-5)
    assert row == {"case": "a", "mean_gain": 1.5, "gains": [2, 1], "verdict": "undecided"}
    assert study.compare("a", ours, theirs, "loss")["gains"] == [-2, -1]
    even = {seed: {"loss": 3 + ours[seed]["loss"]} for seed in theirs}
    assert study.compare("a", ours, even, "loss", lower_is_better=True)["verdict"] == "supported"
    one = study.compare("a", ours, {1: {"loss": 9}}, "loss", lower_is_better=True)
    assert one["verdict"] == "undecided" and one["interval"] is None
    assert study.cell([1, 2, 6], 1) == "3.0 +-2.5"


def test_a_loss_curve_goes_on_after_an_interruption(study):
    whole, first, second = (study.LossCurve() for _ in range(3))
    losses = [float(v) for v in range(10 * study.WINDOW)]
    for step, loss in enumerate(losses, 1):
        for curve in (whole, first if step <= 70 else second):
            curve.on_train_batch_end(SimpleNamespace(global_step=step), None, {"loss": loss}, None, 0)
        if step == 70:
            second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert whole.sums == second.sums and len(whole.sums) == 10
    assert whole.sums[1] == pytest.approx(sum(losses[50:100]) / 50)
    assert whole.end() == pytest.approx(sum(losses[400:]) / 100)


@pytest.mark.parametrize("path", REPORTS, ids=lambda p: p.stem)
def test_kept_reports(harness, path):
    saved = json.loads(path.read_text())
    assert saved["name"] == path.stem
    assert (BENCHMARKS / f"{path.stem}.py").is_file()
    assert {"date", "machine", "versions"} <= set(saved)
    if path.stem in RATIOS:
        check_schema(harness, saved)


def test_every_benchmark_has_its_report():
    assert {p.stem for p in REPORTS} >= RATIOS


@pytest.mark.slow
def test_a_benchmark_runs_from_the_command_line(tmp_path):
    script, path = BENCHMARKS / "flops.py", tmp_path / "flops.json"
    subprocess.run([sys.executable, script, "--json", path], check=True, cwd=ROOT)
    assert all(r["holds"] is not False for r in json.loads(path.read_text())["results"])


# ---------------------------------------------------------------------- facts of a training


@pytest.fixture
def toy(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("_toy")


def run_folder(folder, worlds, **changed):
    """A run of one call for each of the worlds, 10 planned steps more each time."""
    for i, world in enumerate(worlds):
        version = folder / f"log/version_{i}"
        version.mkdir(parents=True)
        data = {"init_args": {"batch_size": 4, "world": world, **changed}}
        trainer = {"max_steps": 1000 * (i + 1), "devices": 1, "precision": "32-true"}
        config = {"model": {"a": 1}, "data": data, "trainer": trainer, "seed_everything": 0}
        (version / "config.yaml").write_text(yaml.safe_dump(config))
        (version / "metrics.csv").write_text(f"step,val\n{500 * i + 49},\n{500 * i + 99},0.5\n")
    torch.save({"global_step": 2000, "vera_lite": {"threads": 1}}, folder / "last.ckpt")
    return folder


def test_a_training_says_which_world_its_earlier_calls_had(toy, tmp_path):
    shipped = tmp_path / "shipped.yaml"
    new, old = {"from_place": True, "distractor": 0.5}, {"from_place": False, "distractor": 0.5}
    data = {"init_args": {"batch_size": 4, "world": {"from_place": True}}}
    shipped.write_text(yaml.safe_dump({"model": {"a": 1}, "data": data}))

    facts = toy.training_facts(run_folder(tmp_path / "a", [old, new]), shipped)
    assert facts["worlds"] == [[1000, old]] and facts["stages"] == [[1000, 500], [2000, 2000]]
    first, second = toy.fit_commands("x.yaml", facts["stages"], worlds=facts["worlds"]).splitlines()
    assert json.loads(first.split("'")[1]) == old and first.endswith("# stopped at 500")
    assert "--data.world" not in second and second.endswith("--ckpt_path last")

    assert "worlds" not in toy.training_facts(run_folder(tmp_path / "b", [new, new]), shipped)
    for wrong in (
        run_folder(tmp_path / "c", [new, old]),
        run_folder(tmp_path / "d", [old, new], batch_size=2),
    ):
        with pytest.raises(SystemExit, match="was not trained with the data of shipped.yaml"):
            toy.training_facts(wrong, shipped)
