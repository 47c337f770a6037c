"""Trimaps, mattes and colours, against the layers of the ground truth."""

import pytest
import torch

from vera_lite.dataset.matte import ClosedForm, foreground, misfit, shadow, split, trimap, with_shadow
from vera_lite.media.clip import composite
from vera_lite.toy.truth import truth_clip

SIZE = (136, 240)


def pick(index, frames=(2, 8)):
    clip = truth_clip(index, 17, SIZE)
    frames = list(frames)
    return (
        clip.composite[frames],
        clip.source[frames],
        clip.edit[frames],
        clip.alpha[frames],
        clip.mask[frames],
    )


@pytest.fixture(scope="module")
def car():
    return pick(6)


def test_a_trimap_is_sure_away_from_the_outline(car):
    _, _, _, alpha, mask = car
    known = trimap(mask, 3)
    assert set(known.unique().tolist()) == {0.0, 0.5, 1.0}
    assert alpha[known == 1].min() > 0.9
    assert alpha[known == 0].max() < 0.1
    # Wider inside than outside; a thin line keeps its middle.
    line = torch.zeros(1, 1, 20, 40)
    line[..., 8:13, 5:35] = 1
    known = trimap(line, 4, outside=2)
    assert (known[0, 0, :, 20] == torch.tensor([0] * 6 + [0.5] * 4 + [1] + [0.5] * 4 + [0] * 5)).all()


def test_a_matte_is_nearer_to_the_truth_than_the_mask(car):
    video, _, _, alpha, mask = car
    known = trimap(mask, 3)
    found = ClosedForm()(video, known)
    assert torch.equal(found[known != 0.5], known[known != 0.5])
    assert (found - alpha).abs().sum() < 0.5 * (mask - alpha).abs().sum()


def test_a_mask_without_a_sure_pixel_gives_nothing(car):
    video = car[0]
    empty = torch.zeros(len(video), 1, *SIZE)
    assert ClosedForm()(video, empty).sum() == 0
    unsure = empty.clone()
    unsure[..., 40:50, 40:50] = 0.5
    assert ClosedForm()(video, unsure).sum() == 0
    assert torch.equal(foreground(video, empty), video)


def test_the_foreground_loses_what_shines_through(car):
    video, _, edit, alpha, _ = car
    colour = foreground(video, alpha)
    rim = (alpha > 0.1) & (alpha < 0.9)
    fringe = ((video - edit).abs() * rim).sum()
    assert ((colour - edit).abs() * rim).sum() < 0.4 * fringe
    other = torch.zeros_like(video)
    wanted = composite(edit, alpha, other)
    assert (composite(colour, alpha, other) - wanted).abs().max() < 0.2


def test_the_misfit_tells_good_mattes_from_bad_ones(car):
    video, plate, _, alpha, mask = car
    wide = (torch.nn.functional.max_pool2d(mask, 5, 1, 2) + mask) / 2
    exact, hard, worse = misfit(video, plate, mask, (alpha, mask, wide), 2)
    assert exact < 0.9 * hard < 0.9 * worse


def test_a_shadow_is_told_from_the_object():
    video, plate, _, alpha, mask = pick(23)  # a cake with a soft shadow
    whole = (alpha > 0.05).float()
    found = shadow(video, plate, whole)
    rest = (whole > 0) & (found == 0)
    assert (found[mask > 0] > 0).float().mean() < 0.15
    only_shadow = (alpha < 0.4) & (alpha > 0.1) & (mask == 0)
    assert (found - alpha)[only_shadow & (found > 0)].abs().mean() < 0.05
    overlap = (rest & (mask > 0)).sum() / (rest | (mask > 0)).sum()
    assert overlap > 0.7 > (mask.sum() / whole.sum())
    assert shadow(video, plate, torch.zeros_like(whole)).sum() == 0


def test_the_shadow_is_a_layer_of_its_own():
    video, plate, _, alpha, mask = pick(17)  # a pineapple with a soft shadow
    whole = (alpha > 0.05).float()
    core, matte, shade = split(video, whole, plate, 2, ClosedForm())
    overlap = ((core > 0) & (mask > 0)).sum() / ((core > 0) | (mask > 0)).sum()
    assert overlap > 0.8
    colour, found = with_shadow(foreground(video, matte), matte, shade)
    assert (found - alpha).abs().sum() < 0.4 * (whole - alpha).abs().sum()
    assert (composite(colour, found, plate) - video).abs().mean() < 0.01
    core, matte, shade = split(video, whole, None, 2, ClosedForm())
    assert torch.equal(core, whole)
    assert shade.sum() == 0
