"""The training path: data, optimizer, schedules, resume after `kill -9`, and two ranks."""

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from vera_lite.backbone import WanConfig
from vera_lite.cli import main
from vera_lite.codecs import PatchCodec
from vera_lite.diffusion.draws import StepRandom
from vera_lite.diffusion.flow_matching import FlowMatching
from vera_lite.errors import UserError
from vera_lite.pipelines import VeraPipeline
from vera_lite.systems import Vera, VeraConfig
from vera_lite.toy.world import WorldConfig
from vera_lite.training import ToyWorldData
from vera_lite.training.data import LatentCache, StepBatches
from vera_lite.training.fit import fit
from vera_lite.training.module import attention_by_products
from vera_lite.training.optim import MuonAdamW, build_optimizer, scheduled
from vera_lite.training.toy.layers import SHIPPED_CODEC, build_toy_cache

TINY = Path(__file__).parent / "tiny.yaml"
STEPS = 12  # of tiny.yaml


@pytest.fixture(scope="module")
def cache_dir(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache")


def arguments(cache_dir: Path, run: Path, *more: str) -> list[str]:
    """`vera-lite fit` on the tiny config, logging and checkpointing below ``run``."""
    checkpoint = "lightning.pytorch.callbacks.ModelCheckpoint"
    return [
        "fit",
        f"--config={TINY}",
        f"--data.init_args.cache_dir={cache_dir}",
        f"--trainer.default_root_dir={run}",
        "--trainer.logger=lightning.pytorch.loggers.CSVLogger",
        f"--trainer.logger.save_dir={run}",
        "--trainer.logger.name=log",
        f"--trainer.callbacks={checkpoint}",
        f"--trainer.callbacks.dirpath={run}",
        "--trainer.callbacks.every_n_train_steps=2",
        "--trainer.callbacks.save_last=true",
        "--trainer.callbacks.save_top_k=0",
        "--trainer.callbacks.enable_version_counter=false",
        *more,
    ]


def launch(command: list[str], ranks: int = 1) -> subprocess.Popen:
    """`vera-lite ...` in its own process, or under torchrun."""
    start = [sys.executable, "-m"]
    if ranks > 1:
        start += ["torch.distributed.run", f"--nproc_per_node={ranks}", "--master_port=0"]
        start += ["--rdzv_backend=c10d", "--rdzv_endpoint=localhost:0", "-m"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*start, "vera_lite.cli", *command],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process: subprocess.Popen) -> None:
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output[-3000:]


def losses(run: Path) -> list[float]:
    """Training loss of every step, over all log versions in order (later ones overwrite)."""
    by_step: dict[int, float] = {}
    for file in sorted(run.glob("log/version_*/metrics.csv")):
        for row in csv.DictReader(file.open()):
            if row.get("loss"):
                by_step[int(row["step"])] = float(row["loss"])
    return [by_step[k] for k in sorted(by_step)]


def weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    return torch.load(checkpoint, weights_only=True)["state_dict"]


@pytest.fixture(scope="module")
def reference(cache_dir, tmp_path_factory) -> Path:
    """An uninterrupted run."""
    run = tmp_path_factory.mktemp("reference")
    finish(launch(arguments(cache_dir, run)))
    assert len(losses(run)) == STEPS
    return run


def test_losses_are_logged_by_layer_and_by_noise_level(reference):
    [file] = reference.glob("log/version_*/metrics.csv")
    columns = set(next(csv.reader(file.open())))
    for kind in ("loss", "val"):
        terms = ("edit", "alpha", "composite", "sigma_0-25", "sigma_25-50", "sigma_50-75", "sigma_75-100")
        assert columns >= {kind, *(f"{kind}/{term}" for term in terms)}
    row = next(csv.DictReader(file.open()))
    layers = sum(float(row[f"loss/{layer}"]) for layer in ("edit", "alpha", "composite"))
    assert float(row["loss"]) == pytest.approx(layers, rel=1e-5)


def test_killed_and_resumed_equals_uninterrupted_bit_for_bit(cache_dir, tmp_path, reference):
    run = tmp_path / "killed"
    process = launch(arguments(cache_dir, run))
    deadline = time.time() + 120
    while not (run / "last.ckpt").is_file():
        assert time.time() < deadline and process.poll() is None, process.stdout.read()
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = torch.load(run / "last.ckpt", weights_only=True)["global_step"]
    assert 0 < done < STEPS  # or there was nothing left to resume
    finish(launch(arguments(cache_dir, run, "--ckpt_path=last")))
    before, after = weights(reference / "last.ckpt"), weights(run / "last.ckpt")
    assert before.keys() == after.keys() and any(k.startswith("ema.") for k in before)
    assert all(torch.equal(before[k], after[k]) for k in before)
    assert losses(run)[-2:] == losses(reference)[-2:]


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_two_ranks_learn_what_one_learns(cache_dir, tmp_path, reference, strategy):
    """Half the batch on each of two processes: the same losses, step by step."""
    options = ["--data.init_args.batch_size=2", "--trainer.devices=2"]
    if strategy == "ddp":
        options.append("--trainer.strategy=ddp")
    else:
        options += [
            "--trainer.strategy=lightning.pytorch.strategies.ModelParallelStrategy",
            "--trainer.strategy.data_parallel_size=2",
            "--trainer.strategy.tensor_parallel_size=1",
            "--trainer.strategy.save_distributed_checkpoint=false",
        ]
    finish(launch(arguments(cache_dir, tmp_path, *options), ranks=2))
    one, two = losses(reference), losses(tmp_path)
    assert len(two) == len(one)
    torch.testing.assert_close(torch.tensor(two), torch.tensor(one), rtol=2e-4, atol=2e-4)
    # The average followed on both ranks, and a single-file checkpoint holds it whole.
    expected, got = weights(reference / "last.ckpt"), weights(tmp_path / "last.ckpt")
    assert expected.keys() == got.keys()
    for name in expected:
        torch.testing.assert_close(got[name], expected[name], rtol=5e-3, atol=5e-3)


def test_export_gives_a_pipeline_with_the_averaged_weights(reference, tmp_path, capsys):
    assert main(["export", str(reference / "last.ckpt"), "--out", str(tmp_path / "pipe"), "--full"]) == 0
    pipe = VeraPipeline.from_pretrained(tmp_path / "pipe")
    trained = weights(reference / "last.ckpt")
    for name, value in pipe.system.state_dict().items():
        assert torch.equal(value, trained[f"ema.{name}"])
    assert pipe.clip_size == (9, 32, 32)
    assert sorted(p.name for p in (tmp_path / "pipe").iterdir()) == [
        "codec.safetensors",
        "pipeline.json",
        "system.safetensors",
    ]


def test_export_refuses_foreign_files(tmp_path, capsys):
    bad = tmp_path / "bad.ckpt"
    torch.save({"weights": torch.zeros(2)}, bad)
    assert main(["export", str(bad), "--out", str(tmp_path / "x")]) == 2
    bad.write_bytes(b"not a checkpoint")
    assert main(["export", str(bad), "--out", str(tmp_path / "x")]) == 2
    assert main(["export", str(tmp_path / "none"), "--out", str(tmp_path / "x")]) == 2
    errors = capsys.readouterr().err
    assert len([line for line in errors.splitlines() if str(tmp_path) in line]) == 3
    assert not (tmp_path / "x").exists()


def test_a_missing_checkpoint_is_one_sentence_and_exits_with_2(cache_dir, tmp_path, capsys):
    assert main(arguments(cache_dir, tmp_path, f"--ckpt_path={tmp_path / 'nope.ckpt'}")) == 2
    assert "nope.ckpt" in capsys.readouterr().err


def test_the_shipped_config_builds_what_it_says():
    """`--print_config` parses it whole; the text width is the vocabulary's."""
    import yaml

    from vera_lite.toy.phrases import PHRASES

    config = yaml.safe_load((Path(__file__).parents[1] / "vera_lite/configs/vera_toy.yaml").read_text())
    backbone = config["model"]["init_args"]["system"]["init_args"]["config"]["backbone"]
    assert backbone["text_dim"] == len(PHRASES)
    with pytest.raises(SystemExit) as stop:
        main(["fit", "--config=vera_lite/configs/vera_toy.yaml", "--print_config"])
    assert stop.value.code in (0, None)


# --- data ----------------------------------------------------------------------------------------


def test_cache_is_read_back_as_written_and_resumes(tmp_path):
    codec = PatchCodec.load(SHIPPED_CODEC)
    folder = build_toy_cache(tmp_path, codec, WorldConfig(), seed=3, clips=520)
    assert sorted(p.name for p in folder.iterdir()) == [
        "00000.safetensors",
        "00001.safetensors",
        "index.json",
    ]
    cache = LatentCache(folder)
    assert len(cache) == 520 and cache[519]["source"].shape == (24, 3, 8, 8)
    from vera_lite.toy.world import render

    expected = codec.encode(render(3, [515]).edit)[0]
    torch.testing.assert_close(cache[515]["edit"], expected, atol=2e-3, rtol=2e-3)  # float16 on disk
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    (folder / "00001.safetensors").unlink()
    (folder / "index.json").unlink()
    with pytest.raises(UserError, match=folder.name):
        LatentCache(folder)
    assert build_toy_cache(tmp_path, codec, WorldConfig(), seed=3, clips=520) == folder
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    assert build_toy_cache(tmp_path, codec, WorldConfig(), seed=4, clips=8) != folder


class Numbers(torch.utils.data.Dataset):
    def __len__(self):
        return 40

    def __getitem__(self, i):
        return {"i": torch.tensor(i)}


def test_batches_are_pure_functions_of_the_step_and_split_over_ranks():
    one = StepBatches(Numbers(), 8, seed=1)
    two = [StepBatches(Numbers(), 4, seed=1, rank=r, world_size=2) for r in range(2)]
    for step in (0, 3, 4, 7, 123):
        assert one[step]["i"].tolist() == [*two[0][step]["i"].tolist(), *two[1][step]["i"].tolist()]
    epoch = [i for step in range(5) for i in one.indices(step)]
    assert sorted(epoch) == list(range(40))
    assert epoch != [i for step in range(5, 10) for i in one.indices(step)]
    with pytest.raises(UserError, match="batch_size"):
        StepBatches(Numbers(), 41, seed=1)


def test_draws_do_not_depend_on_the_number_of_ranks():
    whole = StepRandom(7, 3, 4)
    parts = [StepRandom(7, 3, 2, rank=r, ranks=2) for r in range(2)]
    like = torch.zeros(3, 2, 4, 1, 2, 2)
    noise = whole.noise(torch.zeros(3, 4, 4, 1, 2, 2))
    assert torch.equal(noise, torch.cat([p.noise(like) for p in parts], dim=1))
    assert torch.equal(whole.uniform(2), torch.cat([p.uniform(2) for p in parts]))
    assert torch.equal(whole.permutation(), torch.cat([p.permutation() for p in parts]))
    assert not torch.equal(StepRandom(7, 4, 4).uniform(), StepRandom(7, 3, 4).uniform())
    sigma = FlowMatching(shift=1.0).sample_sigma(StepRandom(0, 0, 8))
    assert sorted((sigma * 8).long().tolist()) == list(range(8))  # one a stratum


@pytest.mark.parametrize("autocast", [True, False])
def test_training_computes_attention_by_products_under_autocast_alone(autocast):
    q = torch.randn(1, 2, 8, 16, requires_grad=True)
    exact = torch.autograd.grad(F.scaled_dot_product_attention(q, q, q).square().sum(), q)[0]
    counter, cast = FlopCounterMode(display=False), torch.autocast("cpu", torch.bfloat16, enabled=autocast)
    with counter, cast, attention_by_products():
        result = F.scaled_dot_product_attention(*[q.bfloat16() if autocast else q] * 3)
    assert any("bmm" in str(op) for op in counter.get_flop_counts().get("Global", {})) == autocast
    grad = torch.autograd.grad(result.float().square().sum(), q)[0]
    assert (grad - exact).norm() < (0.02 if autocast else 1e-6) * exact.norm()
    assert not torch.backends.cuda.fp16_bf16_reduction_math_sdp_allowed()


def test_in_bfloat16_noise_levels_and_the_average_stay_in_float32(cache_dir, monkeypatch):
    seen, losses = [], Vera.training_losses

    def watched(self, batch, sigma, random):
        seen.append((sigma, batch["edit"].dtype, self.blocks[0].branches[0].attn1.to_q.weight.dtype))
        return losses(self, batch, sigma, random)

    monkeypatch.setattr(Vera, "training_losses", watched)
    small = WanConfig(
        num_attention_heads=2, attention_head_dim=8, in_channels=24, out_channels=24, text_dim=36,
        freq_dim=16, ffn_dim=32, num_layers=1,
    )  # fmt: skip
    data = ToyWorldData(str(cache_dir), clips=32, validation_clips=8, batch_size=4)
    module = fit(
        Vera(VeraConfig(backbone=small)), data, 3, precision="bf16-true", progress=False, warmup_steps=0
    )
    sigma, latents, weights = seen[-1]
    assert latents == weights == torch.bfloat16 and sigma.dtype == torch.float32
    assert {p.dtype for p in module.ema.parameters()} == {torch.float32}
    # Steps so small that bfloat16 would round them away reach the average.
    average = [p.clone() for p in module.ema.parameters()]
    module.ema_decay = 0.999
    module.update_ema()
    assert any((a != b).any() for a, b in zip(average, module.ema.parameters(), strict=True))


# --- optimizer -----------------------------------------------------------------------------------


def test_one_optimizer_does_what_muon_and_adamw_do_and_goes_on_from_its_state():
    torch.manual_seed(0)
    start, gradients = torch.randn(24, 16), torch.randn(4, 24, 16)

    def weights():
        return nn.Parameter(start.clone()), nn.Parameter(torch.ones(5))

    def both(matrix, vector):
        return MuonAdamW(
            [{"params": [matrix], "lr": 0.02, "weight_decay": 0.0}],
            [{"params": [vector], "lr": 1e-2, "weight_decay": 0.1, "betas": (0.9, 0.97)}],
        )

    ours, theirs = weights(), weights()
    optimizer = both(*ours)
    muon = torch.optim.Muon(theirs[:1], lr=0.02, weight_decay=0.0)
    adamw = torch.optim.AdamW(theirs[1:], lr=1e-2, weight_decay=0.1, betas=(0.9, 0.97))
    for step, gradient in enumerate(gradients):
        for matrix, vector in (ours, theirs):
            matrix.grad, vector.grad = gradient.clone(), gradient[0, :5].clone()
        for one in (optimizer, muon, adamw):
            one.step()
        if step == 1:  # begun anew from what was saved
            saved = optimizer.state_dict()
            optimizer = both(*ours)
            optimizer.load_state_dict(saved)
            assert [g["lr"] for g in optimizer.param_groups] == [0.02, 1e-2]
    assert (ours[0] - start).abs().max() > 0.01
    # Ours multiplies matrices in batches, in bfloat16 as theirs.
    torch.testing.assert_close(ours[0] - start, theirs[0] - start, rtol=0.02, atol=2e-4)
    assert torch.equal(ours[1], theirs[1])


def test_the_rate_warms_up_stays_and_falls():
    parameter = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.AdamW([parameter], lr=2.0)
    schedule = scheduled(optimizer, 100, warmup_steps=10, decay_from=0.5)["lr_scheduler"]["scheduler"]
    rates = []
    for _ in range(100):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates[0] < rates[5] < rates[10] == rates[49] == 2.0
    assert rates[75] == pytest.approx(1.0) and 0 < rates[99] < 0.1


def test_muon_gets_the_matrices_of_the_blocks_only():
    from test_rvedit import build
    from test_vera import vera

    def names(system, part):
        known = {id(p): n for n, p in system.named_parameters()}
        return {known[id(p)] for group in part.param_groups for p in group["params"]}

    editor = build(lora_rank=2)
    muon, _ = build_optimizer(editor, 1e-3, 0.02, 0.0).parts
    assert all("blocks" in name for name in names(editor, muon))

    system = vera()
    muon, adamw = (names(system, part) for part in build_optimizer(system, 1e-3, 0.02, 0.0).parts)
    assert "blocks.0.branches.2.attn1.to_q.weight" in muon
    assert not any("scale_shift" in n or "norm" in n or "embed" in n or n.endswith("bias") for n in muon)
    assert muon | adamw == {n for n, _ in system.named_parameters()} and not muon & adamw
    assert isinstance(build_optimizer(system, 1e-3, None, 0.0), torch.optim.AdamW)
