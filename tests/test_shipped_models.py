"""What the shipped models can do: floors well below their cards' numbers, on fewer clips."""

import pytest
import torch

from vera_lite.evaluation.toy import composition_benchmark, edit_benchmark, layer_benchmark
from vera_lite.evaluation.toy.edit_benchmark import exchanged, redraw
from vera_lite.pipelines import GenCompositorPipeline, MiVEPipeline, RVEDiTPipeline, VeraPipeline

pytestmark = pytest.mark.slow


def test_vera_edits_as_asked():
    pipe = VeraPipeline.from_pretrained()
    with_mask = layer_benchmark.evaluate(pipe, 32, True)["add"]
    assert with_mask["preserved_psnr"] > 40 and with_mask["alpha_iou"] > 0.88
    assert with_mask["colour"] > 0.95 and with_mask["shape"] > 0.85
    free = layer_benchmark.evaluate(pipe, 32, False)
    assert free["add"]["place"] > 0.7 and free["add"]["colour"] > 0.9
    assert free["background"]["pattern"] > 0.7


def test_gencompositor_composes():
    pipe = GenCompositorPipeline.from_pretrained()
    row = composition_benchmark.evaluate(pipe, 32, steps=8)
    assert row["colour"] > 0.9 and row["shape"] > 0.6 and row["texture"] > 0.4
    assert row["psnr"] > 23 and row["preserved_psnr"] > 26 and row["removal_psnr"] > 20
    foreground_ignored = composition_benchmark.evaluate(pipe, 32, draw=lambda batch: batch.background)
    assert row["object_psnr"] > foreground_ignored["object_psnr"] + 3


def test_rvedit_hears_its_instruction():
    pipe = RVEDiTPipeline.from_pretrained()

    def unheard(edits):
        noise = torch.Generator().manual_seed(0)
        return redraw(pipe, exchanged(edits), steps=8, generator=noise)

    rows = edit_benchmark.evaluate(pipe, 16, steps=8)
    others = edit_benchmark.evaluate(pipe, 16, draw=unheard)
    assert rows["overall"]["instruction_compliance"] > others["overall"]["instruction_compliance"] + 15
    assert rows["local remove"]["instruction_compliance"] > 80 and rows["overall"]["preserved_psnr"] > 18


def test_mive_follows_its_reference():
    pipe = MiVEPipeline.from_pretrained()

    def unedited(edits):
        noise = torch.Generator().manual_seed(0)
        given = (edits.source, edits.instruction, edits.source[:, 0])
        return pipe.generate(*given, steps=8, generator=noise).final

    shown, not_shown = (
        edit_benchmark.evaluate(pipe, 8, steps=8, draw=draw)["overall"] for draw in (None, unedited)
    )
    assert shown["instruction_compliance"] > not_shown["instruction_compliance"] + 10
    assert shown["psnr"] > not_shown["psnr"] + 1 and shown["preserved_psnr"] > 18
