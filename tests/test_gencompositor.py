"""GenCompositor: CogVideoX's block against diffusers, ERoPE by hand, and what the system promises."""

import json
from dataclasses import replace

import pytest
import small_gencompositor
import torch
from diffusers import CogVideoXDDIMScheduler, CogVideoXTransformer3DModel
from diffusers.models.embeddings import get_3d_rotary_pos_embed
from small_gencompositor import SMALL, randomise

import vera_lite.backbone.cogvideox as cogvideox
from vera_lite.backbone import rotary_table
from vera_lite.backbone.cogvideox import axis_widths
from vera_lite.diffusion.ddpm import Diffusion
from vera_lite.diffusion.draws import StepRandom
from vera_lite.diffusion.flow_matching import FlowMatching
from vera_lite.errors import UserError
from vera_lite.systems import GenCompositor, GenCompositorConfig, build_system, describe_system
from vera_lite.systems.gencompositor import (
    RELEASED,
    blanked,
    stream_positions,
    token_mask,
)
from vera_lite.training.optim import build_optimizer

TINY = replace(SMALL, in_channels=8, out_channels=4, time_embed_dim=12, num_layers=3)
GRID = (3, 2, 3)  # of latents 3 x 4 x 6
S = 18


def build(*, random: bool = True, **changes) -> GenCompositor:
    return small_gencompositor.build(random=random, **{"backbone": TINY} | changes)


def with_head(model: GenCompositor) -> GenCompositor:
    """An untrained model (its blocks are the identity) that at least says what is in its tokens."""
    randomise(model.transformer.proj_out)
    return model


@pytest.fixture
def inputs() -> dict:
    generator = torch.Generator().manual_seed(1)
    draw = lambda *shape: torch.randn(shape, generator=generator)  # noqa: E731
    mask = torch.zeros(2, 1, 3, 4, 6)
    mask[:, :, :, :2, :3] = 1  # tokens (0, 0) and, by one column of cells, (0, 1)
    return {
        "latents": draw(2, 4, 3, 4, 6),
        "timestep": torch.tensor([900.0, 250.0]),
        "masked_background": draw(2, 4, 3, 4, 6),
        "mask": mask,
        "foreground": draw(2, 4, 3, 4, 6),
    }


# --- the backbone --------------------------------------------------------------------------------


@pytest.mark.parametrize("table", [False, True], ids=["5B", "I2V-5B"])
def test_main_stream_equals_diffusers_in_outputs_and_gradients(inputs, table):
    torch.manual_seed(0)
    theirs = CogVideoXTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=8,
        out_channels=4,
        time_embed_dim=12,
        text_embed_dim=10,
        num_layers=3,
        sample_width=6,
        sample_height=4,
        sample_frames=9,
        max_text_seq_length=5,
        use_rotary_positional_embeddings=True,
        use_learned_positional_embeddings=table,
    )
    randomise(theirs)
    if table:
        own = GenCompositor(GenCompositorConfig(cogvideox.config_of(theirs))).transformer.patch_embed
        # Theirs is float64 until it is added.
        torch.testing.assert_close(own.pos_embedding[:, : 5 + S], theirs.patch_embed.pos_embedding.float())
        theirs.patch_embed.pos_embedding.add_(torch.randn(5 + S, 32))
    ours = GenCompositor.from_cogvideox(theirs)
    text = torch.randn(2, 5, 10)
    video = torch.cat([inputs["latents"], inputs["masked_background"]], 1).transpose(1, 2)
    rotary = get_3d_rotary_pos_embed(16, ((0, 0), GRID[1:]), GRID[1:], GRID[0])

    expected = theirs(video, text, inputs["timestep"], image_rotary_emb=rotary).sample.transpose(1, 2)
    result = ours(**inputs | {"foreground": None, "text": text})
    assert expected.abs().mean() > 0.1
    torch.testing.assert_close(result, expected, atol=1e-5, rtol=1e-5)

    weight = torch.randn_like(expected)
    (expected * weight).sum().backward()
    (result * weight).sum().backward()
    gradients = dict(ours.transformer.named_parameters())
    assert {n for n, _ in theirs.named_parameters()} == {n for n in gradients if "fg_proj" not in n}
    for name, parameter in theirs.named_parameters():
        scale = parameter.grad.abs().max().clamp_min(1.0)
        assert (gradients[name].grad - parameter.grad).abs().max() / scale <= 1e-5, name


def test_a_checkpoint_starts_foreground_and_branch(inputs):
    sizes = {"num_attention_heads": 2, "attention_head_dim": 16, "time_embed_dim": 12, "text_embed_dim": 10}
    kinds = {"in_channels": 8, "out_channels": 4, "num_layers": 3}
    theirs = CogVideoXTransformer3DModel(**sizes, **kinds, use_rotary_positional_embeddings=True)
    ours = GenCompositor.from_cogvideox(theirs)
    weight = theirs.patch_embed.proj.weight
    assert torch.equal(ours.transformer.patch_embed.fg_proj.weight, weight[:, :4])
    branch = ours.branch.patch_embed.proj.weight
    assert torch.equal(branch[:, 4:8], weight[:, :4]) and not branch[:, 8].any()
    block = theirs.transformer_blocks[1].state_dict()
    assert all(torch.equal(v, block[k]) for k, v in ours.branch.transformer_blocks[1].state_dict().items())
    assert not any(p.any() for p in ours.branch.branch_blocks.parameters())
    with pytest.raises(UserError, match="2B"):
        GenCompositor.from_cogvideox(CogVideoXTransformer3DModel(**sizes, **kinds))
    with pytest.raises(UserError, match="to_q.bias"):
        GenCompositor.from_cogvideox(
            CogVideoXTransformer3DModel(
                **sizes, **kinds, use_rotary_positional_embeddings=True, attention_bias=False
            )
        )


def test_parameter_counts_are_the_released_ones():
    with torch.device("meta"):
        model = GenCompositor(RELEASED)
        plain = GenCompositor(replace(RELEASED, released_unused_layers=False))
    count = lambda module: sum(p.numel() for p in module.parameters())  # noqa: E731
    assert count(model.transformer) == 5_570_679_360
    assert count(model.branch) == 301_568_576
    assert count(plain.branch) == 298_106_368  # what really runs


# --- ERoPE ---------------------------------------------------------------------------------------


def test_readings_of_erope_by_hand():
    """Two frames of two rows and one column; (t, h) of noisy frames 0 and 1, foreground frames 0 and 1."""
    by_hand = {
        "shared": "00 01 10 11  00 01 10 11",
        "paper": "00 01 10 11  02 03 12 13",
        "released": "00 01 02 03  10 11 12 13",  # noisy frame 1 is put below noisy frame 0
    }
    for rope, expected in by_hand.items():
        positions = stream_positions((2, 2, 1), rope)
        assert [f"{t}{h}" for t, h, _ in positions.tolist()] == expected.split(), rope
        assert not positions[:, 2].any()
    moved = stream_positions((2, 2, 1), "paper", "w", offset=7)
    assert moved[:4].tolist() == [[0, 0, 0], [0, 1, 0], [1, 0, 0], [1, 1, 0]]
    assert torch.equal(moved[4:], moved[:4] + torch.tensor([0, 0, 7]))


@pytest.mark.parametrize("axis", ["t", "h", "w"])
def test_positions_collide_only_when_shared(axis):
    grid = (3, 4, 5)
    distinct = {
        r: len(stream_positions(grid, r, axis).unique(dim=0)) for r in ("paper", "released", "shared")
    }
    assert distinct == {"paper": 120, "released": 120, "shared": 60}
    folded = not torch.equal(stream_positions(grid, "released", axis), stream_positions(grid, "paper", axis))
    assert folded == (axis != "t")


def test_released_positions_at_full_size():
    noisy, foreground = stream_positions((13, 30, 45), "released").view(2, 13, 30, 45, 3)
    for f in range(13):
        for stream, index in ((noisy, f), (foreground, 13 + f)):
            t, h, w = stream[f].unbind(-1)
            assert (t == index // 2).all()
            assert torch.equal(h[:, 0], torch.arange(30) + 30 * (index % 2))
            assert torch.equal(w[0], torch.arange(45))
    assert noisy[12, 0, 0, 0] == foreground[0, 0, 0, 0] == 6  # two streams at one time


def test_the_released_table_is_that_of_a_grid_twice_as_high():
    cos, sin = get_3d_rotary_pos_embed(16, ((0, 0), (4, 3)), (4, 3), 3)
    table = rotary_table(stream_positions(GRID, "released"), axis_widths(16))
    torch.testing.assert_close(table[0], cos, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(table[1].abs(), sin.abs(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(table[1, :, 1::2], sin[:, 1::2], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("rope", ["shared", "paper", "released"])
def test_with_one_projection_position_alone_tells_the_streams_apart(inputs, rope):
    """On one grid, two copies of a video are one video: every softmax weight is only split in two."""
    model = build(rope=rope, shared_projection=True, branch_layers=0)
    assert model.transformer.patch_embed.fg_proj is None
    single = model(**inputs | {"foreground": None})
    double = model(**inputs | {"foreground": inputs["latents"]})
    assert torch.allclose(single, double, atol=1e-4) == (rope == "shared")


# --- fusion and branch ---------------------------------------------------------------------------


def test_every_block_attends_to_both_streams_and_the_branch_to_one(inputs, monkeypatch):
    calls = []
    monkeypatch.setattr(cogvideox, "attend", lambda q, k, v: calls.append((q.shape[2], k.shape[2])) or v)
    build()(**inputs)
    assert calls == [(S, S)] * 2 + [(2 * S, 2 * S)] * 3


def test_cross_attention_ablation_keeps_the_foreground_out_of_self_attention(inputs, monkeypatch):
    model = build(fusion="cross")
    before = model(**inputs)
    assert not torch.allclose(before, model(**inputs | {"foreground": inputs["foreground"] + 1}))
    calls, attend = [], cogvideox.attend
    monkeypatch.setattr(
        cogvideox, "attend", lambda q, k, v: calls.append((q.shape[2], k.shape[2])) or attend(q, k, v)
    )
    one = torch.zeros_like(inputs["foreground"])
    one[..., :2, :2] = inputs["foreground"][..., :2, :2]
    model(**inputs | {"foreground": one})
    assert calls == [(S, S)] * 8
    # Untrained, it adds nothing, as the gates of the self-attention let nothing through.
    quiet = with_head(build(random=False, fusion="cross"))
    assert torch.equal(quiet(**inputs), quiet(**inputs | {"foreground": None}))


def test_only_the_noisy_half_is_decoded(inputs):
    model = with_head(build(random=False))  # tokens reach the head as they were embedded
    before = model(**inputs)
    assert before.shape == inputs["latents"].shape and before.abs().max() > 0.1
    assert torch.equal(before, model(**inputs | {"foreground": inputs["foreground"] + 1}))
    assert not torch.allclose(before, model(**inputs | {"latents": inputs["latents"] + 1}))
    trained = build()
    assert not torch.allclose(trained(**inputs), trained(**inputs | {"foreground": inputs["foreground"] + 1}))


def test_the_branch_adds_nothing_at_the_start(inputs):
    model = build(random=False)
    randomise(model.transformer)
    with_branch = model(**inputs)
    model.branch = None
    assert torch.equal(with_branch, model(**inputs))


def test_the_branch_reaches_only_tokens_without_a_masked_cell(inputs):
    model = with_head(build(random=False))
    before = model(**inputs)
    randomise(model.branch)
    changed = (model(**inputs) - before).abs().amax((0, 1, 2)) > 0  # (h, w) of latent cells
    expected = torch.ones(4, 6, dtype=torch.bool)
    expected[:2, :4] = False  # half a token is masked: the whole token may be drawn
    assert torch.equal(changed, expected)
    everywhere = inputs | {"mask": torch.ones_like(inputs["mask"])}
    model, without = build(), build()
    without.branch = None
    torch.testing.assert_close(model(**everywhere), without(**everywhere), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(model(**inputs), without(**inputs))


def test_branch_features_are_dealt_to_blocks_in_equal_runs(inputs, monkeypatch):
    model = build(random=False)  # three blocks, two features: 0, 0, 1
    tokens = []
    monkeypatch.setattr(model.transformer, "head", lambda x, *_: tokens.append(x))
    model(**inputs)
    with torch.no_grad():
        for value, layer in zip((1.0, 10.0), model.branch.branch_blocks, strict=True):
            layer.bias.fill_(value)
    model(**inputs)
    added = (tokens[1] - tokens[0])[0].unflatten(0, GRID)
    torch.testing.assert_close(added[:, 1], torch.full((3, 3, 32), 12.0))  # second row of tokens
    assert not added[:, 0, :2].any()  # masked


def test_the_branch_sees_noise_background_and_mask(inputs):
    model = build(fusion="cross")
    assert model.branch.patch_embed.proj.in_channels == 9
    seen = []
    model.branch.patch_embed.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    model(**inputs)
    parts = [inputs[n] for n in ("latents", "masked_background", "mask")]
    assert torch.equal(seen[0], torch.cat(parts, 1))
    assert build(branch_layers=0).branch is None


def test_token_mask_takes_any_overlap():
    mask = torch.zeros(1, 1, 2, 4, 4)
    mask[0, 0, 1, 3, 2] = 0.01
    assert token_mask(mask, 2).flatten().tolist() == [False] * 7 + [True]


# --- training ------------------------------------------------------------------------------------


def batch(inputs: dict) -> dict:
    names = ("masked_background", "foreground")
    extra = {n: inputs["latents"] * k for n, k in (("composite", 1), ("background", 2), ("blank", 3))}
    return {n: inputs[n] for n in names} | extra | {"mask": (inputs["mask"] > 0).float()}


def losses(model: GenCompositor, data: dict, sigma=(0.9, 0.25)) -> dict:
    return model.training_losses(data, torch.tensor(sigma), StepRandom(5, 0, 2))


@pytest.mark.parametrize(
    "objective", [Diffusion(), Diffusion("v_prediction"), FlowMatching(), FlowMatching("x_0")], ids=str
)
def test_a_perfect_network_has_no_loss_and_the_masked_term_sees_the_mask_only(inputs, objective):
    model, data = build(objective=objective, mask_loss_weight=5.0, blank_foreground=0.0), batch(inputs)
    x_0, sigma = data["composite"], torch.tensor([0.9, 0.25])
    noise = StepRandom(5, 0, 2)
    noise.uniform()  # the draw that decides about blank foregrounds
    noise = noise.noise(x_0)
    kind, signal = objective.prediction, Diffusion("v_prediction").alphas_cumprod(sigma)
    perfect = {
        "epsilon": noise,
        "v_prediction": signal.sqrt() * noise - (1 - signal).sqrt() * x_0,
        "velocity": noise - x_0,
        "x_0": x_0,
    }[kind]
    model.forward = lambda *_: perfect
    assert all(v.max() < 1e-8 for v in losses(model, data).values())
    model.forward = lambda *_: perfect + 1
    error = losses(model, data)
    weight = sigma.clamp_min(0.25) ** -2 if kind == "x_0" else torch.ones(2)
    torch.testing.assert_close(error["composite"], weight, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(error["masked"], 5 * weight * 6 / 24, atol=1e-4, rtol=1e-4)
    model.forward = lambda *_: perfect + 1 - data["mask"]
    assert losses(model, data)["masked"].max() < 1e-8
    assert set(losses(build(), data)) == {"composite"}


def test_the_training_step_feeds_the_network_what_the_objective_says(inputs):
    model, data = build(blank_foreground=0.0, objective=Diffusion("v_prediction")), {}
    names = ("x", "t", "b", "m", "f", "text")
    model.forward = lambda *args: data.update(zip(names, args, strict=True)) or args[0]
    given = batch(inputs)
    losses(model, given)
    expected = model.config.objective.add_noise(
        given["composite"], StepRandom(5, 0, 2).noise(given["composite"]), torch.tensor([0.9, 0.25])
    )
    torch.testing.assert_close(data["x"], expected)
    assert data["t"].tolist() == [900.0, 250.0] and data["text"] is None
    assert all(
        torch.equal(data[k], given[n])
        for k, n in (("b", "masked_background"), ("m", "mask"), ("f", "foreground"))
    )


def test_diffusion_is_diffusers_schedule():
    theirs = CogVideoXDDIMScheduler(snr_shift_scale=1.0, rescale_betas_zero_snr=True)
    x_0, noise = torch.randn(2, 2, 4, 3, 4, 6).unbind()
    objective, sigma, steps = Diffusion("v_prediction"), torch.tensor([0.999, 0.25]), torch.tensor([999, 250])
    x_t = objective.add_noise(x_0, noise, sigma)
    torch.testing.assert_close(x_t, theirs.add_noise(x_0, noise, steps))
    torch.testing.assert_close(x_t[0], noise[0])  # no signal is left
    v = theirs.get_velocity(x_0, noise, steps)
    torch.testing.assert_close(objective.predict_x0(v, x_t, sigma), x_0)
    epsilon = Diffusion()
    x_t = epsilon.add_noise(x_0, noise, sigma)
    torch.testing.assert_close(epsilon.predict_x0(noise, x_t, sigma), x_0, atol=1e-4, rtol=1e-4)
    drawn = epsilon.sample_sigma(StepRandom(0, 0, 500)).sort().values * 1000
    torch.testing.assert_close(drawn, drawn.round())
    assert drawn[0] < 2 and drawn[-1] >= 998 and (drawn.diff() <= 4).all()
    with pytest.raises(ValueError, match="prediction"):
        Diffusion("velocity")


def test_blank_foregrounds_come_with_the_plain_background_as_target(inputs):
    data = {
        n: torch.full((400, 1, 1, 1, 1), v) for v, n in enumerate(["composite", "background", "blank"], 1)
    }
    data["foreground"] = torch.zeros(400, 1, 1, 1, 1)
    target, foreground = blanked(data, 0.2, StepRandom(1, 0, 400))
    pairs = list(zip(target.flatten().tolist(), foreground.flatten().tolist(), strict=True))
    assert set(pairs) == {(1, 0.0), (2, 3.0)}
    assert pairs.count((2, 3.0)) / 400 == pytest.approx(0.2, abs=0.05)
    # Blanked, the training step sees nothing of composite and foreground.
    model, known = build(blank_foreground=1.0), batch(inputs)
    other = known | {n: known[n] + 1 for n in ("composite", "foreground")}
    assert torch.equal(losses(model, known)["composite"], losses(model, other)["composite"])
    assert not torch.equal(
        losses(model, known)["composite"], losses(model, known | {"blank": known["blank"] + 1})["composite"]
    )


# --- files and errors ----------------------------------------------------------------------------


@pytest.mark.parametrize("objective", [Diffusion("v_prediction"), FlowMatching("x_0", 3.0)], ids=str)
def test_a_saved_config_builds_the_same_system(inputs, objective):
    model = build(objective=objective, rope="released", rope_axis="w")
    saved = json.loads(json.dumps(describe_system(model)))
    again = build_system(saved)
    again.load_state_dict(model.state_dict())
    assert again.config == model.config
    torch.testing.assert_close(again(**inputs), model(**inputs), rtol=1e-4, atol=1e-5)
    with pytest.raises(UserError, match="colour"):
        build_system(saved | {"config": saved["config"] | {"colour": 1}})


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"rope": "both"}, "rope"),
        ({"rope": "shared", "rope_offset": 3}, "rope_offset"),
        ({"rope_axis": "x"}, "rope_axis"),
        ({"fusion": "sum"}, "fusion"),
        ({"branch_layers": 4}, "branch_layers"),
        ({"backbone": replace(TINY, in_channels=4)}, "channels"),
    ],
)
def test_bad_choices_are_refused_by_name(change, named):
    with pytest.raises(ValueError, match=named):
        build(**change)


def test_bad_inputs_are_refused_by_name(inputs):
    model = build()
    for name in ("masked_background", "mask", "foreground"):
        with pytest.raises(ValueError, match=f"{name} is "):
            model(**inputs | {name: inputs[name][..., :2]})
    with pytest.raises(ValueError, match="without text"):
        model(**inputs, text=torch.zeros(2, 5, 10))
    with pytest.raises(ValueError, match="text features"):
        build(backbone=replace(TINY, text_embed_dim=10))(**inputs)
    odd = {n: x[..., :5] if x.ndim > 1 else x for n, x in inputs.items()}
    with pytest.raises(ValueError, match="2x2"):
        model(**odd)
    with pytest.raises(ValueError, match="12"):
        replace(TINY, attention_head_dim=12)
    tabled = replace(TINY, use_learned_positional_embeddings=True, text_embed_dim=10)
    with pytest.raises(ValueError, match="position table"):
        build(backbone=tabled)(**inputs, text=torch.zeros(2, 5, 10))
    tabled = replace(tabled, sample_frames=9, sample_height=4, sample_width=6)
    with pytest.raises(ValueError, match="226"):
        build(backbone=tabled)(**inputs, text=torch.zeros(2, 5, 10))


def test_muon_gets_the_matrices_of_the_blocks():
    model = build()
    names = {id(p): name for name, p in model.named_parameters()}
    [muon] = build_optimizer(model, 1e-3, 0.02, 0.0).parts[0].param_groups
    taken = {names[id(p)] for p in muon["params"]}
    assert "transformer.transformer_blocks.0.attn1.to_q.weight" in taken
    assert all("_blocks." in name and name.endswith("weight") for name in taken)
