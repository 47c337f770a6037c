"""Clips and masks for the ladder, read from files."""

import warnings

import pytest
import torch

from vera_lite.errors import UserError
from vera_lite.media.masked_clips import read_masked_clips
from vera_lite.media.video_writer import write_video


@pytest.fixture
def folder(tmp_path):
    """clips/ and masks/, both empty."""
    for name in ("clips", "masks"):
        (tmp_path / name).mkdir()
    return tmp_path


def put(folder, name, mask, fps=8, clip=None, suffix=".mkv"):
    """Write a clip, by default its frame numbers as grey levels, and its mask (T, 1, H, W), both uint8."""
    if clip is None:
        clip = torch.arange(len(mask))[:, None, None, None].expand(len(mask), 3, *mask.shape[-2:])
    write_video(folder / "clips" / f"{name}{suffix}", clip.to(torch.uint8), fps, "lossless")
    write_video(folder / "masks" / f"{name}.mask.mkv", mask, fps, "lossless")


def box(frames, height=12, width=20, rows=slice(3, 9), columns=slice(2, 8)):
    mask = torch.zeros(frames, 1, height, width, dtype=torch.uint8)
    mask[..., rows, columns] = 255
    return mask


def read(folder, **options):
    return list(read_masked_clips(folder / "clips", folder / "masks", **options))


def test_frames_are_sampled_evenly_and_at_a_true_rate(folder):
    put(folder, "long", box(24), fps=8)
    put(folder, "short", box(3), fps=6)
    (long, clip, mask, fps), (short, repeated, _, short_fps) = read(folder, frames=6, size=(12, 20))
    assert (long, short) == ("long", "short")
    assert clip.shape == (6, 3, 12, 20)
    assert mask.shape == (6, 1, 12, 20)
    numbers = (clip[:, 0, 0, 0] * 255).round().int().tolist()
    assert numbers == [0, 4, 8, 12, 16, 20]
    # The time that a model is told for sampled frame i is that of the frame in the file.
    assert [i / fps for i in range(6)] == pytest.approx([n / 8 for n in numbers])
    assert (repeated[:, 0, 0, 0] * 255).round().int().tolist() == [0, 0, 1, 1, 2, 2]
    assert short_fps == pytest.approx(6 / 0.5)


@pytest.mark.parametrize(("height", "width"), [(12, 32), (32, 20), (12, 20)], ids=["wide", "tall", "same"])
def test_clip_and_mask_are_cropped_and_resized_alike(folder, height, width):
    """A white box on black is its own mask; the centre stays in the centre."""
    middle = (height // 2, width // 2)
    mask = box(2, height, width, *(slice(m - 3, m + 3) for m in middle))
    put(folder, "box", mask, clip=mask.expand(-1, 3, -1, -1))
    [(_, clip, small, _)] = read(folder, frames=2, size=(6, 10))
    assert clip.shape == (2, 3, 6, 10)
    torch.testing.assert_close(clip, small.expand(-1, 3, -1, -1))
    torch.testing.assert_close(small, small.flip(-1), atol=0.01, rtol=0)
    torch.testing.assert_close(small, small.flip(-2), atol=0.01, rtol=0)
    assert 0 <= small.min() < small.max() <= 1
    scale = max(6 / height, 10 / width)  # what is cut away lies beyond the aspect, no more
    assert float(small.mean()) == pytest.approx((6 * scale) ** 2 / 60, rel=0.05)


def test_resizing_is_antialiased(folder):
    """A fine checkerboard becomes grey; without a filter it would stay black and white."""
    rows, columns = torch.meshgrid(torch.arange(24), torch.arange(40), indexing="ij")
    board = ((rows + columns) % 2 * 255).to(torch.uint8).expand(1, 1, 24, 40)
    put(folder, "board", board, clip=board.expand(1, 3, 24, 40))
    [(_, clip, mask, _)] = read(folder, frames=1, size=(8, 14))
    for values in (clip, mask):
        torch.testing.assert_close(values, torch.full_like(values, 0.5), atol=0.1, rtol=0)


def test_masks_that_tell_nothing_are_left_out_with_one_warning(folder):
    put(folder, "a", box(4) * 0)
    put(folder, "b", box(4))
    put(folder, "c", box(4) * 0 + 255)
    with pytest.warns(UserWarning, match="2 of 3") as caught:
        clips = read(folder, frames=2, size=(6, 10))
    assert len(caught) == 1
    assert [name for name, *_ in clips] == ["b"]


def test_only_videos_with_a_mask_are_read_one_at_a_time(folder):
    put(folder, "a", box(2))
    put(folder, "b", box(2))
    (folder / "masks" / "b.mask.mkv").write_bytes(b"damaged")
    write_video(folder / "clips" / "unmasked.mkv", torch.zeros(2, 3, 8, 8, dtype=torch.uint8), 8, "lossless")
    (folder / "clips" / "a.txt").write_text("about a")
    clips = read_masked_clips(folder / "clips", folder / "masks", frames=2, size=(6, 10))
    assert next(clips)[0] == "a"  # before b is looked at
    with pytest.raises(UserError, match=r"b\.mask\.mkv"):
        next(clips)


def test_masks_may_lie_beside_their_videos(folder):
    put(folder, "a", box(2))
    (folder / "masks" / "a.mask.mkv").rename(folder / "clips" / "a.mask.mkv")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        clips = list(read_masked_clips(folder / "clips", folder / "clips", frames=2, size=(6, 10)))
    assert [name for name, *_ in clips] == ["a"]


def test_refusals(folder):
    with pytest.raises(UserError, match="clip"):
        read_masked_clips(folder / "clip", folder / "masks")
    with pytest.raises(UserError, match="mask"):
        read_masked_clips(folder / "clips", folder / "mask")
    with pytest.raises(UserError, match="mask.mkv"):
        read_masked_clips(folder / "clips", folder / "masks")
    put(folder, "a", box(2))
    with pytest.raises(UserError, match="frame"):
        read_masked_clips(folder / "clips", folder / "masks", frames=0)


@pytest.mark.parametrize("shape", [(5, 12, 20), (4, 12, 22)], ids=["length", "size"])
def test_a_mask_of_another_video_is_refused(folder, shape):
    clip = torch.zeros(4, 3, 12, 20)
    put(folder, "a", box(*shape), clip=clip)
    with pytest.raises(UserError, match="a.mask.mkv"):
        read(folder)
