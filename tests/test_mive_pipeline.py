"""MiVE's pipeline, its command, its training data, and the numbers about its edits."""

import importlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from test_mive import SMALL, build

from vera_lite.apps.train import export
from vera_lite.cli import main
from vera_lite.codecs import PatchCodec
from vera_lite.conditioning.readings import Readings
from vera_lite.diffusion.flow_matching import FlowMatching
from vera_lite.errors import UserError
from vera_lite.evaluation.toy.edit_benchmark import added_motion, evaluate, exchanged, redraw
from vera_lite.media.clip import to_float, to_uint8
from vera_lite.media.video import read_video
from vera_lite.media.video_writer import write_video
from vera_lite.pipelines import EditResult, MiVEPipeline
from vera_lite.systems import MiVE, build_system
from vera_lite.toy.edits import CATEGORIES, EditConfig, render_edits
from vera_lite.training import ToyEditData
from vera_lite.training.fit import fit
from vera_lite.training.toy.layers import SAMPLING, SHIPPED_CODEC

SIZE = (9, 32, 32)
SAMPLES = Path(__file__).resolve().parents[1] / "data_samples"
PROMPT = "make the blue square green"


def small(**changes):
    """For the toy codec's latents."""
    backbone = replace(SMALL, in_channels=24, out_channels=24)
    return build(backbone=backbone, objective=FlowMatching("x_0"), **changes)


@pytest.fixture(scope="module")
def pipe() -> MiVEPipeline:
    """A small model with random weights in every part."""
    return MiVEPipeline(small(vlm_frames=2), PatchCodec.load(SHIPPED_CODEC), SIZE, SAMPLING)


# ---------------------------------------------------------------------- pipeline


def test_an_edit_depends_on_video_prompt_reference_and_seed_and_on_nothing_else(pipe):
    clips = render_edits(3, [0])
    video, look = clips.source[0], clips.target[0, 0]

    def edit(video=video, prompt="remove the red ring", look=look, **options):
        return pipe(video, prompt, look, steps=2, **options).final

    first = edit()
    assert first.shape == video.shape and first.min() >= 0 and first.max() <= 1
    assert torch.equal(first, edit())
    for other in (edit(prompt="remove the blue ring"), edit(1 - video), edit(look=1 - look), edit(seed=1)):
        assert not torch.equal(first, other)


def test_source_and_reference_reach_the_denoiser_themselves(pipe, monkeypatch):
    clips = render_edits(3, [0, 1])
    same = pipe.system.read(clips.source[:1], clips.instruction[:1], clips.target[:1, 0])
    monkeypatch.setattr(pipe.system, "read", lambda *_: same)
    base = pipe(clips.source[0], PROMPT, clips.target[0, 0], steps=2).final
    for video, look in ((clips.source[1], clips.target[0, 0]), (clips.source[0], clips.target[1, 0])):
        assert (pipe(video, PROMPT, look, steps=2).final - base).abs().max() > 1e-3


def test_a_batch_is_edited_clip_by_clip(pipe):
    clips = render_edits(4, range(2))
    together = redraw(pipe, clips, steps=2, generator=torch.Generator())
    noise = torch.Generator()
    for i in range(2):
        row = slice(i, i + 1)
        alone = pipe.generate(
            clips.source[row], clips.instruction[row], clips.target[row, 0], steps=2, generator=noise
        )
        torch.testing.assert_close(alone.final[0], together[i], atol=2e-4, rtol=0)


def test_the_reference_is_encoded_as_a_clip_of_its_own(pipe, monkeypatch):
    clips, seen = render_edits(5, range(2)), []
    answer = pipe.codec.encode(clips.target)
    monkeypatch.setattr(pipe.system, "forward", lambda *_, **given: (seen.append(given), answer)[1])
    result = redraw(pipe, clips, steps=3)
    torch.testing.assert_close(result, pipe.codec.decode(answer), atol=1e-4, rtol=0)
    assert torch.equal(seen[0]["reference"], pipe.codec.encode(clips.target[:, :1])) and len(seen) == 3


def test_other_sizes_come_back_as_they_were(pipe):
    video = torch.rand(5, 3, 20, 28, generator=torch.Generator().manual_seed(0))
    assert pipe(video, PROMPT, torch.rand(3, 50, 40), steps=1).final.shape == video.shape


def test_a_folder_holds_the_pipeline(pipe, tmp_path):
    pipe.save_pretrained(tmp_path)
    again = MiVEPipeline.from_pretrained(tmp_path)
    clips = render_edits(3, [1])
    for look in (clips.source[0, 0], clips.target[0, 0]):
        one, other = (p(clips.source[0], PROMPT, look, steps=1).final for p in (pipe, again))
        torch.testing.assert_close(one, other, rtol=0, atol=1e-4)


def test_bad_input_is_refused(pipe):
    video = torch.rand(9, 3, 32, 32)
    with pytest.raises(ValueError, match="prompts"):
        pipe.generate(torch.stack([video, video]), [PROMPT], torch.rand(2, 3, 32, 32))
    with pytest.raises(ValueError, match="references"):
        pipe.generate(video[None], [PROMPT], torch.rand(2, 3, 32, 32))
    with pytest.raises(UserError, match="chartreuse"):
        pipe(video, "make the blue square chartreuse", video[0])
    with pytest.raises(ValueError, match="video"):
        pipe(video[0], PROMPT, video[0])
    for look in (video, video[0, :1], to_uint8(video[0])):
        with pytest.raises(ValueError, match="reference"):
            pipe(video, PROMPT, look)


# ---------------------------------------------------------------------- command


@pytest.fixture(scope="module")
def files(pipe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("edit")
    pipe.save_pretrained(folder / "model")
    write_video(folder / "clip.mkv", to_uint8(torch.rand(12, 3, 48, 64)), 8, "lossless")
    for name, shade in (("dark", 20), ("light", 230)):
        Image.new("L", (30, 20), shade).save(folder / f"{name}.png")
    (folder / "text.png").write_text("hello")
    return folder


def command(files, *more, system="mive") -> int:
    arguments = ["edit", files / "clip.mkv", "--system", system, "--model", files / "model", "--steps", 2]
    return main([*map(str, (*arguments, "--prompt", PROMPT, *more))])


def test_the_command_edits_a_file_after_a_reference(files, capsys):
    finals = []
    for look in ("dark", "light"):
        out = files / look
        assert command(files, "--reference", files / f"{look}.png", "--out", out) == 0
        names = {"sheet.png", "final.mp4", "final.mkv", "metrics.json"}
        assert {p.name for p in out.iterdir()} == names
        said = capsys.readouterr().out
        assert all(str(out / name) in said for name in names)
        finals.append(read_video(out / "final.mkv")[0])
    source = read_video(files / "clip.mkv")[0]
    assert finals[0].shape == source.shape and not torch.equal(*finals)
    metrics = json.loads((files / "light" / "metrics.json").read_text())
    assert metrics["reference"] == str(files / "light.png")
    change = float((to_float(finals[1]) - to_float(source)).square().mean())
    assert metrics["mean_squared_change"] == pytest.approx(change, rel=1e-4) and change > 0


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ([], "--reference"),
        (["--reference", "none.png"], "none.png"),
        (["--reference", "text.png"], "text.png"),
        (["--reference", "dark.png", "--mask", "m.png"], "--mask"),
        (["--reference", "dark.png", "--guidance", "2"], "--guidance"),
    ],
)
def test_the_command_refuses_in_a_sentence(files, more, said, capsys):
    more = [files / word if word.endswith(".png") else word for word in more]
    assert command(files, *more, "--out", files / "refused") == 2
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("vera-lite: ")]
    assert len(error) == 1 and said in error[0] and not (files / "refused").exists()


@pytest.mark.parametrize("system", ["vera", "rvedit"])
def test_only_mive_takes_a_reference(files, system, capsys):
    out = ("--out", files / "no")
    assert command(files, "--reference", files / "dark.png", *out, system=system) == 2
    assert "--reference" in capsys.readouterr().err


# ---------------------------------------------------------------------- training and numbers


def test_batches_hold_the_edited_first_frame():
    data = ToyEditData(batch_size=3)
    data.trainer = None
    data.setup()
    batch, edits = data.train[2], render_edits(1, range(6, 9))
    assert torch.equal(batch["reference_image"], edits.target[:, 0])
    assert torch.equal(batch["reference"], data.codec.encode(edits.target[:, :1]))
    assert batch["reference"].shape == (3, 24, 1, 8, 8)


def test_training_and_export_give_a_pipeline(tmp_path):
    module = fit(small(), ToyEditData(batch_size=2), 2, progress=False, folder=tmp_path, checkpoint_every=2)
    export(tmp_path / "last.ckpt", tmp_path / "model", half=False)
    pipe = MiVEPipeline.from_pretrained(tmp_path / "model")
    for name, value in module.ema.state_dict().items():
        assert torch.equal(pipe.system.state_dict()[name], value)
    assert pipe.clip_size == SIZE


def test_the_shipped_configuration_is_one_of_mive():
    path = Path(__file__).resolve().parents[1] / "vera_lite" / "configs" / "mive_toy.yaml"
    model = yaml.safe_load(path.read_text())["model"]["init_args"]
    config = model["system"]["init_args"]["config"]
    system = build_system({"system": "mive", "config": config})
    assert system.config.vlm_layers == (1, -1) and system.config.conditioning == "self"
    assert 2 * sum(p.numel() for p in system.parameters()) < 6e6  # bytes in float16


def test_evaluation_shows_the_true_first_frame(pipe, monkeypatch):
    seen = []

    def generate(source, prompts, looks, **_):
        seen.append(looks)
        return EditResult(source, source)

    monkeypatch.setattr(pipe, "generate", generate)
    found = evaluate(pipe, 2)
    assert set(found) == {"overall", *CATEGORIES} and len(seen) == len(CATEGORIES)
    world = render_edits(2_000_000, range(2), EditConfig(*SIZE, ("local remove",), from_place=True))
    assert any(torch.equal(looks, world.target[:, 0]) for looks in seen)
    assert found["local remove"]["instruction_compliance"] < 10


def test_one_category_alone_is_evaluated(pipe):
    found = evaluate(pipe, 2, categories=("local add",), draw=lambda edits: edits.target)
    assert set(found) == {"overall", "local add"}
    assert found["local add"]["psnr"] == found["overall"]["psnr"] == float("inf")


def test_exchanged_clips_keep_all_but_their_sentence():
    edits = render_edits(1, range(3))
    found = exchanged(edits)
    assert found.instruction == [edits.instruction[i] for i in (1, 2, 0)]
    assert found.source is edits.source and found.attributes is edits.attributes


def test_only_motion_counts_as_motion(pipe):
    assert added_motion(pipe, 20, draw=lambda edits: edits.target) > 0.9
    still = added_motion(pipe, 20, draw=lambda edits: edits.target[:, :1].expand_as(edits.target))
    wanted = render_edits(2_000_000, range(20), EditConfig(*SIZE, ("local add",), from_place=True)).attributes
    assert still == pytest.approx(sum(a["after"]["motion"] == "still" for a in wanted) / 20, abs=0.11)
    assert added_motion(pipe, 20, draw=lambda edits: edits.source) == 0


# ---------------------------------------------------------------------- the ablation


@pytest.fixture
def ablation(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[1] / "benchmarks"))
    return importlib.import_module("mive_ablation")


@pytest.mark.parametrize("variant", ["self", "middle layer", "decoupled"])
def test_readings_that_are_kept_are_those_that_were_made(ablation, variant, tmp_path, monkeypatch):
    system = MiVE(ablation.VARIANTS[variant])
    edits = render_edits(2, range(2))
    inputs = edits.source, edits.instruction, edits.target[:, 0]
    expected = system.read(*inputs)
    system.readings = Readings(tmp_path)
    for again in range(2):
        if again:  # nobody is asked twice
            monkeypatch.setattr(system.vlm.model.model, "forward", None)
        found = system.read(*inputs)
        assert len(list(tmp_path.rglob("*.safetensors"))) == 2
        # Padding may stand elsewhere.
        tokens, theirs = found.text | found.visual, expected.text | expected.visual
        for layer, wanted in zip(found.layers, expected.layers, strict=True):
            torch.testing.assert_close(layer[tokens], wanted[theirs])
        assert torch.equal(found.visual.sum(1), expected.visual.sum(1))


def test_the_first_stage_is_told_nothing_and_all_variants_begin_with_it(ablation, tmp_path, monkeypatch):
    monkeypatch.setattr(ablation, "FIRST_STEPS", 3)
    monkeypatch.setattr(MiVE, "read", None)  # nobody is asked
    weights = ablation.first_stage(tmp_path / "first_stage")
    monkeypatch.setattr(ablation, "train", None)  # trained once
    again = ablation.first_stage(tmp_path / "first_stage")
    assert all(torch.equal(again[name], value) for name, value in weights.items())
    fresh = MiVE(ablation.FULL).transformer.state_dict()
    assert any(not torch.equal(weights[n], fresh[n]) for n in fresh if n.startswith("proj_out"))
    for variant in ablation.VARIANTS:
        found = ablation.begun(variant, weights).transformer.state_dict()
        assert all(torch.equal(found[name], value) for name, value in weights.items())
        crossed = ablation.VARIANTS[variant].conditioning != "self"
        assert any(".attn2." in name for name in found) == crossed


def test_the_ablation_pairs_by_seed_and_says_where_the_paper_is_not_ahead(ablation):
    def metrics(variant, seed):
        worth = 50 + 10 * (variant == "self") - 10 * ("layer" in variant) + seed
        return {metric: worth for _, metric, _ in [*ablation.COLUMNS, ablation.OTHER_WORDS]}

    runs = [
        {"variant": v, "seed": s, "parameters": 10**6, "metrics": metrics(v, s)}
        for v in ablation.VARIANTS
        for s in range(3)
    ]
    results = ablation.summarise(runs)
    assert {tuple(r["gains"]) for r in results} == {(10, 10, 10)} and {r["verdict"] for r in results} == {
        "supported"
    }
    assert sum(r["claimed"] for r in results) == len(ablation.VARIANTS) - 1
    printed = ablation.table({**ablation.settings(), "runs": runs, "results": results})
    assert "ahead in 3 of 3 seeds" in printed and "61.0 +-1.0" in printed
    rows = [line for line in printed.splitlines() if "not ahead in" in line]
    assert "full minus last" in rows[-1] and rows[-1].endswith("+0.10   not ahead in: CC (-0.23), VA (-0.02)")
    assert "fused_cross" in rows[2] and rows[2].endswith("not ahead in: CC (-0.17)")
