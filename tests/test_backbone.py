"""Our blocks against diffusers' own classes, on random weights."""

import pytest
import torch
from diffusers import WanTransformer3DModel
from hypothesis import given, settings
from hypothesis import strategies as st

from vera_lite.backbone import (
    WanConfig,
    WanTransformer,
    grid_positions,
    load_weights,
    read_wan,
    rotary_table,
    rotate,
)
from vera_lite.backbone.wan import sinusoids, timestep_runs
from vera_lite.errors import UserError
from vera_lite.systems import Vera, VeraConfig

TINY = {
    "patch_size": (1, 2, 2),
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "in_channels": 4,
    "out_channels": 4,
    "text_dim": 16,
    "freq_dim": 32,
    "ffn_dim": 48,
    "num_layers": 2,
}


@pytest.fixture
def wan(tmp_path):
    """A tiny random Wan with nothing zero, and the folder it was saved into."""
    torch.manual_seed(0)
    model = WanTransformer3DModel(**TINY).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.1)
    model.save_pretrained(tmp_path / "wan")
    return model, tmp_path / "wan"


def inputs(per_token: bool):
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(2, 4, 3, 4, 6, generator=generator)
    text = torch.randn(2, 5, 16, generator=generator)
    timestep = torch.tensor([999.0, 12.5])
    if per_token:  # Wan2.2-TI2V: the tokens of the first frame are clean
        timestep = timestep[:, None].repeat(1, 18)
        timestep[:, :6] = 0
    return latents, timestep, text


@pytest.mark.parametrize("per_token", [False, True], ids=["wan2.1", "wan2.2-ti2v"])
def test_equals_diffusers_in_outputs_and_gradients(wan, per_token):
    theirs, folder = wan
    config, tensors = read_wan(folder)
    ours = WanTransformer(config)
    load_weights(ours, tensors)
    latents, timestep, text = inputs(per_token)

    expected = theirs(latents, timestep, text).sample
    result = ours(latents, timestep, text)
    torch.testing.assert_close(result, expected, atol=1e-5, rtol=1e-5)

    weight = torch.randn(expected.shape, generator=torch.Generator().manual_seed(2))
    (expected * weight).sum().backward()
    (result * weight).sum().backward()
    gradients = dict(ours.named_parameters())
    names = [n for n, _ in theirs.named_parameters()]
    assert sorted(names) == sorted(gradients)
    for name, parameter in theirs.named_parameters():
        got = gradients[name].grad
        scale = parameter.grad.abs().max().clamp_min(1.0)
        assert (got - parameter.grad).abs().max() / scale <= 1e-5, name


def test_a_foreign_checkpoint_is_refused(wan, tmp_path):
    _, folder = wan
    config, tensors = read_wan(folder)
    with pytest.raises(UserError, match=r"proj_out\.bias"):
        load_weights(WanTransformer(config), {k: v for k, v in tensors.items() if k != "proj_out.bias"})
    with pytest.raises(UserError, match=r"proj_out\.bias"):
        load_weights(WanTransformer(config), {**tensors, "proj_out.bias": tensors["proj_out.bias"][None]})
    with pytest.raises(UserError, match="config.json"):
        read_wan(tmp_path / "nothing")


def test_timestep_999_stays_999_in_bfloat16():
    # bfloat16 has no 999: a cast before the sinusoids would turn it into 1000.
    model = WanTransformer(WanConfig(**TINY)).bfloat16()
    embed = model.condition_embedder
    waves = sinusoids(torch.tensor([[999.0], [1000.0]]), 32)
    assert waves.dtype == torch.float32 and not torch.equal(*waves)
    for context in (torch.autocast("cpu", torch.bfloat16), torch.autocast("cpu", enabled=False)):
        with context:
            told = embed(torch.tensor([[999.0, 1000.0]]), torch.zeros(1, 5, 16).bfloat16())
        assert told.time.dtype == told.modulation.dtype == torch.float32
        assert not torch.equal(told.time[:, 0], told.time[:, 1])


def test_a_cast_leaves_in_float32_what_diffusers_keeps(wan):
    theirs, folder = wan
    kept = WanTransformer3DModel.from_pretrained(folder, torch_dtype=torch.bfloat16)
    config, tensors = read_wan(folder)
    ours = WanTransformer(config)
    load_weights(ours, tensors)
    ours.bfloat16()
    dtypes = {n: p.dtype for n, p in ours.named_parameters()}
    for name, parameter in kept.named_parameters():
        # Wan's own code computes this projection in float32 too.
        expected = torch.float32 if "time_proj" in name else parameter.dtype
        assert dtypes[name] == expected, name
    torch.testing.assert_close(ours.scale_shift_table, tensors["scale_shift_table"], rtol=0, atol=0)
    latents, timestep, text = inputs(False)
    result = ours(latents, timestep, text)
    expected = theirs(latents, timestep, text).sample
    assert (result - expected).abs().max() < 0.05 * expected.abs().max()


@given(st.lists(st.integers(1, 4), min_size=1, max_size=6))
def test_timestep_runs_compress_exactly(lengths):
    values = torch.arange(1.0, len(lengths) + 1) * torch.tensor([[1.0], [2.0]])
    dense = values.repeat_interleave(torch.tensor(lengths), dim=1)
    compressed, runs = timestep_runs(dense, sum(lengths))
    assert runs == lengths and torch.equal(compressed, values)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 50), st.integers(0, 50), st.integers(0, 50))
def test_rotary_products_depend_on_relative_position_only(dt, dh, dw):
    generator = torch.Generator().manual_seed(3)
    q, k = torch.randn(2, 12, 1, 24, generator=generator)
    grid = (2, 2, 3)

    def scores(offset):
        table = rotary_table(grid_positions(grid, offset), (8, 8, 8))
        return torch.einsum("qhd,khd->qk", rotate(q, table), rotate(k, table))

    torch.testing.assert_close(scores((dt, dh, dw)), scores((0, 0, 0)), atol=1e-4, rtol=1e-4)


def test_a_block_is_one_graph_for_the_compiler():
    """Plain and joint blocks, forward and backward, without a break."""
    torch._dynamo.reset()
    config = WanConfig(**TINY)
    wan, vera = WanTransformer(config), Vera(VeraConfig(backbone=config))
    rotary = wan.rotary(grid_positions((1, 2, 3)))
    x, text, modulation = torch.randn(2, 6, 24), torch.randn(2, 5, 24), torch.randn(2, 1, 6, 24)
    for block, inputs in (
        (wan.blocks[0], (x, text, modulation, [6], rotary)),
        (vera.blocks[0], ([x, x + 1, x - 1], [text], [modulation], rotary)),
    ):
        expected = block(*inputs)
        result = torch.compile(block, fullgraph=True, backend="aot_eager")(*inputs)
        torch.testing.assert_close(result, expected)
        sum(y.sum() for y in result).backward()
        assert block.state_dict().keys() == {n for n, p in block.named_parameters() if p.grad is not None}


def test_adapters_of_peft_find_plain_linear_layers(wan):
    from peft import LoraConfig, inject_adapter_in_model

    _, folder = wan
    model = Vera.from_wan(folder)
    source, timestep, text = inputs(False)
    given = source.expand(3, *source.shape), timestep, text, source
    expected = model(*given)
    inject_adapter_in_model(LoraConfig(r=2, target_modules=["to_q", "to_v"]), model)
    torch.testing.assert_close(model(*given), expected)  # B = 0
    model(*given).square().mean().backward()
    names = {n.split(".lora_B")[0] for n, p in model.named_parameters() if "lora_B" in n and p.grad.any()}
    assert {f"blocks.1.branches.{k}.attn1.to_q" for k in range(3)} <= names
    assert "blocks.0.branches.0.attn2.to_v" in names


def test_linear_layers_can_be_quantised(wan):
    from torch.ao.quantization import quantize_dynamic

    _, folder = wan
    model = Vera.from_wan(folder).eval()
    source, timestep, text = inputs(False)
    given = source.expand(3, *source.shape), timestep, text, source
    with torch.no_grad():
        expected = model(*given)
        small = quantize_dynamic(model, {torch.nn.Linear}, dtype=torch.qint8)
        error = (small(*given) - expected).abs().max() / expected.abs().max()
    assert "quantized" in type(small.blocks[0].branches[2].attn1.to_q).__module__
    assert 0 < error < 0.1


@pytest.mark.parametrize("kind", ["full", "attention"])
def test_checkpointing_changes_no_gradient_by_a_bit(kind):
    torch.manual_seed(0)
    model = Vera(VeraConfig(backbone=WanConfig(**TINY)))
    for tower in model.towers:
        torch.nn.init.normal_(tower.proj_out.weight, std=0.1)
    latents, timestep, text = inputs(False)
    source, latents = latents, torch.stack([latents, latents + 1, latents - 1])
    gradients = {}
    for model.checkpointing in ("none", kind):
        model.zero_grad()
        model(latents, timestep, text, source, source).square().mean().backward()
        gradients[model.checkpointing] = [p.grad.clone() for p in model.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(*gradients.values(), strict=True))
