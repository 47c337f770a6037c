"""The numbers about compositions are right for known results."""

import math

import pytest
import small_gencompositor
import torch

from vera_lite.diffusion.flow_matching import FlowMatching
from vera_lite.evaluation.toy.composition_benchmark import compositions, evaluate, position_leakage
from vera_lite.pipelines import GenCompositorPipeline


def pipeline(**changes) -> GenCompositorPipeline:
    """A small model with random weights in every block."""
    options = {"objective": FlowMatching("x_0"), "branch_layers": 1} | changes
    return small_gencompositor.pipeline(small_gencompositor.build(**options))


def test_the_truth_scores_best():
    row = evaluate(pipeline(), 8, draw=lambda batch: batch.composite)
    assert row["psnr"] == row["object_psnr"] == math.inf and row["preserved_psnr"] > 50
    assert row["ssim"] == row["colour"] == row["shape"] == 1 and row["clips"] == 8
    assert row["texture"] == pytest.approx(1) and row["brightness"] == pytest.approx(0, abs=1e-6)


def test_each_number_notices_its_own_fault():
    pipe = pipeline()
    nothing = evaluate(pipe, 24, draw=lambda batch: batch.background)
    assert nothing["preserved_psnr"] == math.inf and nothing["shape"] == 0
    assert nothing["colour"] < 0.6 and nothing["texture"] < 0.5
    dim = evaluate(pipe, 24, draw=lambda batch: 0.7 * batch.composite)
    assert dim["brightness"] == pytest.approx(0.3, abs=1e-5) and dim["texture"] > 0.999 and dim["colour"] == 1
    assert dim["preserved_psnr"] < 25
    frozen = evaluate(pipe, 24, draw=lambda batch: batch.composite[:, :1].expand_as(batch.composite))
    assert frozen["texture"] < 0.7 and frozen["shape"] < 0.8  # it sees motion as well
    recoloured = evaluate(pipe, 24, draw=lambda batch: batch.composite.roll(1, 2))
    assert recoloured["colour"] == 0


def test_numbers_do_not_depend_on_the_batches():
    pipe = pipeline()
    rows = [evaluate(pipe, 5, batch_size=n, draw=lambda b: 0.9 * b.composite) for n in (2, 5)]
    for name, value in rows[0].items():
        assert rows[1][name] == pytest.approx(value, rel=1e-6)


def test_a_pipeline_is_judged_on_removal_too():
    row = evaluate(pipeline(), 4, steps=2, relit=False)
    assert 0 < row["removal_psnr"] < 40 and 0 < row["psnr"] < 40
    assert evaluate(pipeline(), 4, steps=2, relit=False) == row


def test_inputs_follow_the_pipeline():
    pipe = pipeline()
    batch, foreground, mask = compositions(pipe, range(3))
    assert (foreground[:, :, :, 0, 0] == 1).all() and (mask >= (batch.matte > 0.5)).all()
    pipe.mask_sigma = None
    plain, _, exact = compositions(pipe, range(3))
    assert torch.equal(exact, plain.matte)


@pytest.mark.parametrize("fusion", ["self", "cross"])
def test_leakage_of_uniform_attention_is_one(fusion):
    pipe = pipeline(fusion=fusion)
    for name, parameter in pipe.system.named_parameters():
        if "to_q" in name or "norm_q" in name:
            torch.nn.init.zeros_(parameter)
    leak = position_leakage(pipe, 2, steps=2)
    assert leak["same_index"] == pytest.approx(1, abs=1e-4)
    assert leak["foreground"] == pytest.approx({"self": 0.5, "cross": 1.0}[fusion], abs=1e-4)


def test_leakage_sees_shared_positions():
    """If all queries and keys are one vector, only positions matter."""
    leaks = {}
    for rope in ("shared", "paper"):
        pipe = pipeline(rope=rope, branch_layers=0)
        for block in pipe.system.transformer.blocks:
            for linear in (block.attn1.to_q, block.attn1.to_k):
                torch.nn.init.zeros_(linear.weight)
                linear.bias.data.copy_(torch.tensor([3.0, -3.0]).repeat(16))
        leaks[rope] = position_leakage(pipe, 2, steps=2)["same_index"]
    assert leaks["shared"] > 2 > 1.5 > leaks["paper"]
