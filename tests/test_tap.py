"""The tap and the knock-out, on tiny random models of every class they must work with."""

import copy
from functools import cache

import pytest
import torch
from diffusers import CogVideoXTransformer3DModel, WanTransformer3DModel
from torch import nn
from torch.nn import functional as F
from torch.overrides import _get_current_function_mode_stack
from transformers import (
    Glm46VConfig,
    Glm46VForConditionalGeneration,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)

from vera_lite.backbone import WanConfig, WanTransformer
from vera_lite.diagnostics import AttentionCall, CallSite, GroupMass, KnockOut, Rows, Tap
from vera_lite.diffusion.sampling import denoise
from vera_lite.systems import Regeneration, RegenerationConfig, Vera, VeraConfig

# --- models --------------------------------------------------------------------------------------

WAN = {
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
COG = {
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "in_channels": 4,
    "out_channels": 4,
    "time_embed_dim": 8,
    "text_embed_dim": 16,
    "num_layers": 2,
    "sample_width": 4,
    "sample_height": 4,
    "sample_frames": 5,
    "max_text_seq_length": 5,
}
TEXT = {
    "vocab_size": 32,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": None,
    "eos_token_id": None,
}
VISION = {
    "depth": 2,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_heads": 2,
    "patch_size": 2,
    "out_hidden_size": 32,
}
START, END, VIDEO, IMAGE = 28, 29, 31, 30


def rope(*section: int, **options) -> dict:
    return {"rope_type": "default", "rope_theta": 1e4, "mrope_section": list(section)} | options


def qwen3() -> nn.Module:
    text = TEXT | {"head_dim": 8, "rope_parameters": rope(2, 1, 1, mrope_interleaved=True)}
    vision = VISION | {"num_position_embeddings": 16, "deepstack_visual_indexes": [0]}
    return Qwen3VLForConditionalGeneration(
        Qwen3VLConfig(text_config=text, vision_config=vision, image_token_id=IMAGE, video_token_id=VIDEO)
    )


def qwen2_5() -> nn.Module:
    text = TEXT | {"rope_parameters": rope(2, 1, 1)}
    # The first block looks inside 4 x 4 pixels, the second at a whole frame.
    vision = VISION | {"window_size": 4, "fullatt_block_indexes": [1]}
    return Qwen2_5_VLForConditionalGeneration(
        Qwen2_5_VLConfig(text_config=text, vision_config=vision, image_token_id=IMAGE, video_token_id=VIDEO)
    )


def glm4_6() -> nn.Module:
    text = TEXT | {"model_type": "glm4v_text", "rope_parameters": rope(1, 1, 0, partial_rotary_factor=0.5)}
    vision = VISION | {"model_type": "glm4v_vision", "image_size": 8}
    return Glm46VForConditionalGeneration(
        Glm46VConfig(text_config=text, vision_config=vision, image_token_id=IMAGE, video_token_id=VIDEO)
    )


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def video(placeholder: int, frames_apart: bool = True) -> dict:
    """A prompt with a video of two temporal slots of 4 x 4 patches, four patches a token."""
    slot = [placeholder] * 4
    middle = [END, 5, START] if frames_apart else []
    ids = torch.tensor([[1, 2, START, *slot, *middle, *slot, END, 3, 4]])
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "mm_token_type_ids": (ids == placeholder).int() * 2,
        "pixel_values_videos": draw(2 * 16, 3 * 2 * 2 * 2),
        "video_grid_thw": torch.tensor([[2, 4, 4]]),
    }


def wan_inputs(tokens: int = 5) -> dict:
    return {
        "hidden_states": draw(2, 4, 2, 4, 4),
        "timestep": torch.tensor([500, 20]),
        "encoder_hidden_states": draw(2, tokens, 16),
    }


OURS = {"timestep": torch.tensor([900.0, 250.0]), "text": draw(2, 5, 16)}
LATENTS = {"latents": draw(3, 2, 4, 2, 4, 4), "source": draw(2, 4, 2, 4, 4), "mask": draw(2, 4, 2, 4, 4)}
BUILD = {
    "vera": lambda: Vera(VeraConfig(backbone=WanConfig(**WAN))),
    "regeneration": lambda: Regeneration(RegenerationConfig(backbone=WanConfig(**WAN))),
    "wan": lambda: WanTransformer(WanConfig(**WAN)),
    "diffusers-wan": lambda: WanTransformer3DModel(**WAN),
    "diffusers-wan-image": lambda: WanTransformer3DModel(**WAN, image_dim=8, added_kv_proj_dim=24),
    "diffusers-cogvideox": lambda: CogVideoXTransformer3DModel(**COG),
    "qwen3-vl": qwen3,
    "qwen2.5-vl": qwen2_5,
    "glm-4.6v": glm4_6,
}
INPUTS = {
    "vera": OURS | LATENTS,
    "regeneration": OURS | LATENTS | {"latents": LATENTS["latents"][:1]},
    "wan": OURS | {"latents": LATENTS["latents"][0]},
    "diffusers-wan": wan_inputs(),
    "diffusers-wan-image": wan_inputs(512) | {"encoder_hidden_states_image": draw(2, 3, 8)},
    "diffusers-cogvideox": wan_inputs() | {"hidden_states": draw(2, 2, 4, 4, 4)},
    "qwen3-vl": video(VIDEO),
    "qwen2.5-vl": video(VIDEO, frames_apart=False),
    "glm-4.6v": video(IMAGE),  # its frames are images to it
}
VLMS = ("qwen3-vl", "qwen2.5-vl", "glm-4.6v")
VISION_SITES = [(f"model.visual.blocks.{i}.attn", slot) for i in range(2) for slot in range(2)]
TEXT_SITES = [(f"model.language_model.layers.{i}.self_attn", 0) for i in range(2)]
WAN_SITES = [(f"blocks.{i}.{name}", 0) for i in range(2) for name in ("attn1", "attn2")]
VERA_SITES = [
    (f"blocks.{i}.{name}", 0)
    for i in range(2)
    for name in ("attn1", *(f"branches.{k}.attn2" for k in range(3)))
]
SITES = {
    "vera": VERA_SITES,
    "regeneration": [(f"transformer.{module}", 0) for module, _ in WAN_SITES],
    "wan": WAN_SITES,
    "diffusers-wan": WAN_SITES,
    # Cross-attention calls twice: first image, then text.
    "diffusers-wan-image": [
        (f"blocks.{i}.{name}", call)
        for i in range(2)
        for name, call in (("attn1", 0), ("attn2", 0), ("attn2", 1))
    ],
    "diffusers-cogvideox": [(f"transformer_blocks.{i}.attn1", 0) for i in range(2)],
    "qwen3-vl": VISION_SITES + TEXT_SITES,
    # Four windows a slot in the first block.
    "qwen2.5-vl": [("model.visual.blocks.0.attn", window) for window in range(8)]
    + VISION_SITES[2:]
    + TEXT_SITES,
    "glm-4.6v": VISION_SITES + TEXT_SITES,
}


@cache
def model(name: str) -> nn.Module:
    """Nothing left at zero or one, so that no term can hide."""
    torch.manual_seed(0)
    built = BUILD[name]().eval()
    with torch.no_grad():
        for p in built.parameters():
            p.add_(torch.randn_like(p) * 0.1)
    return built


@torch.no_grad()
def run(name: str) -> torch.Tensor:
    output = model(name)(**copy.deepcopy(INPUTS[name]))
    return output if isinstance(output, torch.Tensor) else output[0]


class OneCall(nn.Module):
    """The smallest model: one SDPA call, with the given options."""

    def forward(self, q, k, v, **options):
        return F.scaled_dot_product_attention(q, k, v, **options)


def weights(call: AttentionCall) -> torch.Tensor:
    """softmax(scale * q k^T + mask), written out: (B, H, Q, K)."""
    groups = call.query.shape[1] // call.key.shape[1]
    logits = call.scale * call.query @ call.key.repeat_interleave(groups, 1).transpose(-2, -1)
    if call.is_causal:
        logits = logits.masked_fill(torch.ones(logits.shape[-2:], dtype=torch.bool).triu(1), -torch.inf)
    if call.mask is not None and call.mask.dtype == torch.bool:
        logits = logits.masked_fill(~call.mask, -torch.inf)
    elif call.mask is not None:
        logits = logits + call.mask
    return logits.softmax(-1)


def assert_certified(call: AttentionCall, tolerance: float = 1e-6) -> None:
    """The weights times the values are what the kernel returned."""
    groups = call.query.shape[1] // call.value.shape[1]
    product = weights(call) @ call.value.repeat_interleave(groups, 1)
    torch.testing.assert_close(product, call.output, atol=tolerance, rtol=tolerance)


def assert_nothing_left(module: nn.Module) -> None:
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in module.modules())
    assert _get_current_function_mode_stack() == []


# --- the tap -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BUILD)
@pytest.mark.filterwarnings("error:no attention")
def test_every_call_is_named_and_no_bit_changes(name):
    expected, calls = run(name), []
    with Tap(model(name), calls.append) as tap:
        result = run(name)
    assert torch.equal(result, expected) and result.any()
    assert [(site.module, site.call) for site in tap.sites] == SITES[name]
    assert {site.step for site in tap.sites} == {0} and tap.unseen == []
    assert [call.site for call in calls] == tap.sites
    for call in calls:
        assert_certified(call)
    assert_nothing_left(model(name))


def test_a_step_is_a_call_of_the_model():
    vera, inputs = model("vera"), OURS | LATENTS
    with Tap(vera) as tap:
        denoise(
            lambda x, sigma: vera(**inputs | {"latents": x, "timestep": 1000 * sigma}), inputs["latents"], 3
        )
        assert [site.step for site in tap.sites] == [step for step in range(3) for _ in VERA_SITES]
        assert {site.call for site in tap.sites} == {0}
    with tap:  # left and entered again
        run("vera")
    assert [site.step for site in tap.sites] == [0] * len(VERA_SITES)


@pytest.mark.parametrize("name", VLMS)
def test_generate_is_a_prefill_and_a_step_a_token(name):
    def generate():
        inputs = copy.deepcopy(INPUTS[name])
        return model(name).generate(**inputs, max_new_tokens=3, do_sample=False, pad_token_id=0)

    expected, calls = generate(), []
    with Tap(model(name), calls.append) as tap:
        assert torch.equal(generate(), expected)
    later = [CallSite(module, 0, step) for step in (1, 2) for module, _ in TEXT_SITES]
    assert tap.sites == [CallSite(*site, 0) for site in SITES[name]] + later
    prompt = INPUTS[name]["input_ids"].shape[1]
    shapes = [
        (call.query.shape[2], call.key.shape[2]) for call in calls if call.site.module == TEXT_SITES[0][0]
    ]
    assert shapes == [(prompt, prompt), (1, prompt + 1), (1, prompt + 2)]
    for call in calls:
        assert_certified(call)


def eager(name: str) -> nn.Module:
    copied = copy.deepcopy(model(name))
    copied.set_attn_implementation("eager")
    return copied


@pytest.mark.parametrize("name", VLMS)
@torch.no_grad()
def test_text_attention_is_what_eager_returns(name):
    calls = []
    with Tap(model(name), calls.append):
        run(name)
    theirs = eager(name)(**copy.deepcopy(INPUTS[name]), output_attentions=True).attentions
    for call, expected in zip(calls[-2:], theirs, strict=True):
        torch.testing.assert_close(weights(call), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", VLMS)
@torch.no_grad()
def test_vision_towers_return_no_weights_but_the_tap_does(name):
    inputs = INPUTS[name]
    theirs = eager(name).get_video_features(
        inputs["pixel_values_videos"], inputs["video_grid_thw"], output_attentions=True, return_dict=True
    )
    assert [tuple(a.shape) for a in theirs.attentions] == [(32, 16)] * 2, (  # (patches, width)
        "transformers' vision towers no longer return hidden states as attentions: upstream was repaired"
    )
    calls = []
    with Tap(model(name), calls.append):
        run(name)
    for call in calls[:-2]:
        rows = weights(call)
        assert rows.shape == (1, 2, call.query.shape[2], call.query.shape[2])
        torch.testing.assert_close(rows.sum(-1), torch.ones(rows.shape[:3]))


def test_unseen_attention_is_named():
    model_ = eager("qwen3-vl")
    modules = [module for module, call in VISION_SITES + TEXT_SITES if call == 0]
    with pytest.warns(UserWarning, match="layers.1.self_attn.*sdpa"), Tap(model_) as tap:
        model_(**copy.deepcopy(INPUTS["qwen3-vl"]))
    assert tap.unseen == modules and tap.sites == []
    # One tower can be seen, the other not.
    model_.set_attn_implementation({"text_config": "sdpa", "vision_config": "eager"})
    with pytest.warns(UserWarning, match="sdpa"), Tap(model_) as tap:
        model_(**copy.deepcopy(INPUTS["qwen3-vl"]))
    assert tap.unseen == modules[:2]


def test_of_nested_attention_modules_the_innermost_counts():
    class SelfAttn(nn.Identity):
        pass

    class AttentionBlock(nn.Module):
        def __init__(self, inner: nn.Module):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            return self.inner(x, x, x) if isinstance(self.inner, OneCall) else self.inner(x)

    x = draw(1, 1, 2, 4)
    net = nn.Sequential(AttentionBlock(SelfAttn()), AttentionBlock(OneCall()), SelfAttn())
    net.idle = SelfAttn()
    net.forward = lambda x: net[2](net[1](net[0](x)))
    with pytest.warns(UserWarning, match="0.inner, 2"), Tap(net) as tap:
        net(x)
    assert tap.unseen == ["0.inner", "2"] and tap.sites == [CallSite("1.inner")]


@pytest.fixture
def no_fast_path():
    torch.backends.mha.set_fastpath_enabled(False)
    yield
    torch.backends.mha.set_fastpath_enabled(True)


PADDING = torch.tensor([[False, False, False], [False, True, True]])


def encoder(**options):
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    return nn.TransformerEncoder(layer, 2, **options).eval()


@torch.no_grad()
@pytest.mark.usefixtures("no_fast_path")
@pytest.mark.parametrize("need_weights", [False, True])
@pytest.mark.filterwarnings("error")
def test_torch_s_own_attention_is_captured_exactly(need_weights):
    x, calls = draw(2, 3, 8), []
    net = nn.MultiheadAttention(8, 2, batch_first=True).eval()
    options = {"key_padding_mask": PADDING, "need_weights": need_weights, "average_attn_weights": False}
    expected, told = net(x, x, x, **options)
    measure = GroupMass(torch.tensor([0, 1, 1]))  # calls SDPA itself, which must not be seen
    with Tap(net, lambda call: calls.append((call, measure(call)))):
        result, same = net(x, x, x, **options)
    assert torch.equal(result, expected) and (told is None or torch.equal(same, told))
    ((call, mass),) = calls
    assert_certified(call)
    assert mass.residual < 1e-6
    _, told = net(x, x, x, **options | {"need_weights": True})
    torch.testing.assert_close(weights(call), told)
    assert F.scaled_dot_product_attention is torch._C._nn.scaled_dot_product_attention


@torch.no_grad()
@pytest.mark.usefixtures("no_fast_path")
def test_a_padded_encoder_keeps_every_bit_and_can_be_cut():
    net, x, before, after = encoder(), draw(2, 3, 8), [], []
    expected = net(x, src_key_padding_mask=PADDING)
    with Tap(net, before.append) as tap:
        assert torch.equal(net(x, src_key_padding_mask=PADDING), expected)
    assert [site.module for site in tap.sites] == ["layers.0.self_attn", "layers.1.self_attn"]
    query = torch.tensor([0])
    with Tap(net, after.append), KnockOut(net, torch.tensor([2]), "layers.0", query) as cut:
        changed = net(x, src_key_padding_mask=PADDING)
    assert not torch.equal(changed, expected) and cut._changed
    masses = [weights(call)[0, :, 0, 2] for call in after]
    assert not masses[0].any() and masses[1].all() and weights(before[0])[0, :, 0, 2].all()
    attention = net.layers[0].self_attn
    with pytest.raises(ValueError, match="need_weights"), KnockOut(attention, torch.tensor([2])):
        attention(x, x, x)


def test_the_fast_path_is_refused_before_the_run():
    for kind in (Tap, lambda net: KnockOut(net, torch.tensor([0]))):
        with pytest.raises(ValueError, match="set_fastpath_enabled"):
            kind(net := encoder()).__enter__()
        assert_nothing_left(net)


def test_attention_that_is_written_out_is_warned_of():
    class Mixer(nn.Module):  # no "attention" in its name
        def forward(self, x):
            return (x @ x.mT).softmax(-1) @ x

    net, x = nn.Sequential(Mixer(), OneCall()), draw(1, 2, 4)
    net.forward = lambda x: net[1](*[net[0](x)] * 3)
    with pytest.warns(UserWarning, match="seen in 0, which"), Tap(net) as tap:
        net(x)
    assert tap.unseen == ["0"] and tap.sites == [CallSite("1")]


def test_the_operator_is_seen_like_the_function():
    class Mixer(nn.Module):
        def forward(self, x):
            attend = torch.ops.aten.scaled_dot_product_attention
            return attend(attend.default(x, x, x), x, x)

    with Tap(net := Mixer()) as tap:
        net(draw(1, 1, 2, 4))
    assert tap.sites == [CallSite("", 0), CallSite("", 1)]


def test_a_model_without_any_visible_attention_is_warned_of():
    with pytest.warns(UserWarning, match="no attention"), Tap(net := nn.Linear(4, 4)):
        net(draw(2, 4))


@pytest.mark.parametrize("leading", [(), (3,), (2, 3), (1, 2, 3)], ids="{0!s}".format)
@pytest.mark.parametrize("masked", [False, True], ids=["plain", "masked"])
def test_calls_of_any_number_of_axes_are_seen_as_four(leading, masked):
    net, calls = OneCall(), []
    q, k, v = draw(*leading, 5, 4), draw(*leading[1:], 6, 4), draw(*leading[1:], 6, 4)  # broadcast
    if len(leading) > 2:
        k, v = k[None], v[None]
    options = {"attn_mask": draw(*leading, 5, 6) > 0.5} if masked else {}
    expected = net(q, k, v, **options)
    with Tap(net, lambda call: calls.append((call, Rows(range(5))(call)))):
        assert torch.equal(net(q, k, v, **options), expected)
    ((call, rows),) = calls
    assert call.query.shape[1:] == (([1, 1, 1, *leading])[-1], 5, 4) and rows.residual < 1e-5
    torch.testing.assert_close(call.output.reshape(expected.shape), expected)


def test_a_module_registered_twice_keeps_its_first_name():
    twice = nn.Module()
    twice.first = twice.second = OneCall()
    x = draw(1, 1, 2, 4)
    twice.forward = lambda: [twice.first(x, x, x), twice.second(x, x, x)]
    with Tap(twice) as tap:
        twice()
    assert tap.sites == [CallSite("first", 0), CallSite("first", 1)]


def test_only_the_model_is_seen_and_measurements_are_not():
    x = draw(1, 1, 2, 4).requires_grad_()
    states = []

    def observer(call):
        states.append((torch.is_grad_enabled(), call.query.requires_grad, call.output.requires_grad))
        OneCall()(call.query, call.key, call.value)

    net = OneCall()
    with Tap(net, observer) as tap:
        OneCall()(x, x, x)
        output = net(x, x, x)
        F.scaled_dot_product_attention(x, x, x)
    assert tap.sites == [CallSite("")] and states == [(False, False, False)] and output.requires_grad


@pytest.mark.parametrize("checkpointing", ["none", "full", "attention"])
def test_gradients_keep_every_bit_and_recomputation_is_not_recorded(checkpointing):
    transformer, inputs = copy.deepcopy(model("vera")), INPUTS["vera"]
    transformer.checkpointing = checkpointing

    def gradients():
        transformer.zero_grad()
        transformer(**inputs).square().mean().backward()
        return [p.grad.clone() for p in transformer.parameters()]

    def probe(call):  # as many keys as queries, so that a mix-up of their results would go unnoticed
        F.scaled_dot_product_attention(call.query, call.key, torch.ones_like(call.value))

    expected = gradients()
    with Tap(transformer, probe) as tap:
        assert all(torch.equal(a, b) for a, b in zip(gradients(), expected, strict=True))
        assert all(torch.equal(a, b) for a, b in zip(gradients(), expected, strict=True))
    assert tap.sites == [CallSite(*site, step) for step in (0, 1) for site in VERA_SITES]


def test_tensors_have_the_types_that_the_kernel_saw():
    q, k, v, calls = draw(1, 2, 3, 4), draw(1, 2, 5, 4), draw(1, 2, 5, 4).bfloat16(), []
    net = OneCall()
    with Tap(net, calls.append), torch.autocast("cpu", torch.bfloat16):
        net(q, k, v, attn_mask=draw(3, 5), scale=0.3)
    (call,) = calls
    assert {x.dtype for x in (call.query, call.key, call.value, call.mask, call.output)} == {torch.bfloat16}
    assert call.scale == 0.3
    assert_certified(call, tolerance=2e-2)


class Broken(Exception):
    pass


def test_nothing_is_left_after_exceptions():
    def broken(*_):
        raise Broken

    def interrupt(_):
        raise KeyboardInterrupt

    net = model("wan")
    with pytest.raises(Broken), Tap(net, broken), KnockOut(net, torch.tensor([0])):
        run("wan")
    assert_nothing_left(net)
    handle = net.blocks[1].attn2.to_k.register_forward_pre_hook(broken)
    with pytest.raises(Broken), Tap(net) as tap, KnockOut(net, torch.tensor([0])):
        run("wan")
    handle.remove()
    assert_nothing_left(net)
    assert [site.module for site in tap.sites] == [module for module, _ in WAN_SITES[:3]]
    # Caught inside, it leaves the names right.
    handle = net.blocks[1].attn2.to_k.register_forward_pre_hook(broken)
    with Tap(net) as tap:
        with pytest.raises(Broken):
            run("wan")
        handle.remove()
        run("wan")
    assert tap.sites[3:] == [CallSite(*site, 1) for site in WAN_SITES]
    # An interrupt leaves no module running.
    with pytest.raises(KeyboardInterrupt), tap:
        tap.observer = interrupt
        run("wan")
    assert_nothing_left(net)
    tap.observer = None
    with tap:
        OneCall()(*[draw(1, 1, 2, 4)] * 3)
    assert tap.sites == []


def test_what_cannot_be_tapped_is_refused():
    net, x = OneCall(), draw(1, 1, 2, 4)
    with Tap(net) as tap:
        with pytest.raises(RuntimeError, match="in use"):
            tap.__enter__()
        with pytest.raises(ValueError, match="dropout"):
            net(x, x, x, dropout_p=0.1)
        net(x, x, x)
    for compiled in (torch.compile(net), nn.Sequential(torch.compile(OneCall()))):
        with pytest.raises(ValueError, match="compiled"):
            Tap(compiled).__enter__()
        assert_nothing_left(compiled)
    net.compile()
    with pytest.raises(ValueError, match="compiled"):
        KnockOut(net, torch.tensor([0])).__enter__()


# --- the knock-out -------------------------------------------------------------------------------

CALLS = {
    "plain": {},
    "bool": {"attn_mask": draw(2, 1, 5, 6) > -1},
    "additive": {"attn_mask": draw(4, 5, 6)},
    "additive-lowest": {"attn_mask": torch.zeros(5, 6).index_fill(1, torch.tensor([5]), torch.finfo().min)},
    "causal-wide": {"is_causal": True},
    "scaled": {"scale": 0.7},
    "grouped": {"enable_gqa": True},
    "grouped-causal": {"enable_gqa": True, "is_causal": True},
}


@pytest.mark.parametrize("by_index", [False, True], ids=["bool", "index"])
@pytest.mark.parametrize("kind", CALLS)
def test_knocked_keys_get_no_mass_and_other_rows_stay(kind, by_index):
    options = CALLS[kind]
    heads = 2 if "enable_gqa" in options else 4
    q, k, v = draw(2, 4, 5, 8), draw(2, heads, 6, 8), draw(2, heads, 6, 8) + 1
    keys, queries = torch.zeros(6, dtype=torch.bool), torch.zeros(5, dtype=torch.bool)
    keys[[1, 3]], queries[[1, 4]] = True, True
    if by_index:
        keys, queries = keys.nonzero()[:, 0], queries.nonzero()[:, 0]
    net, before, after = OneCall(), [], []
    with Tap(net, before.append):
        net(q, k, v, **options)
    # The tap outside sees the cut in the mask.
    with Tap(net, after.append), KnockOut(net, keys, queries=queries):
        net(q, k, v, **options)
    ((old,), (new,)) = before, after
    assert_certified(old), assert_certified(new)
    assert not weights(new)[:, :, queries][..., keys].any()
    # What is left is the old attention without the knocked keys, shared out anew.
    expected = weights(old)
    cut = expected[:, :, queries]
    cut[..., keys] = 0
    expected[:, :, queries] = cut / cut.sum(-1, keepdim=True)
    torch.testing.assert_close(weights(new), expected)
    rest = [0, 2, 3]
    torch.testing.assert_close(new.output[:, :, rest], old.output[:, :, rest])


@pytest.mark.parametrize("kind", CALLS)
def test_only_the_chosen_heads_are_cut(kind):
    options = CALLS[kind]
    heads = 2 if "enable_gqa" in options else 4
    q, k, v = draw(2, 4, 5, 8), draw(2, heads, 6, 8), draw(2, heads, 6, 8) + 1
    net, calls, chosen, rest = OneCall(), [], torch.tensor([1, 3]), [0, 2]
    before = net(q, k, v, **options)
    with Tap(net, calls.append), KnockOut(net, torch.tensor([0, 1]), queries=torch.tensor([4]), heads=chosen):
        after = net(q, k, v, **options)
    torch.testing.assert_close(after[:, rest], before[:, rest])
    torch.testing.assert_close(after[:, :, :4], before[:, :, :4])
    mass = weights(calls[0])[:, :, 4, :2]
    assert not mass[:, chosen].any() and mass[:, rest].any(-1).all()
    # Without keys, the heads fall silent.
    with KnockOut(net, None, heads=chosen):
        silent = net(q, k, v, **options)
    assert not silent[:, chosen].any() and torch.equal(silent[:, rest], before[:, rest])


@torch.no_grad()
def test_a_knock_out_is_the_layer_called_with_that_mask():
    net, inputs, caught = model("diffusers-wan"), INPUTS["diffusers-wan"], {}
    handle = net.blocks[1].attn2.register_forward_hook(
        lambda module, args, kwargs, out: caught.update(args=args, kwargs=kwargs, out=out), with_kwargs=True
    )
    keys = torch.tensor([True, False, False, True, False])
    with KnockOut(net, keys, where=r"1\.attn"):
        net(**inputs)
    handle.remove()
    text = [*caught["args"], *caught["kwargs"].values()][1]
    mask = (~keys).expand(1, 1, 8, 5)
    expected = net.blocks[1].attn2(caught["args"][0], text, attention_mask=mask)
    torch.testing.assert_close(caught["out"], expected)


@pytest.mark.parametrize("name", BUILD)
def test_knock_out_reaches_every_model(name):
    last, expected, calls = SITES[name][-1][0], run(name), []
    # The last query of the last attention loses the first key.
    sizes = []
    with Tap(model(name), lambda call: sizes.append(call.query.shape[2])):
        run(name)
    cut = KnockOut(model(name), torch.tensor([0]), where=f"^{last}$", queries=torch.tensor([sizes[-1] - 1]))
    with Tap(model(name), calls.append), cut:
        result = run(name)
    assert not torch.equal(result, expected)
    for call in calls:
        mass = weights(call)[..., 0]
        hit = call.site.module == last
        assert (mass[..., -1] == 0).all() == hit and (mass[..., :-1] > 0).all()
    assert_nothing_left(model(name))


def test_calls_that_do_not_fit_are_left_alone_and_a_vain_knock_out_warns():
    expected = run("wan")  # keys: 8 in self-attention, 5 in cross-attention
    for keys, where, matched in (
        (torch.ones(6, dtype=torch.bool), ".*", r"\[\(8, 5\), \(8, 8\)\]"),
        (torch.tensor([8]), ".*", r"\[\(8, 5\), \(8, 8\)\]"),
        (torch.tensor([0]), "attn3", "none"),
    ):
        with (
            pytest.warns(UserWarning, match=matched),
            KnockOut(model("wan"), keys, where),
        ):
            assert torch.equal(run("wan"), expected)
    calls = []
    with Tap(model("wan"), calls.append), KnockOut(model("wan"), torch.tensor([6])):
        run("wan")
    assert [call.mask is None for call in calls] == [False, True] * 2


def test_a_vain_or_wrong_knock_out_is_refused():
    net, x = OneCall(), draw(1, 1, 3, 4)
    blocked = torch.tensor([[True, True, True], [True, False, False], [False, False, False]])
    for options in ({"attn_mask": blocked}, {"is_causal": True}):
        with pytest.raises(ValueError, match="no key"), KnockOut(net, torch.tensor([0])):
            net(x, x, x, **options)
    lowest = torch.zeros(3, 3).masked_fill(~blocked, torch.finfo().min)
    with pytest.raises(ValueError, match="no key"), KnockOut(net, torch.tensor([0])):
        net(x, x, x, attn_mask=lowest)
    # A row that saw nothing before (padding) is none of its business.
    for mask in (blocked, lowest):
        calls, cut = [], KnockOut(net, torch.tensor([0]), queries=torch.tensor([0, 2]))
        with Tap(net, calls.append), cut:
            net(x, x, x, attn_mask=mask)
        mass = weights(calls[0])[0, 0, :, 0].nan_to_num()
        assert (mass == 0).tolist() == [True, False, True]
    for keys, queries, where in (
        (torch.tensor([0.5]), None, ""),
        (torch.tensor([0]), torch.tensor([[0]]), ""),
        (torch.tensor([-1]), None, ""),
    ):
        with pytest.raises(ValueError):
            KnockOut(net, keys, where, queries)
    with pytest.raises(ValueError, match="keys, heads or both"):
        KnockOut(net, None)
    with pytest.warns(UserWarning, match="changed no call"), KnockOut(net, None, heads=torch.tensor([1])):
        net(x, x, x)  # it has one head


def test_gradients_of_a_knock_out_are_right_or_refused():
    transformer, inputs = copy.deepcopy(model("wan")), INPUTS["wan"]
    with KnockOut(transformer, torch.tensor([0])):
        transformer(**inputs).square().mean().backward()
        transformer.checkpointing = "full"
        loss = transformer(**inputs).square().mean()
        with pytest.raises(RuntimeError, match="checkpoint"):
            loss.backward()
