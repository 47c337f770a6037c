"""Codecs: exact where they promise it, causal, and the real Wan VAE behind the same protocol."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLCogVideoX, AutoencoderKLWan
from test_vera import TINY

from vera_lite.apps.train import export
from vera_lite.codecs import CogVideoXCodec, PatchCodec, WanCodec, latent_shape
from vera_lite.errors import UserError
from vera_lite.systems import Regeneration, RegenerationConfig
from vera_lite.toy.world import render
from vera_lite.training import EditingModule
from vera_lite.training.toy.layers import SHIPPED_CODEC


@pytest.fixture(scope="module")
def video():
    return render(21, range(12)).composite


def test_keeping_every_component_is_lossless_and_fewer_is_pca(video):
    full = PatchCodec(2, 2, 12).fit([video])
    first_frames = full.decode(full.encode(video))[:, :1]
    torch.testing.assert_close(first_frames, video[:, :1], atol=2e-4, rtol=0)

    codec = PatchCodec(4, 4, 24).fit([video])
    rows = codec._patches(video * 2 - 1)[1].flatten(0, -2).double().numpy()
    centred = rows - rows.mean(0)
    _, _, components = np.linalg.svd(centred, full_matrices=False)
    best = centred @ components[:24].T @ components[:24] + rows.mean(0)
    decoded = codec.decode(codec.encode(video))
    ours = codec._patches(decoded * 2 - 1)[1].flatten(0, -2).double().numpy()
    error = ((ours - rows) ** 2).mean()
    assert error <= ((best - rows) ** 2).mean() * 1.001  # clamping to [0, 1] may only help


def test_latents_have_unit_power_and_the_promised_shape(video):
    codec = PatchCodec(4, 4, 24).fit([video])
    latents = codec.encode(video)
    assert latents.shape == (12, *latent_shape(codec, 9, 32, 32)) == (12, 24, 3, 8, 8)
    assert 0.8 < float(latents.square().mean()) < 1.2


@pytest.mark.parametrize("kind", ["patch", "wan"])
def test_codecs_are_causal(video, kind, wan_codec):
    codec = PatchCodec.load(SHIPPED_CODEC) if kind == "patch" else wan_codec
    late = video.clone()
    late[:, 5:] = 1 - late[:, 5:]  # frames of the last group only
    before, after = codec.encode(video), codec.encode(late)
    torch.testing.assert_close(before[:, :, :2], after[:, :, :2], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(before[:, :, 2], after[:, :, 2])


def test_gray_is_repeated(video):
    codec = PatchCodec.load(SHIPPED_CODEC)
    alpha = video[:, :, :1]
    assert torch.equal(codec.encode(alpha), codec.encode(alpha.expand(-1, -1, 3, -1, -1)))


def test_the_shipped_codec_is_good_and_fits_anew_to_itself():
    """The upper limit in the toy study: alpha IoU above 0.99, and 30 dB or more."""
    codec = PatchCodec.load(SHIPPED_CODEC)
    batch = render(22, range(64))
    alpha = codec.decode(codec.encode(batch.alpha)).mean(2, keepdim=True)
    seen, true = alpha > 0.5, batch.alpha > 0.5
    assert (seen & true).sum() / (seen | true).sum() > 0.985
    for name in ("source", "edit", "composite"):
        video = getattr(batch, name)
        assert (
            codec.decode(codec.encode(video)) - video
        ).square().mean() < 10**-2.8  # noisy photographs included
    seen = render(100, range(64))
    streams = [getattr(seen, k) for k in ("source", "edit", "alpha", "composite")]
    twice = [PatchCodec(4, 4, 24).fit(streams).state_dict() for _ in range(2)]
    assert all(torch.equal(twice[0][k], twice[1][k]) for k in twice[0])


def test_save_and_load(tmp_path, video):
    codec = PatchCodec(4, 4, 16).fit([video])
    codec.save(tmp_path / "codec.safetensors")
    loaded = PatchCodec.load(tmp_path / "codec.safetensors")
    assert all(torch.equal(v, loaded.state_dict()[k]) for k, v in codec.state_dict().items())
    torch.testing.assert_close(loaded.encode(video), codec.encode(video), rtol=1e-4, atol=1e-5)
    with pytest.raises(UserError, match="none"):
        PatchCodec.load(tmp_path / "none")


def test_misfits_are_refused(video):
    codec = PatchCodec.load(SHIPPED_CODEC)
    with pytest.raises(ValueError, match="8 frames"):
        codec.encode(video[:, :8])
    with pytest.raises(ValueError, match="32x30"):
        codec.encode(video[..., :30])
    with pytest.raises(ValueError, match="12, 9, 2"):
        codec.encode(video[:, :, :2])
    with pytest.raises(ValueError, match="100"):
        PatchCodec(4, 4, 100)


@pytest.fixture(scope="module")
def wan_codec(tmp_path_factory):
    """A tiny random Wan VAE, saved and loaded in the real format."""
    torch.manual_seed(0)
    vae = AutoencoderKLWan(
        base_dim=4,
        z_dim=4,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
        latents_mean=[0.1, -0.2, 0.3, 0.0],
        latents_std=[1.5, 0.5, 2.0, 1.0],
    )
    folder = tmp_path_factory.mktemp("vae")
    vae.save_pretrained(folder)
    return WanCodec.from_pretrained(folder)


def test_wan_latents_are_the_pipelines_latents(wan_codec, video):
    vae, config = wan_codec.vae, wan_codec.vae.config
    x = (video * 2 - 1).transpose(1, 2)
    mode = vae.encode(x).latent_dist.mode()
    mean = torch.tensor(config.latents_mean).view(1, -1, 1, 1, 1)
    std = torch.tensor(config.latents_std).view(1, -1, 1, 1, 1)
    latents = wan_codec.encode(video)
    torch.testing.assert_close(latents, (mode - mean) / std)
    assert latents.shape == (12, *latent_shape(wan_codec, 9, 32, 32)) == (12, 4, 3, 4, 4)
    expected = (vae.decode(mode).sample / 2 + 0.5).clamp(0, 1).transpose(1, 2)
    decoded = wan_codec.decode(latents)
    # Our latents went through (x - mean) / std and back; the decoder enlarges that rounding.
    torch.testing.assert_close(decoded, expected, atol=2e-4, rtol=1e-4)
    assert decoded.shape == video.shape
    assert not any(p.requires_grad for p in wan_codec.parameters())


def test_a_checkpoint_says_which_vae_made_its_latents(wan_codec, tmp_path, monkeypatch):
    """Its weights stay in their own folder; a pipeline is then built from its parts."""
    module = EditingModule(Regeneration(RegenerationConfig(backbone=TINY)))
    trainer = SimpleNamespace(datamodule=SimpleNamespace(codec=wan_codec, pipeline_settings={}))
    monkeypatch.setattr(EditingModule, "trainer", trainer)
    checkpoint = {"state_dict": module.state_dict()}
    module.on_save_checkpoint(checkpoint)
    torch.save(checkpoint, tmp_path / "last.ckpt")
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)["vera_lite"]["codec"]
    assert (
        saved["settings"]["vae"] == "AutoencoderKLWan" and saved["settings"]["path"] and not saved["tensors"]
    )
    with pytest.raises(UserError, match="AutoencoderKLWan"):
        export(tmp_path / "last.ckpt", tmp_path / "pipe")


@pytest.fixture(scope="module")
def cogvideox_codec(tmp_path_factory):
    """A tiny random CogVideoX VAE, saved and loaded in the real format."""
    torch.manual_seed(0)
    vae = AutoencoderKLCogVideoX(
        block_out_channels=(8, 8, 8, 8),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=2,
        scaling_factor=0.7,
    )
    folder = tmp_path_factory.mktemp("vae")
    vae.save_pretrained(folder)
    return CogVideoXCodec.from_pretrained(folder)


def test_cogvideox_latents_are_the_pipelines_latents(cogvideox_codec, video):
    vae = cogvideox_codec.vae
    mode = vae.encode((video * 2 - 1).transpose(1, 2)).latent_dist.mode()
    latents = cogvideox_codec.encode(video)
    torch.testing.assert_close(latents, 0.7 * mode)
    assert latents.shape == (12, *latent_shape(cogvideox_codec, 9, 32, 32)) == (12, 4, 3, 4, 4)
    expected = (vae.decode(mode).sample / 2 + 0.5).clamp(0, 1).transpose(1, 2)
    decoded = cogvideox_codec.decode(latents)
    torch.testing.assert_close(decoded, expected, atol=1e-5, rtol=1e-5)
    assert decoded.shape == video.shape
    assert not any(p.requires_grad for p in cogvideox_codec.parameters())


def test_cogvideox_takes_clips_that_come_back_with_their_length(cogvideox_codec):
    for frames in (1, 9, 17):
        clip = torch.zeros(1, frames, 3, 8, 8)
        assert cogvideox_codec.decode(cogvideox_codec.encode(clip)).shape == clip.shape
    with pytest.raises(ValueError, match="5"):  # 8 would come back
        cogvideox_codec.encode(torch.zeros(1, 5, 3, 8, 8))
    with pytest.raises(ValueError, match=r"1 \+ 8n frames"):
        cogvideox_codec.encode(torch.zeros(1, 7, 3, 8, 8))


def test_cogvideox_is_causal_between_groups_of_eight(cogvideox_codec):
    clip = torch.rand(1, 17, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    late = clip.clone()
    late[:, 9:] = 1 - late[:, 9:]
    before, after = cogvideox_codec.encode(clip), cogvideox_codec.encode(late)
    assert torch.equal(before[:, :, :3], after[:, :, :3]) and not torch.allclose(
        before[:, :, 3], after[:, :, 3]
    )
