"""Toy compositions have true facts, and training sees what the paper says."""

import pytest
import torch

from vera_lite.codecs import PatchCodec, latent_mask
from vera_lite.errors import UserError
from vera_lite.media.clip import composite
from vera_lite.media.placement import place
from vera_lite.toy.compositions import DARKEST, CompositionConfig, render_compositions
from vera_lite.training import ToyCompositionData
from vera_lite.training.toy.layers import SHIPPED_CODEC


@pytest.fixture(scope="module")
def clips():
    return render_compositions(7, range(48))


def batches(rank=0, world_size=1, **options):
    """Training batches of a rank, without a trainer."""
    data = ToyCompositionData(**options)
    data.trainer = None
    data.setup()
    data.train.rank, data.train.world_size = rank, world_size
    return data.train


def test_a_clip_is_a_function_of_seed_and_index(clips):
    again = render_compositions(7, [30, 3])
    for name in ("background", "foreground", "alpha", "composite"):
        assert torch.equal(getattr(again, name), getattr(clips, name)[[30, 3]])
    assert again.trajectories == [clips.trajectories[30], clips.trajectories[3]]
    assert again.attributes[1] == clips.attributes[3]
    assert not torch.equal(render_compositions(8, [3]).composite[0], clips.composite[3])


def test_tensors_are_videos_in_range(clips):
    for name, channels in {"background": 3, "foreground": 3, "alpha": 1, "matte": 1, "composite": 3}.items():
        video = getattr(clips, name)
        assert video.shape == (48, 9, channels, 32, 32) and video.min() >= 0 and video.max() <= 1
    other = render_compositions(7, range(2), CompositionConfig(frames=5, height=24, width=40))
    assert other.composite.shape == (2, 5, 3, 24, 40)


def test_the_composite_is_the_background_where_nothing_changes(clips):
    same = (clips.changed < 1e-4).expand_as(clips.composite)
    assert same.float().mean() > 0.3
    torch.testing.assert_close(clips.composite[same], clips.background[same], atol=1e-3, rtol=0)
    # Past the outline there is shadow, darker than the background and of its hue.
    shade = ((clips.changed > 0.2) & (clips.matte == 0)).expand_as(clips.composite)
    assert shade.any() and (clips.composite[shade] <= clips.background[shade]).all()


def test_the_object_is_the_foreground_at_its_place(clips):
    """Put there by :func:`place`, which resamples, the foreground is the composite's object."""
    overlaps, errors = [], []
    for i in range(48):
        positions, scales = clips.trajectories[i].sample(9)
        colour, matte = place(clips.foreground[i], clips.alpha[i], positions, scales, (32, 32))
        overlaps.append(((matte > 0.5) & (clips.matte[i] > 0.5)).sum() / (clips.matte[i] > 0.5).sum())
        inside = (matte > 0.99).expand_as(colour)
        errors.append((colour - clips.composite[i])[inside].abs().mean())
    assert torch.stack(overlaps).min() > 0.9
    assert torch.stack(errors).mean() < 0.06  # stripes two pixels wide do not survive resampling


def test_the_foreground_moves_but_stays_in_the_middle(clips):
    x = torch.arange(32) - 15.5
    mass = clips.alpha.sum((2, 3, 4))
    for axis in (3, 4):  # of a triangle the middle is not its centre of mass
        offset = (clips.alpha.sum(7 - axis).squeeze(2) * x).sum(2) / mass
        assert offset.abs().max() < 2.6
    moved = (clips.foreground * clips.alpha).diff(dim=1).abs().mean((1, 2, 3, 4)) > 1e-3
    still = torch.tensor([a["spin"] == 0 and a["pulse"] == 0 for a in clips.attributes])
    assert not moved[still].any() and moved[~still].float().mean() > 0.9


def test_a_relit_foreground_is_the_same_scene(clips):
    relit = render_compositions(7, range(48), CompositionConfig(relit=True))
    assert torch.equal(relit.composite, clips.composite)
    lights = torch.tensor([(a["light"], a["foreground_light"]) for a in relit.attributes])
    assert lights.min() >= DARKEST and lights.diff(dim=1).abs().mean() > 0.1
    ratio = (lights[:, 1] / lights[:, 0]).view(-1, 1, 1, 1, 1)
    torch.testing.assert_close(relit.foreground, clips.foreground * ratio)
    assert all(a["light"] == a["foreground_light"] for a in clips.attributes)


def test_a_bad_size_is_refused():
    with pytest.raises(UserError, match="positive"):
        CompositionConfig(frames=0)


def test_latent_mask_takes_any_pixel_of_any_frame():
    codec = PatchCodec(patch=4, temporal_stride=4)
    mask = torch.zeros(1, 9, 1, 8, 8)
    mask[0, 0, 0, 0, 0] = mask[0, 4, 0, 7, 3] = mask[0, 5, 0, 3, 4] = 1
    expected = torch.zeros(1, 1, 3, 2, 2)
    expected[0, 0, 0, 0, 0] = expected[0, 0, 1, 1, 0] = expected[0, 0, 2, 0, 1] = 1
    assert torch.equal(latent_mask(codec, mask), expected)
    assert torch.equal(latent_mask(codec, mask[:, :1]), expected[:, :, :1])


def test_batches_hold_what_the_system_is_trained_on():
    batch = batches(batch_size=4, luminance_gamma=None, mask_sigma=None)[2]
    clips = render_compositions(1, range(8, 12))
    codec = PatchCodec.load(SHIPPED_CODEC)
    white = torch.ones_like(clips.background)
    hole = clips.background.masked_fill(clips.matte > 0.5, 0)
    expected = {
        "composite": codec.encode(clips.composite),
        "background": codec.encode(clips.background),
        "masked_background": codec.encode(hole),
        "mask": latent_mask(codec, clips.matte),
        "foreground": codec.encode(composite(clips.foreground, clips.alpha, white)),
        "blank": codec.encode(white),
    }
    assert batch.pop("step") == 2 and batch.keys() == expected.keys()
    for name, latents in expected.items():
        torch.testing.assert_close(batch[name], latents)


def test_inflation_and_luminance_change_what_they_should():
    plain = batches(batch_size=8, luminance_gamma=None, mask_sigma=None)[0]
    inflated = batches(batch_size=8, luminance_gamma=None)[0]
    assert (inflated["mask"] >= plain["mask"]).all() and inflated["mask"].sum() > plain["mask"].sum()
    lit = batches(batch_size=8)[0]
    changed = (lit["foreground"] - inflated["foreground"]).abs().amax((1, 2, 3, 4))
    assert (changed > 0.05).all() and len(set(changed.tolist())) == 8  # a gamma for each clip
    for name in ("composite", "background", "masked_background", "mask", "blank"):
        assert torch.equal(lit[name], inflated[name])


def test_ranks_share_one_global_batch():
    whole = batches(batch_size=4)[3]
    for rank in range(2):
        half = batches(rank, 2, batch_size=2)[3]
        for name in ("composite", "foreground", "mask"):
            assert torch.equal(half[name], whole[name][2 * rank : 2 * rank + 2])
