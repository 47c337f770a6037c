"""A foreground, a path and a background become a composite: as tensors, and from files to files."""

import io
import json
import weakref
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLCogVideoX, CogVideoXDDIMScheduler, CogVideoXTransformer3DModel
from PIL import Image
from small_gencompositor import build, pipeline, randomise
from test_pipelines import PROMPT, ROOT, SAMPLES

from vera_lite.apps import composite as module
from vera_lite.apps.composite import Composite, follow, read_trajectory
from vera_lite.cli import main
from vera_lite.codecs import CogVideoXCodec, describe_codec
from vera_lite.diffusion.ddpm import Diffusion
from vera_lite.diffusion.flow_matching import FlowMatching
from vera_lite.diffusion.sampling import denoise
from vera_lite.errors import UserError
from vera_lite.media.clip import composite, to_float, to_uint8
from vera_lite.media.placement import inflate_mask, object_extent
from vera_lite.media.trajectory import Keyframe, Trajectory
from vera_lite.media.video import VideoReader, read_grey, read_video
from vera_lite.media.video_writer import write_video
from vera_lite.pipelines import CANVAS_FILL, CompositeSampling, GenCompositorPipeline, VeraPipeline
from vera_lite.systems import GenCompositor
from vera_lite.toy.compositions import CompositionConfig, render_compositions
from vera_lite.toy.drawing import Sprite, signed_distance, soft_coverage
from vera_lite.toy.foreground import toy_foreground
from vera_lite.toy.world import render
from vera_lite.training.toy.compositions import MASK_SIGMA, ToyCompositionData

CLOUDS = SAMPLES / "clouds.mkv"
RED = "toy:red circle"


@pytest.fixture(scope="module")
def pipe() -> GenCompositorPipeline:
    system = build(random=True, objective=FlowMatching("x_0", shift=3.0), branch_layers=1)
    return pipeline(system, MASK_SIGMA)


@pytest.fixture(scope="module")
def model(pipe, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    pipe.save_pretrained(folder)
    return folder


def disc(frames: int, height: int, width: int, radius: float, centre) -> tuple[torch.Tensor, torch.Tensor]:
    """Colour and matte of a red disc in pixels; centre is (x, y) or one a frame."""
    grid_y, grid_x = torch.meshgrid(torch.arange(float(height)), torch.arange(float(width)), indexing="ij")
    x, y = torch.as_tensor(centre, dtype=torch.float32).expand(frames, 2)[..., None, None].unbind(1)
    alpha = (radius + 0.5 - ((grid_x - x) ** 2 + (grid_y - y) ** 2).sqrt()).clamp(0, 1)[:, None]
    colour = torch.tensor([0.9, 0.1, 0.2])[:, None, None].expand(frames, 3, height, width)
    return colour, alpha


def still(x: float, y: float, size=(32, 32), **options) -> Trajectory:
    return Trajectory((Keyframe(x, y),), size, **options)


# --- sampling ------------------------------------------------------------------------------------


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_a_diffusion_network_that_knows_the_answer_is_sampled_exactly(prediction):
    objective, generator = Diffusion(prediction), torch.Generator().manual_seed(0)
    x_0, noise = torch.randn(2, 3, 2, 4, 1, 2, 2, generator=generator)

    def predict(x, sigma):
        signal = objective.alphas_cumprod(sigma)
        if prediction == "epsilon":
            return (x - signal.sqrt() * x_0) / (1 - signal).sqrt()
        return (signal.sqrt() * x - x_0) / (1 - signal).sqrt()

    for steps in (1, 7, 12, 1000):
        seen = []
        result = denoise(predict, noise, steps, prediction=prediction, callback=seen.append)
        torch.testing.assert_close(result, x_0, atol=1e-5, rtol=1e-5)
        assert len(seen) == steps and seen[0].sigma == pytest.approx(0.999)
        assert all(a.sigma > b.sigma for a, b in zip(seen, seen[1:], strict=False))
    for steps in (0, 1001):
        with pytest.raises(UserError, match=f"{steps}|one step"):
            denoise(predict, noise, steps, prediction=prediction)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_ddim_is_diffusers_where_its_steps_meet(prediction):
    """Theirs goes down by 1000 // steps, so only a divisor of 1000 meets the trailing timesteps."""
    generator = torch.Generator().manual_seed(0)
    noise, mix = torch.randn(2, 4, 1, 2, 2, generator=generator), torch.randn(4, 4, generator=generator)

    def network(x, sigma):
        return torch.tanh(torch.einsum("kc,bcthw->bkthw", mix, x)) * (1 + sigma.view(-1, 1, 1, 1, 1))

    scheduler = CogVideoXDDIMScheduler(
        snr_shift_scale=1.0,
        rescale_betas_zero_snr=prediction == "v_prediction",
        timestep_spacing="trailing",
        prediction_type=prediction,
    )
    scheduler.set_timesteps(20)
    x, states = noise, []
    ours = denoise(network, noise, 20, prediction=prediction, callback=states.append)
    for state, t in zip(states, scheduler.timesteps, strict=True):
        assert state.sigma == pytest.approx(t / 1000)
        x = scheduler.step(network(x, (t / 1000).expand(2)), t, x).prev_sample
        torch.testing.assert_close(state.latents, x, atol=1e-4, rtol=1e-4)
    assert torch.equal(ours, states[-1].latents)


# --- the pipeline --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "objective", [FlowMatching("velocity"), Diffusion("epsilon"), Diffusion("v_prediction")], ids=str
)
def test_every_objective_generates(objective):
    pipe = pipeline(build(random=True, objective=objective, branch_layers=1), None)
    batch, seen = render_compositions(3, range(2)), []
    result = pipe.generate(batch.background, batch.foreground, batch.matte, steps=2, callback=seen.append)
    assert result.final.shape == batch.background.shape and len(seen) == 2


def test_same_noise_same_composite_and_every_input_counts(pipe):
    batch = render_compositions(3, range(2))
    white, seed = torch.ones_like(batch.background), torch.Generator().manual_seed
    inputs = (batch.background, batch.foreground, batch.matte)

    def draw(*inputs, noise=1):
        return pipe.generate(*inputs, steps=2, generator=seed(noise)).final

    result = draw(*inputs)
    assert torch.equal(result, draw(*inputs))
    assert not torch.equal(result, draw(*inputs, noise=2))
    for changed in (
        (batch.background.flip(0), *inputs[1:]),
        (batch.background, batch.foreground.flip(0), batch.matte),
        (batch.background, batch.foreground, batch.matte.flip(0)),
    ):
        assert not torch.equal(result, draw(*changed))
    removed, blank = (draw(inputs[0], f, inputs[2]) for f in (None, white))
    assert torch.equal(removed, blank) and not torch.equal(removed, result)
    with pytest.raises(ValueError, match="mask"):
        draw(batch.background, batch.foreground, batch.background)


def test_inputs_are_those_of_training(pipe):
    """Toy clips at the model's size, given as a person would give them."""
    data = ToyCompositionData(batch_size=48, luminance_gamma=None)
    data.setup()
    clips = render_compositions(data.seed, range(48), data.world)
    on_white = composite(clips.foreground, clips.alpha, torch.ones_like(clips.foreground))
    trained = {k: data.codec.decode(data.train[0][k]) for k in ("masked_background", "foreground")}
    compared = 0
    for i, attributes in enumerate(clips.attributes):
        if attributes["shape"] == "triangle":  # the world's middle of a triangle is not its centre of mass
            continue
        got = prepared(pipe, clips.background[i], clips.foreground[i], clips.alpha[i], clips.trajectories[i])
        assert torch.equal(got["background"], clips.background[i])
        assert (got["matte"] - clips.matte[i]).abs().mean() < 0.01
        expected = inflate_mask(clips.matte[i], MASK_SIGMA)
        assert (got["mask"] != expected).sum() < 0.02 * expected.sum()  # pixels where a matte passes 0.5
        zoom = CANVAS_FILL * 16 / object_extent((clips.alpha[i] > 0.5).float())[1].max()
        if abs(zoom - 1) < 0.05:
            compared += 1
            assert (got["foreground"] - on_white[i]).abs().mean() < 0.025
            seen = data.codec.decode(data.codec.encode(got["foreground"][None]))[0]
            assert (seen - trained["foreground"][i]).abs().mean() < 0.03
            hole = got["background"].masked_fill(got["mask"] > 0.5, 0)
            seen = data.codec.decode(data.codec.encode(hole[None]))[0]
            assert (seen - trained["masked_background"][i]).abs().mean() < 0.02
    assert compared > 8


def test_size_place_and_shape_of_the_foreground_do_not_matter_for_its_canvas(pipe):
    """A disc that travels through a large wide video fills the model's canvas as one of the toy world."""
    zero, flat = torch.tensor([0]), torch.zeros(1, 1)
    circle = Sprite(zero, zero, zero, torch.tensor([[CANVAS_FILL]]), flat, flat, flat)
    world = CompositionConfig()
    expected = soft_coverage(signed_distance(circle, world)[0], world)[0]  # (1, 32, 32)
    path = torch.stack([torch.linspace(60, 240, 13), torch.linspace(50, 120, 13)], 1)
    colour, alpha = disc(13, 170, 300, 40.0, path)
    background = torch.full((5, 3, 90, 90), 0.5)
    canvas = prepared(pipe, background, colour, alpha, still(45, 45, (90, 90)))["foreground"]
    covered = (1 - canvas[:, 1]) / 0.9  # green falls from 1 (white) to 0.1
    assert (covered - expected).abs().mean() < 0.02 and (covered.std(0) < 0.02).all()
    alpha[:, :, :5] = 0.4  # faint dirt in the matte
    dirty = prepared(pipe, background, colour, alpha, still(45, 45, (90, 90)))["mask"]
    clean = prepared(pipe, background, *disc(13, 170, 300, 40.0, path), still(45, 45, (90, 90)))["mask"]
    assert dirty.equal(clean)


def test_pulsing_stays_and_path_and_scale_are_in_the_backgrounds_pixels(pipe):
    """A wide background squeezes the model's picture, and all that is put into it alike."""
    background = torch.rand(9, 3, 64, 128)
    colour, alpha = disc(9, 80, 80, 20.0, (39.5, 39.5))
    beat = disc(9, 80, 80, 10.0, (39.5, 39.5))
    alpha = torch.where(torch.arange(9).view(-1, 1, 1, 1) % 2 == 0, alpha, beat[1])
    path = still(31.5, 39.5, (64, 128), scales=(0.8,))
    got = prepared(with_sigma(pipe, None), background, colour, alpha, path)
    areas = got["matte"].sum((1, 2, 3))
    # A disc of radius 16 and 8 in a frame 128 x 64 that is drawn as 32 x 32.
    for t, radius in enumerate([16, 8] * 4 + [16]):
        assert areas[t] == pytest.approx(np.pi * radius**2 / 8, rel=0.06)
        centres, reach = object_extent(got["matte"][t : t + 1])
        torch.testing.assert_close(centres[0], torch.tensor([7.5, 19.5]).double(), atol=0.1, rtol=0)
        assert reach[1] / reach[0] > 1.5  # as high in the frame as wide, so narrower in the square
    on_canvas = (got["foreground"][:, 1] < 0.55).sum((1, 2)).float()
    assert on_canvas[1] / on_canvas[0] == pytest.approx(0.25, abs=0.06)
    # The same in the canvas: squeezed like the background.
    rows, columns = ((got["foreground"][0, 1] < 0.55).any(d).sum() for d in (1, 0))
    assert rows / columns == pytest.approx(2, abs=0.35) and rows / 32 == pytest.approx(CANVAS_FILL, abs=0.05)


def with_sigma(pipe, sigma):
    return GenCompositorPipeline(pipe.system, pipe.codec, pipe.clip_size, pipe.sampling, sigma)


def prepared(pipe, *given) -> dict:
    """One clip's inputs of the model, by name."""
    names = ("background", "foreground", "mask", "matte")
    return {name: layer[0] for name, layer in zip(names, pipe.prepare(*given), strict=True)}


def test_any_size_and_length_and_paste_back_keeps_the_rest_bit_for_bit(pipe):
    background = torch.rand(14, 3, 45, 80, generator=torch.Generator().manual_seed(0))
    given = (background, *disc(5, 30, 40, 9.0, (12, 17)), still(20, 30, (45, 80)))
    plain = pipe(*given, steps=2, seed=4)
    assert plain.final.shape == plain.composite.shape == background.shape
    assert plain.mask.shape == plain.matte.shape == (14, 1, 45, 80)
    assert torch.equal(plain.final, plain.composite)
    pasted = pipe(*given, steps=2, seed=4, paste_back=True)
    outside, inside = ((pasted.mask == v).expand_as(background) for v in (0, 1))
    assert 0.3 < outside.float().mean() < 0.95 and inside.float().mean() > 0.03
    assert torch.equal(pasted.final[outside], background[outside])
    assert torch.equal(pasted.final[inside], pasted.composite[inside])
    assert not torch.equal(plain.final[outside], background[outside])
    assert (plain.matte[plain.mask == 0] < 0.5).all()  # the object has room
    again = pipe(*given, steps=2, generator=torch.Generator().manual_seed(4))
    assert torch.equal(again.final, plain.final)
    assert not torch.equal(pipe(*given, steps=2, seed=5).final, plain.final)


def test_bad_input_is_one_sentence(pipe):
    background, (colour, alpha), path = torch.zeros(9, 3, 32, 32), disc(9, 32, 32, 8.0, (16, 16)), still(9, 9)
    for inputs in (
        (background.byte(), colour, alpha, path),
        (background, colour[0], alpha, path),
        (background, colour, alpha[:3], path),
        (background, colour, alpha > 0, path),
    ):
        with pytest.raises(ValueError, match="video|foreground|alpha"):
            pipe(*inputs)
    for inputs, word in (
        ((background, colour, alpha * 0.4, path), "alpha"),
        ((background, colour, alpha, still(9, 9, (64, 32))), "32x64"),
        ((background, colour, alpha, still(9, 9, scales=(0.02,))), "small"),
        ((background, colour, alpha, still(9, 9, scales=(50.0,))), "covers"),
    ):
        with pytest.raises(UserError, match=word):
            pipe(*inputs)


def test_save_and_load_give_the_same_pipeline_and_each_class_its_own(pipe, model, tmp_path):
    copy = GenCompositorPipeline.from_pretrained(model)
    assert copy.system.config == pipe.system.config and copy.settings == pipe.settings
    assert copy.mask_sigma == MASK_SIGMA and copy.clip_size == (9, 32, 32)
    with_sigma(pipe, None).save_pretrained(tmp_path)
    assert GenCompositorPipeline.from_pretrained(tmp_path).mask_sigma is None
    given = (torch.rand(9, 3, 32, 32), *disc(9, 32, 32, 8.0, (16, 16)), still(9, 9))
    torch.testing.assert_close(copy(*given, steps=1).final, pipe(*given, steps=1).final, rtol=0, atol=1e-4)
    with pytest.raises(UserError, match="VeraPipeline"):
        VeraPipeline.from_pretrained(model)
    with pytest.raises(UserError, match="GenCompositorPipeline"):
        GenCompositorPipeline.from_pretrained(ROOT / "vera_lite" / "assets" / "vera_toy")
    saved = json.loads((model / "pipeline.json").read_text())
    (tmp_path / "pipeline.json").write_text(json.dumps(saved | {"surprise": 1}))
    with pytest.raises(UserError, match="surprise"):
        GenCompositorPipeline.from_pretrained(tmp_path)


def test_export_writes_the_right_kind_of_pipeline(pipe, tmp_path):
    from vera_lite.systems import describe_system

    about = describe_system(pipe.system) | {"pipeline": pipe.settings | {"mask_sigma": 0.7}}
    about["codec"] = describe_codec(pipe.codec)
    weights = {f"ema.{k}": v for k, v in pipe.system.state_dict().items()}
    torch.save({"vera_lite": about, "state_dict": weights}, tmp_path / "last.ckpt")
    assert main(["export", str(tmp_path / "last.ckpt"), "--out", str(tmp_path / "pipe"), "--full"]) == 0
    exported = GenCompositorPipeline.from_pretrained(tmp_path / "pipe")
    assert exported.mask_sigma == 0.7 and exported.clip_size == (9, 32, 32)
    assert all(torch.equal(v, weights[f"ema.{k}"]) for k, v in exported.system.state_dict().items())


def test_the_same_pipeline_runs_on_cogvideoxs_own_parts(tmp_path):
    """Tiny random transformer and VAE of CogVideoX, saved and loaded in the real formats."""
    torch.manual_seed(0)
    transformer = CogVideoXTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=8,
        out_channels=4,
        time_embed_dim=12,
        text_embed_dim=10,
        num_layers=2,
        sample_width=6,
        sample_height=4,
        sample_frames=9,
        max_text_seq_length=5,
        use_rotary_positional_embeddings=True,
        use_learned_positional_embeddings=True,
    )
    randomise(transformer).save_pretrained(tmp_path / "transformer")
    vae = AutoencoderKLCogVideoX(
        block_out_channels=(8, 8, 8, 8), layers_per_block=1, latent_channels=4, norm_num_groups=2,
        scaling_factor=0.7,
    )  # fmt: skip
    vae.save_pretrained(tmp_path / "vae")
    system = GenCompositor.from_cogvideox(
        CogVideoXTransformer3DModel.from_pretrained(tmp_path / "transformer"),
        objective=Diffusion("v_prediction"),
    )
    codec = CogVideoXCodec.from_pretrained(tmp_path / "vae")
    settings = (system, codec, (9, 32, 48), CompositeSampling(2, 1.0), 1.0)
    with pytest.raises(ValueError, match="text"):
        GenCompositorPipeline(*settings)
    pipe = GenCompositorPipeline(*settings, text=torch.randn(5, 10))
    background = torch.rand(11, 3, 40, 60)
    given = (background, *disc(4, 30, 30, 9.0, (15, 15)), still(30, 20, (40, 60)))
    result = pipe(*given, steps=2)
    assert result.final.shape == background.shape and result.final.isfinite().all()
    other = GenCompositorPipeline(*settings, text=torch.randn(5, 10))
    assert not torch.equal(other(*given, steps=2).final, result.final)
    with pytest.raises(ValueError, match="toy"):
        pipe.save_pretrained(tmp_path / "whole")


# --- from files ----------------------------------------------------------------------------------


class Recorder(GenCompositorPipeline):
    """Keeps what the model was given."""

    def prepare(self, *given):
        self.given = given
        return super().prepare(*given)


@pytest.fixture
def recorder(pipe) -> Recorder:
    return Recorder(pipe.system, pipe.codec, pipe.clip_size, pipe.sampling, pipe.mask_sigma)


def run(*arguments) -> int:
    return main(["composite", *map(str, arguments)])


@pytest.fixture(scope="module")
def composed(model, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("composite")
    path = ("--path", "20,30 100,60 60,110", "--scale", "0.5,0.3")
    said, shown = io.StringIO(), io.StringIO()
    with redirect_stdout(said), redirect_stderr(shown):
        files = (CLOUDS, "toy:spinning striped red square", "--model", model, "--out", out)
        assert run(*files, *path, "--paste-back", "--steps", 3) == 0
    assert "Look at:" in said.getvalue()
    assert all(bar in shown.getvalue() for bar in ("reading", "denoising", "writing"))
    return out


def test_composite_writes_everything_and_paste_back_holds_in_the_files(composed):
    names = ("final.mkv", "composite.mkv", "mask.mkv", "final.mp4")
    assert {p.name for p in composed.iterdir()} == {*names, "sheet.png", "trajectory.json", "metrics.json"}
    background, info = read_video(CLOUDS)
    (final, final_info), (generated, _), (preview, _) = (
        read_video(composed / n) for n in ("final.mkv", "composite.mkv", "final.mp4")
    )
    mask = read_grey(composed / "mask.mkv")
    assert final.shape == generated.shape == preview.shape == background.shape
    assert final_info.fps == info.fps
    outside = (mask == 0).expand_as(final)
    assert torch.equal(final[outside], background[outside])
    assert torch.equal(final[(mask == 255).expand_as(final)], generated[(mask == 255).expand_as(final)])
    assert not torch.equal(final, background) and not torch.equal(generated[outside], background[outside])
    metrics = json.loads((composed / "metrics.json").read_text())
    assert metrics["outside_share"] == pytest.approx(float(outside.float().mean()), abs=1e-6)
    assert metrics["outside_equals_source"] is True and 0.5 < metrics["outside_share"] < 1
    assert metrics["outside_mean_squared_change"] == 0 and metrics["mask_sigma"] == MASK_SIGMA
    assert metrics["paste_back"] is True and metrics["exact_frames"] == list(range(0, 25, 3))
    trajectory = Trajectory.from_json((composed / "trajectory.json").read_text())
    points = tuple(Keyframe(*p) for p in ((20, 30), (100, 60), (60, 110)))
    assert trajectory == Trajectory(points, (128, 128), scales=(0.5, 0.3))
    # The mask travels along the path: its middle, away from the frame's edge.
    drawn = [9, 12]
    centres, _ = object_extent(to_float(mask[drawn]))
    torch.testing.assert_close(centres, trajectory.sample(25)[0][drawn], atol=4, rtol=0)
    assert torch.equal(mask[10], mask[9]) and not torch.equal(mask[10], mask[11])  # the nearest drawn frame
    assert np.asarray(Image.open(composed / "sheet.png")).std() > 10


def test_without_paste_back_the_frame_is_the_models_and_a_seed_is_a_result(pipe, tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        Composite(CLOUDS, RED, tmp_path / name, "64,64 70,70", "0.4", seed=seed).run(pipe, steps=2)
    a, b, c = ((tmp_path / name / "final.mkv").read_bytes() for name in "abc")
    assert a == b != c
    final = read_video(tmp_path / "a" / "final.mkv")[0]
    assert not (tmp_path / "a" / "composite.mkv").exists()  # it would be the same
    metrics = json.loads((tmp_path / "a" / "metrics.json").read_text())
    outside = read_grey(tmp_path / "a" / "mask.mkv") == 0
    change = (to_float(final) - to_float(read_video(CLOUDS)[0]))[outside.expand_as(final)].square().mean()
    assert metrics["outside_equals_source"] is False
    assert metrics["outside_mean_squared_change"] == pytest.approx(float(change), rel=1e-4)


def write_rgba(path, frames, encoder, pixel_format, **options):
    """uint8 frames (T, 4, H, W) at 8 frames per second."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(encoder, rate=8, options=options)
        stream.height, stream.width = frames.shape[2:]
        stream.pix_fmt = pixel_format
        for frame in frames:
            pixels = np.ascontiguousarray(frame.permute(1, 2, 0).numpy())
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, "rgba")))
        container.mux(stream.encode(None))


@pytest.mark.parametrize(
    ("name", "encoder", "pixel_format", "options", "tolerance"),
    [
        ("a.mkv", "ffv1", "bgra", {}, 0),
        ("a.mov", "qtrle", "argb", {}, 0),
        ("a.mov", "prores_ks", "yuva444p10le", {}, 6),
        ("a.webm", "libvpx-vp9", "yuva420p", {"auto-alt-ref": "0", "crf": "8", "b": "0"}, 24),
    ],
)
def test_alpha_comes_out_of_files(recorder, tmp_path, name, encoder, pixel_format, options, tolerance):
    colour, alpha = disc(9, 48, 64, 14.0, torch.stack([torch.linspace(20, 44, 9), torch.full((9,), 24.0)], 1))
    frames = to_uint8(torch.cat([colour, alpha], 1))
    write_rgba(tmp_path / name, frames, encoder, pixel_format, **options)
    reader = VideoReader(tmp_path / name, "rgba")
    assert reader.info.has_alpha and len(reader) == 9
    read = torch.stack(list(reader))
    assert (read.int() - frames.int()).abs().max() <= tolerance
    Composite(CLOUDS, tmp_path / name, tmp_path / "out", "64,64 9,9").run(recorder, steps=1)
    _, given_colour, given_alpha, _ = recorder.given
    assert torch.equal(torch.cat([given_colour, given_alpha], 1), to_float(read))


def test_a_clip_with_a_mask_a_saved_clip_and_a_long_clip_are_foregrounds(recorder, tmp_path):
    colour, alpha = (to_uint8(v) for v in disc(25, 48, 64, 14.0, (20, 24)))
    write_video(tmp_path / "clip.mkv", colour, 8, "lossless")
    assert not VideoReader(tmp_path / "clip.mkv").info.has_alpha
    write_video(tmp_path / "mask.mkv", alpha, 8, "lossless")
    Image.fromarray(alpha[0, 0].numpy()).save(tmp_path / "mask.png")
    files = CLOUDS, tmp_path / "clip.mkv", tmp_path / "out", "9,9 9,9"
    for mask in ("mask.mkv", "mask.png"):
        Composite(*files, mask=tmp_path / mask).run(recorder, steps=1)
        frames = [0, 3, 6, 9, 12, 15, 18, 21, 24]
        assert torch.equal(recorder.given[1], to_float(colour[frames]))
        torch.testing.assert_close(recorder.given[2], to_float(alpha[frames]))
    layered = render(31, [0]).clip(0)
    layered.save(tmp_path / "saved")
    Composite(CLOUDS, tmp_path / "saved", tmp_path / "out", "9,9 9,9").run(recorder, steps=1)
    assert torch.equal(to_uint8(recorder.given[1]), to_uint8(layered.edit))
    assert torch.equal(to_uint8(recorder.given[2]), to_uint8(layered.alpha))


def test_toy_objects_are_those_of_the_toy_world():
    colour, alpha = toy_foreground("Red circle", 9, 64)
    assert colour.shape == (9, 3, 64, 64) and torch.equal(alpha, alpha[:1].expand_as(alpha))
    inside = (alpha > 0.5).expand_as(colour)
    assert colour[:, 0][inside[:, 0]].mean() > 0.7 > 0.2 > colour[:, 1][inside[:, 0]].mean()
    assert alpha[0].sum() == pytest.approx(np.pi * (0.58 * 32) ** 2, rel=0.02)
    spun, other = toy_foreground("spinning striped blue square", 9, 64), toy_foreground("blue square", 9, 64)
    torch.testing.assert_close(spun[1][8], spun[1][0], atol=1e-4, rtol=0)  # a quarter turn
    assert not torch.allclose(spun[1][4], spun[1][0]) and not torch.allclose(spun[0][0], other[0][0])
    pulsing = toy_foreground("pulsing green ring", 9, 64)[1].sum((1, 2, 3))
    assert pulsing[2] > 1.3 * pulsing[0] > 1.3 * 1.3 * pulsing[6]
    for words, wrong in (("red dragon", "dragon"), ("red blue circle", "blue"), ("red", "shape")):
        with pytest.raises(UserError, match=wrong):
            toy_foreground(words, 9, 64)


def test_paths_and_scales_in_every_form(tmp_path):
    size = (128, 128)
    points = (Keyframe(20, 30), Keyframe(100.5, 60))
    expected = Trajectory(points, size, "constant_speed", (0.4, 0.6))
    assert read_trajectory("20,30 100.5,60", "0.4,0.6", "constant_speed", size) == expected
    (tmp_path / "path.txt").write_text("20, 30\n100.5,60\n")
    assert read_trajectory(tmp_path / "path.txt", "0.4,0.6", "constant_speed", size) == expected
    (tmp_path / "path.json").write_text(Trajectory(points, size, "constant_speed").to_json())
    assert read_trajectory(tmp_path / "path.json", "0.4,0.6", None, size) == expected
    scaled = Trajectory(tuple(replace(k, scale=0.5) for k in points), size)
    (tmp_path / "scaled.json").write_text(scaled.to_json())
    assert read_trajectory(tmp_path / "scaled.json", None, None, size) == scaled
    assert read_trajectory("20,30 100.5,60", None, None, size) == Trajectory(points, size)
    (tmp_path / "one.txt").write_text("20,30")  # a file of one point is an object that rests
    assert read_trajectory(tmp_path / "one.txt", None, None, size) == still(20, 30, size)


def test_one_point_is_followed_through_the_background(tmp_path, monkeypatch, capfd):
    """A textured patch that moves two pixels right and one down a frame."""
    generator = torch.Generator().manual_seed(0)
    texture = torch.nn.functional.interpolate(torch.rand(1, 3, 40, 50, generator=generator), scale_factor=4)[
        0
    ]
    frames = torch.stack([texture[:, 40 - t : 120 - t, 60 - 2 * t : 160 - 2 * t] for t in range(12)])
    write_video(tmp_path / "moving.mkv", to_uint8(frames), 8, "lossless")
    reader = VideoReader(tmp_path / "moving.mkv")
    truth = torch.tensor([[40.0 + 2 * t, 30.0 + t] for t in range(12)]).double()
    trajectory = follow(reader, read_trajectory("40,30", "0.5", None, (80, 100)))
    assert "following the point" in capfd.readouterr().err
    torch.testing.assert_close(trajectory.sample(12)[0], truth, atol=0.3, rtol=0)
    assert trajectory.size == (80, 100) and trajectory.scales == (0.5,)
    # However long a video is, what is held of it has a bound.
    seen, track = [], module.track_point
    monkeypatch.setattr(module, "_TRACKING_BYTES", 12 * 80 * 100 // 4)
    monkeypatch.setattr(module, "track_point", lambda video, point: seen.append(video) or track(video, point))
    small = follow(reader, read_trajectory("40,30", None, None, (80, 100)))
    assert seen[0].shape == (12, 3, 40, 50) and seen[0].untyped_storage().nbytes() == 12 * 40 * 50
    torch.testing.assert_close(small.sample(12)[0], truth, atol=2, rtol=0)
    with pytest.warns(UserWarning, match=r"frame \d of .* \([89]\d\.") as said:
        left = follow(reader, read_trajectory("79,30", None, None, (80, 100))).keyframes
    last = int(str(said[0].message).split("frame ")[1].split()[0])
    assert left[last - 1] != left[last] == left[-1] and abs(left[-1].x - 79 - 2 * last) < 2


def test_frames_stream(pipe, tmp_path, monkeypatch):
    """However long the videos: only frames for the model and the sheet are held at a time."""
    frames = to_uint8(torch.rand(80, 3, 16, 16, generator=torch.Generator().manual_seed(0)))
    write_video(tmp_path / "long.mkv", frames, 8, "lossless")
    write_video(tmp_path / "mask.mkv", frames[:, :1] // 2 + 127, 8, "lossless")
    alive, most, convert = weakref.WeakSet(), [0], VideoReader.to_tensor

    def watched(reader, frame):
        pixels = convert(reader, frame)
        alive.add(pixels)
        most[0] = max(most[0], len(alive))
        return pixels

    monkeypatch.setattr(VideoReader, "to_tensor", watched)
    files = tmp_path / "long.mkv", tmp_path / "long.mkv", tmp_path / "out", "3,3 9,9"
    Composite(*files, mask=tmp_path / "mask.mkv").run(pipe, steps=1)
    assert 9 <= most[0] <= 12


def test_options_reach_the_model_and_warnings_are_short(model, tmp_path, capsys):
    common = (CLOUDS, RED, "--path", "64,64 200,64", "--scale", "0.3", "--model", model, "--steps", 1)
    masks = []
    for sigma in ("0", "0.4", "2"):
        assert (
            run(*common, "--mask-sigma", sigma, "--out", tmp_path / sigma, "--timing", "constant_speed") == 0
        )
        masks.append(read_grey(tmp_path / sigma / "mask.mkv").float().mean())
        warned = [line for line in capsys.readouterr().err.splitlines() if line.startswith("vera-lite: ")]
        assert len(warned) == 1 and "128x128" in warned[0]
    assert masks[0] < masks[1] < masks[2]
    metrics = json.loads((tmp_path / "0" / "metrics.json").read_text())
    assert metrics["mask_sigma"] is None and metrics["timing"] == "constant_speed" and metrics["steps"] == 1


def test_mistakes_are_one_sentence_exit_2_and_write_nothing(model, tmp_path, capsys):
    out = tmp_path / "out"
    short, clip = tmp_path / "short.mkv", tmp_path / "clip.mkv"
    write_video(short, torch.zeros(3, 1, 32, 32, dtype=torch.uint8), 8, "lossless")
    write_video(clip, torch.zeros(9, 3, 32, 32, dtype=torch.uint8), 8, "lossless")
    write_rgba(tmp_path / "empty.mkv", torch.zeros(9, 4, 32, 32, dtype=torch.uint8), "ffv1", "bgra")
    cut = tmp_path / "cut.mkv"
    cut.write_bytes(CLOUDS.read_bytes()[:100_000])
    uneven = tmp_path / "uneven.mkv"
    with av.open(str(uneven), "w") as container:
        stream = container.add_stream("ffv1", rate=8)
        stream.width = stream.height = 32
        stream.pix_fmt = "gray"
        for time in (0, 1, 2, 5):
            picture = av.VideoFrame.from_ndarray(np.zeros((32, 32), np.uint8), "gray")
            picture.pts, picture.time_base = time, 1 / stream.codec_context.framerate
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
    paths = {
        "bad.json": "{}",
        "small.json": still(3, 3).to_json(),
        "scaled.json": still(3, 3, (128, 128), scales=(0.5,)).to_json(),
        "bad.txt": "1,2\nx,y\n",
    }
    for name, text in paths.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00")
    good = {"--path": "64,64 20,20", "--scale": "0.4", "--model": model, "--steps": 1}
    for background, foreground, changes, word in (
        (tmp_path / "none.mkv", RED, {}, "none.mkv"),
        (cut, RED, {}, "cut.mkv"),
        (uneven, RED, {}, "rate"),
        (CLOUDS, tmp_path / "none.mkv", {}, "none.mkv"),
        (CLOUDS, uneven, {"--mask": short}, "rate"),
        (CLOUDS, clip, {}, "alpha channel"),
        (CLOUDS, tmp_path / "empty.mkv", {}, "alpha"),
        (CLOUDS, clip, {"--mask": short}, "3 frames"),
        (CLOUDS, clip, {"--mask": tmp_path / "no.png"}, "no.png"),
        (CLOUDS, tmp_path, {}, "edit.mkv"),
        (CLOUDS, "toy:red dragon", {}, "dragon"),
        (CLOUDS, RED, {"--mask": short}, "--mask"),
        (CLOUDS, RED, {"--path": tmp_path / "no.json"}, "no.json"),
        (CLOUDS, RED, {"--path": tmp_path / "bad.json"}, "bad.json"),
        (CLOUDS, RED, {"--path": tmp_path / "small.json"}, "32x32"),
        (CLOUDS, RED, {"--path": tmp_path / "scaled.json"}, "--scale"),
        (CLOUDS, RED, {"--path": tmp_path / "bad.txt"}, "'x,y'"),
        (CLOUDS, RED, {"--path": tmp_path / "binary.txt"}, "binary.txt"),
        (CLOUDS, RED, {"--path": "somewhere"}, "somewhere"),
        (CLOUDS, RED, {"--path": ""}, "keyframe"),
        (CLOUDS, RED, {"--scale": "big"}, "big"),
        (CLOUDS, RED, {"--scale": "-1"}, "-1.0"),
        (CLOUDS, RED, {"--scale": "nan"}, "nan"),
        (CLOUDS, RED, {"--scale": "0.001"}, "small"),
        (CLOUDS, RED, {"--timing": "later"}, "later"),
        (CLOUDS, RED, {"--steps": 0}, "steps"),
        (CLOUDS, RED, {"--mask-sigma": -1}, "mask-sigma"),
        (CLOUDS, RED, {"--mask-sigma": 1e9}, "mask-sigma"),
        (CLOUDS, RED, {"--scale": 1e-9}, "small"),
        (CLOUDS, RED, {"--model": tmp_path}, "pipeline.json"),
    ):
        options = [word for pair in (good | changes).items() for word in pair]
        assert run(background, foreground, *options, "--out", out) == 2, word
        error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("vera-lite: ")]
        assert len(error) == 1 and word in error[0], (word, error)
        assert not out.exists()
    occupied = tmp_path / "file"
    occupied.write_text("mine")
    options = [word for pair in good.items() for word in pair]
    assert run(CLOUDS, RED, *options, "--out", occupied) == 2 and occupied.read_text() == "mine"


def test_what_vera_lite_edit_writes_is_a_foreground(model, tmp_path):
    assert (
        main(["edit", str(CLOUDS), "--prompt", PROMPT, "--out", str(tmp_path / "edit"), "--steps", "4"]) == 0
    )
    assert (
        run(CLOUDS, tmp_path / "edit", "--path", "64,64 20,20", "--model", model, "--out", tmp_path / "out")
        == 0
    )
