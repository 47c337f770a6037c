"""Training that can be left alone: NaN, shared folders, SIGTERM, changed settings, wrong values; sharded and
compiled systems, and kept readings."""

import copy
import signal
import time
from pathlib import Path

import lightning as L
import pytest
import small_gencompositor
import test_mive
import test_rvedit
import torch
from filelock import FileLock
from test_training import arguments, launch, weights
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule
from torch.testing import assert_close

from vera_lite.backbone.cogvideox import CogVideoXBlock
from vera_lite.cli import main
from vera_lite.conditioning.readings import Readings
from vera_lite.errors import UserError
from vera_lite.systems import Vera
from vera_lite.systems.vera import JointBlock
from vera_lite.training.data import RenderedBatches
from vera_lite.training.fit import fit
from vera_lite.training.guard import AtomicCheckpoints, RunGuard
from vera_lite.training.module import EditingModule
from vera_lite.training.toy.layers import ToyWorldData


@pytest.fixture(scope="module")
def cache_dir(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache")


def small(prediction: str = "x_0") -> Vera:
    """The Vera of tiny.yaml, with one block."""
    from vera_lite.backbone import WanConfig
    from vera_lite.diffusion.flow_matching import FlowMatching
    from vera_lite.systems import VeraConfig

    torch.manual_seed(0)
    size = WanConfig(
        num_attention_heads=2, attention_head_dim=12, in_channels=24, out_channels=24, text_dim=36,
        freq_dim=16, ffn_dim=24, num_layers=1,
    )  # fmt: skip
    return Vera(VeraConfig(backbone=size, objective=FlowMatching(prediction)))


def data(cache_dir: Path, batch_size: int = 2, seed: int = 1, validation_clips: int = 2) -> ToyWorldData:
    sizes = {"clips": 16, "validation_clips": validation_clips, "batch_size": batch_size}
    return ToyWorldData(str(cache_dir), seed=seed, **sizes)


def run(
    cache_dir, folder, steps=2, system=None, batch_size=2, data_seed=1, validation_clips=2, **options
) -> EditingModule:
    options = {"checkpoint_every": 1, "progress": False, "warmup_steps": 0, "accelerator": "cpu"} | options
    clips = data(cache_dir, batch_size, data_seed, validation_clips)
    return fit(system or small(), clips, steps, folder=folder, **options)


# --- a training that is left alone ---------------------------------------------------------------


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_nan_stops_and_the_last_good_checkpoint_stays(cache_dir, tmp_path, monkeypatch, capsys, where):
    original = Vera.training_losses

    def broken(self, batch, sigma, random):
        losses = original(self, batch, sigma, random)
        if batch["step"] == 2:
            x = losses["edit"] * float("nan") if where == "loss" else (losses["edit"] * 0).sqrt()
            losses["edit"] = x
        return losses

    monkeypatch.setattr(Vera, "training_losses", broken)
    every = "--trainer.callbacks.every_n_train_steps=1"
    assert main([*arguments(cache_dir, tmp_path), every]) == 1
    error = capsys.readouterr().err
    assert "step 3" in error and "gradient" in error  # not the weights of step 3
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert saved["global_step"] == 2
    assert all(v.isfinite().all() for v in saved["state_dict"].values())


def test_weights_that_are_not_finite_are_not_saved(cache_dir, tmp_path):
    with pytest.raises(FloatingPointError, match="step 1.*weight"):
        run(cache_dir, tmp_path, lr=1e36)  # their norm overflows float32
    assert not (tmp_path / "last.ckpt").exists()


class _Fail(L.Callback):
    def on_train_batch_end(self, *_):
        raise ZeroDivisionError


def test_a_folder_belongs_to_one_training(cache_dir, tmp_path):
    lock = FileLock(tmp_path / ".training.lock")
    with lock, pytest.raises(UserError, match=str(tmp_path)):
        run(cache_dir, tmp_path)
    with pytest.raises(ZeroDivisionError):
        run(cache_dir, tmp_path, callbacks=(_Fail(),))
    with lock.acquire(blocking=False):  # it ends with its owner, also after an error
        pass
    module = run(cache_dir, tmp_path)
    with lock.acquire(blocking=False):
        pass
    assert isinstance(module.trainer.strategy.checkpoint_io, AtomicCheckpoints)


def test_a_checkpoint_is_replaced_whole_beside_its_place(tmp_path, monkeypatch):
    path = tmp_path / "last.ckpt"
    AtomicCheckpoints().save_checkpoint({"a": torch.ones(2)}, path)

    def cut(_checkpoint, file):
        file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", cut)
    with pytest.raises(KeyboardInterrupt):
        AtomicCheckpoints().save_checkpoint({"a": torch.zeros(2)}, path)
    assert torch.load(path, weights_only=True)["a"].tolist() == [1, 1]
    assert [p.name for p in tmp_path.iterdir()] == ["last.ckpt"]


class _Terminate(L.Callback):
    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if batch_idx == 1:
            signal.raise_signal(signal.SIGTERM)


def test_sigterm_saves_after_the_current_step(cache_dir, tmp_path):
    handler = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit) as stop:
            run(cache_dir, tmp_path, steps=50, checkpoint_every=1000, callbacks=(_Terminate(),))
    finally:
        signal.signal(signal.SIGTERM, handler)
    assert stop.value.code == 143
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 2


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_sigterm_saves_and_exits_with_143(cache_dir, tmp_path, ranks):
    options = ["--trainer.max_steps=100000", "--trainer.limit_val_batches=0"]
    if ranks == 2:
        options += ["--trainer.devices=2", "--trainer.strategy=ddp", "--data.init_args.batch_size=2"]
    process = launch(arguments(cache_dir, tmp_path, *options))
    deadline = time.time() + 240
    while not (tmp_path / "last.ckpt").is_file():
        assert time.time() < deadline and process.poll() is None, process.stdout.read()
        time.sleep(0.01)
    before = torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"]
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 143, output[-3000:]
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] >= before


# --- resume --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"lr": 5e-4}, "model.lr was 0.002"),
        ({"weight_decay": 0.5}, "model.weight_decay"),
        ({"batch_size": 4}, "clips per step was 2"),
        ({"data_seed": 9}, "data.seed"),
        ({"system": "velocity"}, "system.objective"),
    ],
)
def test_changed_settings_are_refused_at_resume(cache_dir, tmp_path, change, named, capsys):
    run(cache_dir, tmp_path)
    change = {k: small(v) if k == "system" else v for k, v in change.items()}
    with pytest.raises(UserError, match=named):
        run(cache_dir, tmp_path, steps=4, **change)
    assert named in capsys.readouterr().out


def test_settings_that_do_not_change_the_result_may_change(cache_dir, tmp_path, capsys):
    run(cache_dir, tmp_path)
    assert run(cache_dir, tmp_path, steps=3, validation_clips=3).trainer.global_step == 3
    assert "validation_clips was 2 and is 3" in capsys.readouterr().out


class _Rates(L.Callback):
    def __init__(self):
        self.seen = []

    def on_before_optimizer_step(self, trainer, module, optimizer):
        self.seen += [group["lr"] for group in optimizer.param_groups]


def test_with_override_the_new_settings_hold(cache_dir, tmp_path, capsys):
    run(cache_dir, tmp_path, decay_from=1.0)
    rates, changed = _Rates(), {"lr": 5e-4, "weight_decay": 0.5, "override": True}
    module = run(cache_dir, tmp_path, steps=4, decay_from=1.0, callbacks=(rates,), **changed)
    [group] = module.trainer.optimizers[0].param_groups
    assert rates.seen[-1] == group["initial_lr"] == 5e-4 and group["weight_decay"] == 0.5
    assert "max_steps was 2" in capsys.readouterr().out


class _SaveAt(L.Callback):
    def __init__(self, batch: int, path: Path):
        self.batch, self.path = batch, path

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if batch_idx == self.batch:
            trainer.save_checkpoint(self.path)


def test_a_checkpoint_inside_an_accumulation_window_resumes_bit_for_bit(cache_dir, tmp_path):
    def accumulated(*callbacks, resume=None) -> dict[str, torch.Tensor]:
        module = EditingModule(small(), warmup_steps=0)
        trainer = L.Trainer(
            accelerator="cpu", max_steps=4, accumulate_grad_batches=3, limit_val_batches=0, logger=False,
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
            use_distributed_sampler=False, callbacks=[RunGuard(), *callbacks],
        )  # fmt: skip
        trainer.fit(module, data(cache_dir), ckpt_path=resume, weights_only=True)
        assert trainer.global_step == 4
        return copy.deepcopy(module.state_dict())

    path = tmp_path / "inside.ckpt"
    whole = accumulated(_SaveAt(4, path))  # the second of the second window's three batches
    assert torch.load(path, weights_only=True)["global_step"] == 1
    resumed = accumulated(resume=path)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


# --- wrong values ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "named"),
    [
        ("--model.init_args.lr=-1", "lr"),
        ("--model.init_args.ema_decay=2", "ema_decay"),
        ("--model.init_args.system.init_args.config.backbone.num_attention_heads=0", "configuration"),
        ("--data.init_args.batch_size=0", "batch_size"),
        ("--trainer.max_stepz=1", "max_stepz"),
        ("--model.learning_rate=1", "learning_rate"),
    ],
)
def test_a_wrong_value_is_one_sentence_and_exits_with_2(cache_dir, tmp_path, capsys, option, named):
    assert main(arguments(cache_dir, tmp_path, option)) == 2
    [line] = [row for row in capsys.readouterr().err.splitlines() if row.startswith("vera-lite: ")]
    assert named in line and len(line) < 300


# --- sharded systems -------------------------------------------------------------------------------


@pytest.mark.parametrize("build", [small, small_gencompositor.build], ids=["vera", "gencompositor"])
def test_every_block_is_sharded_by_itself(build):
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        module = EditingModule(build())
        blocks = {n for n, m in module.system.named_modules() if isinstance(m, (JointBlock, CogVideoXBlock))}
        module._device_mesh = init_device_mesh("cpu", (1,), mesh_dim_names=("data_parallel",))
        module.configure_model()
        for system in (module.system, module.ema):
            sharded = {n for n, m in system.named_modules() if isinstance(m, FSDPModule)}
            assert blocks and sharded >= blocks | {""}
    finally:
        torch.distributed.destroy_process_group()


# --- compiled systems ------------------------------------------------------------------------------


def eager(monkeypatch) -> list:
    """Compile without generating code, which takes a minute; returns the compiled modules."""
    compiled, original = [], torch.nn.Module.compile

    def compile(self, *args, **kwargs):
        compiled.append(self)
        original(self, backend="eager", fullgraph=True)

    monkeypatch.setattr(torch.nn.Module, "compile", compile)
    return compiled


def test_a_compiled_training_learns_the_same(cache_dir, tmp_path, monkeypatch):
    plain = run(cache_dir, None).state_dict()
    compiled = eager(monkeypatch)
    module = run(cache_dir, tmp_path, compile=True)
    assert compiled == [module.system] and module.system._compiled_call_impl is None
    assert plain.keys() == module.state_dict().keys() == weights(tmp_path / "last.ckpt").keys()
    for name, value in module.state_dict().items():
        assert_close(value, plain[name], rtol=1e-3, atol=1e-4)


def test_without_a_compiler_training_goes_on_with_a_warning(cache_dir, monkeypatch):
    monkeypatch.setattr("vera_lite.training.module._no_compiler", lambda _: "there is no compiler")
    with pytest.warns(UserWarning, match="there is no compiler"):
        run(cache_dir, None, compile=True)


def test_a_machine_without_cpp_compiler_is_recognised(monkeypatch):
    from torch._inductor import cpp_builder

    from vera_lite.training.module import _no_compiler

    def none():
        raise cpp_builder.exc.InvalidCxxCompiler

    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", none)
    assert "C++" in _no_compiler(torch.device("cpu"))


def test_rvedit_is_compiled_once_for_all_aligned_depths(monkeypatch):
    system = test_rvedit.build(alignment_weight=0.5)
    batch = test_rvedit.example_batch()
    plain = [test_rvedit.losses(system, batch, step=step) for step in range(4)]
    eager(monkeypatch)
    system.compile()
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    for step, expected in enumerate(plain):
        for name, value in test_rvedit.losses(system, batch, step=step).items():
            assert_close(value, expected[name])
    # With and without gradients: two graphs for three depths.
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2


# --- kept readings ---------------------------------------------------------------------------------


@pytest.mark.parametrize("build", [test_rvedit.build, test_mive.build])
def test_kept_readings_are_what_the_model_reads(build, tmp_path, monkeypatch):
    system, batch = build(), test_rvedit.example_batch()
    reference = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(4))

    def read(videos, texts):
        if build is test_rvedit.build:
            return list(system.context(videos, texts))
        reading = system.read(videos, texts, reference)
        given = reading.text | reading.visual
        return [given, reading.text, *(layer[given] for layer in reading.layers)]

    videos, texts = batch["source_video"], batch["instruction"]
    plain = read(videos, texts)
    system.readings = Readings(tmp_path)
    for kept in (read(videos, texts), read(videos, texts)):
        for a, b in zip(kept, plain, strict=True):
            assert_close(a, b)
    assert len(list(tmp_path.rglob("*.safetensors"))) == 2
    model = system.vlm.model.model
    vision = model.visual.forward
    monkeypatch.setattr(model.visual, "forward", lambda *_a, **_k: pytest.fail("read again"))
    read(videos.flip(0), texts[::-1]) if build is test_rvedit.build else read(videos, texts)
    monkeypatch.setattr(model.visual, "forward", vision)
    read(videos, ["remove the blue ring", texts[1]])
    assert len(list(tmp_path.rglob("*.safetensors"))) == 3


def test_readings_of_a_model_with_adapters_are_not_kept(tmp_path):
    system = test_rvedit.build(lora_rank=2)
    system.readings = Readings(tmp_path)
    batch = test_rvedit.example_batch()
    with pytest.raises(ValueError, match="adapters"):
        system.context(batch["source_video"], batch["instruction"])
    with pytest.raises(ValueError, match="no vision-language model"):
        EditingModule(small(), readings=str(tmp_path))


def test_clips_come_again_after_an_epoch():
    batches = RenderedBatches(4, 1, rank=1, world_size=2)
    assert [batches.clips(s)[0] for s in range(3)] == [4, 12, 20]
    batches.epoch = 16
    assert [batches.clips(s)[0] for s in range(3)] == [4, 12, 4]
