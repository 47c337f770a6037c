"""Two processes on one machine (gloo): one start for all checks of two_ranks.py, and what they leave."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import WanTransformer3DModel
from small import CONFIGS, batch, build

from vera_lite.cli import main
from vera_lite.errors import UserError
from vera_lite.media.files import read_json
from vera_lite.systems import Vera
from vera_lite.training.parallel import materialise
from vera_lite.training.sharded import load_exported, read_meta

HERE = Path(__file__).parent
CHECKS = (
    "sharded_equals_ddp_equals_alone",
    "every_parameter_is_cut_in_two",
    "shared_tokens_give_the_same_gradients",
    "compiled_blocks_give_the_same_gradients",
    "in_bfloat16_islands_stay_in_float32",
    "weights_stream_into_shards",
    "resumed_equals_uninterrupted_on_any_number_of_ranks",
    "two_ranks_encode_what_one_encodes",
)
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Where two_ranks.py has worked."""
    place = tmp_path_factory.mktemp("two_ranks")
    start = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--rdzv-backend=c10d"]
    start += ["--rdzv-endpoint=localhost:0", str(HERE / "two_ranks.py"), str(place)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(start, check=False, env=environment, capture_output=True, text=True, timeout=600)
    (place / "output").write_text(done.stdout[-3000:] + done.stderr[-3000:])
    return place


@pytest.mark.parametrize("check", CHECKS)
def test_two_ranks(folder, check):
    found = {}
    for file in sorted(folder.glob("outcome-*.json")):
        for name, outcome in json.loads(file.read_text()).items():
            if found.get(name, "ok") == "ok":
                found[name] = outcome
    assert found.get(check, "not reached:\n" + (folder / "output").read_text()) == "ok"


def test_a_sharded_average_is_exported_to_what_diffusers_reads(folder, tmp_path):
    out = tmp_path / "out"
    assert main(["export", str(folder / "whole" / "last.ckpt"), "--out", str(out), "--full"]) == 0
    system = load_exported(out, dtype=torch.float32)
    settings = read_json(out / "system.json")["pipeline"]
    assert settings == {"clip_size": [5, 32, 32], "sampling": {"steps": 50, "shift": 1.0}}
    start = build(Vera).state_dict()
    assert any(not torch.equal(v, start[n]) for n, v in system.state_dict().items())  # it was trained
    for k, layer in enumerate(("edit", "alpha", "composite")):
        branch, own = WanTransformer3DModel.from_pretrained(out / layer).state_dict(), system.state_dict()
        assert torch.equal(branch["proj_out.weight"], own[f"towers.{k}.proj_out.weight"])
        assert torch.equal(
            branch["blocks.1.attn1.to_q.weight"], own[f"blocks.1.branches.{k}.attn1.to_q.weight"]
        )
        # What branches share is in each of them.
        assert torch.equal(branch["blocks.1.attn2.to_k.weight"], own["blocks.1.branches.0.attn2.to_k.weight"])
    clips = batch(system, 1)
    latents = torch.stack([clips[n] for n in ("edit", "alpha", "composite")])
    again = load_exported(out, dtype=torch.float32)
    arguments = latents, torch.tensor([500.0]), clips["text"], clips["source"]
    with torch.no_grad():
        assert torch.equal(system(*arguments), again(*arguments))


def test_a_checkpoint_starts_another_training(folder):
    """As the stages of RVEDiT do: its average, read into a system without memory."""
    with torch.device("meta"):
        system = Vera(CONFIGS[Vera])
    materialise(system, folder / "whole" / "last.ckpt", "cpu")
    trained = load_trained(folder)
    assert all(torch.equal(v, trained[n]) for n, v in system.state_dict().items())


def load_trained(folder: Path) -> dict:
    from torch.distributed.checkpoint import load

    own = {f"ema.{n}": torch.empty_like(v) for n, v in build(Vera).state_dict().items()}
    load({"state_dict": own}, checkpoint_id=folder / "whole" / "last.ckpt", no_dist=True)
    return {n.removeprefix("ema."): v for n, v in own.items()}


def test_what_is_no_checkpoint_is_refused(tmp_path):
    with pytest.raises(UserError):
        read_meta(tmp_path)
    assert main(["export", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert not (tmp_path / "out").exists()
    with torch.device("meta"):
        system = Vera(CONFIGS[Vera])
    with pytest.raises(UserError):
        materialise(system, tmp_path, "cpu")


def test_weights_that_do_not_fit_are_refused(folder):
    """The patches of Wan2.2-TI2V have 48 channels."""
    with torch.device("meta"):
        system = Vera(CONFIGS[Vera])
    with pytest.raises(UserError, match=r"patch_embedding|proj_out"):
        materialise(system, folder / "weights" / "wan2.2", "cpu")
