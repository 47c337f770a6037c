"""GenCompositor trains on toy compositions, resumes bit for bit, and becomes a pipeline."""

from pathlib import Path

import lightning as L
import pytest
import torch
import yaml
from small_gencompositor import build

from vera_lite.apps.train import export
from vera_lite.cli import main
from vera_lite.diffusion.ddpm import Diffusion
from vera_lite.diffusion.draws import StepRandom
from vera_lite.diffusion.flow_matching import FlowMatching
from vera_lite.pipelines import GenCompositorPipeline
from vera_lite.systems import GenCompositor
from vera_lite.training import ToyCompositionData
from vera_lite.training.fit import fit

CONFIG = Path(__file__).parents[1] / "vera_lite" / "configs" / "gencompositor_toy.yaml"


def system(**changes) -> GenCompositor:
    defaults = {"objective": FlowMatching("x_0"), "branch_layers": 1, "mask_loss_weight": 5.0}
    return build(**defaults | changes)


def train(steps, folder=None, **changes):
    data = ToyCompositionData(batch_size=4)
    options = {"progress": False, "muon_lr": 0.02, "warmup_steps": 2, "checkpoint_every": 3}
    return fit(system(**changes), data, steps, folder=folder, **options)


@pytest.mark.parametrize("objective", [FlowMatching("x_0"), Diffusion(), Diffusion("v_prediction")])
def test_the_loss_falls_under_every_objective(objective):
    data = ToyCompositionData(batch_size=16, seed=9)
    data.trainer = None
    data.setup()
    losses = []
    for trained in (system(objective=objective), train(40, objective=objective).system):
        draws = StepRandom(0, 0, 16)
        with torch.no_grad():
            sigma = objective.sample_sigma(draws)
            losses.append(float(sum(trained.training_losses(data.train[0], sigma, draws).values()).mean()))
    assert losses[1] < 0.95 * losses[0]


def test_an_interrupted_run_ends_where_an_uninterrupted_one_does(tmp_path):
    whole = train(6, tmp_path / "whole")
    first = torch.load(tmp_path / "whole" / "last.ckpt", weights_only=True)
    assert first["global_step"] == 6

    # The same schedule, stopped after its checkpoint at step 3.
    class Stop(L.Callback):
        def on_train_batch_end(self, trainer, *_):
            if trainer.global_step == 4:
                raise KeyboardInterrupt

    with pytest.raises((KeyboardInterrupt, SystemExit)):
        fit(
            system(),
            ToyCompositionData(batch_size=4),
            6,
            folder=tmp_path / "cut",
            progress=False,
            muon_lr=0.02,
            warmup_steps=2,
            checkpoint_every=3,
            callbacks=(Stop(),),
        )
    again = train(6, tmp_path / "cut")
    for name, value in whole.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


def test_a_checkpoint_becomes_a_pipeline(tmp_path):
    module = train(3, tmp_path / "run")
    export(tmp_path / "run" / "last.ckpt", tmp_path / "pipe", half=False)
    pipe = GenCompositorPipeline.from_pretrained(tmp_path / "pipe")
    assert pipe.clip_size == (9, 32, 32) and pipe.mask_sigma == 1.2
    for name, value in module.ema.state_dict().items():
        assert torch.equal(value, pipe.system.state_dict()[name])


def test_the_shipped_configuration_is_parsed_whole(capsys):
    with pytest.raises(SystemExit):
        main(["fit", f"--config={CONFIG}", "--print_config"])
    shown = yaml.safe_load(capsys.readouterr().out)
    assert shown["model"]["init_args"]["system"]["init_args"]["config"]["objective"]["prediction"] == "x_0"
    assert shown["data"]["init_args"]["mask_sigma"] == 1.2
