"""Registration and clean plates, against the plates of the ground truth."""

import numpy as np
import pytest
import torch

from vera_lite.dataset.checks import Rejected, grow
from vera_lite.dataset.plate import background, fill, is_still, register
from vera_lite.toy.truth import truth_clip

SIZE = (136, 240)


def psnr(a, b, where):
    error = ((a - b).square() * where).sum() / (3 * where.sum())
    return float(-10 * torch.log10(error))


@pytest.fixture(scope="module")
def still():
    return truth_clip(0, 17, SIZE)


@pytest.fixture(scope="module")
def panned():
    return truth_clip(13, 17, SIZE)


def test_a_camera_that_stands_still_is_left_alone(still):
    assert is_still(register(still.composite))


def test_a_pan_is_found_to_a_fraction_of_a_pixel(panned):
    cameras = register(panned.composite)
    shifts = cameras[:, :2, 2]
    # The picture of truth_clip moves evenly.
    assert abs(shifts[0, 0]) > 5
    line = np.linspace(shifts[0, 0], shifts[-1, 0], len(shifts))
    assert np.abs(shifts[:, 0] - line).max() < 0.3
    assert np.abs(shifts[:, 1]).max() < 0.3
    corner = cameras @ np.array([240, 136, 1.0])
    assert np.abs(corner[:, 0] / corner[:, 2] - 240 - shifts[:, 0]).max() < 0.5


def test_a_cut_cannot_be_followed(still, panned):
    with pytest.raises(Rejected) as rejected:
        register(torch.cat([still.composite[:8], panned.composite[8:]]))
    assert rejected.value.reason == "camera_moves"


def test_the_plate_is_what_other_frames_show(still, panned):
    for clip, least in ((still, 45), (panned, 36)):
        hidden = grow((clip.alpha > 0).float(), 3)
        plate, unseen = background(clip.composite, register(clip.composite), hidden)
        assert unseen[hidden > 0].mean() < 0.01
        assert psnr(plate, clip.source, hidden * (1 - unseen)) > least
        smear = fill(clip.composite, hidden)
        assert psnr(smear, clip.source, hidden) < least - 10


def test_what_no_frame_shows_is_reported(still):
    hidden = torch.zeros_like(still.mask)
    hidden[..., 40:60, 100:130] = 1
    plate, unseen = background(still.composite, register(still.composite), hidden)
    assert torch.equal(unseen, hidden)
    assert (plate * hidden).abs().max() == 0


def test_a_median_of_few_frames_is_the_middle_value():
    values = torch.tensor([0.1, 0.9, 0.3, 0.5])
    video = values[:, None, None, None].expand(4, 3, 40, 40).clone()
    hidden = torch.zeros(4, 1, 40, 40)
    hidden[1] = 1
    plate, unseen = background(video, np.tile(np.eye(3), (4, 1, 1)), hidden)
    assert plate == pytest.approx(0.3)
    assert not unseen.any()


def test_holes_are_filled_from_their_rims():
    video = torch.full((1, 3, 20, 20), 0.6)
    holes = torch.zeros(1, 1, 20, 20)
    holes[..., 8:12, 8:12] = 1
    filled = fill(torch.where(holes > 0, 0.0, video), holes)
    assert filled == pytest.approx(0.6, abs=0.01)
