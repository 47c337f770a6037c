"""Configurations, clips that were encoded, what a run tells, and the GPU benchmark at its tiny size."""

import csv
import importlib
import json
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from small import CLIPS, CONFIGS, batch, build

from vera_lite.cli import main
from vera_lite.codecs import PatchCodec
from vera_lite.diffusion.draws import StepRandom
from vera_lite.diffusion.flow_matching import FlowMatching
from vera_lite.errors import UserError
from vera_lite.media.video_writer import write_video
from vera_lite.systems import GenCompositor, MiVE, RVEDiT, Vera
from vera_lite.training import EncodedClips
from vera_lite.training.encode import Encoders, encode, read_table
from vera_lite.training.encoded import BucketBatches, Clip, EncodedFolder, collate
from vera_lite.training.telemetry import draw, gradient_norms, sheet
from vera_lite.training.toy.layers import SHIPPED_CODEC

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "vera_lite/configs"
NAMES = sorted(p.stem for p in (CONFIG / "tiny").glob("*.yaml"))


# --- configurations ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["vera_14b", "gencompositor_5b", "rvedit_5b_stage1", "mive_14b"])
def test_the_tiny_version_of_a_configuration_takes_a_step(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    configs = [f"--config={CONFIG / name}.yaml", f"--config={CONFIG / 'tiny' / name}.yaml"]
    assert main(["fit", *configs, "--trainer.fast_dev_run=true"]) == 0


def test_every_configuration_has_a_tiny_version_and_says_its_steps():
    full = {p.stem for p in CONFIG.glob("*b*.yaml") if "Sharded" in p.read_text()}
    assert full == set(NAMES)
    steps = {n: yaml.safe_load((CONFIG / f"{n}.yaml").read_text())["trainer"]["max_steps"] for n in NAMES}
    assert steps["vera_14b"] == steps["vera_1b"] == steps["mive_14b"] == 8000


def test_the_bell_of_noise_levels_is_diffsynths():
    """Its FlowMatchScheduler, written out: weights of the 1000 shifted training timesteps."""
    u = torch.linspace(1, 0, 1001, dtype=torch.float64)[:-1]
    timesteps = 1000 * 5 * u / (1 + 4 * u)
    y = torch.exp(-2 * ((timesteps - 500) / 1000) ** 2)
    expected = (y - y.min()) * (1000 / (y - y.min()).sum())
    x_0, noise = torch.zeros(1000, 1, 1, 1, 1), torch.ones(1000, 1, 1, 1, 1)
    objective = FlowMatching(shift=5.0, weighting="bell")
    found = objective.loss(torch.zeros_like(x_0), x_0, noise, (timesteps / 1000).float())
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5)


# --- encoded clips -------------------------------------------------------------------------------


class Numbers(torch.utils.data.Dataset):
    """Clip i of a bucket of ``count`` is the number ``first`` + i."""

    def __init__(self, first, count):
        self.first, self.count = first, count

    def __len__(self):
        return self.count

    def __getitem__(self, i):
        return {"i": torch.tensor(float(self.first + i))}


def test_a_batch_comes_from_one_bucket_and_depends_on_the_step_alone():
    buckets = [Numbers(0, 8), Numbers(100, 21)]
    one = BucketBatches(buckets, 4, seed=1)
    two = [BucketBatches(buckets, 2, seed=1, rank=r, ranks=2) for r in range(2)]
    seen, kinds = [], set()
    for step in range(7):  # 2 + 5 whole batches
        clips = one[step]["i"].tolist()
        assert clips == [*two[0][step]["i"].tolist(), *two[1][step]["i"].tolist()]
        assert len({c >= 100 for c in clips}) == 1
        kinds.add(clips[0] >= 100)
        seen += clips
    assert kinds == {True, False} and len(seen) == len(set(seen)) == 28
    assert [one[s]["i"].tolist() for s in range(7, 14)] != [one[s]["i"].tolist() for s in range(7)]
    with pytest.raises(UserError):
        BucketBatches([Numbers(0, 3)], 4, seed=1)


def table(folder: Path, system: str, clips: int = 2) -> Path:
    """Two clips of noise for RVEDiT and MiVE, or GenCompositor."""
    generator = torch.Generator().manual_seed(0)
    rows = []
    names = {
        "gencompositor": ("background", "foreground", "mask", "composite"),
    }.get(system, ("source", "target"))
    for i in range(clips):
        row = {
            "instruction": "make the red square blue",
            "target_caption": "a blue square",
            "caption": "a ring",
        }
        for name in names:
            video = torch.randint(0, 256, (9, 1 if name == "mask" else 3, 32, 32), generator=generator)
            write_video(folder / f"{name}{i}.mkv", video.to(torch.uint8), 8, "lossless")
            row[f"{name}_path"] = f"{name}{i}.mkv"
        rows.append(row)
    path = folder / "clips.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)) + "\n")
    return path


@pytest.mark.parametrize("kind", [GenCompositor, RVEDiT, MiVE])
def test_a_system_trains_on_what_was_encoded_for_it(kind, tmp_path):
    from vera_lite.conditioning.vision_language import frozen_vlm
    from vera_lite.toy.phrases import toy_encoder

    system = kind.__name__.lower()
    clip = Clip(5, 32, 32, text_tokens=5, vlm_size=(4, 32, 32))
    text = toy_encoder()
    encoders = Encoders(
        PatchCodec.load(SHIPPED_CODEC),
        lambda prompts: torch.ones(len(prompts), 3, 16) if text else None,
        frozen_vlm(None) if kind is MiVE else None,
    )
    assert encode(table(tmp_path, system), tmp_path / "out", system, clip, encoders) == (2, 0)
    clips = EncodedFolder(tmp_path / "out")
    made = collate([clips[0], clips[1]])
    backbone = replace(CONFIGS[kind].backbone, in_channels=24, out_channels=24)
    changes = {}
    if kind is GenCompositor:
        size = {"sample_frames": 5, "sample_height": 8, "sample_width": 8}
        backbone = replace(backbone, in_channels=48, out_channels=24, patch_size=2, **size)
    if kind is MiVE:
        changes["vlm_dim"] = 128
    net = build(kind, backbone=backbone, **changes)
    losses = net.training_losses(made, torch.tensor([0.3, 0.7]), StepRandom(0, 0, 2))
    assert all(v.isfinite().all() for v in losses.values())


def test_tables_that_cannot_be_used_are_refused(tmp_path):
    path = tmp_path / "clips.jsonl"
    for content in ("", "no json\n", '{"source_path": "a"}\n', "3\n"):
        path.write_text(content)
        with pytest.raises(UserError):
            read_table(path, "mive")
    with pytest.raises(UserError):
        read_table(tmp_path / "none.jsonl", "vera")
    with pytest.raises(UserError):
        read_table(path, "sora")
    assert (
        main(["encode", str(path), "--out", "x", "--system", "vera", "--config", "none", "--vae", "y"]) == 2
    )
    with pytest.raises(ValueError, match="fit"):
        Clip(50, 480, 832)
    with pytest.raises(UserError):
        EncodedFolder(tmp_path)


def test_dry_runs_have_the_shapes_of_the_clip():
    for kind in CONFIGS:
        made = batch(build(kind), 2)
        latents = made["source"] if "source" in made else made["composite"]
        assert latents.shape == (2, *CLIPS[kind].latents)


# --- telemetry -----------------------------------------------------------------------------------


def test_gradients_are_told_by_branch():
    system = build(Vera)
    clips = batch(system, 1)
    losses = system.training_losses(clips, torch.tensor([0.5]), StepRandom(0, 0, 1))
    losses["alpha"].sum().backward()
    norms = gradient_norms(system)
    assert {"edit", "alpha", "composite"} <= norms.keys()
    own = [p.grad for n, p in system.named_parameters() if ".branches.1." in n or n.startswith("towers.1.")]
    own = [g for g in own if g is not None]
    assert norms["alpha"] == pytest.approx(float(torch.cat([g.flatten() for g in own]).norm()), rel=1e-4)


def test_a_run_tells_its_use_of_the_device(tmp_path):
    from lightning.pytorch import Trainer
    from lightning.pytorch.loggers import CSVLogger

    from vera_lite.training import EditingModule, Telemetry
    from vera_lite.training.parallel import Parallel

    logger = CSVLogger(tmp_path, name="log")
    trainer = Trainer(
        accelerator="cpu", devices=1, max_steps=2, logger=logger, callbacks=[Telemetry()],
        log_every_n_steps=1, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, limit_val_batches=0,
        use_distributed_sampler=False, accumulate_grad_batches=2,
    )  # fmt: skip
    module = EditingModule(build(Vera), warmup_steps=0, parallel=Parallel(checkpointing="full"))
    trainer.fit(module, EncodedClips(None, CLIPS[Vera], batch_size=2))
    rows = [r for r in csv.DictReader((Path(logger.log_dir) / "metrics.csv").open()) if r.get("speed/mfu")]
    last = {name: float(value) for name, value in rows[-1].items() if value}
    assert 0 < last["speed/mfu"] < last["speed/hfu"] < 1
    assert last["speed/tokens"] == pytest.approx(8 * last["speed/clips"], rel=0.01)  # 2 x 2 x 2 a clip
    assert last["speed/clips"] * last["speed/seconds"] == pytest.approx(4, rel=0.01)
    assert 0 <= last["speed/data_wait"] < 1 and last["gradient/edit"] > 0


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_contact_sheet_shows_what_is_drawn_beside_the_truth(kind):
    system = build(kind)
    clips = batch(system, 2)
    sample = draw(system, clips, 2, 3.0)
    layers = 3 if kind is Vera else 1
    assert sample.shape == (layers, *CLIPS[kind].latents) and sample.isfinite().all()
    figure = sheet(sample, sample[:, None], ("edit", "alpha", "composite")[:layers], 7)
    rows = {ax.get_ylabel() for ax in figure.axes} - {""}
    assert len(rows) == 2 * layers
    shown = [ax.images[0].get_array() for ax in figure.axes]
    assert (shown[0] == shown[sample.shape[2]]).all()  # drawn, and the same as the truth


# --- the benchmark -------------------------------------------------------------------------------


@pytest.fixture
def gpu_benchmark(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("gpu")


def test_the_gpu_benchmark_runs_at_its_tiny_size(gpu_benchmark, tmp_path):
    gpu_benchmark.main(["--tiny", "--json", str(tmp_path / "gpu.json")])
    found = json.loads((tmp_path / "gpu.json").read_text())
    cases = " ".join(row["case"] for row in found["results"])
    assert all(part in cases for part in ("MFU", "compiled", "joint block", "InfoNCE", "attention"))
    assert found["not measured"] == []


def test_what_the_gpu_benchmark_could_not_measure_is_said(gpu_benchmark, tmp_path, monkeypatch):
    out = tmp_path / "gpu.json"
    gpu_benchmark.main(["--tiny", "--budget", "0", "--json", str(out)])
    found = json.loads(out.read_text())
    assert len(found["results"]) == 1 and len(found["not measured"]) == 4
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    gpu_benchmark.main(["--json", str(out)])
    found = json.loads(out.read_text())
    assert found["results"] == [] and "no CUDA device" in found["not measured"][0]


def test_cluster_scripts_are_shell():
    for script in (ROOT / "scripts/cluster").iterdir():
        subprocess.run(["bash", "-n", str(script)], check=True)
