"""`vera-lite plan` against torch's counts at full depth, measured bytes, and FSDP2's shards."""

import gc
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small import CLIPS, CONFIGS, batch, build
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor.debug import CommDebugMode
from torch.profiler import ProfilerActivity, profile
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils.flop_counter import FlopCounterMode

from vera_lite.apps.plan import read_job
from vera_lite.backbone import WAN_1_3B
from vera_lite.cli import main
from vera_lite.conditioning.vision_language import frozen_vlm
from vera_lite.diagnostics.flops import forward_flops
from vera_lite.diffusion.draws import StepRandom
from vera_lite.systems import GenCompositor, MiVE, RVEDiT, Vera, VeraConfig
from vera_lite.systems.vera import LAYERS
from vera_lite.training.cost import (
    VLMS,
    full_depth,
    fused_attention,
    on_meta,
    run_cost,
    step_cost,
    vlm_cost,
    vlm_skeleton,
)
from vera_lite.training.encoded import Clip, random_clips
from vera_lite.training.parallel import Parallel, parallelize, set_checkpointing, shallow_config
from vera_lite.training.plan import MODES, Job, make_plan, shard_sizes

CONFIG = Path(__file__).parents[2] / "vera_lite/configs"


# --- FLOPs ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", CONFIGS)
def test_flops_at_full_depth_are_those_of_two_shallow_systems(kind):
    config, parallel = shallow_config(CONFIGS[kind], 6), Parallel(checkpointing="full")
    if kind is RVEDiT:
        config = replace(config, lora_rank=0, routed_layers=3)
    if kind is GenCompositor:
        config.objective.alphas_cumprod(torch.ones(1))  # its table is made once per process

    def cost(c):
        return step_cost(kind, c, CLIPS[kind], 2, parallel)

    deep, reckoned = cost(config), full_depth(cost, config)
    assert reckoned.flops == deep.flops and reckoned.repeated == deep.repeated
    assert reckoned.kept == pytest.approx(deep.kept, rel=0.03)
    assert reckoned.peak == pytest.approx(deep.peak, rel=0.03)


def test_a_step_of_vera_is_three_forward_passes_as_the_closed_form_has_them():
    config, clip = VeraConfig(backbone=replace(WAN_1_3B, num_layers=4)), Clip()
    cost = step_cost(Vera, config, clip, 1, Parallel(dtype="bfloat16"))
    shared = {"share_text_kv": True, "share_condition_embedder": True}
    forward = forward_flops(config.backbone, clip.latents[1:], 512, 3, **shared)
    # The first layers' inputs need no gradient, and the source and the mask are embedded too: under 1 %.
    assert cost.flops - cost.repeated == pytest.approx(3 * forward.total, rel=0.01)
    attention = forward.self_attention + forward.cross_attention
    assert cost.repeated == attention / 2


def test_flops_are_those_of_torchs_own_counter():
    config = shallow_config(CONFIGS[MiVE], 1)
    with torch.device("meta"):
        system = MiVE(config)
        clips, sigma = random_clips(system, CLIPS[MiVE], 2), torch.empty(2)

    def step():
        return system.training_losses(clips, sigma, StepRandom(0, 0, 2))["target"].sum()

    with fused_attention(), FlopCounterMode(display=False) as counter:
        step().backward()
    assert run_cost(step, system).flops == counter.get_total_flops() > 0


# --- bytes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("mode", MODES)
def test_activations_are_within_a_tenth_of_what_a_run_allocates(kind, mode):
    clip = replace(CLIPS[kind], height=64, width=64, frames=17)
    size = {"sample_frames": 17, "sample_height": 8, "sample_width": 8} if kind is GenCompositor else {}
    backbone = replace(CONFIGS[kind].backbone, num_attention_heads=4, attention_head_dim=32, **size)
    system, changes = build(kind, backbone=backbone), {}
    clips, random = random_clips(system, clip, 2), StepRandom(0, 0, 2)
    if kind is RVEDiT:
        clips |= batch(system, 2) | {name: clips[name] for name in ("source", "target")}
        prompt = system.tokens.prompt(system.vlm, clips["source_video"], clips["instruction"])
        read = system.tokens.start(system.vlm, prompt)
        pixels = int((prompt["input_ids"][0] == system.vlm.model.config.video_token_id).sum())
        clip, changes = replace(clip, vlm_tokens=read), {"text_tokens": read - pixels}
        system = build(kind, backbone=backbone, **changes)
    set_checkpointing(system, mode)
    gc.collect()  # or it may free memory in between
    sigma = system.config.objective.sample_sigma(random)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        losses = system.training_losses(clips, sigma, StepRandom(0, 0, 2))
    measured = sum(event.self_cpu_memory_usage for event in profiler.key_averages())
    reckoned = step_cost(kind, system.config, clip, 2, Parallel(checkpointing=mode)).kept
    if kind is RVEDiT:
        reckoned += vlm_cost(system.config, clip, 2).kept
    assert losses and reckoned == pytest.approx(measured, rel=0.1)


@pytest.mark.parametrize(
    "name, card", [(name, card) for name, card in zip(VLMS, (3.75e9, 8.77e9), strict=True)]
)
def test_vision_language_models_have_the_parameters_of_their_cards(name, card):
    one, two = (sum(p.numel() for p in vlm_skeleton(name, n).model.parameters()) for n in (1, 2))
    depth = VLMS[name][1]["text_config"]["num_hidden_layers"]
    assert one + (depth - 1) * (two - one) == pytest.approx(card, rel=0.002)


def test_a_plan_of_rvedit_counts_its_vision_language_model_and_adapters():
    job = Job(RVEDiT, CONFIGS[RVEDiT], CLIPS[RVEDiT], 8, 1, 10, Parallel(), 8)
    plan, frozen = make_plan(job), make_plan(replace(job, config=replace(job.config, lora_rank=0)))
    system = build(RVEDiT)
    assert plan.trained == sum(p.numel() for p in system.parameters())
    assert plan.trained - frozen.trained == sum(p.numel() for p in system.adapters.parameters()) > 0
    assert plan.memory["VLM, frozen"] == sum(
        p.numel() * p.element_size() for p in frozen_vlm(None).model.parameters()
    )
    # Without adapters only the editing tokens' own pass keeps activations, and no gradient reaches the rest.
    assert plan.memory["activations"] > frozen.memory["activations"]
    assert plan.model_flops > frozen.model_flops


@pytest.fixture
def eight():
    """The first of eight ranks whose collectives do nothing."""
    torch.distributed.init_process_group("fake", rank=0, world_size=8, store=FakeStore())
    yield init_device_mesh("cpu", (8,))
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("name", ["vera_14b", "gencompositor_5b", "rvedit_5b_stage3"])
def test_shards_of_the_real_configurations_are_as_planned(eight, name):
    job = read_job(CONFIG / f"{name}.yaml")
    system = on_meta(job.kind, job.config, "float32")
    planned, whole = shard_sizes(system, 8), sum(p.numel() for p in system.parameters())
    parallelize(system, job.parallel.__class__(dtype="bfloat16"), eight)
    assert sum(p.to_local().numel() for p in system.parameters()) == planned
    assert whole / 8 <= planned < 1.01 * whole / 8


def test_collectives_of_a_step_on_eight_ranks(eight):
    """A unit is gathered for the forward pass and, unless it was kept, for the backward pass; then its
    gradient is scattered. With shared tokens attention trades queries, keys, values and output each way, and
    at the end the tokens of each branch come together."""
    config = replace(CONFIGS[Vera].backbone, num_attention_heads=8)
    for group in (None, torch.distributed.group.WORLD):
        system = build(Vera, backbone=config)
        parallelize(system, Parallel(), eight, group)
        with CommDebugMode() as seen:
            losses = system.training_losses(batch(system, 1), torch.tensor([0.5]), StepRandom(0, 0, 1))
            torch.stack(list(losses.values())).sum().backward()
        found = {str(op).split(".")[-1]: n for op, n in seen.get_comm_counts().items()}
        units = 2 + 3 + 1  # blocks, layers in float32, the rest
        assert found["_allgather_base_"] == 2 * units - 1 and found["_reduce_scatter_base_"] == units
        trades = 4 * config.num_layers + len(LAYERS)
        assert found.get("all_to_all_single", 0) == (0 if group is None else 2 * trades)


# --- the command ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["vera_14b", "rvedit_5b_stage3", "mive_14b"])
def test_the_shipped_configurations_fit_on_eight_gpus(name, capsys):
    assert main(["plan", str(CONFIG / f"{name}.yaml"), "--gpus", "8"]) == 0
    assert "in all" in capsys.readouterr().out


def test_what_cannot_fit_is_refused_with_the_smallest_change_that_fits(capsys):
    vera = CONFIG / "vera_14b.yaml"
    assert main(["plan", str(vera), "--gpus", "8", "--memory", "80"]) == 2
    said = capsys.readouterr().err
    assert "does not fit" in said and "16 GPUs" in said
    assert main(["plan", str(CONFIG / "missing.yaml")]) == 2
    assert main(["plan", str(CONFIG / "vera_toy.yaml")]) == 2
    assert main(["plan", str(vera), "--gpus", "0"]) == 2


def test_a_job_that_cannot_run_says_why():
    job = Job(Vera, CONFIGS[Vera], CLIPS[Vera], 16, 1, 10, Parallel(), 8, context=4, muon=True)
    problems = " ".join(make_plan(job).problems)
    assert "heads" in problems and "Muon" in problems
    assert make_plan(replace(job, context=2, muon=False)).problems == ()
    assert "divide" in " ".join(make_plan(replace(job, context=1, muon=False, batch=12)).problems)


def test_plain_data_parallelism_shards_nothing():
    """What users meet as "out of memory on eight GPUs": a strategy that copies everything onto each."""
    job = Job(Vera, CONFIGS[Vera], CLIPS[Vera], 8, 1, 10, Parallel(), 8)
    sharded, copied = make_plan(job), make_plan(replace(job, sharded=False))
    assert copied.memory["AdamW, float32"] == pytest.approx(8 * sharded.memory["AdamW, float32"], rel=0.2)
