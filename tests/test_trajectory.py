"""Paths: their timing, their files, and points tracked through a video."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import map_coordinates

from vera_lite.errors import UserError
from vera_lite.media.trajectory import Keyframe, Trajectory, track_point
from vera_lite.toy.drawing import _photo_atlas

FIXTURE = Path(__file__).parent / "data" / "trajectories.json"
SIZE = (90, 120)


def path(*points, timing="equal_frames", scales=(1.0,), size=SIZE):
    return Trajectory(tuple(Keyframe(*p) for p in points), size, timing, scales)


def fixture_cases() -> list[dict]:
    """Cases that the path editor's JavaScript must reproduce bit for bit."""
    bent = [(3, 4), (43.1, 34.7), (43.1, 80), (110.25, 0.1)]
    cases = [
        (path((7, 8)), 3),
        (path((0, 0), (119, 89)), 1),
        (path((0, 0), (100, 10), (100, 80)), 9),
        (path(*bent), 49),
        (path(*bent, timing="constant_speed"), 49),
        (path((5, 5), (5, 5), (5, 5), timing="constant_speed"), 5),
        (path((0, 0, None, 0.1), (60, 0), (60, 30), (60, 30, None, 0.7), (119, 89, None, 0.9)), 17),
        (path((0, 0), (60, 5, None, 0.3), (60, 5, None, 0.8), (119, 89), timing="constant_speed"), 17),
        (path(*bent, scales=(0.4, 0.0, None, 0.9, 0.7)), 17),
        (path((3, 4, 0.4), (43.1, 34.7, 0), (43.1, 80, 0.9), (110.25, 0.1), timing="constant_speed"), 17),
    ]
    return [
        {
            "trajectory": json.loads(trajectory.to_json()),
            "n": n,
            "times": trajectory.times(),
            "positions": trajectory.sample(n)[0].tolist(),
            "scales": trajectory.sample(n)[1].tolist(),
        }
        for trajectory, n in cases
    ]


numbers = st.floats(0, 89, allow_nan=False)
keyframes = st.builds(Keyframe, numbers, numbers, st.none() | st.floats(0, 4))
trajectories = st.builds(
    Trajectory,
    st.lists(keyframes, min_size=1, max_size=6).map(tuple),
    st.just(SIZE),
    st.sampled_from(["equal_frames", "constant_speed"]),
)


# --- sampling ------------------------------------------------------------------------------------


def test_equal_frames_give_every_segment_the_same_time():
    positions, scales = path((0, 0), (100, 0), (100, 10)).sample(9)
    assert positions[:, 0].tolist() == [0, 25, 50, 75, 100, 100, 100, 100, 100]
    assert positions[:, 1].tolist() == [0, 0, 0, 0, 0, 2.5, 5, 7.5, 10]
    assert scales.tolist() == [1.0] * 9


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 119), st.integers(0, 89)), min_size=2, max_size=6), st.integers(2, 60)
)
def test_the_txt_form_is_the_exact_fraction_truncated(points, n):
    segments = len(points) - 1
    expected = []
    for i in range(n):  # in whole numbers: frame i is i * segments / (n - 1) segments along
        j = min(i * segments // (n - 1), segments - 1)
        rest = i * segments - j * (n - 1)
        ends = zip(points[j], points[j + 1], strict=True)
        expected.append("{},{}".format(*((a * (n - 1) + (b - a) * rest) // (n - 1) for a, b in ends)))
    assert path(*points).to_txt(n).splitlines() == expected


@settings(deadline=None)
@given(trajectories, st.integers(2, 30))
def test_samples_go_from_the_first_to_the_last_keyframe_inside_the_frame(trajectory, n):
    positions, scales = trajectory.sample(n)
    first, last = trajectory.keyframes[0], trajectory.keyframes[-1]
    assert positions[0].tolist() == [first.x, first.y] or first.x == last.x or trajectory.times()[1] == 0
    assert positions[-1].tolist() == [last.x, last.y]
    assert positions.min() >= -1e-9 and positions.max() <= 89 + 1e-9
    assert (scales > 0).all()


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(numbers, numbers), min_size=2, max_size=6), st.integers(2, 40))
def test_constant_speed_never_goes_faster_than_length_over_time(points, n):
    trajectory = path(*points, timing="constant_speed")
    length = sum(math.dist(p, q) for p, q in zip(points, points[1:], strict=False))
    positions, _ = trajectory.sample(n)
    steps = positions.diff(dim=0).norm(dim=1)
    assert steps.max() <= length / (n - 1) + 1e-6
    if len(points) == 2:
        torch.testing.assert_close(steps, torch.full_like(steps, length / (n - 1)))


def test_constant_speed_steps_are_equal_on_a_right_angle():
    positions, _ = path((0, 0), (30, 0), (30, 10), timing="constant_speed").sample(5)
    assert positions.tolist() == [[0, 0], [10, 0], [20, 0], [30, 0], [30, 10]]


def test_an_object_rests_between_two_times_and_outside_the_known_ones():
    held = path((0, 0, None, 0.25), (40, 0, None, 0.5), (40, 0, None, 0.75), (80, 0), timing="constant_speed")
    assert held.sample(9)[0][:, 0].tolist() == [0, 0, 0, 20, 40, 40, 40, 60, 80]


@pytest.mark.parametrize(
    ("scales", "expected"),
    [
        ((0.5,), [0.5] * 5),
        ((1.0, 2.0), [1, 1.25, 1.5, 1.75, 2]),
        ((1.0, 0.0, 2.0), [1, 1.5, 2, 2, 2]),
        ((None, 1.0, 3.0), [1, 2, 3, 3, 3]),
    ],
)
def test_scales_spread_evenly_and_skip_what_is_empty(scales, expected):
    assert path((0, 0), (50, 50), (0, 0), scales=scales).sample(5)[1].tolist() == expected


def test_scales_of_keyframes_follow_their_times():
    trajectory = path((0, 0), (10, 0, 1.0), (20, 0), (30, 0, 3.0, 0.5), (40, 0))
    times = trajectory.times()
    assert times == pytest.approx([0, 1 / 6, 1 / 3, 0.5, 1])
    assert trajectory.sample(13)[1].tolist() == pytest.approx([1, 1, 1, 1.5, 2, 2.5] + [3] * 7)


def test_the_fixture_for_the_path_editor_is_up_to_date():
    stored = json.loads(FIXTURE.read_text())
    assert stored == fixture_cases(), "run: python tests/test_trajectory.py"
    for case in stored:
        positions, scales = Trajectory.from_json(json.dumps(case["trajectory"])).sample(case["n"])
        assert positions.tolist() == case["positions"] and scales.tolist() == case["scales"]


# --- what is refused, and what is mended with a warning ------------------------------------------


def test_keyframes_outside_the_frame_are_clamped_and_named():
    with pytest.warns(UserWarning, match=r"2, 3 .*120x90"):
        trajectory = path((119, 89), (-3, 20), (50, 90.5, 2.0, 1.0))
    assert trajectory.keyframes == (Keyframe(119, 89), Keyframe(0, 20), Keyframe(50, 89, 2.0, 1.0))


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (path, "keyframe"),
        (lambda: path((float("nan"), 0)), "finite"),
        (lambda: path((True, 0)), "finite"),
        (lambda: path((0, 0, -1.0)), "scale"),
        (lambda: path((0, 0, None, 1.5)), "time"),
        (lambda: path((0, 0, None, 0.5), (1, 1, None, 0.4)), "time"),
        (lambda: path((0, 0), scales=(0.0, None)), "scales"),
        (lambda: path((0, 0), scales=(-1.0,)), "scales"),
        (lambda: path((0, 0, 2.0), scales=(0.5,)), "scale"),
        (lambda: path((0, 0), timing="fast"), "fast"),
        (lambda: path((0, 0), size=(0, 5)), "size"),
        (lambda: path((0, 0)).sample(0), "frame"),
    ],
)
def test_bad_paths_are_refused(make, named):
    with pytest.raises(UserError, match=named):
        make()


# --- files ---------------------------------------------------------------------------------------


@settings(deadline=None)
@given(trajectories)
def test_json_gives_an_equal_trajectory_back(trajectory):
    assert Trajectory.from_json(trajectory.to_json()) == trajectory


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("no json", "JSON"),
        ("[1]", "JSON"),
        ("{}", "JSON"),
        ({"version": 2}, "version"),
        ({"colour": "red"}, "colour"),
        ({"size": 5}, "JSON"),
        ({"keyframes": [[1, 2]]}, "JSON"),
        ({"keyframes": [{"x": 1}]}, "'y'"),
        ({"keyframes": [{"x": "1", "y": 2}]}, "finite"),
        ({"keyframes": [{"x": float("inf"), "y": 2}]}, "finite"),
        ({"scales": 0.5}, "JSON"),
    ],
)
def test_bad_json_is_refused(change, named):
    text = change if isinstance(change, str) else json.dumps(json.loads(path((1, 2)).to_json()) | change)
    with pytest.raises(UserError, match=named):
        Trajectory.from_json(text)


@settings(deadline=None)
@given(trajectories, st.integers(1, 30))
def test_a_txt_path_gives_its_own_lines_back(trajectory, n):
    text = trajectory.to_txt(n)
    assert len(text.splitlines()) == n
    again = Trajectory.from_txt(text, SIZE)
    assert again.to_txt(n) == text
    lines = [[float(word) for word in line.split(",")] for line in text.splitlines()]
    assert again.sample(n)[0].tolist() == lines


@pytest.mark.parametrize("text", ["1,2\n3", "1,2,3", "a,b"])
def test_bad_txt_is_refused(text):
    with pytest.raises(UserError, match="line"):
        Trajectory.from_txt(text, SIZE)
    with pytest.raises(UserError, match="keyframe"):
        Trajectory.from_txt("\n", SIZE)


# --- tracking ------------------------------------------------------------------------------------


def moving_photo(dx: float, dy: float, frames: int = 6) -> torch.Tensor:
    """A photograph that moves by (dx, dy) pixels a frame, seen through a window of 80x80."""
    photo = _photo_atlas()[2].double().numpy()
    y, x = torch.meshgrid(torch.arange(24.0, 104), torch.arange(24.0, 104), indexing="ij")
    views = [
        [map_coordinates(channel, [y - t * dy, x - t * dx], order=3, mode="reflect") for channel in photo]
        for t in range(frames)
    ]
    return torch.from_numpy(np.array(views)).float().clamp(0, 1)


@pytest.mark.parametrize("as_bytes", [False, True])
@pytest.mark.parametrize("motion", [(0.0, 0.0), (0.4, -0.3), (2.3, 1.7), (-5.5, 3.0)])
def test_a_tracked_point_follows_known_motion_to_a_quarter_pixel(motion, as_bytes, recwarn):
    video = moving_photo(*motion)
    trajectory = track_point((video * 255).round().byte() if as_bytes else video, (42, 36))
    positions, _ = trajectory.sample(len(video))
    expected = torch.tensor([42.0, 36.0]) + torch.arange(6)[:, None] * torch.tensor(motion)
    assert (positions - expected).norm(dim=1).max() < 0.25
    assert not recwarn.list


def test_a_point_that_leaves_is_lost_with_a_warning():
    with pytest.warns(UserWarning, match=r"frame \d"):
        trajectory = track_point(moving_photo(-6, 0), (14, 40))
    positions, _ = trajectory.sample(6)
    assert len(trajectory.keyframes) == 6
    assert torch.equal(positions[-1], positions[-2]) and positions[-1, 0] < 9


def test_a_point_behind_a_cut_is_lost():
    video = moving_photo(0, 0)
    video[3:] = torch.rand(3, 3, 80, 80, generator=torch.Generator().manual_seed(0))
    with pytest.warns(UserWarning, match="frame 3"):
        trajectory = track_point(video, (42, 36))
    assert trajectory.keyframes[-1] == trajectory.keyframes[2]


def test_something_quick_beside_the_point_does_not_lose_it(recwarn):
    video = moving_photo(0, 0, frames=4)
    for t in range(4):
        video[t, :, :, 80 - 12 * t :] = 1  # comes in from the right
    trajectory = track_point(video, (24, 40))
    assert not recwarn.list
    assert math.dist((24, 40), (trajectory.keyframes[-1].x, trajectory.keyframes[-1].y)) < 0.25


def test_tracking_refuses_a_point_outside_and_other_shapes():
    with pytest.raises(UserError, match="80x80"):
        track_point(moving_photo(0, 0, 1), (80, 3))
    with pytest.raises(UserError, match="3, 80, 80"):
        track_point(torch.rand(3, 80, 80), (1, 1))


if __name__ == "__main__":
    FIXTURE.parent.mkdir(exist_ok=True)
    FIXTURE.write_text(json.dumps(fixture_cases(), indent=1) + "\n")
