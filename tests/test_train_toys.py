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
