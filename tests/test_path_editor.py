"""The path editor's Python half: the pictures that it sends, the paths that it reads, what it refuses."""

import io
import json

import numpy as np
import pytest
import torch
from PIL import Image
from traitlets import TraitError

from vera_lite.media.clip import to_uint8
from vera_lite.media.trajectory import Keyframe, Trajectory
from vera_lite.widgets.path_editor import BACKGROUND_SIDE, BUDGET, FOREGROUND_SIDE, STILL_FRAMES, PathEditor

SIZE = (20, 30)


def clip(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def background(frames=5):
    return clip(frames, 3, *SIZE)


def foreground(frames=5, height=12, width=16):
    """Visible in rows 2..8 and columns 3..12, over all frames."""
    alpha = torch.zeros(frames, 1, height, width)
    alpha[0, :, 2:6, 5:13] = 1
    alpha[-1, :, 4:9, 3:9] = 0.5
    return clip(frames, 3, height, width, seed=1), alpha


def path(*points, timing="equal_frames", scales=(1.0,), size=SIZE):
    return Trajectory(tuple(Keyframe(*p) for p in points), size, timing, scales)


def decoded(files):
    return np.stack([np.array(Image.open(io.BytesIO(file))) for file in files])


def draw(editor, number, *points):
    """What the browser sends when keyframes were drawn."""
    objects = json.loads(json.dumps(editor.objects))
    names = ("x", "y", "scale", "time")
    objects[number]["trajectory"]["keyframes"] = [
        dict.fromkeys(names) | dict(zip(names, point, strict=False)) for point in points
    ]
    editor.set_state({"objects": objects, "object": number, "keyframe": len(points) - 1})


# --- pictures ------------------------------------------------------------------------------------


def test_small_pictures_are_exact():
    editor = PathEditor(background(), foreground(), fps=12)
    expected = to_uint8(background()).permute(0, 2, 3, 1).numpy()
    np.testing.assert_array_equal(decoded(editor._background), expected)
    assert editor._facts["frames"] == 5 and editor._facts["fps"] == 12
    assert editor._facts["size"] == editor._facts["shown"] == list(SIZE)

    colour, alpha = foreground()
    expected = to_uint8(torch.cat([colour, alpha], 1))[:, :, :11, 1:15].permute(0, 2, 3, 1).numpy()
    seen = expected[..., 3] > 0
    shown = decoded(editor._foregrounds[0])  # with a margin of two
    np.testing.assert_array_equal(shown[seen], expected[seen])
    assert not shown[~seen].any()
    assert editor._facts["foregrounds"] == [[1 - 16 / 2, 0 - 12 / 2, 14, 11]]


def test_large_videos_are_shown_smaller_and_stay_well_under_the_budget():
    # As smooth as photographs are.
    small = clip(17, 3, 12, 22)
    video = torch.nn.functional.interpolate(small, (720, 1280), mode="bicubic").clamp(0, 1)
    dog = torch.nn.functional.interpolate(small, (240, 400), mode="bicubic").clamp(0, 1)
    alpha = torch.zeros(17, 1, 240, 400)
    alpha[:, :, 20:220, 40:360] = 1
    editor = PathEditor(video, (dog, alpha))
    assert editor._facts["size"] == [720, 1280] and editor._facts["frames"] == 17
    assert decoded(editor._background).shape == (16, 360, BACKGROUND_SIDE, 3)
    assert editor._facts["shown"] == [360, BACKGROUND_SIDE]
    assert decoded(editor._foregrounds[0]).shape == (16, 101, FOREGROUND_SIDE, 4)
    assert editor._facts["foregrounds"] == [[-162, -102, 324, 204]]
    first, last = decoded(editor._background)[[0, -1]] / 255
    for frame, t in ((first, 0), (last, 16)):
        assert abs(frame - video[t, :, ::2, ::2].permute(1, 2, 0).numpy()).mean() < 0.02
    saved = editor.get_manager_state(widgets=[editor])["state"][editor.model_id]
    assert len(json.dumps(saved)) < BUDGET / 2


def test_a_picture_lasts_as_long_as_the_videos():
    picture = clip(3, *SIZE)
    assert PathEditor(picture)._facts["frames"] == STILL_FRAMES
    assert PathEditor(picture, foreground(9))._facts["frames"] == 9
    assert PathEditor(background(9), foreground(1))._facts["frames"] == 9


# --- paths ---------------------------------------------------------------------------------------


def test_what_is_drawn_is_read():
    editor = PathEditor(background())
    with pytest.raises(ValueError, match="object 1"):
        _ = editor.trajectory
    draw(editor, 0, (3, 4), (10.5, 12, 0.5, 0.25), (29, 19))
    assert editor.trajectory == path((3, 4), (10.5, 12, 0.5, 0.25), (29, 19))
    assert editor.trajectories == [editor.trajectory] and editor.keyframe == 2


def test_several_objects_are_read_in_order():
    pairs = [foreground(), foreground(height=10)]
    editor = PathEditor(background(), pairs)
    assert [item["foreground"] for item in editor.objects] == [0, 1]
    draw(editor, 1, (5, 6))
    with pytest.raises(ValueError, match="object 1"):
        _ = editor.trajectories
    draw(editor, 0, (1, 2))
    assert editor.trajectories == [path((1, 2)), path((5, 6))]
    with pytest.raises(ValueError, match="trajectories"):
        _ = editor.trajectory


def test_given_paths_come_back_as_they_were():
    paths = [
        path((3, 4, 0.4), (10.1, 12.7, 0.0), (29, 19, None, 0.9), timing="constant_speed"),
        path((0, 0), scales=(0.4, None, 0.6)),
        path((7, 8)),
    ]
    editor = PathEditor(background(), [foreground(), foreground()], paths)
    assert editor.trajectories == paths
    assert [item["foreground"] for item in editor.objects] == [0, 1, 1]
    assert [item["trajectory"] for item in editor.objects] == [json.loads(p.to_json()) for p in paths]
    editor.object, editor.keyframe = 0, 2
    editor.trajectories = paths[2]
    assert [len(item["trajectory"]["keyframes"]) for item in editor.objects] == [1, 0]
    assert (editor.object, editor.keyframe) == (0, -1)
    assert PathEditor(background(), trajectories=paths[0]).trajectory == paths[0]


# --- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: PathEditor(clip(5, 1, 8, 8)), "background"),
        (lambda: PathEditor(to_uint8(background())), "background"),
        (lambda: PathEditor(clip(8, 8)), "background"),
        (lambda: PathEditor(background() * 255), "background"),
        (lambda: PathEditor(background() * torch.nan), "background"),
        (lambda: PathEditor(background(), (foreground()[1], foreground()[1])), "foreground 1"),
        (lambda: PathEditor(background(), [foreground(), foreground()[::-1]]), "foreground 2"),
        (lambda: PathEditor(background(), (foreground(5)[0], foreground(4)[1])), "alpha"),
        (lambda: PathEditor(background(), (foreground()[0], 0 * foreground()[1])), "foreground 1"),
        (lambda: PathEditor(background(), foreground()[:1]), "pair"),
        (lambda: PathEditor(background(), trajectories=[path((1, 1)).to_json()]), "Trajectory"),
        (lambda: PathEditor(background(5), foreground(9)), r"\[5, 9\]"),
        (lambda: PathEditor(background(), fps=0), "frame rate"),
        (lambda: PathEditor(background(), trajectories=path((1, 1), size=(9, 9))), "9x9"),
        (lambda: PathEditor(clip(16, 3, 640, 640)), "MB"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(make, named):
    with pytest.raises(ValueError, match=named):
        make()


@pytest.mark.parametrize(
    ("name", "value", "named"),
    [
        ("frame", 5, "frame"),
        ("frame", -1, "frame"),
        ("object", 1, "object"),
        ("keyframe", 2, "keyframe"),
        ("disc", 0.0, "disc"),
        ("disc", float("inf"), "disc"),
        ("objects", [], "object"),
        ("objects", [{"trajectory": {}}], "foreground"),
        ("objects", [{"foreground": 0, "trajectory": {"keyframes": []}}], "trajectory"),
    ],
)
def test_a_state_that_cannot_be_shown_is_refused(name, value, named):
    editor = PathEditor(background(), trajectories=path((1, 2), (3, 4)))
    before = getattr(editor, name)
    with pytest.raises((ValueError, TraitError), match=named):
        setattr(editor, name, value)
    assert getattr(editor, name) == before


def test_a_path_that_cannot_be_read_is_refused_and_shown():
    editor = PathEditor(background())
    with pytest.raises(ValueError, match="time"):
        draw(editor, 0, (1, 1, None, 0.9), (2, 2, None, 0.1))
    assert "time" in editor.error
