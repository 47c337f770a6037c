"""The layer viewer's Python half: the bytes that it sends, and what it refuses."""

import numpy as np
import pytest
import torch
from test_clip import make_clip
from traitlets import TraitError

from vera_lite.media.clip import to_uint8
from vera_lite.pipelines import EditResult
from vera_lite.widgets.layer_viewer import BUDGET, LayerViewer


def edit_result(clip):
    return EditResult(clip.final, clip.composite, clip.edit, clip.alpha)


def array(viewer, name):
    return np.frombuffer(getattr(viewer, name), np.uint8).reshape(*viewer.size, -1)


def test_the_browser_gets_every_layer_in_eight_bits():
    clip = make_clip()
    viewer = LayerViewer(clip)
    assert viewer.size == [3, 9, 13] and viewer.fps == 8 and viewer.caption == clip.instruction
    for name in ("source", "edit", "alpha", "composite"):
        expected = to_uint8(getattr(clip, name)).permute(0, 2, 3, 1).numpy()
        np.testing.assert_array_equal(array(viewer, name), expected)


def test_an_edit_result_needs_its_source():
    clip = make_clip()
    with pytest.raises(ValueError, match="source"):
        LayerViewer(edit_result(clip))
    viewer = LayerViewer(edit_result(clip), source=clip.source, fps=12)
    assert viewer.source == LayerViewer(clip).source and viewer.fps == 12


def test_thinning_takes_whole_pixels_and_keeps_the_time():
    clip = make_clip(frames=7)
    viewer = LayerViewer(clip, max_frames=3, max_side=5)
    assert viewer.strides == [3, 3] and viewer.size == [3, 3, 5] and viewer.fps == 8 / 3
    expected = to_uint8(clip.edit[::3, :, ::3, ::3]).permute(0, 2, 3, 1).numpy()
    np.testing.assert_array_equal(array(viewer, "edit"), expected)


def test_a_large_clip_is_refused_until_it_is_thinned():
    clip = make_clip(frames=16, height=120, width=160)
    with pytest.raises(ValueError, match=r"160x120 .* 4\.1 MB"):
        LayerViewer(clip)
    viewer = LayerViewer(clip, max_side=128)
    saved = viewer.get_manager_state(widgets=[viewer])["state"][viewer.model_id]
    assert sum(len(buffer["data"]) for buffer in saved["buffers"]) < BUDGET


@pytest.mark.parametrize(
    ("name", "value"),
    [("frame", 3), ("frame", -1), ("view", "x-ray"), ("visible", ["source", "mask"]), ("wipe", 1.5)],
)
def test_a_state_that_cannot_be_shown_is_refused(name, value):
    viewer = LayerViewer(make_clip())
    before = getattr(viewer, name)
    with pytest.raises((ValueError, TraitError)):
        setattr(viewer, name, value)
    assert getattr(viewer, name) == before


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"source": torch.rand(3, 3, 9, 12)}, "source"),
        ({"source": torch.zeros(3, 3, 9, 13, dtype=torch.uint8)}, "source"),
        ({"source": torch.full((3, 3, 9, 13), 255.0)}, "255"),
        ({"source": torch.full((3, 3, 9, 13), torch.nan)}, "nan"),
        ({"fps": 0}, "frame rate"),
        ({"max_side": 0}, "max_side"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(options, named):
    with pytest.raises(ValueError, match=named):
        LayerViewer(make_clip(), **options)
