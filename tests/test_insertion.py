"""A person's inputs become GenCompositor's: placed, centred, inflated, cut out."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from vera_lite.errors import UserError
from vera_lite.media.placement import augment_luminance, centre_foreground, inflate_mask, place


def foreground(frames=3, height=9, width=11, seed=0):
    generator = torch.Generator().manual_seed(seed)
    colour = torch.rand(frames, 3, height, width, generator=generator)
    return colour, torch.rand(frames, 1, height, width, generator=generator)


def disc(frames, size, x, y, radius):
    """Matte of a soft disc, (frames, 1, size, size); x and y are numbers or (frames,)."""
    grid = torch.arange(float(size))
    dx = grid - torch.as_tensor(x, dtype=torch.float32).expand(frames)[:, None]
    dy = grid - torch.as_tensor(y, dtype=torch.float32).expand(frames)[:, None]
    distance = (dx[:, None, :] ** 2 + dy[:, :, None] ** 2).sqrt()
    return (radius + 0.5 - distance).clamp(0, 1)[:, None]


def centroid(alpha):
    grid_y, grid_x = (torch.arange(float(n)) for n in alpha.shape[2:])
    total = alpha.sum((1, 2, 3))
    return (
        torch.stack([(alpha[:, 0] * grid_x).sum((1, 2)), (alpha[:, 0] * grid_y[:, None]).sum((1, 2))], 1)
        / (total[:, None])
    )


# --- placing -------------------------------------------------------------------------------------


def test_in_the_middle_at_scale_1_everything_stays():
    colour, alpha = foreground()
    placed, matte = place(colour, alpha, torch.tensor([[5.0, 4.0]] * 3), torch.ones(3), (9, 11))
    torch.testing.assert_close(placed, colour)
    torch.testing.assert_close(matte, alpha)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.tuples(st.integers(-12, 30), st.integers(-12, 30)), min_size=3, max_size=3))
def test_whole_pixels_move_the_pixels_themselves_and_the_frame_cuts(points):
    colour, alpha = foreground()
    placed, matte = place(colour, alpha, torch.tensor(points), torch.ones(3), (20, 25))
    for t, (x, y) in enumerate(points):
        canvas = torch.zeros(1, 20 + 80, 25 + 80)  # so large that nothing is cut
        canvas[:, y - 4 + 40 : y + 5 + 40, x - 5 + 40 : x + 6 + 40] = alpha[t]
        torch.testing.assert_close(matte[t], canvas[:, 40:60, 40:65])
    assert ((placed == 0) | (matte > 0)).all()


@settings(deadline=None, max_examples=30)
@given(st.floats(18, 30), st.floats(18, 30), st.floats(0.3, 1.8), st.booleans())
def test_area_and_centre_follow_scale_and_position(x, y, scale, fills_the_canvas):
    alpha = torch.ones(1, 1, 15, 15) if fills_the_canvas else disc(1, 15, 7, 7, 5)
    colour = torch.tensor([0.2, 0.5, 0.9])[:, None, None].expand(1, 3, 15, 15)
    placed, matte = place(colour, alpha, torch.tensor([[x, y]]), torch.tensor([scale]), (48, 48))
    torch.testing.assert_close(centroid(matte), torch.tensor([[x, y]]), atol=0.12, rtol=0)
    assert matte.sum() / (alpha.sum() * scale**2) == pytest.approx(1, abs=0.04)
    shown = (matte > 1e-3).expand_as(placed)
    flat = torch.tensor([0.2, 0.5, 0.9])[:, None, None].expand(1, 3, 48, 48)
    torch.testing.assert_close(placed[shown], flat[shown], atol=1e-3, rtol=0)


def test_shrinking_is_the_antialiased_filter_of_torch():
    colour, _ = foreground(2, 24, 32)
    alpha = torch.ones(2, 1, 24, 32)
    placed, _ = place(colour, alpha, torch.tensor([[7.5, 5.5]] * 2), torch.full((2,), 0.5), (12, 16))
    expected = F.interpolate(colour, size=(12, 16), mode="bilinear", antialias=True)
    inner = (..., slice(2, -2), slice(2, -2))  # at the border, torch does not look outside
    torch.testing.assert_close(placed[inner], expected[inner], atol=1e-5, rtol=0)


def test_invisible_colour_does_not_bleed_into_the_edge():
    alpha = disc(1, 16, 7.5, 7.5, 4)
    colour = torch.where(alpha > 0, 0.5, 0.0).expand(1, 3, 16, 16)
    placed, matte = place(colour, alpha, torch.tensor([[8.3, 7.1]]), torch.tensor([0.7]), (16, 16))
    assert ((placed[(matte > 1e-4).expand_as(placed)] - 0.5).abs() < 1e-3).all()


def test_frames_are_placed_independently():
    colour, alpha = foreground(4)
    positions, scales = torch.rand(4, 2) * 20, torch.tensor([0.4, 1.0, 1.7, 0.2])
    together = place(colour, alpha, positions, scales, (20, 20))
    for t in range(4):
        alone = place(colour[t : t + 1], alpha[t : t + 1], positions[t : t + 1], scales[t : t + 1], (20, 20))
        for whole, part in zip(together, alone, strict=True):
            torch.testing.assert_close(whole[t : t + 1], part)


def test_what_does_not_fit_is_refused():
    colour, alpha = foreground()
    positions, scales = torch.zeros(3, 2), torch.ones(3)
    with pytest.raises(ValueError, match="alpha"):
        place(colour[:2], alpha, positions, scales, (9, 11))
    with pytest.raises(ValueError, match="alpha"):
        place(colour, alpha.byte(), positions, scales, (9, 11))
    with pytest.raises(ValueError, match="positions"):
        place(colour, alpha, positions[:2], scales, (9, 11))
    with pytest.raises(UserError, match="scale"):
        place(colour, alpha, positions, torch.tensor([1.0, 0.0, 1.0]), (9, 11))


# --- centring ------------------------------------------------------------------------------------


def test_centring_takes_the_path_away_and_leaves_the_shape():
    x, y = torch.tensor([9.0, 20.3, 30.0]), torch.tensor([12.0, 17.8, 30.0])
    alpha = disc(3, 40, x, y, 6)
    colour = torch.tensor([0.2, 0.5, 0.9])[:, None, None].expand(3, 3, 40, 40)
    centred, matte = centre_foreground(colour, alpha)
    torch.testing.assert_close(centroid(matte), torch.full((3, 2), 19.5), atol=0.02, rtol=0)
    torch.testing.assert_close(matte.sum((1, 2, 3)), alpha.sum((1, 2, 3)), atol=0.1, rtol=1e-3)
    assert (matte[0] - matte[1]).abs().max() < 0.3  # half a pixel of softness
    assert centred.shape == colour.shape


def test_one_scale_for_the_clip_that_makes_the_largest_frame_fit():
    alpha = torch.cat([disc(1, 40, 20, 20, 4), disc(1, 40, 20, 20, 16), torch.zeros(1, 1, 40, 40)])
    colour = torch.ones(3, 3, 40, 40)
    _, matte = centre_foreground(colour, alpha, (20, 24))
    area = matte.sum((1, 2, 3)) / alpha.sum((1, 2, 3)).clamp_min(1)
    assert matte.shape == (3, 1, 20, 24)
    assert area[0] == pytest.approx(area[1].item(), rel=0.02)
    assert 0.3 < area[1] < (20 / 33) ** 2 * 1.02 and area[2] == 0
    rim = matte.clone()
    rim[..., 1:-1, 1:-1] = 0
    assert rim.max() < 0.7  # not cut off: that would be 1


def test_centring_nothing_is_refused():
    colour, alpha = foreground()
    with pytest.raises(UserError, match="alpha"):
        centre_foreground(colour, alpha * 0)


# --- masks ---------------------------------------------------------------------------------------


def test_the_released_inflation_is_a_square_of_51_pixels_at_width_720():
    mask = torch.zeros(1, 1, 100, 720)
    mask[..., 50, 300] = 1
    expected = torch.zeros_like(mask)
    expected[..., 25:76, 275:326] = 1
    assert torch.equal(inflate_mask(mask), expected)


def test_the_paper_s_inflation_is_a_blur_and_a_threshold():
    mask = torch.zeros(1, 1, 40, 60)
    mask[..., :30] = 1  # a straight edge: the blur is the normal distribution across it
    for threshold in (0.05, 0.2, 0.45):
        inflated = inflate_mask(mask, 4.0, threshold)[0, 0, 20]
        reach = -torch.special.ndtri(torch.tensor(threshold)).item() * 4
        assert abs(inflated.sum().item() - (30 + reach)) <= 1, threshold


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10**6), st.floats(0.5, 3), st.sampled_from([0.0, 0.1, 0.3]))
def test_frames_are_inflated_alone_and_a_larger_sigma_reaches_further(seed, sigma, threshold):
    generator = torch.Generator().manual_seed(seed)
    corners = torch.randint(0, 20, (2, 2), generator=generator).tolist()
    mask = torch.zeros(2, 1, 30, 30)
    for t, (row, column) in enumerate(corners):
        mask[t, :, row : row + 8, column : column + 8] = 1
    inflated = inflate_mask(mask, sigma, threshold)
    assert set(inflated.unique().tolist()) <= {0.0, 1.0}
    assert (inflated >= mask).all() or threshold == 0.3  # a high threshold rounds corners
    assert torch.equal(inflated[1:], inflate_mask(mask[1:], sigma, threshold))
    assert (inflate_mask(mask, 2 * sigma, 0.0) >= inflated).all()


def test_bad_masks_are_refused():
    _, mask = foreground()
    with pytest.raises(ValueError, match="mask"):
        inflate_mask(mask.bool())
    with pytest.raises(UserError, match="sigma"):
        inflate_mask(mask, 0)
    with pytest.raises(ValueError, match="threshold"):
        inflate_mask(mask, 1.0, 1)


def test_luminance_augmentation_leaves_white_and_black():
    video = torch.tensor([0.0, 0.25, 1.0]).expand(2, 1, 3, 1, 3)
    brighter, darker = augment_luminance(video, torch.tensor([0.5, 2.0]))[:, 0, 0, 0]
    assert brighter.tolist() == [0, 0.5, 1] and darker.tolist() == [0, 0.0625, 1]
    with pytest.raises(ValueError, match="gamma"):
        augment_luminance(video, torch.tensor([0.0, 1.0]))
