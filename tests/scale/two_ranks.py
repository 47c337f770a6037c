"""What two processes can show of a sharded training; tests/scale/test_two_ranks.py starts it.

torchrun --nproc-per-node 2 tests/scale/two_ranks.py FOLDER
Each check runs on both ranks. Rank 0 notes "ok" or what went wrong in FOLDER/outcome.json.
"""

import json
import os
import subprocess
import sys
import traceback
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from small import CLIPS, COG, CONFIGS, NO_TEXT, WAN, batch, build
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.parallel import DistributedDataParallel

from vera_lite.backbone.float32 import Float32Linear
from vera_lite.codecs import PatchCodec
from vera_lite.diffusion.draws import StepRandom
from vera_lite.media.clip import LAYERS, LayeredClip
from vera_lite.systems import GenCompositor, MiVE, RVEDiT, Vera
from vera_lite.toy.phrases import toy_encoder
from vera_lite.toy.world import render
from vera_lite.training import EditingModule, EncodedClips, Sharded
from vera_lite.training.encode import Encoders, encode
from vera_lite.training.encoded import Clip, EncodedFolder
from vera_lite.training.guard import RunGuard
from vera_lite.training.parallel import (
    Parallel,
    blocks_of,
    compile_blocks,
    materialise,
    parallelize,
    pretrained_names,
)
from vera_lite.training.toy.layers import SHIPPED_CODEC

FOLDER = Path(sys.argv[1])
TOLERANCE = 1e-5  # of the largest gradient of a parameter: sums are taken in another order
TIGHT = 2e-6  # between one device and several that share tokens: gradients of one clip
MODES = {Vera: "attention", GenCompositor: "full", RVEDiT: "attention", MiVE: "none"}


class Loss(nn.Module):
    """A system's loss on a batch as one forward pass, which DDP needs."""

    def __init__(self, system):
        super().__init__()
        self.system = system

    def forward(self, clips: dict, rank: int = 0, ranks: int = 1):
        count = len(next(v for v in clips.values() if isinstance(v, torch.Tensor)))
        random = StepRandom(0, 3, count, rank, ranks)
        losses = self.system.training_losses(clips, self.system.config.objective.sample_sigma(random), random)
        skipped = getattr(self.system, "logged_only", ())
        return torch.stack([v for name, v in losses.items() if name not in skipped]).sum(0).mean()


def mine(clips: dict, rank: int) -> dict:
    """One clip of a batch."""
    part = slice(rank, rank + 1)

    def cut(value):
        if hasattr(value, "_fields"):  # a reading
            layers, *masks = value
            return type(value)(tuple(x[part] for x in layers), *(x[part] for x in masks))
        return value[part]

    return {name: cut(value) for name, value in clips.items()}


def gradients(system) -> dict[str, torch.Tensor]:
    found = {n: p.grad for n, p in system.named_parameters() if p.grad is not None}
    return {n: g.full_tensor() if hasattr(g, "full_tensor") else g for n, g in found.items()}


def alone(kind) -> dict[str, torch.Tensor]:
    """Gradients of one process on both clips."""
    system = build(kind)
    Loss(system)(batch(system, 2)).backward()
    return gradients(system)


def assert_same(found: dict, expected: dict, tolerance: float = TOLERANCE) -> None:
    assert any(g.abs().max() > 1e-6 for g in expected.values())
    for name, gradient in expected.items():
        scale = gradient.abs().max().clamp_min(1e-3)
        assert (found[name] - gradient).abs().max() <= tolerance * scale, name
    assert not any(found[name].any() for name in found.keys() - expected.keys())


def sharded_equals_ddp_equals_alone(rank, mesh):
    for kind, mode in MODES.items():
        expected = alone(kind)
        for how in ("fsdp2", "ddp"):
            system = build(kind)
            parallelize(system, Parallel(checkpointing=mode), mesh if how == "fsdp2" else None)
            clips, loss = mine(batch(system, 2), rank), Loss(system)
            wrapped = DistributedDataParallel(loss, find_unused_parameters=True) if how == "ddp" else loss
            wrapped(clips, rank, 2).backward()
            assert_same(gradients(system), expected)


def every_parameter_is_cut_in_two(rank, mesh):
    for kind in CONFIGS:
        system = build(kind)
        parallelize(system, Parallel(), mesh)
        whole = sum(p.numel() for p in system.parameters())
        here = sum(p.to_local().numel() for p in system.parameters())
        assert 0.4 * whole < here < 0.6 * whole, (kind, here, whole)


def shared_tokens_give_the_same_gradients(rank, mesh):
    """Also where tokens do not divide by two: 5 of text (GenCompositor), 7 of context (MiVE)."""
    modes = {Vera: "full", GenCompositor: "attention", RVEDiT: "none", MiVE: "full"}
    tokens = {Vera: 3 * 8, GenCompositor: 5 + 2 * 8, RVEDiT: 8, MiVE: 7 + 4 + 8}
    for kind, mode in modes.items():
        system = build(kind)
        clips = batch(system, 1)
        Loss(system)(clips).backward()
        expected = gradients(system)
        system = build(kind)
        parallelize(system, Parallel(checkpointing=mode), mesh, dist.group.WORLD)
        seen = []
        blocks_of(system)[0].register_forward_pre_hook(lambda _m, inputs, seen=seen: seen.append(inputs[0]))
        Loss(system)(clips).backward()
        assert_same(gradients(system), expected, TIGHT)
        parts = seen[0] if isinstance(seen[0], list) else [seen[0]]
        assert sum(x.shape[1] for x in parts) == (tokens[kind] + 1 - rank) // 2


def compiled_blocks_give_the_same_gradients(rank, mesh):
    """With shared tokens, whose collectives are part of each block's one graph."""
    for kind in (Vera, MiVE):
        config = replace(CONFIGS[kind].backbone, num_layers=1)
        system = build(kind, backbone=config)
        clips = batch(system, 1)
        Loss(system)(clips).backward()
        expected = gradients(system)
        system = build(kind, backbone=config)
        compile_blocks(system, backend="aot_eager")
        parallelize(system, Parallel(checkpointing="full"), mesh, dist.group.WORLD)
        Loss(system)(clips).backward()
        assert_same(gradients(system), expected)


def in_bfloat16_islands_stay_in_float32(rank, mesh):
    reference = build(Vera)
    expected = Loss(reference)(mine(batch(reference, 2), rank), rank, 2)
    system = build(Vera)
    parallelize(system, Parallel(dtype="bfloat16"), mesh)
    seen = {}

    def note(module, inputs, output):
        seen[type(module).__name__.removeprefix("FSDP")] = module.weight.dtype, output.dtype

    islands = [m for m in system.modules() if isinstance(m, Float32Linear)]
    for m in (*islands, blocks_of(system)[0].branches[0].attn1.to_q):
        m.register_forward_hook(note)
    embedder = system.towers[0].condition_embedder.time_embedder
    times = []
    embedder.register_forward_pre_hook(lambda _m, inputs: times.append(inputs[0]))
    loss = Loss(system)(mine(batch(system, 2), rank), rank, 2)
    loss.backward()
    assert seen["Float32Linear"] == (torch.float32, torch.float32)
    assert seen["Linear"] == (torch.bfloat16, torch.bfloat16)
    assert times[0].dtype == torch.float32  # 999 would be 1000
    masters = [p for parameter in system.parameters() for p in (parameter, parameter.grad)]
    assert {p.dtype for p in masters} == {torch.float32}
    assert 0 < abs(float(loss - expected)) < 0.02 * float(expected)


def weights_stream_into_shards(rank, mesh):
    """Tiny weights in the real formats, in several files; new parts are as `from_wan` has them."""
    from diffusers import CogVideoXTransformer3DModel, WanTransformer3DModel  # takes seconds

    folders = FOLDER / "weights"
    if rank == 0:
        torch.manual_seed(0)
        wan = {k: v for k, v in vars(WAN).items() if k not in ("cross_attention", "summed_text")}
        ti2v = wan | {"in_channels": 48, "out_channels": 48}
        for name, config in (("wan2.1", wan), ("wan2.2", ti2v)):
            WanTransformer3DModel(**config).save_pretrained(folders / name, max_shard_size="60kB")
        cog = vars(COG) | {"use_rotary_positional_embeddings": True}
        CogVideoXTransformer3DModel(**cog).save_pretrained(folders / "cog", max_shard_size="60kB")
    dist.barrier()
    cases = (
        (Vera, "wan2.1", Vera.from_wan, CONFIGS[Vera]),
        (MiVE, "wan2.1", MiVE.from_wan, CONFIGS[MiVE]),
        (
            RVEDiT,
            "wan2.2",
            RVEDiT.from_wan,
            replace(CONFIGS[RVEDiT], backbone=replace(NO_TEXT, in_channels=48, out_channels=48)),
        ),
        (GenCompositor, "cog", GenCompositor.from_cogvideox, CONFIGS[GenCompositor]),
    )
    for kind, name, start, config in cases:
        given = folders / name
        if kind is GenCompositor:
            given = CogVideoXTransformer3DModel.from_pretrained(given)
        changes = {k: v for k, v in vars(config).items() if k != "backbone"}
        torch.manual_seed(5)
        expected = start(given, **changes).state_dict()
        with torch.device("meta"):
            system = kind(config)
        # Adapters stand on a vision-language model that is loaded.
        assert all(p.is_meta for n, p in system.named_parameters() if not n.startswith("adapters."))
        parallelize(system, Parallel(dtype="bfloat16"), mesh)
        materialise(system, folders / name, "cpu", seed=5)
        streamed = {ours for names in pretrained_names(system) for ours in names.values()}
        fresh = ("patch_embed.fg_", "patch_embed.proj", "patch_embedding", "_embedding", "branch_blocks")
        for key, value in system.state_dict().items():
            whole = value.full_tensor() if hasattr(value, "full_tensor") else value
            assert whole.dtype == torch.float32 and whole.isfinite().all(), key
            if key in streamed or any(part in key for part in fresh):
                assert torch.equal(whole, expected[key]), (kind, key)


class Stop(Callback):
    """Stops a training after a step."""

    def __init__(self, step: int):
        self.step = step

    def on_train_batch_end(self, trainer, *_) -> None:
        trainer.should_stop = trainer.global_step >= self.step


def fit(run: Path, steps: int, ranks: int = 2, start: Path | None = None) -> None:
    """Train a tiny Vera for ``steps`` of 4 on two clips a step, with a checkpoint every other step."""
    torch.manual_seed(0)
    module = EditingModule(build(Vera), lr=1e-3, warmup_steps=0, decay_from=1.0, ema_decay=0.9)
    keep = {"save_last": True, "save_top_k": 0, "enable_version_counter": False}
    trainer = Trainer(
        accelerator="cpu",
        devices=ranks,
        strategy=Sharded(ranks),
        max_steps=4,
        gradient_clip_val=1.0,
        callbacks=[
            RunGuard(),
            Stop(steps),
            ModelCheckpoint(run, every_n_train_steps=1 if ranks == 1 else 2, **keep),
        ],
        enable_progress_bar=False,
        enable_model_summary=False,
        logger=False,
        limit_val_batches=0,
        use_distributed_sampler=False,
    )
    data = EncodedClips(None, CLIPS[Vera], batch_size=2 // ranks)
    trainer.fit(module, data, ckpt_path=start and start / "last.ckpt", weights_only=True)


def read(run: Path) -> dict[str, torch.Tensor]:
    """All tensors of a checkpoint."""
    from torch.distributed.checkpoint import FileSystemReader, load

    metadata = FileSystemReader(run / "last.ckpt").read_metadata().state_dict_metadata
    state = {
        n: torch.empty(m.size, dtype=m.properties.dtype) for n, m in metadata.items() if hasattr(m, "size")
    }
    load(state, checkpoint_id=run / "last.ckpt", no_dist=True)
    return state


def resumed_equals_uninterrupted_on_any_number_of_ranks(rank, mesh):
    whole, stopped, one = (FOLDER / name for name in ("whole", "stopped", "one"))
    fit(whole, 4)
    fit(stopped, 2)
    if rank == 0:
        assert (stopped / "last.ckpt").resolve().name == "last.ckpt.2"
        # One process goes on to step 3, then two again.
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("TORCHELASTIC", "MASTER"))}
        clean |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}
        clean |= {"MASTER_ADDR": "localhost", "MASTER_PORT": "0"}
        order = [sys.executable, __file__, str(FOLDER), "one"]
        done = subprocess.run(order, check=False, env=clean, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-1500:] + done.stderr[-1500:]
    dist.barrier()
    fit(stopped, 4, start=stopped)
    fit(one, 4, start=one)
    if rank == 0:
        expected, resumed, other = read(whole), read(stopped), read(one)
        assert expected.keys() == resumed.keys() == other.keys() and len(expected) > 500
        for name, value in expected.items():
            assert torch.equal(value, resumed[name]), name
            if value.is_floating_point():
                # Clips, noise and state are the same: only the sum over two clips is taken in another order.
                assert (other[name] - value).abs().max() <= 5e-6 * value.abs().max(), name
        start = build(Vera).state_dict()
        assert any((expected[f"state_dict.system.{n}"] - v).abs().max() > 1e-3 for n, v in start.items())
        assert [p.name for p in stopped.glob("last.ckpt.*")] == ["last.ckpt.4"]  # the newest alone is kept


def two_ranks_encode_what_one_encodes(rank, mesh):
    """Layered clips of the toy world; one of them is damaged."""
    clips, out = FOLDER / "clips", FOLDER / "encoded"
    if rank == 0:
        made = render(7, range(5))
        for i in range(5):
            layers = {name: getattr(made, name)[i] for name in LAYERS}
            LayeredClip(**layers, instruction=made.instruction[i], fps=8).save(clips / str(i))
        (clips / "4" / "edit.mkv").write_bytes(b"no video")
    dist.barrier()
    vocabulary = toy_encoder()
    encoders = Encoders(PatchCodec.load(SHIPPED_CODEC), vocabulary)
    clip = Clip(5, 32, 32, text_tokens=20)
    encode(clips, out, "vera", clip, encoders, rank, 2)
    own = {p.name for p in out.glob("*.safetensors")}
    dist.barrier()
    if rank == 0:
        assert encode(clips, FOLDER / "alone", "vera", clip, encoders) == (4, 1)
        whole = {p.name: p.read_bytes() for p in (FOLDER / "alone").glob("*")}
        both = {p.name: p.read_bytes() for p in out.glob("*")}
        assert both.keys() == whole.keys() and len(own) <= 4
        assert {n: b for n, b in both.items() if n.endswith("safetensors")}.items() <= whole.items()
        found = EncodedFolder(out)
        assert len(found) == 4 and found[0]["edit"].shape == (24, 2, 8, 8)
        assert found[0]["text"].shape == (20, vocabulary.text_dim)
        before = {p.name: p.stat().st_mtime_ns for p in out.glob("*.safetensors")}
        encode(clips, out, "vera", clip, encoders)
        assert before == {p.name: p.stat().st_mtime_ns for p in out.glob("*.safetensors")}


CHECKS = [
    sharded_equals_ddp_equals_alone,
    every_parameter_is_cut_in_two,
    shared_tokens_give_the_same_gradients,
    compiled_blocks_give_the_same_gradients,
    in_bfloat16_islands_stay_in_float32,
    weights_stream_into_shards,
    resumed_equals_uninterrupted_on_any_number_of_ranks,
    two_ranks_encode_what_one_encodes,
]


if __name__ == "__main__":
    if sys.argv[2:] == ["one"]:
        fit(FOLDER / "one", 3, ranks=1, start=FOLDER / "stopped")
        sys.exit()
    dist.init_process_group("gloo", timeout=timedelta(seconds=90))
    here = dist.get_rank()
    both = init_device_mesh("cpu", (2,))
    outcome = {}
    chosen = [c for c in CHECKS if not sys.argv[2:] or c.__name__ in sys.argv[2:]]
    for check in chosen:
        try:
            check(here, both)
            outcome[check.__name__] = "ok"
        except BaseException:
            outcome[check.__name__] = traceback.format_exc()
        if here == 0 or outcome[check.__name__] != "ok":
            (FOLDER / f"outcome-{here}.json").write_text(json.dumps(outcome))
        if outcome[check.__name__] != "ok":
            os._exit(1)  # the other rank would wait in a collective
    dist.destroy_process_group()
