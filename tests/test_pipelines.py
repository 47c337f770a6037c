"""From a prompt to layers, and from a video file to results on disk."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio
from test_vera import TINY, randomise
from torchmetrics.functional.classification import binary_jaccard_index

from vera_lite.apps.inputs import read_picture
from vera_lite.cli import main
from vera_lite.codecs import PatchCodec, WanCodec
from vera_lite.conditioning import Umt5Encoder
from vera_lite.diffusion.flow_matching import add_noise
from vera_lite.diffusion.sampling import denoise
from vera_lite.errors import UserError
from vera_lite.evaluation.metrics import PooledPSNR, iou
from vera_lite.evaluation.toy.layer_benchmark import evaluate
from vera_lite.media.clip import to_float, to_uint8
from vera_lite.media.video import VideoReader, read_grey, read_video
from vera_lite.media.video_writer import write_video
from vera_lite.pipelines import VeraPipeline, VeraSampling, frame_choice
from vera_lite.systems import Regeneration, RegenerationConfig, Vera
from vera_lite.toy.edits import EditConfig, render_edits
from vera_lite.toy.phrases import toy_encoder
from vera_lite.toy.world import WorldConfig, render
from vera_lite.training.toy.layers import SHIPPED_CODEC

ROOT = Path(__file__).parents[1]
SAMPLES = ROOT / "data_samples"
PROMPT = "add a red ring at the top left moving right"


@pytest.fixture(scope="module")
def pipe() -> VeraPipeline:
    return VeraPipeline.from_pretrained()


# --- sampling ------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [7, 100])
@pytest.mark.parametrize("prediction", ["velocity", "x_0"])
def test_a_network_that_knows_the_answer_is_sampled_exactly(prediction, steps):
    generator = torch.Generator().manual_seed(0)
    x_0, noise = torch.randn(2, 3, 2, 4, 1, 2, 2, generator=generator)
    seen = []

    def predict(x, sigma):
        torch.testing.assert_close(x, add_noise(x_0, noise, sigma), atol=1e-4, rtol=1e-4)
        return noise - x_0 if prediction == "velocity" else x_0

    result = denoise(predict, noise, steps, 2.0, prediction, seen.append)
    torch.testing.assert_close(result, x_0, atol=1e-4, rtol=1e-4)
    assert [s.step for s in seen] == list(range(steps)) and seen[0].sigma == 1.0
    assert all(a.sigma > b.sigma for a, b in zip(seen, seen[1:], strict=False))
    torch.testing.assert_close(seen[3].x_0, x_0, atol=1e-4, rtol=1e-4)
    with pytest.raises(UserError, match="step"):
        denoise(predict, noise, 0)


def test_euler_is_diffusers():
    generator = torch.Generator().manual_seed(0)
    noise, mix = torch.randn(2, 4, 1, 2, 2, generator=generator), torch.randn(4, 4, generator=generator)

    def network(x, sigma):
        return torch.tanh(torch.einsum("kc,bcthw->bkthw", mix, x)) * (1 + sigma.view(-1, 1, 1, 1, 1))

    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(sigmas=torch.linspace(1, 1 / 12, 12).tolist())
    x, states = noise, []
    denoise(network, noise, 12, 3.0, callback=states.append)
    for state, t, sigma in zip(states, scheduler.timesteps, scheduler.sigmas, strict=False):
        assert state.sigma == pytest.approx(float(sigma), abs=1e-6)
        x = scheduler.step(network(x, sigma.expand(2)), t, x).prev_sample
        torch.testing.assert_close(state.latents, x, atol=1e-5, rtol=1e-5)


# --- the pipeline --------------------------------------------------------------------------------


def test_same_seed_same_edit_and_where_alpha_is_zero_the_source_stays(pipe):
    batch = render(31, [0])
    video = batch.source[0]
    first, again, other = (pipe(video, PROMPT, seed=s, steps=4) for s in (1, 1, 2))
    assert torch.equal(first.final, again.final) and not torch.equal(first.alpha, other.alpha)
    empty = (first.alpha == 0).expand_as(video)
    assert empty.float().mean() > 0.3
    assert torch.equal(first.final[empty], video[empty])
    assert not torch.equal(first.final, video)
    nothing = pipe(video, PROMPT, steps=1, alpha_floor=0.999)
    untouched = (nothing.alpha == 0).expand_as(video)
    assert torch.equal(nothing.final[untouched], video[untouched])


def test_alpha_zero_everywhere_returns_the_source_bit_for_bit(pipe, monkeypatch):
    video = render(31, [1]).source[0]
    channels = {"edit": 3, "alpha": 1, "composite": 3}
    nothing = {name: torch.zeros(1, 9, c, 32, 32) for name, c in channels.items()}
    monkeypatch.setattr(pipe, "layers", lambda *_, **__: nothing)
    assert torch.equal(pipe(video, PROMPT).final, video)


def test_any_size_and_length(pipe):
    video = torch.rand(14, 3, 45, 80, generator=torch.Generator().manual_seed(0))
    result = pipe(video, PROMPT, mask=torch.ones(14, 1, 45, 80), steps=2)
    assert result.final.shape == result.edit.shape == result.composite.shape == video.shape
    assert result.alpha.shape == (14, 1, 45, 80)
    assert pipe(video[:1], PROMPT, steps=1).final.shape == (1, 3, 45, 80)


def test_mask_guidance_and_prompt_change_the_edit(pipe):
    video = render(31, [0]).source[0]
    base = pipe(video, PROMPT, steps=2).alpha
    mask = torch.zeros(9, 1, 32, 32)
    mask[..., 18:28, 18:28] = 1
    inside = pipe(video, "add a blue square at the bottom right standing still", mask=mask).alpha
    assert inside[..., 14:32, 14:32].sum() > 0.9 * inside.sum() > 20
    assert not torch.equal(pipe(video, PROMPT, steps=2, guidance=2.0).alpha, base)
    assert not torch.equal(pipe(video, "add a blue square", steps=2).alpha, base)


def test_generator_callback_and_double_precision_are_taken(pipe):
    video = render(31, [0]).source[0]
    seen = []
    result = pipe(
        video.double(), PROMPT, steps=2, generator=torch.Generator().manual_seed(5), callback=seen.append
    )
    assert len(seen) == 2 and torch.equal(result.alpha, pipe(video, PROMPT, steps=2, seed=5).alpha.double())


def test_a_mask_smaller_than_the_models_pixels_still_counts(pipe):
    mask = torch.zeros(9, 1, 320, 320)
    mask[..., 203:208, 203:208] = 1
    _, _, small = pipe.prepare(torch.zeros(9, 3, 320, 320), PROMPT, mask)
    assert small.sum() == 9 and small[..., 20, 20].all()


def test_bad_input_is_one_sentence(pipe):
    video = torch.zeros(9, 3, 32, 32)
    for call, kind, named in (
        (lambda: pipe(video[0], PROMPT), ValueError, "video"),
        (lambda: pipe(video.byte(), PROMPT), ValueError, "uint8"),
        (lambda: pipe(video, PROMPT, mask=video), ValueError, "mask"),
        (lambda: pipe.generate(video[None], [PROMPT] * 2), ValueError, "prompts"),
        (lambda: pipe(video, PROMPT, stepps=1), TypeError, "stepps"),
        (lambda: pipe(video, "add a unicorn"), UserError, "unicorn"),
        (lambda: pipe(video, PROMPT, steps=0), UserError, "steps"),
        (lambda: pipe(video + 2, PROMPT), ValueError, "video"),
        (lambda: pipe(video * float("nan"), PROMPT), ValueError, "nan"),
        (lambda: pipe(video, ""), UserError, "prompt"),
        (lambda: pipe(video, PROMPT, alpha_floor=1.0), UserError, "alpha_floor"),
        (lambda: pipe(video, PROMPT, guidance=float("nan")), UserError, "guidance"),
        (lambda: pipe(video, PROMPT, seed=2**64), UserError, "seed"),
        (lambda: pipe(video, PROMPT, mask=torch.zeros(9, 1, 32, 32)), UserError, "mask"),
        (lambda: VeraPipeline.from_pretrained("nowhere"), UserError, "pipeline.json"),
    ):
        with pytest.raises(kind, match=named):
            call()


def test_a_model_that_draws_no_numbers_is_refused(pipe, monkeypatch):
    monkeypatch.setattr(pipe.system, "forward", lambda x, *_, **__: x * float("nan"))
    with pytest.raises(UserError, match="not finite"):
        pipe(torch.zeros(9, 3, 32, 32), PROMPT, steps=1)


def test_settings_of_the_saved_model_count_until_a_call_changes_them(pipe):
    video, seen = render(31, [0]).source[0], []
    own = replace(pipe.sampling, steps=3, shift=1.5)
    changed = VeraPipeline(pipe.system, pipe.codec, pipe.clip_size, own, pipe.text_encoder)
    result = changed(video, PROMPT, callback=seen.append)
    assert len(seen) == 3
    assert torch.equal(result.alpha, pipe(video, PROMPT, steps=3, shift=1.5).alpha)
    assert not torch.equal(result.alpha, pipe(video, PROMPT, steps=3).alpha)


def test_save_and_load_give_the_same_pipeline(pipe, tmp_path):
    pipe.save_pretrained(tmp_path / "copy")
    copy = VeraPipeline.from_pretrained(tmp_path / "copy")
    assert copy.system.config == pipe.system.config and copy.clip_size == pipe.clip_size
    video = render(31, [3]).source[0]
    results = (p(video, PROMPT, steps=1).composite for p in (copy, pipe))
    torch.testing.assert_close(*results, rtol=0, atol=1e-4)
    saved = json.loads((tmp_path / "copy" / "pipeline.json").read_text())
    for change, named in (
        ({"system": "other"}, "other"),
        ({"config": {**saved["config"], "surprise": 1}}, "surprise"),
    ):
        (tmp_path / "copy" / "pipeline.json").write_text(json.dumps(saved | change))
        with pytest.raises(UserError, match=named):
            VeraPipeline.from_pretrained(tmp_path / "copy")


def test_the_same_pipeline_runs_on_wans_own_parts(tmp_path):
    """Tiny random Wan transformer, VAE and umT5, saved and loaded in the real formats."""
    from diffusers import AutoencoderKLWan, WanPipeline, WanTransformer3DModel
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

    torch.manual_seed(0)
    words = {w: i for i, w in enumerate(["<pad>", "</s>", "<unk>", "add", "a", "dog"])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )
    fast.save_pretrained(tmp_path / "tokenizer")
    small = {"d_model": 16, "d_kv": 4, "d_ff": 16, "num_layers": 1, "num_heads": 2}
    umt5 = UMT5EncoderModel(UMT5Config(vocab_size=6, **small)).eval()
    umt5.save_pretrained(tmp_path / "text_encoder")
    names = ("num_attention_heads", "attention_head_dim", "text_dim", "freq_dim", "ffn_dim", "num_layers")
    sizes = {n: getattr(TINY, n) for n in names} | {"in_channels": 4, "out_channels": 4}
    randomise(WanTransformer3DModel(**sizes)).save_pretrained(tmp_path / "transformer")
    vae = AutoencoderKLWan(
        base_dim=4, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1,
        latents_mean=[0.0] * 4, latents_std=[1.0] * 4,
    )  # fmt: skip
    vae.save_pretrained(tmp_path / "vae")

    encoder = Umt5Encoder.from_pretrained(tmp_path)
    features = encoder(["add a  dog", ""])
    theirs = WanPipeline(fast, umt5, vae, scheduler=FlowMatchEulerDiscreteScheduler())
    expected, _ = theirs.encode_prompt(
        ["add a dog", ""], do_classifier_free_guidance=False, max_sequence_length=512
    )
    torch.testing.assert_close(features, expected)

    codec = WanCodec.from_pretrained(tmp_path / "vae")
    system = Vera.from_wan(tmp_path / "transformer")
    pipe = VeraPipeline(system, codec, (5, 32, 48), VeraSampling(2, 3.0), encoder)
    video = torch.rand(7, 3, 40, 60)
    result = pipe(video, "add a dog", steps=2, guidance=2.0)
    assert result.final.shape == video.shape and result.final.isfinite().all()
    with pytest.raises(ValueError, match="toy"):
        pipe.save_pretrained(tmp_path / "whole")
    with pytest.raises(UserError, match="tokenizer"):
        Umt5Encoder.from_pretrained(tmp_path / "vae")


def test_resampling_keeps_ends_and_sizes():
    assert frame_choice(289, 9)[0] == 0 and frame_choice(289, 9)[-1] == 288
    assert frame_choice(3, 9) == [0, 0, 0, 1, 1, 1, 2, 2, 2] and frame_choice(1, 3) == [0, 0, 0]


def test_no_frame_holds_two_half_objects(pipe, monkeypatch):
    """The model's nine frames show a square that moves; a longer video shows one of them in every frame."""
    alpha = torch.zeros(1, 9, 1, 32, 32)
    for t in range(9):
        alpha[0, t, 0, 12:16, 3 * t : 3 * t + 4] = 1
    layers = {"alpha": alpha, "edit": torch.ones(1, 9, 3, 32, 32), "composite": torch.zeros(1, 9, 3, 32, 32)}
    monkeypatch.setattr(pipe, "layers", lambda *_, **__: layers)
    for frames in (3, 14, 33):
        result = pipe(torch.zeros(frames, 3, 32, 32), PROMPT)
        assert result.exact_frames == tuple(sorted(set(frame_choice(frames, 9))))
        assert (result.final.sum((1, 2, 3)) == 3 * 16).all()  # one whole square, of full strength
        shown = result.alpha[:, 0, 12].argmax(1) / 3  # which of the nine frames
        assert (shown.diff() >= 0).all() and shown[0] == 0 and shown[-1] == 8
        assert (shown / 8 - torch.linspace(0, 1, frames)).abs().max() < 0.5 / 8 + 1 / frames


# --- metrics -------------------------------------------------------------------------------------


def test_psnr_equals_scikit_images_and_iou_equals_torchmetrics():
    generator = torch.Generator().manual_seed(0)
    a, b = torch.rand(2, 4, 3, 8, 8, generator=generator)
    where = torch.rand(4, 1, 8, 8, generator=generator) > 0.4
    psnr = PooledPSNR()
    for i in range(4):
        psnr.add(a[i], b[i], where[i])
    keep = where.expand_as(a)
    expected = peak_signal_noise_ratio(a[keep].double().numpy(), b[keep].double().numpy(), data_range=1.0)
    assert psnr.value() == pytest.approx(expected, abs=1e-5)
    equal = PooledPSNR()
    equal.add(a, a, where)
    assert equal.value() == float("inf")
    x, y = a > 0.5, b > 0.3
    assert iou(x, y) == pytest.approx(float(binary_jaccard_index(x.int(), y.int())), abs=1e-6)
    assert iou(x & ~x, y & ~y) == 1.0


def test_a_perfect_editor_gets_perfect_marks():
    """The truth put in place of the generated layers: every metric at its best."""

    class Oracle(VeraPipeline):
        def layers(self, source, *_, **__):
            batch = next(b for b in worlds if torch.equal(b.source, source))
            return {"edit": batch.edit, "alpha": batch.alpha, "composite": batch.composite}

    worlds = [render(7, range(i, i + 32)) for i in (0, 32)]
    codec = PatchCodec.load(SHIPPED_CODEC)
    system, sampling = (
        randomise(Regeneration(RegenerationConfig(backbone=replace(TINY, text_dim=toy_encoder().text_dim)))),
        VeraSampling(1, 1.0, 1.0, 0.1),
    )
    oracle = Oracle(system, codec, (9, 32, 32), sampling, toy_encoder())
    marks = evaluate(oracle, 64, seed=7)
    for task in ("add", "background"):
        # The floor takes the faintest tenth of edges and shadows away: not quite infinite.
        assert marks[task]["preserved_psnr"] > (45 if task == "add" else 60)
        assert marks[task]["alpha_iou"] > 0.99 and marks[task]["satisfied"] > 0.9
    assert marks["add"]["shape"] >= 0.99 and marks["add"]["steady"] >= 0.99
    assert marks["background"]["pattern"] >= 0.99
    assert marks["add"]["clips"] + marks["background"]["clips"] == 64


# --- files ---------------------------------------------------------------------------------------


def edit(*arguments: str) -> int:
    return main(["edit", *map(str, arguments)])


@pytest.fixture(scope="module")
def edited(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("edit")
    command = [sys.executable, "-m", "vera_lite.cli", "edit", str(SAMPLES / "clouds.mkv")]
    done = subprocess.run(
        [*command, "--prompt", PROMPT, "--out", str(out)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "Look at:" in done.stdout and "denoising" in done.stderr
    return out


def test_edit_writes_everything_and_leaves_the_rest_of_the_source_alone(edited):
    names = {"final.mkv", "edit.mkv", "alpha.mkv", "final.mp4", "sheet.png", "metrics.json"}
    assert {p.name for p in edited.iterdir()} == names
    source, info = read_video(SAMPLES / "clouds.mkv")
    final, final_info = read_video(edited / "final.mkv")
    alpha = read_grey(edited / "alpha.mkv")
    assert final.shape == source.shape and final_info.fps == info.fps
    empty = (alpha == 0).expand_as(final)
    assert torch.equal(final[empty], source[empty]) and not torch.equal(final, source)
    metrics = json.loads((edited / "metrics.json").read_text())
    assert metrics["outside_equals_source"] is True and metrics["outside_mean_squared_change"] == 0
    assert metrics["outside_share"] == pytest.approx(float(empty.float().mean()), abs=1e-6)
    assert 0.5 < metrics["outside_share"] < 1
    assert metrics["exact_frames"] == list(range(0, 25, 3)) and metrics["steps"] == 12
    change = (to_float(final) - to_float(source)).square().mean()
    assert metrics["mean_squared_change"] == pytest.approx(float(change), rel=1e-4)
    edit_layer, _ = read_video(edited / "edit.mkv")
    mix = to_float(alpha) * to_float(edit_layer) + (1 - to_float(alpha)) * to_float(source)
    assert (to_uint8(mix).int() - final.int()).abs().max() <= 2  # layers were rounded to 8 bits
    preview, _ = read_video(edited / "final.mp4")
    assert preview.shape == final.shape
    assert np.asarray(Image.open(edited / "sheet.png")).std() > 10


def test_a_mask_may_be_a_video_or_a_picture(tmp_path, capsys):
    triangle, mask = SAMPLES / "triangle.mkv", SAMPLES / "triangle_mask.mkv"
    white = read_grey(mask)
    assert torch.equal(white, white[:1].expand_as(white))  # the subject stands still: one picture says all
    Image.fromarray(white[0, 0].numpy()).save(tmp_path / "mask.png")
    prompt = "change the background to blue checks"
    for out, file in (("video", mask), ("picture", tmp_path / "mask.png")):
        assert edit(triangle, "--prompt", prompt, "--mask", file, "--out", tmp_path / out) == 0
    video, picture = (read_grey(tmp_path / n / "alpha.mkv") for n in ("video", "picture"))
    assert torch.equal(video, picture)
    # The subject keeps the source: alpha is low inside its mask and high outside.
    assert video[white > 0].float().mean() < 0.4 * 255 < 0.8 * 255 < video[white == 0].float().mean()


def test_mistakes_are_one_sentence_exit_2_and_write_nothing(tmp_path, capsys):
    clouds, out = SAMPLES / "clouds.mkv", tmp_path / "out"
    short = tmp_path / "short.mkv"
    write_video(short, torch.zeros(3, 1, 128, 128, dtype=torch.uint8), 8, "lossless")
    small = tmp_path / "small.png"
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(small)
    cut = tmp_path / "cut.mkv"
    cut.write_bytes(clouds.read_bytes()[:100_000])
    text = tmp_path / "text.mkv"
    text.write_text("hello")
    for arguments, named in (
        ((tmp_path / "none.mkv", "--prompt", PROMPT), "none.mkv"),
        ((text, "--prompt", PROMPT), "text.mkv"),
        ((cut, "--prompt", PROMPT), "cut.mkv"),
        ((clouds, "--prompt", "add a red dragon"), "dragon"),
        ((clouds, "--prompt", PROMPT, "--mask", short), "3 frames"),
        ((clouds, "--prompt", PROMPT, "--mask", small), "4x4"),
        ((clouds, "--prompt", PROMPT, "--mask", tmp_path / "no.png"), "no.png"),
        ((clouds, "--prompt", " "), "prompt"),
        ((clouds, "--prompt", PROMPT, "--guidance", "nan"), "guidance"),
        ((clouds, "--prompt", PROMPT, "--seed", 2**64), "seed"),
        ((clouds, "--prompt", PROMPT, "--device", "mps"), "mps"),
        ((clouds, "--prompt", PROMPT, "--steps", "many"), "--steps"),
        ((clouds, "--prompt", PROMPT, "--mask", ""), "--mask"),
        ((clouds, "--prompt", PROMPT, "--steps", 0), "steps"),
        ((clouds, "--prompt", PROMPT, "--alpha-floor", 1.5), "alpha_floor"),
        ((clouds, "--prompt", PROMPT, "--model", tmp_path), "pipeline.json"),
    ):
        assert edit(*arguments, "--out", out) == 2
        error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("vera-lite: ")]
        assert len(error) == 1 and named in error[0], error
        assert not out.exists()
    occupied = tmp_path / "file"
    occupied.write_text("mine")
    assert edit(clouds, "--prompt", PROMPT, "--out", occupied) == 2 and occupied.read_text() == "mine"


def test_a_source_in_the_folder_of_results_is_not_overwritten(tmp_path, capsys):
    source = tmp_path / "final.mkv"
    source.write_bytes((SAMPLES / "clouds.mkv").read_bytes())
    assert edit(source, "--prompt", PROMPT, "--out", tmp_path) == 2
    assert str(source) in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["final.mkv"]
    assert source.read_bytes() == (SAMPLES / "clouds.mkv").read_bytes()


def test_a_missing_file_is_said_before_anything_heavy_is_imported():
    code = (
        "import sys; from vera_lite.cli import main; "
        "assert main(['edit', 'none.mkv', '--prompt', 'x', '--out', 'o']) == 2; "
        "assert not {'torch', 'av', 'numpy'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "none.mkv" in done.stderr


def test_a_regeneration_model_edits_files_too(tmp_path):
    backbone = replace(TINY, in_channels=24, out_channels=24, text_dim=toy_encoder().text_dim)
    system = randomise(Regeneration(RegenerationConfig(backbone=backbone)))
    codec = PatchCodec.load(SHIPPED_CODEC)
    VeraPipeline(system, codec, (9, 32, 32), VeraSampling(1, 1.0), toy_encoder()).save_pretrained(
        tmp_path / "m"
    )
    out, dead = tmp_path / "out", tmp_path / "out" / ".unfinished"
    for folder in (out, dead):
        folder.mkdir()
        (folder / "edit.mkv").write_text("of an older run")
    (out / "notes.txt").write_text("mine")
    assert edit(SAMPLES / "clouds.mkv", "--prompt", PROMPT, "--model", tmp_path / "m", "--out", out) == 0
    names = {"final.mkv", "final.mp4", "sheet.png", "metrics.json", "notes.txt"}
    assert {p.name for p in out.iterdir()} == names and not dead.exists()  # one set, and no leftovers
    assert "outside_share" not in json.loads((out / "metrics.json").read_text())


def test_pictures_are_read_as_they_are_seen(tmp_path):
    """Turned by EXIF; transparent is outside of a mask, and white in a reference."""
    pixels = np.zeros((2, 3, 4), np.uint8)
    pixels[0, 0] = 255  # white and opaque in one corner, transparent elsewhere
    Image.fromarray(pixels, "RGBA").save(tmp_path / "corner.png")
    mask = read_picture(tmp_path / "corner.png", "mask", "L")
    assert mask.shape == (1, 2, 3) and mask.sum() == 255 == mask[0, 0, 0]
    pixels[..., :3] = 255 - pixels[..., :3]  # black in the corner
    Image.fromarray(pixels, "RGBA").save(tmp_path / "black.png")
    assert read_picture(tmp_path / "black.png", "reference").sum() == 5 * 3 * 255
    exif = Image.Exif()
    exif[0x0112] = 6  # turned a quarter clockwise
    Image.fromarray(pixels[..., 3]).save(tmp_path / "turned.png", exif=exif)
    turned = read_picture(tmp_path / "turned.png", "mask", "L")
    assert turned.shape == (1, 3, 2) and turned.sum() == 255 == turned[0, 0, 1]


def test_check_has_a_line_for_each_requirement(capsys, monkeypatch):
    assert main(["check"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) > 10 and all(line.startswith("OK") for line in lines)
    monkeypatch.setattr(VeraPipeline, "from_pretrained", lambda: 1 / 0)
    assert main(["check"]) == 1
    assert "division by zero" in capsys.readouterr().out


def test_too_little_memory_is_said_kindly(monkeypatch, capsys):
    def starve(*_a, **_k):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 EB")

    monkeypatch.setattr(VeraPipeline, "layers", starve)
    assert edit(SAMPLES / "clouds.mkv", "--prompt", PROMPT, "--out", "unused") == 2
    assert "memory" in capsys.readouterr().err
    assert not Path("unused").exists()


@pytest.mark.slow
def test_a_real_clip(tmp_path):
    clip = ROOT.parent / "shared" / "clips" / "01_dog.mp4"
    if not clip.is_file():
        pytest.skip("the real clip is not there")
    assert edit(clip, "--prompt", PROMPT, "--out", tmp_path) == 0
    untouched = total = 0
    readers = [VideoReader(path) for path in (clip, tmp_path / "final.mkv", tmp_path / "alpha.mkv")]
    for source, final, alpha in zip(*readers, strict=True):
        empty = alpha == 0
        assert torch.equal(final[empty], source[empty])
        untouched, total = untouched + int(empty.sum()), total + empty.numel()
    assert len(readers[1]) == 289 and 0.5 < untouched / total < 1


def test_sample_clips_are_what_their_checksums_say():
    import hashlib

    lines = (SAMPLES / "SHA256SUMS").read_text().splitlines()
    assert len(lines) == 13
    for line in lines:
        digest, name = line.split()
        assert hashlib.sha256((SAMPLES / name).read_bytes()).hexdigest() == digest
    stored = to_float(read_video(SAMPLES / "coffee.mkv")[0])
    world = WorldConfig(frames=25, height=128, width=128, distractor=0.0)
    assert (render(77, [7], world).source[0] - stored).abs().max() < 2 / 255
    stored = to_float(read_video(SAMPLES / "square.mkv")[0])
    square = render_edits(77, [1014], EditConfig(25, 128, 128, categories=("local change",)))
    assert square.instruction == ["make the blue square green"]
    assert (square.source[0] - stored).abs().max() < 2 / 255
    reference = torch.from_numpy(np.array(Image.open(SAMPLES / "square_reference.png"))).permute(2, 0, 1)
    assert (square.target[0, 0] - to_float(reference)).abs().max() < 2 / 255
