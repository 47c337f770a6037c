"""RVEDiT's pipeline, its command, and the numbers about its edits."""

import copy
import json
import math
from dataclasses import replace

import pytest
import torch
from test_rvedit import SMALL, build

from vera_lite.cli import main
from vera_lite.codecs import PatchCodec
from vera_lite.diffusion.flow_matching import FlowMatching
from vera_lite.errors import UserError
from vera_lite.evaluation.toy import edit_benchmark
from vera_lite.evaluation.toy.edit_benchmark import attention_by_depth, evaluate, redraw
from vera_lite.media.clip import to_float, to_uint8
from vera_lite.media.video import read_video
from vera_lite.media.video_writer import write_video
from vera_lite.pipelines import RVEDiTPipeline
from vera_lite.toy.edits import CATEGORIES, render_edits
from vera_lite.training.toy.layers import SAMPLING, SHIPPED_CODEC

SIZE = (9, 32, 32)


@pytest.fixture(scope="module")
def pipe() -> RVEDiTPipeline:
    """A small model with random weights in every part."""
    backbone = replace(SMALL, in_channels=24, out_channels=24)
    system = build(backbone=backbone, objective=FlowMatching("x_0"), text_tokens=40)
    return RVEDiTPipeline(system, PatchCodec.load(SHIPPED_CODEC), SIZE, SAMPLING)


# ---------------------------------------------------------------------- pipeline


def test_an_edit_depends_on_video_prompt_and_seed_and_on_nothing_else(pipe):
    video = render_edits(3, [0]).source[0]

    def edit(video=video, prompt="remove the red ring", **options):
        return pipe(video, prompt, steps=2, **options).final

    first = edit()
    assert first.shape == video.shape and first.min() >= 0 and first.max() <= 1
    assert torch.equal(first, edit())
    for other in (edit(prompt="remove the blue ring"), edit(video=1 - video), edit(seed=1)):
        assert not torch.equal(first, other)


def test_the_source_reaches_the_denoiser_itself(pipe, monkeypatch):
    clips = render_edits(3, [0, 1])
    same = pipe.system.context(clips.source[:1], clips.instruction[:1])
    monkeypatch.setattr(pipe.system, "context", lambda *_: same)
    one, other = (pipe(video, "remove the red ring", steps=2).final for video in clips.source)
    assert (one - other).abs().max() > 1e-3


def test_a_batch_is_edited_clip_by_clip(pipe):
    clips = render_edits(4, range(2))
    together = redraw(pipe, clips, steps=2, generator=torch.Generator())
    noise = torch.Generator()
    for i in range(2):
        alone = pipe.generate(clips.source[i : i + 1], clips.instruction[i : i + 1], steps=2, generator=noise)
        torch.testing.assert_close(alone.final[0], together[i], atol=2e-4, rtol=0)


def test_a_perfect_network_gives_the_target(pipe, monkeypatch):
    clips = render_edits(5, range(2))
    answer = pipe.codec.encode(clips.target)
    monkeypatch.setattr(pipe.system, "forward", lambda *_, **__: answer)
    result = redraw(pipe, clips, steps=3)
    torch.testing.assert_close(result, pipe.codec.decode(answer), atol=1e-4, rtol=0)


def test_other_sizes_come_back_as_they_were(pipe):
    video = torch.rand(5, 3, 20, 28, generator=torch.Generator().manual_seed(0))
    assert pipe(video, "remove the red ring", steps=1).final.shape == video.shape


def test_a_folder_holds_the_pipeline(pipe, tmp_path):
    pipe.save_pretrained(tmp_path)
    again = RVEDiTPipeline.from_pretrained(tmp_path)
    video = render_edits(3, [1]).source[0]
    for prompt in ("make the blue square green", "remove the red ring"):
        results = (p(video, prompt, steps=1).final for p in (pipe, again))
        torch.testing.assert_close(*results, rtol=0, atol=1e-4)


def test_bad_input_is_refused(pipe):
    video = torch.rand(9, 3, 32, 32)
    with pytest.raises(ValueError, match="prompts"):
        pipe.generate(torch.stack([video, video]), ["remove the red ring"])
    with pytest.raises(UserError, match="chartreuse"):
        pipe(video, "make the blue square chartreuse")
    with pytest.raises(ValueError, match="video"):
        pipe(video[0], "remove the red ring")


# ---------------------------------------------------------------------- command


@pytest.fixture(scope="module")
def files(pipe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("edit")
    pipe.save_pretrained(folder / "model")
    write_video(folder / "clip.mkv", to_uint8(torch.rand(12, 3, 48, 64)), 8, "lossless")
    return folder


def test_the_command_edits_a_file(files, capsys):
    arguments = ["edit", str(files / "clip.mkv"), "--system", "rvedit", "--model", str(files / "model")]
    arguments += ["--prompt", "make the blue square green", "--steps", "2"]
    assert main([*arguments, "--out", str(files / "a")]) == 0
    names = {"sheet.png", "final.mp4", "final.mkv", "metrics.json"}
    assert {p.name for p in (files / "a").iterdir()} == names
    said = capsys.readouterr().out
    assert all(str(files / "a" / name) in said for name in names)
    final, source = (read_video(path)[0] for path in (files / "a" / "final.mkv", files / "clip.mkv"))
    assert final.shape == source.shape
    metrics = json.loads((files / "a" / "metrics.json").read_text())
    change = float((to_float(final) - to_float(source)).square().mean())
    assert metrics["mean_squared_change"] == pytest.approx(change, rel=1e-4) and change > 0
    assert (metrics["frames"], metrics["steps"], metrics["seed"]) == (12, 2, 0)
    assert main([*arguments, "--out", str(files / "b")]) == 0
    assert torch.equal(read_video(files / "b" / "final.mkv")[0], final)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--prompt", "make the blue sqare green"], "sqare"),
        (["--prompt", "remove the red ring", "--guidance", "2"], "--guidance"),
        (["--prompt", "remove the red ring", "--alpha-floor", "0"], "--alpha-floor"),
    ],
)
def test_the_command_refuses_in_a_sentence(files, more, said, capsys):
    arguments = ["edit", str(files / "clip.mkv"), "--system", "rvedit", "--model", str(files / "model")]
    assert main([*arguments, *more, "--out", str(files / "refused")]) == 2
    assert said in capsys.readouterr().err and not (files / "refused").exists()


def test_a_model_of_another_system_is_refused(files, capsys):
    arguments = ["edit", str(files / "clip.mkv"), "--model", str(files / "model"), "--out", str(files / "no")]
    assert main([*arguments, "--prompt", "remove the red ring"]) == 2
    assert "'rvedit'" in capsys.readouterr().err


# ---------------------------------------------------------------------- numbers


def test_the_truth_scores_best_and_the_source_follows_no_instruction(pipe):
    truth = evaluate(pipe, 6, draw=lambda edits: edits.target)
    assert set(truth) == {"overall", *CATEGORIES}
    for category in CATEGORIES:
        row = truth[category]
        assert row["psnr"] == math.inf and row["score"] > 95
        assert ("preserved_psnr" in row) == (category != "global style")
    source = evaluate(pipe, 6, draw=lambda edits: edits.source)
    for category in CATEGORIES:
        assert source[category]["instruction_compliance"] < 10 < source[category]["content_fidelity"]
        axes = ("instruction_compliance", "content_fidelity", "visual_quality")
        assert source[category]["score"] == pytest.approx(sum(source[category][a] for a in axes) / 3)
    mean = sum(source[c]["score"] for c in CATEGORIES) / 4
    assert source["overall"]["score"] == pytest.approx(mean)


def test_numbers_do_not_depend_on_the_batches(pipe):
    rows = [evaluate(pipe, 5, batch_size=n, draw=lambda e: 0.9 * e.source) for n in (2, 5)]
    for category, row in rows[0].items():
        assert rows[1][category] == pytest.approx(row, rel=1e-6)


def test_attention_by_depth_says_what_is_routed_where(pipe):
    found = attention_by_depth(pipe, 4)
    routed, depth = pipe.system.config.routed_layers, pipe.system.config.backbone.num_layers
    names = {"editing_mass", "spatial_entropy", "cosine", "divergence", "estimate", "rank"}
    names |= {"estimate_other_noise", "rank_other_noise"}
    assert {name: len(v) for name, v in found.items()} == dict.fromkeys(names, depth)
    assert all(v <= 0 for v in found["estimate"] + found["estimate_other_noise"])
    assert all(1 <= v <= 48 for v in found["rank"] + found["rank_other_noise"])
    assert found["editing_mass"][:routed] == pytest.approx([1] * routed)
    assert all(0 < v < 0.9 for v in found["editing_mass"][routed:])
    assert all(0 < v <= 1 for v in found["spatial_entropy"])
    assert all(-1 < v < 1 for v in found["cosine"]) and all(0 < v < math.log(2) for v in found["divergence"])


def test_two_equal_passes_agree(pipe, monkeypatch):
    clips = render_edits(2_000_000, range(3))
    same = type(clips)(
        clips.source, clips.source, clips.changed, clips.instruction, clips.instruction, clips.attributes
    )
    monkeypatch.setattr(edit_benchmark, "render_edits", lambda *_: same)
    found = attention_by_depth(pipe, 3)
    assert found["cosine"] == pytest.approx([1] * 3) and found["divergence"] == pytest.approx(
        [0] * 3, abs=1e-7
    )
    assert found["rank"] == pytest.approx([1] * 3)
    assert all(other > same for same, other in zip(found["rank"], found["rank_other_noise"], strict=True))


def test_a_token_that_all_positions_look_at_is_spread_evenly(pipe):
    system = copy.deepcopy(pipe.system)
    for block in system.transformer.blocks:
        torch.nn.init.zeros_(block.attn2.to_q.weight)
        torch.nn.init.normal_(block.attn2.to_q.bias, generator=torch.Generator().manual_seed(0))
        torch.nn.init.constant_(block.attn2.norm_q.weight, 1e3)
    found = attention_by_depth(RVEDiTPipeline(system, pipe.codec, SIZE, SAMPLING), 2)
    assert found["spatial_entropy"] == pytest.approx([1] * 3, abs=1e-5)


def test_uniform_attention_is_spread_evenly(pipe):
    system = pipe.system
    kept = {n: p.clone() for n, p in system.named_parameters() if "attn2.to_q" in n or "attn2.norm_q" in n}
    for name in kept:
        torch.nn.init.zeros_(system.get_parameter(name))
    found = attention_by_depth(pipe, 2)
    for name, value in kept.items():
        system.get_parameter(name).data.copy_(value)
    assert found["spatial_entropy"] == pytest.approx([1] * 3, abs=1e-5)
    tokens = system.config.editing_tokens + 128 + system.config.text_tokens
    assert found["editing_mass"][-1] == pytest.approx(system.config.editing_tokens / tokens, abs=1e-5)
