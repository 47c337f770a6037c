"""Segmenters and their checks of themselves, on clips whose masks are known."""

import pytest
import torch

from vera_lite.dataset.checks import Rejected, check_masks
from vera_lite.dataset.segment import BoxSegmenter, MovingSegmenter, PersonSegmenter, segmenter
from vera_lite.errors import UserError
from vera_lite.toy.truth import truth_clip

SIZE = (136, 240)


def iou(a, b):
    a, b = a > 0.5, b > 0.5
    return float((a & b).sum() / (a | b).sum())


@pytest.fixture(scope="module")
def clips():
    """One clip of each kind, 17 small frames."""
    return {clip.attributes["kind"]: clip for clip in (truth_clip(i, 17, SIZE) for i in range(6))}


@pytest.mark.parametrize("kind", ["static", "pan", "thin", "fast", "blurred"])
def test_what_moves_is_found_with_its_soft_rim(clips, kind):
    clip = clips[kind]
    assert iou(MovingSegmenter()(clip.composite), clip.alpha > 0.1) > 0.8


def test_what_does_not_move_is_not_found(clips):
    still = clips["static"].composite[8:9].expand(17, -1, -1, -1)
    with pytest.raises(Rejected) as rejected:
        MovingSegmenter()(still)
    assert rejected.value.reason == "nothing_found"


def test_outside_its_box_nothing_moves(clips):
    clip = clips["static"]
    width = SIZE[1]
    box = (0, 0, width // 2, SIZE[0])
    mask = MovingSegmenter(box=box)(clip.composite)
    assert mask[..., width // 2 :].sum() == 0
    assert iou(mask, (clip.alpha > 0.1) & (torch.arange(width) < width // 2)) > 0.8


def test_a_box_holds_for_a_few_frames():
    clip = truth_clip(7, 49, (135, 240))
    video, truth = clip.composite[:16], clip.mask[:16]
    rows, columns = (truth[0, 0].any(axis).nonzero() for axis in (1, 0))
    x, y = int(columns[0]) - 2, int(rows[0]) - 2
    box = BoxSegmenter((x, y, int(columns[-1]) - x + 3, int(rows[-1]) - y + 3))
    mask = box(video)
    assert iou(mask, truth) > 0.85
    assert torch.equal(mask, box(video))  # no luck in it
    with pytest.raises(Rejected) as rejected:
        box(video[:1].expand(17, -1, -1, -1))
    assert rejected.value.reason == "too_long"


def test_a_box_whose_mask_drifts_says_so():
    truth = disc(*range(16, 32))
    video = 0.2 + 0.6 * truth * torch.tensor([1.0, 0.2, 0.1])[:, None, None]
    box = (102, 42, 37, 37)
    with pytest.raises(Rejected) as rejected:
        BoxSegmenter(box)(video)
    assert rejected.value.reason == "area_drifts"
    assert iou(BoxSegmenter(box, max_drift=100)(video), truth) > 0.95


def test_a_person_is_followed():
    from skimage import data
    from skimage.transform import resize

    photo = (
        torch.from_numpy(resize(data.astronaut()[:288], SIZE, anti_aliasing=True)).float().permute(2, 0, 1)
    )
    video = torch.stack([photo.roll(t, 2) for t in range(3)])
    masks = PersonSegmenter()(video)
    assert 0.15 < masks.mean() < 0.45
    assert iou(masks[0].roll(2, 2), masks[2]) > 0.9
    with pytest.raises(Rejected) as rejected:
        PersonSegmenter()(torch.zeros(3, 3, *SIZE))
    assert rejected.value.reason == "nothing_found"


def disc(*radii, at=(60, 120)):
    y, x = torch.meshgrid(*(torch.arange(side) for side in SIZE), indexing="ij")
    return torch.stack([((y - at[0]) ** 2 + (x - at[1]) ** 2 <= r * r).float() for r in radii])[:, None]


@pytest.mark.parametrize(
    ("masks", "reason"),
    [
        (disc(20, 20, 20, 0), None),
        (disc(0, 0, 0, 20), "nothing_found"),
        (disc(20, 20, 31, 31), "area_jumps"),
        (disc(20, 20, 13, 13), "area_jumps"),
        (disc(31, 20, 20, at=(0, 120)), None),  # it leaves the frame, and may change as it likes
        (disc(200, 200), "covers_everything"),
        (disc(110, 110, at=(68, 0)), "touches_border"),
    ],
)
def test_masks_that_cannot_be_right_are_rejected(masks, reason):
    if reason is None:
        check_masks(masks)
        return
    with pytest.raises(Rejected) as rejected:
        check_masks(masks)
    assert rejected.value.reason == reason
    assert rejected.value.facts


def test_what_a_person_types_chooses_the_segmenter():
    assert segmenter("person") == PersonSegmenter()
    assert segmenter("moving") == MovingSegmenter()
    assert segmenter("moving:8,20,100,60", scale=0.5) == MovingSegmenter(box=(4, 10, 50, 30))
    assert segmenter("8,20,100,60") == BoxSegmenter((8, 20, 100, 60))
    for wrong in ("dog", "1,2", "1,2,3", "moving:a,b,c,d", "person:1,2,3,4", ""):
        with pytest.raises(UserError):
            segmenter(wrong)
    with pytest.raises(UserError):  # outside the frame
        segmenter("500,0,10,10")(torch.zeros(2, 3, *SIZE))
