"""Editing at full size: offloading, tiles of a VAE, and windows over long videos."""

import pytest
import torch
from diffusers import AutoencoderKLWan
from torch.testing import assert_close

from vera_lite.backbone.checkpointing import blocks_of
from vera_lite.cli import main
from vera_lite.codecs import PatchCodec, WanCodec
from vera_lite.pipelines import GenCompositorPipeline, MiVEPipeline, RVEDiTPipeline, VeraPipeline
from vera_lite.pipelines.windows import Windows
from vera_lite.training.toy.layers import SHIPPED_CODEC

PROMPT = "add a red ring at the top left moving right"


def inputs(kind, frames: int, height: int, width: int) -> tuple:
    """What ``kind.generate`` takes."""
    torch.manual_seed(0)
    video = torch.rand(1, frames, 3, height, width)
    if kind is VeraPipeline:
        return video, [PROMPT]
    if kind is GenCompositorPipeline:
        return video, torch.rand_like(video), (video[:, :, :1] > 0.5).float()
    instruction = ["make the red square blue"]
    return (video, instruction) if kind is RVEDiTPipeline else (video, instruction, video[:, 0])


@pytest.mark.parametrize("kind", [VeraPipeline, GenCompositorPipeline, RVEDiTPipeline, MiVEPipeline])
def test_an_offloaded_pipeline_draws_the_same(kind):
    pipe = kind.from_pretrained()
    given = inputs(kind, *pipe.clip_size)
    expected = pipe.generate(*given, steps=1, seed=3).composite
    assert pipe.offload("cpu") is pipe
    weights = [p for block in blocks_of(pipe.system) for p in block.parameters()]
    assert weights and all(p.is_meta for p in weights)  # they are nowhere but in host memory
    assert_close(pipe.generate(*given, steps=1, seed=3).composite, expected)
    assert all(p.is_meta for p in weights)
    for refused in (pipe.to, pipe.offload):
        with pytest.raises(ValueError, match="offloaded"):
            refused("cpu")


def test_a_vae_in_tiles_codes_nearly_the_same():
    torch.manual_seed(0)
    sizes = {"base_dim": 4, "z_dim": 4, "dim_mult": [1, 1, 1, 1], "num_res_blocks": 1}
    codec = WanCodec(AutoencoderKLWan(**sizes, latents_mean=[0.0] * 4, latents_std=[1.0] * 4))
    video, latents = torch.rand(1, 5, 3, 96, 96), torch.randn(1, 4, 2, 12, 12)
    whole = codec.encode(video), codec.decode(latents)
    tile = {"tile_sample_min_height": 64, "tile_sample_min_width": 64}
    codec.vae.enable_tiling(**tile, tile_sample_stride_height=32, tile_sample_stride_width=32)
    tiled = codec.encode(video), codec.decode(latents)
    for a, b in zip(whole, tiled, strict=True):
        assert a.shape == b.shape and not torch.equal(a, b)
        assert (a - b).abs().mean() < 0.1 * a.std()


@pytest.mark.parametrize("frames", [9, 10, 13, 24, 41, 50])
def test_windows_cover_a_video(frames):
    windows = Windows(frames, 9, 4, 4)
    assert frames - 4 < windows.frames <= frames and windows.starts[0] == 0
    assert windows.starts[-1] + 9 == windows.frames
    gaps = [b - a for a, b in zip(windows.starts, windows.starts[1:], strict=False)]
    assert all(gap % 4 == 0 and 0 < gap <= 5 for gap in gaps)
    video, prompt = torch.rand(1, windows.frames, 3, 2, 2), ["a"]
    cut = windows.cut(video, prompt, None)
    assert all(v.shape == (1, 9, 3, 2, 2) and p is prompt and m is None for v, p, m in cut)
    assert_close(windows.join(torch.cat([v for v, *_ in cut])), video)


def test_windows_agree_on_every_frame_that_they_share():
    """Latents that are shared decode to the same frames; a window's first frame alone is its own."""
    codec, windows = PatchCodec.load(SHIPPED_CODEC), Windows(25, 9, 4, 4)
    torch.manual_seed(0)
    latents = torch.randn(3, len(windows.starts), 24, 3, 2, 2)  # of three layers
    for made in (windows.share(latents), windows.agree(latents)):
        assert made.shape == latents.shape
        for layer in made:
            videos = codec.decode(layer)
            for a, b, s, t in zip(videos, videos[1:], windows.starts, windows.starts[1:], strict=False):
                assert_close(a[t - s + 1 :], b[1 : 9 - (t - s)])
                assert not torch.allclose(a[t - s], b[0])
    for bad in (0, 5, 9):
        with pytest.raises(ValueError, match="overlap"):
            Windows(25, 9, bad, 4)


def test_a_long_video_is_drawn_frame_by_frame_in_the_memory_of_a_clip(monkeypatch):
    pipe = VeraPipeline.from_pretrained()
    video = torch.rand(18, 3, 32, 32)
    plain, one = (pipe(video[:9], PROMPT, steps=1, seed=2, overlap=n) for n in (None, 4))
    assert_close(one.final, plain.final)
    seen, forward = [], pipe.system.forward
    monkeypatch.setattr(
        pipe.system, "forward", lambda x, *a, **k: seen.append(x.shape) or forward(x, *a, **k)
    )
    result = pipe(video, PROMPT, steps=1, seed=2, overlap=4)
    assert set(seen) == {(3, 1, 24, 3, 8, 8)}
    assert result.final.shape == video.shape and len(result.exact_frames) == 17
    with pytest.raises(ValueError, match="all frames"):
        pipe.draw(video, PROMPT, frames=40, overlap=4)


def test_a_plan_of_an_edit_states_its_peak(capsys):
    assert main(["plan", "vera_lite/configs/mive_14b.yaml", "--inference"]) == 0
    said = capsys.readouterr().out
    assert "peak" in said and "offloaded" in said and "vision-language" in said
