"""MiVE: reference-aware latents, one self-attention, clean and noisy tokens, and what it is held against."""

from dataclasses import replace

import pytest
import torch
from test_rvedit import SMALL
from test_vision_language import TEXT, VISION
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.testing import assert_close

from vera_lite.backbone import WAN_14B, WanTransformer, grid_positions
from vera_lite.conditioning.multiscale import Reading
from vera_lite.conditioning.vision_language import frozen_vlm
from vera_lite.diffusion.draws import StepRandom
from vera_lite.errors import UserError
from vera_lite.systems import MiVE, MiVEConfig, build_system, describe_system
from vera_lite.toy.vlm import toy_processor
from vera_lite.training.optim import build_optimizer
from vera_lite.training.toy.dialogues import toy_qwen3_vl

CONDITIONINGS = ["self", "fused_cross", "dual_cross", "decoupled"]
TIMESTEP = torch.tensor([500.0, 100.0])


def build(**changes) -> MiVE:
    """A small system with random weights in every part."""
    torch.manual_seed(0)
    system = MiVE(MiVEConfig(**{"backbone": SMALL, "vlm_dim": 128} | changes))
    for parameter in (system.transformer.proj_out.weight, system.transformer.patch_embedding.weight):
        torch.nn.init.normal_(parameter, std=0.2)
    return system


@pytest.fixture(scope="module")
def batch():
    generator = torch.Generator().manual_seed(3)
    z = torch.randn(2, 2, 4, 3, 4, 4, generator=generator)
    return {
        "source": z[0],
        "target": z[1],
        "reference": torch.randn(2, 4, 1, 4, 4, generator=generator),
        "source_video": torch.rand(2, 9, 3, 32, 32, generator=generator),
        "reference_image": torch.rand(2, 3, 32, 32, generator=generator),
        "instruction": ["remove the red ring", "add a blue square at the top left moving up"],
    }


@pytest.fixture(scope="module")
def reading():
    """Two rows of nine tokens, the second two shorter; the first four stand for pixels."""
    generator = torch.Generator().manual_seed(2)
    layers = tuple(torch.randn(2, 2, 9, 128, generator=generator))
    given = torch.tensor([[True] * 9, [True] * 7 + [False] * 2])
    visual = torch.zeros_like(given)
    visual[:, :4] = True
    return Reading(layers, given & ~visual, visual)


def nothing() -> Reading:
    """A context without tokens."""
    return Reading((torch.zeros(2, 0, 128),) * 2, *torch.zeros(2, 2, 0, dtype=torch.bool))


def unpadded(reading) -> Reading:
    return Reading(tuple(h[:, :7] for h in reading.layers), reading.text[:, :7], reading.visual[:, :7])


def run(system, batch, reading, timestep=TIMESTEP, **changes) -> torch.Tensor:
    given = batch | changes
    with torch.no_grad():
        return system(given["target"], timestep, given["source"], reading, given["reference"])


def losses(system, batch, step=0) -> dict:
    return system.training_losses(batch, torch.tensor([0.8, 0.3]), StepRandom(0, step, 2))


# ---------------------------------------------------------------------- parity with Wan


@pytest.fixture
def wan(tmp_path):
    """A random Wan of diffusers, with nothing zero but what cross-attention puts out; and its folder."""
    from diffusers import WanTransformer3DModel

    torch.manual_seed(5)
    names = ("num_attention_heads", "attention_head_dim", "in_channels", "out_channels", "freq_dim")
    names += ("ffn_dim", "num_layers", "patch_size")
    model = WanTransformer3DModel(text_dim=6, **{name: getattr(SMALL, name) for name in names}).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        for block in model.blocks:
            torch.nn.init.zeros_(block.attn2.to_out[0].weight)
            torch.nn.init.zeros_(block.attn2.to_out[0].bias)
    model.save_pretrained(tmp_path)
    return model, tmp_path


def test_without_context_and_reference_it_is_wan_without_cross_attention(wan, batch):
    theirs, folder = wan
    ours = MiVE.from_wan(folder, vlm_dim=128)
    with torch.no_grad():
        expected = theirs(batch["target"], TIMESTEP, torch.randn(2, 5, 6)).sample
    for source in (batch["source"], 0 * batch["source"]):  # new channels say nothing yet
        result = run(ours, batch, nothing(), source=source, reference=None)
        assert_close(result, expected, rtol=1e-5, atol=1e-5)


def test_a_checkpoint_starts_the_transformer_and_nothing_else(wan):
    theirs, folder = wan
    ours = MiVE.from_wan(folder, vlm_dim=128, vlm_layers=(2, -1))
    assert ours.config.vlm_layers == (2, -1)
    names = {n for n, _ in ours.transformer.named_parameters()}
    left_out = {n for n, _ in theirs.named_parameters()} - names
    assert all(any(p in n for p in ("attn2", "norm2", "text_embedder")) for n in left_out) and left_out
    weight = ours.transformer.patch_embedding.weight
    assert torch.equal(weight[:, :4], theirs.patch_embedding.weight) and not weight[:, 4:].any()
    assert_close(ours.transformer.blocks[2].ffn.net[2].weight, theirs.blocks[2].ffn.net[2].weight)


def test_the_reference_is_a_clean_first_frame_of_wan_ti2v(batch):
    """Without context: the plain transformer, given a timestep a token."""
    system = build()
    z = torch.cat([torch.cat([batch["reference"], batch[n]], 2) for n in ("target", "source")], 1)
    dense = TIMESTEP[:, None].repeat(1, 16)
    dense[:, :4] = 0  # of 4 + 12 tokens
    with torch.no_grad():
        whole = system.transformer(z, dense, [torch.zeros(2, 0, 32)] * 3)
    assert_close(run(system, batch, nothing()), whole[:, :, 1:], rtol=1e-5, atol=1e-5)


# ---------------------------------------------------------------------- Eq. 6-8


def test_the_reference_stands_in_both_halves_of_the_channels(batch, reading):
    system, seen = build(), []
    hook = system.transformer.patch_embedding.register_forward_hook(lambda _m, i, _o: seen.append(i[0]))
    run(system, batch, reading)
    hook.remove()
    for half, video in zip(seen[0].chunk(2, 1), (batch["target"], batch["source"]), strict=True):
        assert torch.equal(half[:, :, :1], batch["reference"]) and torch.equal(half[:, :, 1:], video)


def test_new_channels_start_at_zero():
    weight = MiVE(MiVEConfig(backbone=SMALL, vlm_dim=128)).transformer.patch_embedding.weight
    assert weight.shape == (32, 8, 1, 2, 2) and not weight[:, 4:].any() and weight[:, :4].all()


def test_source_reference_and_context_are_felt(batch, reading):
    system = build()
    base = run(system, batch, reading)
    for other in (
        run(system, batch, reading, source=-batch["source"]),
        run(system, batch, reading, reference=-batch["reference"]),
        run(system, batch, reading._replace(layers=(reading.layers[0], -reading.layers[1]))),
        run(system, batch, reading._replace(layers=(-reading.layers[0], reading.layers[1]))),
    ):
        assert (other - base).abs().amax((1, 2, 3, 4)).min() > 1e-3


def test_context_and_reference_are_clean_and_only_the_video_knows_the_time(batch, reading):
    system, seen = build(), []
    for block in system.transformer.blocks:  # no token hears of another
        for parameter in block.attn1.to_out[0].parameters():
            torch.nn.init.zeros_(parameter)
    hook = system.transformer.blocks[-1].register_forward_hook(lambda _m, _i, out: seen.append(out))
    for timestep in (TIMESTEP, torch.tensor([900.0, 900.0]), torch.zeros(2)):
        run(system, batch, reading, timestep)
    hook.remove()
    clean = 9 + 4
    for other in seen[1:]:
        assert torch.equal(seen[0][:, :clean], other[:, :clean])
        assert (seen[0][:, clean:] - other[:, clean:]).abs().amax(-1).min() > 1e-3


def test_context_is_heard_by_the_video_and_hears_it(batch, reading):
    system, seen = build(), []
    hook = system.transformer.blocks[1].register_forward_hook(lambda _m, _i, out: seen.append(out))
    run(system, batch, reading)
    run(system, batch, reading, target=-batch["target"])
    hook.remove()
    assert (seen[0][0, :9] - seen[1][0, :9]).abs().amax(-1).min() > 1e-4


@pytest.mark.parametrize("conditioning", CONDITIONINGS)
def test_padding_is_not_heard(conditioning, batch, reading):
    system = build(conditioning=conditioning)
    if conditioning == "decoupled":
        reading = reading._replace(layers=reading.layers[:1])
    base = run(system, batch, reading)
    loud = [layer.clone() for layer in reading.layers]
    for layer in loud:
        layer[1, 7:] = 5
    assert_close(run(system, batch, reading._replace(layers=tuple(loud))), base)
    for layer in loud:
        layer[1, 6] = 5  # a word
    assert (run(system, batch, reading._replace(layers=tuple(loud))) - base).abs().max() > 1e-3
    short = Reading(tuple(h[1:, :7] for h in reading.layers), reading.text[1:, :7], reading.visual[1:, :7])
    one = {n: batch[n][1:] for n in ("target", "source", "reference")}
    assert_close(run(system, one, short, TIMESTEP[1:])[0], base[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("reading", "first", "last"), [("none", 0, 0), ("index", 0, 4), ("before", -5, -1)])
def test_positions_of_the_context(reading, first, last):
    places = build(context_positions=reading).positions(5, True, (3, 2, 2))
    assert places.shape == (5 + 4 + 12, 3)
    assert places[[0, 4]].tolist() == [[first, 0, 0], [last, 0, 0]]
    assert torch.equal(places[5:], grid_positions((4, 2, 2)))


def test_positions_of_the_reference():
    for reading, start in (("before", 1), ("first", 0)):
        places = build(reference_position=reading).positions(0, True, (3, 2, 2))
        assert torch.equal(places[:4], grid_positions((1, 2, 2)))
        assert torch.equal(places[4:], grid_positions((3, 2, 2), (start, 0, 0)))
        alone = build(reference_position=reading).positions(0, False, (3, 2, 2))
        assert torch.equal(alone, grid_positions((3, 2, 2)))


@pytest.mark.parametrize(("positions", "matters"), [("none", False), ("index", True), ("before", True)])
def test_the_order_of_context_tokens_matters_only_if_they_have_positions(positions, matters, batch, reading):
    system = build(context_positions=positions)
    whole = unpadded(reading)
    turned = Reading(tuple(h.flip(1) for h in whole.layers), whole.text.flip(1), whole.visual.flip(1))
    difference = (run(system, batch, whole) - run(system, batch, turned)).abs().max()
    assert (difference > 1e-4) == matters


def test_summed_words_start_as_no_op_and_are_words_only(batch, reading):
    plain, system = build(), build(backbone=replace(SMALL, summed_text=True))
    system.load_state_dict(plain.state_dict(), strict=False)
    base = run(system, batch, reading)
    torch.testing.assert_close(base, run(plain, batch, reading), rtol=1e-4, atol=1e-5)
    torch.nn.init.normal_(system.transformer.condition_embedder.summed_text.weight, std=0.2)
    for block in system.transformer.blocks:
        torch.nn.init.zeros_(block.attn1.to_v.weight)  # attention says the same to all
    base = run(system, batch, reading)
    for place, felt in ((5, True), (2, False)):  # a word, a pixel
        layers = [layer.clone() for layer in reading.layers]
        for layer in layers:
            layer[:, place] *= -1
        change = (run(system, batch, reading._replace(layers=tuple(layers))) - base).abs().max()
        assert (change > 1e-3) == felt


# ---------------------------------------------------------------------- cross-attention, for comparison


def test_fused_cross_attention_is_wans(batch, reading):
    whole = unpadded(reading)
    system = build(conditioning="fused_cross")
    wan = WanTransformer(replace(SMALL, in_channels=8))
    wan.load_state_dict(system.transformer.state_dict())
    z = torch.cat([batch["target"], batch["source"]], 1)
    with torch.no_grad():
        expected = wan(z, TIMESTEP, [system.adapter(whole.layers)] * 3)
    assert_close(run(system, batch, whole, reference=None), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("silent", "deaf_to"), [("text", 5), ("visual", 2)])
def test_dual_cross_attention_reads_words_and_pixels_apart(silent, deaf_to, batch, reading):
    system = build(conditioning="dual_cross")
    for block in system.transformer.blocks:
        torch.nn.init.zeros_(getattr(block.attn2, silent).to_out[0].weight)
    base = run(system, batch, reading)
    for place in (2, 5):
        layers = [layer.clone() for layer in reading.layers]
        for layer in layers:
            layer[:, place] *= -1
        change = (run(system, batch, reading._replace(layers=tuple(layers))) - base).abs().max()
        assert (change > 1e-4) == (place != deaf_to)


def test_decoupled_encoders_know_nothing_of_each_other(batch):
    system = build(conditioning="decoupled")
    videos, texts, images = batch["source_video"], batch["instruction"], batch["reference_image"]
    base = system.read(videos, texts, images)
    assert len(base.layers) == 1 and base.visual.sum(1).tolist() == [64, 64]
    assert torch.equal(system.read(1 - videos, texts, images).layers[0], base.layers[0])
    other = system.read(videos, texts, 1 - images).layers[0]
    assert torch.equal(other[base.text], base.layers[0][base.text])
    assert (other[base.visual] - base.layers[0][base.visual]).abs().max() > 1e-2
    other = system.read(videos, ["make the blue ring green", texts[1]], images)
    assert torch.equal(other.layers[0][other.visual], base.layers[0][base.visual])
    words = [len(frozen_vlm(None).processor.tokenizer(t)["input_ids"]) for t in texts]
    assert base.text.sum(1).tolist() == words


@pytest.mark.parametrize("conditioning", CONDITIONINGS)
def test_every_conditioning_trains_all_its_weights_and_the_vlm_never(conditioning, batch):
    system = build(conditioning=conditioning)
    losses(system, batch)["target"].sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in system.parameters())
    assert all(p.grad is None for p in frozen_vlm(None).model.parameters())
    muon, _ = build_optimizer(system, 1e-3, 0.02, 0.0).parts
    muon = {id(p) for group in muon.param_groups for p in group["params"]}
    named = {n for n, p in system.named_parameters() if id(p) in muon}
    assert named and all(n.startswith("transformer.blocks.") for n in named)
    crossed = any("attn2" in n for n, _ in system.named_parameters())
    assert crossed == (conditioning != "self")


# ---------------------------------------------------------------------- training


def test_the_flow_term_is_the_objectives(batch):
    system = build()
    sigma, noise = torch.tensor([0.8, 0.3]), StepRandom(0, 0, 2).noise(batch["target"])
    reading = system.read(batch["source_video"], batch["instruction"], batch["reference_image"])
    x = (1 - sigma.view(-1, 1, 1, 1, 1)) * batch["target"] + sigma.view(-1, 1, 1, 1, 1) * noise
    output = run(system, batch, reading, 1000 * sigma, target=x)
    expected = (output - (noise - batch["target"])).square().mean((1, 2, 3, 4))
    found = losses(system, batch)
    assert set(found) == {"target"}
    assert_close(found["target"], expected)
    assert torch.equal(losses(system, batch)["target"], found["target"])
    assert not torch.equal(losses(system, batch, step=1)["target"], found["target"])


def test_the_changed_term_is_the_mean_where_the_edit_changes_pixels(batch):
    system = build(changed_loss_weight=2.0)
    changed = torch.zeros(2, 1, 3, 4, 4)
    changed[0, :, 1, :2] = 1  # a sixth of the first clip, nothing of the second
    found = losses(system, batch | {"changed": changed})
    assert set(found) == {"target", "changed"} and found["changed"][1] == 0 < found["changed"][0]
    whole = losses(system, batch | {"changed": changed * 0 + 1})
    assert_close(whole["changed"], 2 * whole["target"])


def test_shards_give_the_same_loss(batch):
    system = build()
    expected = losses(system, batch)["target"]
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        for block in system.transformer.blocks:
            fully_shard(block, mesh=mesh)
        fully_shard(system, mesh=mesh)
        found = losses(system, batch)["target"]
        assert_close(found, expected)
        found.sum().backward()
    finally:
        torch.distributed.destroy_process_group()


# ---------------------------------------------------------------------- full scale


def test_a_released_class_with_its_own_processor(batch, tmp_path):
    torch.manual_seed(0)
    toy_qwen3_vl(TEXT, VISION).save_pretrained(tmp_path)
    toy_processor().save_pretrained(tmp_path)
    system = build(vlm=str(tmp_path), vlm_dim=32)
    assert type(system.vlm.model).__name__ == "Qwen3VLForConditionalGeneration"
    losses(system, batch)["target"].sum().backward()
    assert system.adapter.projections[0].weight.grad.abs().max() > 0


def test_the_full_layout_is_wan_14b_without_cross_attention_and_a_47_m_adapter():
    from diffusers import WanTransformer3DModel

    with torch.device("meta"):
        ours, theirs = MiVE(MiVEConfig()), WanTransformer3DModel()  # diffusers' default is 14B
    assert MiVEConfig().backbone is WAN_14B
    adapter = sum(p.numel() for p in ours.adapter.parameters())
    assert adapter == 2 * (4096 + 4096 * 2560 + 2560) + 5120 * 5120 + 5120
    assert round(adapter / 1e6) == 47
    shapes = {n: p.shape for n, p in ours.transformer.named_parameters()}
    for name, parameter in theirs.named_parameters():
        if any(part in name for part in ("attn2", "norm2", "text_embedder")):
            assert name not in shapes
            continue
        twice = 2 if name == "patch_embedding.weight" else 1
        assert shapes.pop(name).numel() == twice * parameter.numel()
    assert not shapes


def test_qwen3_vl_8b_gives_the_full_adapter_its_layers():
    """On the meta device: shapes alone. 4096 wide, 36 layers; words only, as no pixel can be placed there."""
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

    from vera_lite.conditioning.multiscale import hidden_states
    from vera_lite.conditioning.vision_language import VisionLanguageModel

    text = {"hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 36, "head_dim": 128}
    text |= {"num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 151936}
    with torch.device("meta"):
        model = Qwen3VLForConditionalGeneration(Qwen3VLConfig(text_config=text))
        adapter = MiVE(MiVEConfig()).adapter
        prompt = {"inputs_embeds": torch.empty(1, 50, 4096), "attention_mask": None}
        prompt["position_ids"] = torch.empty(3, 1, 50, dtype=torch.long)
        phi = hidden_states(VisionLanguageModel(model, None), (1, -1), prompt)
        assert adapter(phi).shape == (1, 50, 5120)
    assert sum(p.numel() for p in model.parameters()) > 8e9


# ---------------------------------------------------------------------- files and errors


def test_a_saved_config_builds_the_same_system():
    for conditioning in CONDITIONINGS:
        system = build(conditioning=conditioning, vlm_layers=(1, 4, 5, -1), vlm_frames=2)
        again = build_system(describe_system(system))
        assert again.config == system.config
        again.load_state_dict(system.state_dict())
        assert not any("vlm" in name for name in system.state_dict())


@pytest.mark.parametrize(
    "change",
    [
        {"context_positions": "after"},
        {"reference_position": "last"},
        {"conditioning": "cross"},
        {"vlm_frames": 0},
    ],
    ids=lambda change: next(iter(change)),
)
def test_bad_choices_are_refused_by_name(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        MiVEConfig(backbone=SMALL, **change)


def test_layers_must_share_the_width():
    with pytest.raises(ValueError, match="3 layers"):
        MiVE(MiVEConfig(backbone=SMALL, vlm_layers=(1, 4, -1)))


def test_only_self_attention_starts_from_wan(wan):
    with pytest.raises(UserError, match="attn2"):
        MiVE.from_wan(wan[1], vlm_dim=128, conditioning="dual_cross")
