"""Tests that need a CUDA device: `pytest -m gpu`."""

from dataclasses import replace

import lightning as L
import pytest
import torch
from test_vera import TINY, vera

from vera_lite.pipelines import VeraPipeline
from vera_lite.toy.world import render
from vera_lite.training import ToyWorldData
from vera_lite.training.fit import fit

TOY = replace(TINY, in_channels=24, out_channels=24, text_dim=36)
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


def test_the_pipeline_edits_alike_on_both_devices():
    video = render(31, [0]).source[0]
    prompt = "add a red ring at the top left moving right"
    cpu = VeraPipeline.from_pretrained()(video, prompt, seed=1)
    cuda = VeraPipeline.from_pretrained().to("cuda")(video, prompt, seed=1)
    assert cuda.final.device.type == "cpu"
    assert (cpu.alpha - cuda.alpha).abs().mean() < 5e-3


def test_training_on_the_gpu_loses_what_the_cpu_loses(tmp_path):
    def losses(accelerator: str) -> list[float]:
        seen = []

        class Note(L.Callback):
            def on_train_batch_end(self, trainer, module, outputs, *_):
                seen.append(float(outputs["loss"]))

        data = ToyWorldData(str(tmp_path), clips=64, validation_clips=8, batch_size=8)
        fit(vera(backbone=TOY), data, 4, accelerator=accelerator, progress=False, callbacks=(Note(),))
        return seen

    assert losses("gpu") == pytest.approx(losses("cpu"), rel=1e-3)
