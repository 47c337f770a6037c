"""RVEDiT: routing, the fading source, alignment against an informed pass, Wan's own weights, and LoRA."""

import copy
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_editing_tokens import tiny_qwen2_5_vl, whole_pass
from torch.nn import functional as F
from torch.testing import assert_close

from vera_lite.backbone import WanConfig, WanTransformer
from vera_lite.conditioning.editing_tokens import Context
from vera_lite.diffusion.draws import StepRandom
from vera_lite.diffusion.flow_matching import FlowMatching
from vera_lite.systems import RVEDiT, RVEDiTConfig, build_system, describe_system
from vera_lite.systems.rvedit import frozen_vlm
from vera_lite.training.optim import build_optimizer

SMALL = WanConfig(
    num_attention_heads=2,
    attention_head_dim=16,
    in_channels=4,
    out_channels=4,
    text_dim=None,
    freq_dim=16,
    ffn_dim=48,
    num_layers=3,
)


def build(**changes) -> RVEDiT:
    """A small system with random weights in every part."""
    torch.manual_seed(0)
    config = {"backbone": SMALL, "editing_tokens": 5, "text_tokens": 10, "routed_layers": 2}
    config["vlm_dim"] = frozen_vlm(changes.get("vlm")).model.config.text_config.hidden_size
    system = RVEDiT(RVEDiTConfig(**config | changes))
    for parameter in (
        system.source_embedding.weight,
        system.transformer.proj_out.weight,
        system.tokens.connector[2].weight,
        system.tokens.native_connector[2].weight,
    ):
        torch.nn.init.normal_(parameter, std=0.2)
    return system


@pytest.fixture
def latents():
    return torch.randn(3, 2, 4, 3, 4, 4, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def context():
    generator = torch.Generator().manual_seed(2)
    return Context(*(torch.randn(2, n, 32, generator=generator) for n in (5, 7, 4)))


def example_batch() -> dict:
    """Random clips with instructions and captions."""
    generator = torch.Generator().manual_seed(3)
    z = torch.randn(2, 2, 4, 3, 4, 4, generator=generator)
    video = torch.rand(2, 2, 9, 3, 32, 32, generator=generator)
    return {
        "source": z[0],
        "target": z[1],
        "source_video": video[0],
        "target_video": video[1],
        "instruction": ["remove the red ring", "make the blue square green"],
        "target_caption": ["a red ring at the left", "a green square moving up"],
    }


@pytest.fixture(scope="module")
def batch():
    return example_batch()


def losses(system, batch, sigma=(0.8, 0.3), step=0) -> dict:
    return system.training_losses(batch, torch.tensor(sigma), StepRandom(0, step, 2))


# ---------------------------------------------------------------------- routing


@pytest.mark.parametrize(("routed", "lengths"), [(0, [16, 16, 16]), (2, [5, 5, 16]), (3, [5, 5, 5])])
def test_blocks_are_given_what_equation_3_says(routed, lengths, context):
    contexts = build(routed_layers=routed).contexts(context)
    assert [c.shape[1] for c in contexts] == lengths
    for c in contexts:
        assert torch.equal(c[:, :5], context.editing)
    if routed < 3:
        assert torch.equal(contexts[-1][:, 5:12], context.video)
        assert torch.equal(contexts[-1][:, 12:], context.text)


def test_a_block_does_not_feel_tokens_that_are_not_routed_to_it(latents, context):
    system, seen = build(), []
    hooks = [b.register_forward_hook(lambda _m, _i, out: seen.append(out)) for b in system.transformer.blocks]
    silent = Context(context.editing, torch.zeros_like(context.video), torch.zeros_like(context.text))
    with torch.no_grad():
        for c in (context, silent):
            system(latents[0], torch.tensor([500.0, 100.0]), latents[1], c)
    for hook in hooks:
        hook.remove()
    assert torch.equal(seen[0], seen[3]) and torch.equal(seen[1], seen[4])  # bit for bit
    assert (seen[2] - seen[5]).abs().max() > 1e-3


def test_the_source_fades_with_the_noise(latents, context):
    system = build()
    with torch.no_grad():
        for sigma, felt in ((0.0, False), (0.9, True)):
            timestep = torch.full((2,), 1000 * sigma)
            one, other = (system(latents[0], timestep, z, context) for z in latents[1:])
            assert torch.equal(one, other) != felt
    fresh = RVEDiT(system.config)
    assert not fresh.source_embedding.weight.any()


def test_pooled_editing_tokens_start_as_no_op_and_reach_blocks_without_cross_attention(latents, context):
    system = build(backbone=replace(SMALL, summed_text=True))
    plain = build()
    plain.load_state_dict(system.state_dict(), strict=False)
    given = latents[0], torch.tensor([500.0, 100.0]), latents[1], context
    with torch.no_grad():
        torch.testing.assert_close(system(*given), plain(*given), rtol=1e-4, atol=1e-5)
        torch.nn.init.normal_(system.transformer.condition_embedder.summed_text.weight, std=0.2)
        for block in system.transformer.blocks:
            torch.nn.init.zeros_(block.attn2.to_out[0].weight)
        before = system(*given)
        one = context.editing.clone()
        one[:, 0] += 1
        assert (system(*given[:3], context._replace(editing=one)) - before).abs().max() > 1e-3
        # Native tokens are not pooled: routing decides who sees them.
        assert torch.equal(system(*given[:3], context._replace(text=context.text + 1)), before)


def test_given_wans_text_tokens_it_is_wan(latents):
    """The bypassed text embedding is all that is missing."""
    torch.manual_seed(4)
    wan = WanTransformer(replace(SMALL, text_dim=6))
    torch.nn.init.normal_(wan.proj_out.weight)
    system = build(routed_layers=3)
    tensors = {n: v for n, v in wan.state_dict().items() if "text_embedder" not in n}
    system.transformer.load_state_dict(tensors)
    torch.nn.init.zeros_(system.source_embedding.weight)
    text, timestep = torch.randn(2, 5, 6), torch.tensor([700.0, 200.0])
    embedded = wan.condition_embedder.text_embedder(text)
    empty = torch.zeros(2, 0, 32)
    with torch.no_grad():
        theirs = wan(latents[0], timestep, text)
        ours = system(latents[0], timestep, latents[1], Context(embedded, empty, empty))
    assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_a_diffusers_checkpoint_starts_the_transformer(tmp_path, latents):
    from diffusers import WanTransformer3DModel

    theirs = WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        out_channels=4,
        text_dim=6,
        freq_dim=16,
        ffn_dim=48,
        num_layers=3,
        cross_attn_norm=True,
        qk_norm="rms_norm_across_heads",
    )
    theirs.save_pretrained(tmp_path)
    system = RVEDiT.from_wan(tmp_path, vlm_dim=96, editing_tokens=5, routed_layers=1)
    assert system.config.backbone.text_dim is None and system.config.routed_layers == 1
    weight = system.transformer.blocks[2].attn2.to_k.weight
    assert torch.equal(weight, theirs.blocks[2].attn2.to_k.weight)


def test_the_full_layout_is_wan_ti2v_without_its_text_embedding():
    from diffusers import WanTransformer3DModel

    with torch.device("meta"):
        ours = RVEDiT(RVEDiTConfig())
        theirs = WanTransformer3DModel(
            num_attention_heads=24, ffn_dim=14336, in_channels=48, out_channels=48, num_layers=30
        )
    text = sum(p.numel() for p in theirs.condition_embedder.text_embedder.parameters())
    count = sum(p.numel() for p in ours.transformer.parameters())
    assert count == sum(p.numel() for p in theirs.parameters()) - text
    assert ours.tokens.queries.shape == (512, 2048) and ours.config.routed_layers == 15


# ---------------------------------------------------------------------- training


def test_without_alignment_there_is_one_pass_and_one_term(batch):
    system = build(alignment_weight=0.0)
    calls = []
    system.transformer.register_forward_hook(lambda *_: calls.append(1))
    found = losses(system, batch)
    assert found.keys() == {"target"} and len(calls) == 1


def test_the_flow_term_is_the_objectives(batch):
    system = build()
    sigma, noise = torch.tensor([0.8, 0.3]), StepRandom(0, 0, 2).noise(batch["target"])
    context = system.context(batch["source_video"], batch["instruction"])
    x = (1 - sigma.view(-1, 1, 1, 1, 1)) * batch["target"] + sigma.view(-1, 1, 1, 1, 1) * noise
    with torch.no_grad():
        output = system(x, 1000 * sigma, batch["source"], context)
    expected = (output - (noise - batch["target"])).square().mean((1, 2, 3, 4))
    assert_close(losses(system, batch)["target"], expected)


def test_the_changed_term_is_the_mean_where_the_edit_changes_pixels(batch):
    changed = torch.zeros(2, 1, 3, 4, 4)
    changed[0, :, 1, :2] = 1  # a sixth of the first clip, nothing of the second
    found = losses(build(alignment_weight=0.0, changed_loss_weight=2.0), batch | {"changed": changed})
    assert set(found) == {"target", "changed"} and found["changed"][1] == 0
    whole = losses(build(alignment_weight=0.0, changed_loss_weight=2.0), batch | {"changed": changed * 0 + 1})
    assert_close(whole["changed"], 2 * whole["target"])
    # Split by halves, the mean of means is the mean.
    halves = [torch.zeros(2, 1, 3, 4, 4) for _ in range(2)]
    halves[0][..., :2], halves[1][..., 2:] = 1, 1
    system = build(alignment_weight=0.0, changed_loss_weight=2.0)
    parts = [losses(system, batch | {"changed": half})["changed"] for half in halves]
    assert_close((parts[0] + parts[1]) / 2, whole["changed"])


@pytest.mark.parametrize("reference_noise", ["shared", "own"])
def test_alignment_compares_with_an_informed_pass(reference_noise, batch):
    """By hand: features of both passes at the drawn depth, cross-entropies of the whole matrix."""
    system = build(alignment_weight=0.5, reference_noise=reference_noise)
    found = losses(system, batch)
    sigma, draws = torch.tensor([0.8, 0.3]), StepRandom(0, 0, 2)
    depth = draws.shared_integer(3)
    noises = draws.noise(torch.stack([batch["target"]] * 2))
    x, other = (1 - sigma.view(-1, 1, 1, 1, 1)) * batch["target"] + sigma.view(-1, 1, 1, 1, 1) * noises
    other = x if reference_noise == "shared" else other
    features = []
    hook = system.transformer.blocks[depth].attn2.register_forward_hook(
        lambda _m, _i, out: features.append(F.normalize(out, dim=-1))
    )
    with torch.no_grad():
        system(x, 1000 * sigma, batch["source"], system.context(batch["source_video"], batch["instruction"]))
        answer = system.context(batch["target_video"], batch["target_caption"])
        system(other, 1000 * sigma, batch["target"], answer)
    hook.remove()
    ours, theirs = features
    logits = ours @ theirs.mT / 0.07
    S = logits.shape[1]
    targets = torch.arange(S).expand(2, S)
    for i in range(2):
        rows = F.cross_entropy(logits[i], targets[i]) + F.cross_entropy(logits[i].T, targets[i])
        assert found["alignment"][i].item() == pytest.approx(0.5 * rows.item() / 2, rel=1e-4)
    rank = (logits >= logits.diagonal(dim1=1, dim2=2)[..., None]).sum(2).float().mean(1)
    assert_close(found["positive_rank"], rank)


def test_only_the_first_pass_learns_from_alignment(batch, monkeypatch):
    system = build(alignment_weight=1.0)
    grads = []
    forward = RVEDiT.forward
    monkeypatch.setattr(RVEDiT, "forward", lambda *a: (grads.append(torch.is_grad_enabled()), forward(*a))[1])
    found = losses(system, batch)
    assert grads == [True, False]
    found["alignment"].sum().backward()
    assert system.tokens.queries.grad.abs().max() > 0
    assert all(p.grad is None for p in frozen_vlm(None).model.parameters())
    assert not found["positive_rank"].requires_grad


def test_every_depth_is_drawn_and_alike_on_all_ranks():
    drawn = [StepRandom(0, step, 2).shared_integer(3) for step in range(40)]
    assert set(drawn) == {0, 1, 2}
    for step in range(10):
        ranks = [StepRandom(0, step, 1, rank, 2) for rank in range(2)]
        for draws in ranks:
            FlowMatching().sample_sigma(draws)
        assert ranks[0].shared_integer(1000) == ranks[1].shared_integer(1000)


# ---------------------------------------------------------------------- LoRA


@pytest.fixture(scope="module", params=["toy", "qwen2_5_vl"])
def name(request, tmp_path_factory):
    """The folder of a vision-language model of the paper's class; None: the toy one."""
    if request.param == "toy":
        return None
    folder, vlm = str(tmp_path_factory.mktemp("vlm")), tiny_qwen2_5_vl()
    vlm.model.save_pretrained(folder)
    vlm.processor.save_pretrained(folder)
    return folder


def adapted(name, **changes) -> RVEDiT:
    """:func:`build` with random adapters too."""
    system = build(vlm=name, lora_rank=2, **changes)
    for parameter in system.adapters.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return system


def close(ours, expected) -> None:
    """Equal except for the last bits: weights at another address may use another kernel."""
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


def read(system, batch) -> torch.Tensor:
    with torch.no_grad():
        return torch.cat(system.context(batch["source_video"], batch["instruction"]), 1)


def test_untrained_adapters_change_nothing(name, batch):
    plain, system = build(vlm=name), build(vlm=name, lora_rank=2)
    assert plain.vlm is frozen_vlm(name) and not hasattr(plain, "adapters")
    missing, unexpected = system.load_state_dict(plain.state_dict(), strict=False)
    layers = plain.vlm.model.config.text_config.num_hidden_layers
    assert len(missing) == 2 * 4 * layers and not unexpected
    close(read(system, batch), read(plain, batch))
    for parameter in system.adapters.parameters():
        torch.nn.init.normal_(parameter)
    assert not torch.allclose(read(system, batch), read(plain, batch), rtol=0.01)
    close(read(build(vlm=name), batch), read(plain, batch))  # the shared model is untouched


def test_an_adapter_adds_b_a_x(name):
    projection = adapted(name).vlm.model.model.language_model.layers[1].self_attn.k_proj
    x = torch.randn(3, projection.base_layer.in_features)
    a, b = (getattr(projection, f"lora_{letter}")["default"].weight for letter in "AB")
    assert_close(projection(x), projection.base_layer(x) + x @ a.T @ b.T)


@pytest.mark.parametrize("reading", ["queries", "last"])
def test_adapters_learn_from_queries_and_from_what_stands_before_them(name, batch, reading):
    """Values and gradients of one pass over all tokens; the queries' through the cached keys and values."""
    system = adapted(name, read=reading)
    prompt = system.tokens.prompt(system.vlm, list(batch["source_video"]), batch["instruction"])
    hidden, places = whole_pass(system.vlm, system.tokens, prompt)
    taken = hidden[:, -5:] if reading == "last" else hidden[places].view(2, 5, -1)
    context = system.context(batch["source_video"], batch["instruction"])
    expected = system.tokens.connector(taken)
    assert_close(context.editing, expected, rtol=1e-3, atol=1e-4)
    parameters = list(system.adapters.parameters())
    ours = torch.autograd.grad(context.editing.square().sum(), parameters, retain_graph=True)
    theirs = torch.autograd.grad(expected.square().sum(), parameters)
    assert all(g.abs().max() > 0 for g in ours)
    assert_close(ours, theirs, rtol=1e-2, atol=1e-3 * max(g.abs().max().item() for g in theirs))
    native = torch.autograd.grad(context.text.square().sum(), parameters, allow_unused=True)
    assert native[0].abs().max() > 0


def test_training_moves_the_adapters_and_nothing_of_the_model(name, batch):
    system, frozen = build(vlm=name, lora_rank=2), frozen_vlm(name).model
    base = {n: p.clone() for n, p in frozen.named_parameters()}
    start = {n: p.detach().clone() for n, p in system.adapters.named_parameters()}
    optimizer = build_optimizer(system, 1e-3, 0.02, weight_decay=0.0)
    _, adamw = optimizer.parts
    assert set(system.adapters.parameters()) <= set(adamw.param_groups[0]["params"])
    for moving in ({n for n in start if "lora_B" in n}, set(start)):  # while B is 0, A has no gradient
        found = losses(system, batch)
        (found["target"] + found["alignment"]).mean().backward()
        optimizer.step()
        assert {n for n, p in system.adapters.named_parameters() if not torch.equal(p, start[n])} == moving
    assert all(torch.equal(p, base[n]) and p.grad is None for n, p in frozen.named_parameters())
    shared = {p for n, p in system.vlm.model.named_parameters() if "lora_" not in n}
    assert shared == set(frozen.parameters())


def test_adapters_are_weights_and_the_model_is_not(name, batch, tmp_path):
    system = adapted(name)
    tensors = system.state_dict()
    names = {n for n in tensors if n.startswith("adapters.")}
    assert "adapters.layers-1-self_attn-o_proj-lora_B.weight" in names
    assert names == {f"adapters.{n}" for n in system.adapters.state_dict()}
    assert {n.split(".")[0] for n in tensors} == {"transformer", "tokens", "source_embedding", "adapters"}
    assert sum(tensors[n].numel() for n in names) == sum(
        2 * sum(m.base_layer.weight.shape)
        for n, m in system.vlm.model.model.language_model.named_modules()
        if n.endswith(("q_proj", "k_proj", "v_proj", "o_proj"))
    )
    save_file(tensors, tmp_path / "system.safetensors")  # refuses tensors that share memory
    saved = load_file(tmp_path / "system.safetensors")
    for assign in (False, True):
        again = build_system(describe_system(system))
        again.load_state_dict(saved, assign=assign)
        assert all(torch.equal(v, saved[n]) for n, v in again.state_dict().items())
        close(read(again, batch), read(system, batch))
    with pytest.raises(RuntimeError, match="adapters"):
        build(vlm=name).load_state_dict(saved)


def test_a_copy_has_adapters_of_its_own_and_shares_the_model(name, batch):
    system = adapted(name)
    average = copy.deepcopy(system).requires_grad_(False)
    before = read(system, batch)
    close(read(average, batch), before)
    with torch.no_grad():
        for parameter in average.adapters.parameters():
            parameter.add_(0.1)
    assert torch.equal(read(system, batch), before)
    assert (read(average, batch) - before).abs().max() > 1e-3
    assert all(p.requires_grad for p in system.parameters())
    assert not average.context(batch["source_video"], batch["instruction"]).editing.requires_grad
    for one, other in ((system.vlm, average.vlm), (average.vlm, copy.deepcopy(average.vlm))):
        pairs = zip(one.model.named_parameters(), other.model.parameters(), strict=True)
        assert all((a is b) == ("lora_" not in n) for (n, a), b in pairs)


def test_adapters_of_a_half_precision_model_are_float32_until_the_system_is_not(batch, tmp_path):
    vlm = tiny_qwen2_5_vl()
    vlm.model.bfloat16().save_pretrained(tmp_path)
    vlm.processor.save_pretrained(tmp_path)
    system = adapted(str(tmp_path))
    assert system.vlm.model.dtype == torch.bfloat16
    assert {p.dtype for p in system.parameters()} == {torch.float32}
    with torch.autocast("cpu", torch.bfloat16):
        rough = read(system, batch)
    system.to(torch.bfloat16)
    assert {p.dtype for n, p in system.vlm.model.named_parameters() if "lora_" in n} == {torch.bfloat16}
    assert_close(read(system, batch).float(), rough.float(), rtol=0.1, atol=0.1)


# ---------------------------------------------------------------------- files and errors


def test_a_saved_config_builds_the_same_system():
    system = build(read="last", alignment_weight=0.3)
    again = build_system(describe_system(system))
    assert again.config == system.config
    again.load_state_dict(system.state_dict())
    assert not any(name.startswith("vlm") for name in system.state_dict())


@pytest.mark.parametrize(
    "change",
    [
        {"backbone": replace(SMALL, text_dim=8)},
        {"routed_layers": 4},
        {"lora_rank": -1},
        {"alignment_weight": -1.0},
        {"reference_noise": "none"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_bad_choices_are_refused_by_name(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        RVEDiTConfig(**{"backbone": SMALL, "routed_layers": 1} | change)
