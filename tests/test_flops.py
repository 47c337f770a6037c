"""The predicted FLOPs against those that torch counts, exactly."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from vera_lite.backbone import WAN_1_3B, WanConfig, WanTransformer
from vera_lite.diagnostics.flops import counted_flops, forward_flops
from vera_lite.systems import Vera, VeraConfig

SMALL = st.integers(1, 3)


def counted(config, latent_size, text_tokens, branches, batch, timesteps, device, **how) -> int:
    """FLOPs of a real forward pass."""
    with torch.device(device), torch.no_grad():
        latents = torch.zeros(batch, config.in_channels, *latent_size)
        model, source = WanTransformer(config), ()
        if branches > 1:
            how["mixture"] = how.pop("experts", branches) > 1
            how["joint_attention"] = how.pop("joint", True)
            how = {"share_text_kv": False, "share_condition_embedder": False} | how
            model, source = Vera(VeraConfig(backbone=config, **how)), (latents,)
            latents = latents.expand(branches, *latents.shape)
        text = torch.zeros(batch, text_tokens, config.text_dim or config.dim)
        if config.text_dim is None:  # a context for each block
            text = [text] * config.num_layers
    time = torch.zeros(batch)
    if timesteps > 1:  # the first tokens get one of their own each, the rest the last
        t, h, w = config.grid(latent_size)
        time = torch.arange(t * h * w).clamp(max=timesteps - 1).expand(batch, -1)
    if device == "meta" and timesteps == 1:
        time = time.to(device)
    with torch.no_grad():
        total = counted_flops(lambda: model(latents, time, text, *source))
    # The source's embedding is Vera's own, no part of the transformers.
    t, h, w = config.grid(latent_size)
    return (
        total
        - len(source) * 2 * batch * t * h * w * config.in_channels * math.prod(config.patch_size) * config.dim
    )


@settings(max_examples=40, deadline=None)
@given(
    config=st.builds(
        WanConfig,
        patch_size=st.tuples(SMALL, SMALL, SMALL),
        num_attention_heads=SMALL,
        attention_head_dim=st.sampled_from([8, 12, 16]),
        in_channels=SMALL,
        out_channels=SMALL,
        text_dim=st.integers(1, 9),
        freq_dim=st.sampled_from([4, 10]),
        ffn_dim=st.integers(1, 40),
        num_layers=st.integers(0, 2),
        cross_attention=st.booleans(),
        cross_attn_norm=st.booleans(),
        summed_text=st.booleans(),
    ),
    grid=st.tuples(SMALL, SMALL, SMALL),
    text_tokens=st.integers(1, 5),
    branches=st.sampled_from([1, 3]),
    batch=st.integers(1, 2),
    timesteps=SMALL,
    one_expert=st.booleans(),
    joint=st.booleans(),
    share_text_kv=st.booleans(),
    share_condition_embedder=st.booleans(),
)
def test_prediction_is_what_torch_counts(
    config, grid, text_tokens, branches, batch, timesteps, one_expert, **how
):
    latent_size = tuple(n * p for n, p in zip(grid, config.patch_size, strict=True))
    assume(timesteps <= grid[0] * grid[1] * grid[2])
    if branches > 1:
        timesteps, config = 1, replace(config, cross_attention=True)
    how["experts"] = 1 if one_expert else branches
    predicted = forward_flops(
        config, latent_size, text_tokens, branches, batch=batch, timesteps=timesteps, **how
    )
    assert predicted.total == counted(
        config, latent_size, text_tokens, branches, batch, timesteps, "cpu", **how
    )


def test_a_model_without_text_embedding_is_counted_too():
    config = WanConfig(
        num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=4, text_dim=None,
        freq_dim=8, ffn_dim=40, num_layers=2,
    )  # fmt: skip
    predicted = forward_flops(config, (2, 4, 4), 7, batch=2)
    assert predicted.total == counted(config, (2, 4, 4), 7, 1, 2, 1, "cpu")


@pytest.mark.parametrize("branches", [1, 3])
def test_full_size_on_the_meta_device(branches):
    arguments = WAN_1_3B, (5, 60, 104), 512, branches
    assert forward_flops(*arguments).total == counted(*arguments, 1, 1, "meta")


def test_attention_is_really_counted_on_the_cpu():
    q = torch.zeros(1, 2, 64, 16)
    attend = torch.nn.functional.scaled_dot_product_attention
    assert counted_flops(lambda: attend(q, q, q)) == 2 * (2 * 2 * 64 * 64 * 16)


def test_without_joint_attention_three_branches_cost_three_times_one():
    one = forward_flops(WAN_1_3B, (21, 60, 104), 512)
    three = forward_flops(WAN_1_3B, (21, 60, 104), 512, 3, joint=False)
    joint = forward_flops(WAN_1_3B, (21, 60, 104), 512, 3)
    assert three.total == 3 * one.total
    assert joint.self_attention == 9 * one.self_attention
    assert joint._replace(self_attention=0) == three._replace(self_attention=0)
