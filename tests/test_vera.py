"""Vera: the invariants that its architecture promises, and its parameter counts."""

import re
from dataclasses import replace

import pytest
import torch
from diffusers import WanTransformer3DModel

from vera_lite.backbone import WAN_1_3B, WAN_14B, WanConfig, load_branches
from vera_lite.diffusion.draws import StepRandom
from vera_lite.diffusion.flow_matching import FlowMatching
from vera_lite.systems import LayersInTime, Regeneration, RegenerationConfig, Vera, VeraConfig
from vera_lite.systems.vera import drop_conditions

TINY = WanConfig(
    num_attention_heads=2,
    attention_head_dim=12,
    in_channels=4,
    out_channels=4,
    text_dim=16,
    freq_dim=32,
    ffn_dim=48,
    num_layers=2,
)


def randomise(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Nothing left at zero or one, so that no term can hide."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape, generator=generator) * 0.1)
    return model.eval()


def vera(**changes) -> Vera:
    torch.manual_seed(0)
    return randomise(Vera(VeraConfig(**{"backbone": TINY} | changes)))


@pytest.fixture
def inputs() -> dict:
    generator = torch.Generator().manual_seed(1)
    draw = lambda *shape: torch.randn(shape, generator=generator)  # noqa: E731
    return {
        "latents": draw(3, 2, 4, 3, 4, 4),
        "timestep": torch.tensor([900.0, 250.0]),
        "text": draw(2, 5, 16),
        "source": draw(2, 4, 3, 4, 4),
        "mask": draw(2, 4, 3, 4, 4),
    }


@pytest.fixture
def wan(tmp_path):
    torch.manual_seed(3)
    names = ("num_attention_heads", "attention_head_dim", "in_channels", "out_channels", "text_dim")
    names += ("freq_dim", "ffn_dim", "num_layers")
    model = randomise(WanTransformer3DModel(**{n: getattr(TINY, n) for n in names}))
    model.save_pretrained(tmp_path / "wan")
    return model, tmp_path / "wan"


def test_three_copies_of_wan_fed_alike_are_wan(wan, inputs):
    """Softmax over three copies of every key is softmax over the keys."""
    theirs, folder = wan
    ours = Vera.from_wan(folder).eval()
    x, t, text = inputs["latents"][0], inputs["timestep"], inputs["text"]
    expected = theirs(x, t, text).sample
    # At the start source, mask and layer embeddings add nothing: the branches are text-to-video.
    result = ours(x.expand(3, -1, -1, -1, -1, -1), t, text, inputs["source"], inputs["mask"])
    for branch in result:
        torch.testing.assert_close(branch, expected, atol=1e-5, rtol=1e-5)


def test_without_joint_attention_branches_are_three_separate_transformers(wan, inputs):
    theirs, folder = wan
    ours = Vera.from_wan(folder, joint_attention=False).eval()
    t, text = inputs["timestep"], inputs["text"]
    result = ours(inputs["latents"], t, text, inputs["source"])
    for branch, x in zip(result, inputs["latents"], strict=True):
        torch.testing.assert_close(branch, theirs(x, t, text).sample, atol=1e-5, rtol=1e-5)


def test_joint_attention_lets_branches_see_each_other(inputs):
    def response(joint: bool) -> list[bool]:
        model = vera(joint_attention=joint)
        before = model(**inputs)
        changed = inputs | {"latents": inputs["latents"].clone()}
        changed["latents"][2] += 1  # the composite
        return [not torch.equal(a, b) for a, b in zip(before, model(**changed), strict=True)]

    assert response(joint=True) == [True, True, True]
    assert response(joint=False) == [False, False, True]


def branch_state(model, branch):
    """One branch as diffusers names and shapes it; shared weights are in every branch."""
    own, state = model.state_dict(), {}
    for number in (0, branch):  # what the branch has itself replaces what it shares
        for name, value in own.items():
            if match := re.fullmatch(
                rf"towers\.{number}\.(.*)|(blocks\.\d+\.)branches\.{number}\.(.*)", name
            ):
                state[match[1] or match[2] + match[3]] = value
    return state


def test_permuting_branches_permutes_outputs(inputs):
    model = vera(share_text_kv=False, share_condition_embedder=False)
    with torch.no_grad():  # nothing but their weights tells the branches apart
        for p in (model.layer_embedding, *model.source_embedding.parameters()):
            p.zero_()
    given, order = inputs | {"mask": None}, [2, 0, 1]
    expected = model(**given)[order]
    weights = [branch_state(model, layer) for layer in order]
    load_branches(model, [{name: v.clone() for name, v in state.items()} for state in weights])
    result = model(**given | {"latents": inputs["latents"][order]})
    torch.testing.assert_close(result, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("share", [True, False])
def test_a_branch_goes_back_to_diffusers(wan, share):
    theirs, _ = wan
    model = vera(share_text_kv=share, share_condition_embedder=share)
    states = [{n: v + i for n, v in theirs.state_dict().items()} for i in range(3)]
    load_branches(model, states)
    for i in range(3):
        state = branch_state(model, i)
        theirs.load_state_dict(state)  # diffusers accepts names and shapes
        for name, value in state.items():
            common = share and ("condition_embedder" in name or re.search("attn2.(to_k|to_v|norm_k)", name))
            assert torch.equal(value, states[0 if common else i][name]), name


def test_the_source_enters_through_the_composite_branch_only(inputs):
    model = vera(joint_attention=False)
    before = model(**inputs)
    after = model(**inputs | {"source": inputs["source"] + 1})
    assert [torch.equal(a, b) for a, b in zip(before, after, strict=True)] == [True, True, False]


def test_the_mask_enters_through_the_alpha_branch_only_and_can_be_withheld(inputs):
    model = vera(joint_attention=False)
    with_mask = model(**inputs)
    without = model(**inputs | {"mask": None})
    assert [torch.equal(a, b) for a, b in zip(with_mask, without, strict=True)] == [True, False, True]
    half = model(**inputs, mask_given=torch.tensor([1.0, 0.0]))
    torch.testing.assert_close(half[:, 0], with_mask[:, 0])
    torch.testing.assert_close(half[:, 1], without[:, 1])


def test_shared_weights_ablation_tells_branches_apart_by_conditions_only(inputs):
    model = vera(mixture=False)
    assert len(model.towers) == len(model.blocks[0].branches) == 1
    same = inputs["latents"][:1].expand(3, -1, -1, -1, -1, -1)
    edit, alpha, composite = model(**inputs | {"latents": same})
    assert not torch.allclose(edit, alpha) and not torch.allclose(alpha, composite)
    with torch.no_grad():
        model.layer_embedding.zero_()
        model.source_embedding.weight.zero_()
        model.source_embedding.bias.zero_()
    edit, _, composite = model(**inputs | {"latents": same, "mask": None})
    torch.testing.assert_close(edit, composite, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("size", "billions"), [(WAN_1_3B, 3.92), (WAN_14B, 38.2)], ids=["1.3B", "14B"])
def test_parameter_counts_are_the_reported_ones(size, billions):
    with torch.device("meta"):
        count = sum(p.numel() for p in Vera(VeraConfig(backbone=size)).parameters())
    digits = 2 if billions < 10 else 1
    assert round(count / 1e9, digits) == billions


def batch(inputs: dict) -> dict:
    names = ("edit", "alpha", "composite")
    return {n: inputs["latents"][i] for i, n in enumerate(names)} | {
        n: inputs[n] for n in ("source", "mask", "text")
    }


def test_training_losses_follow_the_config(inputs):
    def losses(model):
        sigma = torch.tensor([0.9, 0.25])
        return model.training_losses(batch(inputs), sigma, StepRandom(5, 0, 2))

    full = losses(vera())
    assert set(full) == {"edit", "alpha", "composite"}
    assert all(v.shape == (2,) and (v > 0).all() for v in full.values())
    ablated = losses(vera(composite_weight=0.0))
    assert torch.equal(ablated["edit"], full["edit"]) and not ablated["composite"].any()


def test_conditions_are_dropped_at_their_rates(inputs):
    config = VeraConfig(backbone=TINY, mask_drop=0.0, text_drop=0.0)
    text = torch.ones(400, 5, 16)

    def dropped(**rates):
        features, mask_given = drop_conditions(text, replace(config, **rates), StepRandom(1, 0, 400))
        return float((features == 0).float().mean()), float(1 - mask_given.mean())

    assert dropped() == (0.0, 0.0)
    assert dropped(mask_drop=1.0) == (0.0, 1.0) and dropped(text_drop=1.0) == (1.0, 0.0)
    assert dropped(phrase_drop=1.0) == (1.0, 0.0)
    assert dropped(mask_drop=0.3)[1] == pytest.approx(0.3, abs=0.07)
    assert dropped(text_drop=0.3)[0] == pytest.approx(0.3, abs=0.07)
    whole = drop_conditions(text, replace(config, text_drop=0.3), StepRandom(1, 0, 400))[0]
    assert set(whole.mean((1, 2)).tolist()) == {0.0, 1.0}  # all phrases of a prompt, or none
    # A dropped mask is no mask.
    model, sigma = vera(mask_drop=1.0), torch.tensor([0.9, 0.25])
    one = model.training_losses(batch(inputs), sigma, StepRandom(5, 0, 2))
    other = model.training_losses(batch(inputs) | {"mask": inputs["mask"] + 1}, sigma, StepRandom(5, 0, 2))
    assert all(torch.equal(one[k], other[k]) for k in one)


def test_a_perfect_network_has_no_loss(inputs):
    """Both predictions: the target is what the formula says it is."""
    x_0, noise = inputs["latents"], inputs["latents"].flip(0)
    sigma = torch.tensor([0.7, 0.1])
    for prediction, output in (("velocity", noise - x_0), ("x_0", x_0)):
        objective = FlowMatching(prediction)
        assert objective.loss(output, x_0, noise, sigma).abs().max() < 1e-10
        assert (objective.loss(output + 1, x_0, noise, sigma) > 0.9).all()


def test_regeneration_uses_source_mask_and_text(inputs):
    model = randomise(Regeneration(RegenerationConfig(backbone=TINY)))
    single = inputs | {"latents": inputs["latents"][:1]}
    before = model(**single)
    for name in ("source", "mask", "text"):
        assert not torch.allclose(model(**single | {name: single[name] + 1}), before), name
    assert set(model.training_losses(batch(inputs), torch.tensor([0.5, 0.5]), StepRandom(0, 0, 2))) == {
        "composite"
    }


def test_layers_in_time_are_one_longer_video_of_a_plain_transformer(inputs):
    model = randomise(LayersInTime(RegenerationConfig(backbone=TINY)))
    latents = inputs["latents"]  # (3, B, C, t, h, w)
    t = latents.shape[3]
    with torch.no_grad():
        before = model(**inputs)
        for name in ("source", "mask", "text"):
            assert not torch.allclose(model(**inputs | {name: inputs[name] + 1}), before), name
        model.layer_embedding.neg_()
        assert not torch.allclose(model(**inputs), before)
        for part in (model.source_embedding, model.mask_embedding):
            for parameter in part.parameters():
                parameter.zero_()
        model.layer_embedding.zero_()
        plain = model.transformer(torch.cat(list(latents), 2), inputs["timestep"], inputs["text"])
        ours = model(**inputs)
    for layer, part in zip(ours, plain.split(t, 2), strict=True):
        assert torch.equal(layer, part)
    losses = model.training_losses(batch(inputs), torch.tensor([0.5, 0.5]), StepRandom(0, 0, 2))
    assert set(losses) == {"edit", "alpha", "composite"}
    with pytest.raises(ValueError, match="latent frame"):
        LayersInTime(RegenerationConfig(backbone=replace(TINY, patch_size=(2, 2, 2))))


def test_odd_latents_are_refused_in_one_sentence(inputs):
    with pytest.raises(ValueError, match="patches"):
        vera()(**inputs | {"latents": inputs["latents"][..., :3]})
    with pytest.raises(ValueError, match="prediction"):
        replace(VeraConfig(backbone=TINY), objective=FlowMatching("noise"))
