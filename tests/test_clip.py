"""The layered clip: one compositing formula, honest fields, and files that give the same back."""

import dataclasses
import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vera_lite.errors import UserError
from vera_lite.media import clip as clip_module
from vera_lite.media import files
from vera_lite.media.clip import LayeredClip, composite, to_float, to_uint8
from vera_lite.media.video import read_grey
from vera_lite.media.video_writer import write_video


def make_clip(frames=3, height=9, width=13, seed=0, **changes):
    generator = torch.Generator().manual_seed(seed)
    layers = {
        name: torch.rand(frames, channels, height, width, generator=generator)
        for name, channels in clip_module.LAYERS.items()
    }
    facts = {"instruction": "add a red ring", "fps": 8.0, "attributes": {"colour": "red"}}
    return LayeredClip(**(layers | facts | changes))


# Compositing ------------------------------------------------------------------------------------


@pytest.mark.parametrize("lead", [(), (4,), (2, 4)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_composite_is_the_formula(lead, dtype):
    edit, source = torch.rand(2, *lead, 3, 5, 7).to(dtype)
    alpha = torch.rand(*lead, 1, 5, 7).to(dtype)
    result = composite(edit, alpha, source)
    assert result.dtype == dtype
    torch.testing.assert_close(result, alpha * edit + (1 - alpha) * source)


def bits(x):
    return x.view(torch.int32)


@pytest.mark.parametrize("hidden", [0.5, -1.0, float("inf"), float("-inf"), float("nan")])
def test_alpha_0_is_the_source_bit_for_bit(hidden):
    source = torch.randn(3, 8, 8)
    source[0, 0] = torch.tensor([0.0, -0.0, 1e-45, 3e38, -3e38, 1.0, 0.1, 1 / 3])
    alpha = torch.zeros(1, 8, 8)
    alpha[:, 4:] = torch.rand(1, 4, 8) + 0.01
    edit = torch.full_like(source, hidden)
    result = composite(edit, alpha, source)
    assert torch.equal(bits(result[:, :4]), bits(source[:, :4]))
    assert not torch.equal(bits(result[:, 4:]), bits(source[:, 4:]))


def test_alpha_1_is_the_edit():
    edit, source = torch.rand(2, 3, 8, 8)
    assert torch.equal(composite(edit, torch.ones(1, 8, 8), source), edit)


@pytest.mark.parametrize(
    ("edit", "alpha", "source"),
    [
        ((3, 8, 8), (3, 8, 8), (3, 8, 8)),
        ((3, 8, 8), (8, 8), (3, 8, 8)),
        ((2, 3, 8, 8), (1, 8, 8), (2, 3, 8, 8)),
        ((3, 8, 8), (1, 8, 8), (1, 8, 8)),
        ((3, 8, 8), (1, 1, 1), (3, 8, 8)),
        ((8, 8), (8, 8), (8, 8)),
    ],
)
def test_composite_does_not_guess_about_shapes(edit, alpha, source):
    with pytest.raises(ValueError, match="edit|alpha|source"):
        composite(torch.rand(edit), torch.rand(alpha), torch.rand(source))


def test_composite_refuses_integers():
    edit = torch.zeros(3, 4, 4)
    with pytest.raises(ValueError, match="uint8"):
        composite(edit, torch.zeros(1, 4, 4, dtype=torch.uint8), edit)


# Quantisation -----------------------------------------------------------------------------------


def test_every_byte_survives_floats():
    every_byte = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_uint8(to_float(every_byte)), every_byte)
    assert torch.equal(to_uint8(to_float(every_byte).half()), every_byte)
    assert to_float(every_byte).aminmax() == (0, 1)


def test_to_uint8_rounds_and_clamps():
    x = torch.tensor([-0.5, 0.0, 0.4 / 255, 0.6 / 255, 254.6 / 255, 1.0, 1.5, float("inf")])
    assert to_uint8(x).tolist() == [0, 0, 0, 1, 255, 255, 255, 255]


# The clip ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"edit": torch.rand(3, 1, 9, 13)}, "edit"),
        ({"source": torch.rand(3, 9, 13)}, "source"),
        ({"source": torch.rand(0, 3, 9, 13)}, "source"),
        ({"mask": torch.rand(2, 1, 9, 13)}, "mask"),
        ({"composite": torch.rand(3, 3, 9, 12)}, "composite"),
        ({"mask": torch.ones(3, 1, 9, 13).bool()}, "mask"),
        ({"edit": torch.full((3, 3, 9, 13), 1.01)}, "edit"),
        ({"alpha": torch.full((3, 1, 9, 13), -0.01)}, "alpha"),
        ({"source": torch.full((3, 3, 9, 13), float("nan"))}, "source"),
        ({"instruction": None}, "instruction"),
        ({"fps": 0}, "rate"),
        ({"attributes": {"size": torch.ones(1)}}, "attributes"),
        ({"attributes": {"size": (1, 2)}}, "attributes"),
        ({"attributes": [1, 2]}, "attributes"),
    ],
)
def test_clip_names_the_field_that_is_wrong(change, field):
    with pytest.raises(ValueError, match=field):
        make_clip(**change)


def test_one_nan_is_enough_to_refuse():
    alpha = torch.rand(3, 1, 9, 13)
    alpha[2, 0, 8, 12] = float("nan")
    with pytest.raises(ValueError, match="alpha"):
        make_clip(alpha=alpha)


def test_clip_allows_rounding_outside_the_range():
    make_clip(edit=torch.full((3, 3, 9, 13), 1 + 5e-5), alpha=torch.full((3, 1, 9, 13), -5e-5))


def test_final_keeps_the_source_outside_the_edit():
    alpha = torch.zeros(3, 1, 9, 13)
    alpha[..., 5:] = 1
    clip = make_clip(alpha=alpha)
    assert torch.equal(clip.final[..., :5], clip.source[..., :5])
    assert torch.equal(clip.final[..., 5:], clip.edit[..., 5:])
    assert not torch.equal(clip.final, clip.composite)


def test_clip_is_frozen_and_introduces_itself_briefly():
    clip = make_clip()
    with pytest.raises(dataclasses.FrozenInstanceError):
        clip.fps = 30
    assert repr(clip) == "LayeredClip('add a red ring', 3 frames of 13x9, 8 fps)"
    assert clip == clip != make_clip()  # tensors have no one truth to compare by
    assert make_clip().attributes is not make_clip().attributes


# Files ------------------------------------------------------------------------------------------

FILES = {"source.mkv", "edit.mkv", "alpha.mkv", "composite.mkv", "mask.mkv", "clip.json"}


@settings(max_examples=8, deadline=None)
@given(
    frames=st.integers(1, 4),
    height=st.integers(1, 20),
    width=st.integers(1, 20),
    fps=st.sampled_from([8.0, 24, 29.97, 30000 / 1001, 60]),
    instruction=st.text(max_size=30),
    seed=st.integers(0, 9),
)
def test_saved_clips_come_back(tmp_path_factory, frames, height, width, fps, instruction, seed):
    attributes = {"colour": "röd", "behind": True, "path": [[0.5, 1], None]}
    facts = {"instruction": instruction, "fps": fps, "attributes": attributes}
    clip = make_clip(frames, height, width, seed, **facts)
    folder = tmp_path_factory.mktemp("clips") / "new" / "0001"
    clip.save(folder)
    assert {path.name for path in folder.iterdir()} == FILES
    assert list(folder.parent.iterdir()) == [folder]
    loaded = LayeredClip.load(folder)
    assert (loaded.instruction, loaded.fps, loaded.attributes) == (instruction, fps, attributes)
    for name in clip_module.LAYERS:
        layer, back = getattr(clip, name), getattr(loaded, name)
        assert back.dtype == torch.float32
        assert torch.equal(to_uint8(back), to_uint8(layer)), name
        assert (back - layer).abs().max() <= 0.5 / 255 + 1e-6


def test_mattes_are_stored_as_grey(tmp_path):
    clip = make_clip()
    clip.save(tmp_path / "clip")
    for name in ("alpha", "mask"):
        stored = read_grey(tmp_path / "clip" / f"{name}.mkv")
        assert torch.equal(stored, to_uint8(getattr(clip, name)))


def contents(folder):
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_a_failed_save_leaves_the_old_clip(tmp_path, monkeypatch, error):
    make_clip().save(tmp_path / "clip")
    (tmp_path / "clip" / "notes.txt").write_text("mine")
    before = contents(tmp_path)

    def fail_at_mask(path, *args):
        if path.name == "mask.mkv":
            raise error
        write_video(path, *args)

    monkeypatch.setattr(clip_module, "write_video", fail_at_mask)
    for folder in ("clip", "new"):
        with pytest.raises(error):
            make_clip(seed=1).save(tmp_path / folder)
    assert contents(tmp_path) == before
    assert list(tmp_path.iterdir()) == [tmp_path / "clip"]


def test_a_clip_can_be_saved_over_another(tmp_path):
    make_clip().save(tmp_path / "clip")
    (tmp_path / "clip" / "notes.txt").write_text("mine")
    new = make_clip(frames=2, seed=1)
    new.save(tmp_path / "clip")
    assert torch.equal(to_uint8(LayeredClip.load(tmp_path / "clip").edit), to_uint8(new.edit))
    assert (tmp_path / "clip" / "notes.txt").read_text() == "mine"


def test_a_clip_caught_between_two_saves_is_refused(tmp_path, monkeypatch):
    make_clip().save(tmp_path / "clip")
    moved = []

    def fail_at_third(source, target):
        moved.append(target)
        if len(moved) == 3:
            raise OSError
        source.rename(target)

    monkeypatch.setattr(clip_module, "write_video", lambda path, *_: path.write_bytes(b""))
    monkeypatch.setattr(files.os, "replace", fail_at_third)
    with pytest.raises(OSError):
        make_clip(seed=1).save(tmp_path / "clip")
    with pytest.raises(UserError, match="clip.json"):
        LayeredClip.load(tmp_path / "clip")


def test_broken_folders_are_refused(tmp_path):
    folder = tmp_path / "clip"
    with pytest.raises(UserError, match="clip.json"):
        LayeredClip.load(folder)
    make_clip().save(folder)
    good = (folder / "clip.json").read_text()
    for text in ("", "{", "[]", "{}", '{"instruction": "x", "fps": 8}', "\udcff"):
        (folder / "clip.json").write_bytes(text.encode("utf-8", "surrogateescape"))
        with pytest.raises(UserError, match="clip.json"):
            LayeredClip.load(folder)
    (folder / "clip.json").write_text(json.dumps(json.loads(good) | {"fps": "fast"}))
    with pytest.raises(UserError, match="fast"):
        LayeredClip.load(folder)
    (folder / "clip.json").write_text(good)
    write_video(folder / "mask.mkv", torch.zeros(2, 1, 9, 13, dtype=torch.uint8), 8, "lossless")
    with pytest.raises(UserError, match="mask"):
        LayeredClip.load(folder)
    (folder / "mask.mkv").unlink()
    with pytest.raises(UserError, match="mask.mkv"):
        LayeredClip.load(folder)
    with pytest.raises(UserError, match="edit.mkv"):
        make_clip().save(folder / "edit.mkv")
