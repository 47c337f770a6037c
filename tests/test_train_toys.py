"""`scripts/train_toys.py`: every toy has a command, and the larger size for a GPU trains."""

import importlib.util
from pathlib import Path

import pytest

from vera_lite.cli import main

SCRIPT = Path(__file__).parents[1] / "scripts" / "train_toys.py"
_spec = importlib.util.spec_from_file_location("train_toys", SCRIPT)
train_toys = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(train_toys)


@pytest.mark.parametrize("name", ["vera", "gencompositor"])
def test_the_size_for_a_gpu_trains_a_step(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small = ["--trainer.accelerator=cpu", "--trainer.precision=32", "--trainer.fast_dev_run=1"]
    small += ["--data.init_args.batch_size=1", "--data.init_args.validation_clips=1"]
    small += ["--model.init_args.compile=false"]
    fit, export, measure = train_toys.commands(name, "cuda", small)
    assert main(fit[2:]) == 0
    assert export[-1].removeprefix("--out=") == measure[2]


def test_every_toy_has_a_configuration_and_a_wrong_name_is_refused(monkeypatch, capsys):
    for name in train_toys.TOYS:
        fit, *_ = train_toys.commands(name, "cpu", [])
        assert Path(fit[3].removeprefix("--config=")).is_file()
    monkeypatch.setattr("sys.argv", ["train_toys.py", "--only", "vera,sora"])
    with pytest.raises(SystemExit) as exit_:
        train_toys.main()
    assert exit_.value.code == 2 and "sora" in capsys.readouterr().err


@pytest.fixture
def study(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPT.parents[1] / "benchmarks"))
    return importlib.import_module("vera_ablation")


def test_the_study_of_veras_parts_trains_measures_and_compares(study, tmp_path, monkeypatch):
    for name, value in {"STEPS": 3, "BATCH": 1, "TEST_CLIPS": 2}.items():
        monkeypatch.setattr(study, name, value)
    monkeypatch.setattr(study, "SAMPLING", study.SAMPLING | {"steps": 1})
    names = ("Vera", "layers in time, wider")
    monkeypatch.setattr(study, "VARIANTS", {name: study.VARIANTS[name] for name in names})
    runs = [
        {"variant": name, "seed": 0} | study.measure(name, 0, tmp_path / name.replace(" ", "-"))
        for name in study.VARIANTS
    ]
    results = study.summarise(runs)
    assert results and all(row["verdict"] == "undecided" for row in results)  # one seed says nothing
    text = study.table(study.settings() | {"runs": runs, "results": results})
    assert "Vera against layers in time, wider" in text


def test_arms_have_equal_parameters_unless_a_name_says_otherwise(study):
    sizes = {name: study.size(name)[0] for name in study.VARIANTS}
    wide = [size for name, size in sizes.items() if name != "shared weights"]
    assert max(wide) < 1.02 * min(wide) and sizes["shared weights"] < 0.5 * sizes["Vera"]
