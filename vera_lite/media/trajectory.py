"""The path and size of an object: keyframes on a frame, drawn by hand or tracked in a video.

Positions are in pixels, x to the right and y down; (0, 0) is the *centre* of the top left pixel, so whole
numbers are pixel centres. Times are shares of the clip: 0 is the first frame, 1 the last.
"""

from __future__ import annotations

import json
import math
import warnings
from bisect import bisect_right
from dataclasses import asdict, dataclass
from itertools import accumulate, pairwise
from numbers import Real
from typing import TYPE_CHECKING, Literal, get_args

from vera_lite.errors import Notice, UserError

if TYPE_CHECKING:  # a path is read and checked before torch is imported
    from torch import Tensor

Timing = Literal["equal_frames", "constant_speed"]
_VERSION = 1


def _is_number(value) -> bool:
    try:
        return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # a whole number of hundreds of digits
        return False


@dataclass(frozen=True)
class Keyframe:
    """A point of a path.

    Attributes:
        x, y: pixels.
        scale: size of the object here, 1 = its own; None or 0: between those of the neighbours.
        time: when the object is here, in [0, 1]; None: the trajectory's timing decides.

    Raises:
        UserError: a value is not a finite number, or out of its range.
    """

    x: float
    y: float
    scale: float | None = None
    time: float | None = None

    def __post_init__(self):
        optional = [v for v in (self.scale, self.time) if v is not None]
        if not all(_is_number(v) for v in (self.x, self.y, *optional)):
            raise UserError(f"{self}: give finite numbers; only scale and time may be None.")
        if (self.scale or 0) < 0 or not 0 <= (self.time or 0) <= 1:
            raise UserError(f"{self}: the scale must not be negative, and the time must lie in [0, 1].")
        for name, value in vars(self).items():
            object.__setattr__(self, name, None if value is None else float(value))


@dataclass(frozen=True)
class Trajectory:
    """The path of one object: straight lines between keyframes.

    A keyframe without a time gets one between its neighbours', as ``timing`` says; the first is at 0 and the
    last at 1. Two keyframes with one place and two times let the object rest.

    The default timing, and ``scales``, are those of GenCompositor's released demonstration (arXiv
    2509.02460). The demonstration also drops the fraction of every position. Here only :meth:`to_txt` does,
    or an object in a small frame would move in jumps.

    Attributes:
        keyframes: one or more, in order. A keyframe outside the frame is moved to its edge, with a warning
            that names it.
        size: (H, W) of the frame in pixels.
        timing: "equal_frames": every segment takes the same time, so the object is faster in a longer one;
            "constant_speed": time is proportional to length.
        scales: one number, or several, spread evenly over the clip and linear between. Empty ones (None or 0)
            are skipped, and the last is repeated instead: (0.4, None, 0.6) means (0.4, 0.6, 0.6). Scales of
            the keyframes replace it: linear between them, constant outside.

    Raises:
        UserError: no keyframe, times out of order, no scale, two kinds of scales, or a bad value.
    """

    keyframes: tuple[Keyframe, ...]
    size: tuple[int, int]
    timing: Timing = "equal_frames"
    scales: tuple[float | None, ...] = (1.0,)

    def __post_init__(self):
        keyframes, scales, size = tuple(self.keyframes), tuple(self.scales), tuple(self.size)
        if not keyframes:
            raise UserError("a trajectory needs at least one keyframe.")
        if len(size) != 2 or not all(_is_number(n) and n == int(n) and n > 0 for n in size):
            raise UserError(f"the frame's size is {size}; it must be (height, width) in whole pixels.")
        if self.timing not in get_args(Timing):
            raise UserError(f"timing must be equal_frames or constant_speed, not {self.timing!r}.")
        if not all(s is None or (_is_number(s) and s >= 0) for s in scales) or not any(scales):
            raise UserError(f"scales are {scales}; give at least one number above 0.")
        if any(k.scale for k in keyframes) and scales != (1.0,):
            raise UserError("give scales for the clip, or a scale for each keyframe, not both.")
        times = [k.time for k in keyframes if k.time is not None]
        if times != sorted(times):
            raise UserError(f"the keyframes have the times {times}; put them in order.")

        height, width = (int(n) for n in size)
        clamped = tuple(
            Keyframe(min(max(k.x, 0), width - 1), min(max(k.y, 0), height - 1), k.scale, k.time)
            for k in keyframes
        )
        moved = [str(i) for i, (old, new) in enumerate(zip(keyframes, clamped, strict=True), 1) if old != new]
        if moved:
            warnings.warn(
                f"Keyframes {', '.join(moved)} (counted from 1) lay outside the {width}x{height} frame and "
                "were moved to its edge.",
                Notice,
                stacklevel=3,
            )
        scales = tuple(None if s is None else float(s) for s in scales)
        for name, value in {"keyframes": clamped, "size": (height, width), "scales": scales}.items():
            object.__setattr__(self, name, value)

    # --- sampling ----------------------------------------------------------------------------------
    # The path editor's JavaScript gives the same bits with the same steps in double precision: only + - * /
    # and sqrt, in the order of the parentheses, and sums from left to right (``sum`` is more exact since
    # Python 3.12).

    def times(self) -> list[float]:
        """The time of each keyframe, never falling.

        Between known times t_a and t_b:  t_i = t_a + ((t_b - t_a) * w_i) / w_b,  w being the length
        so far, sqrt((dx * dx) + (dy * dy)) a segment, or the segments so far.
        """
        known = {i: k.time for i, k in enumerate(self.keyframes) if k.time is not None}
        last = len(self.keyframes) - 1
        known = {last: 1.0, 0: 0.0} | known
        times = [known.get(i, 0.0) for i in range(last + 1)]
        for a, b in pairwise(sorted(known)):
            offsets = [(q.x - p.x, q.y - p.y) for p, q in pairwise(self.keyframes[a : b + 1])]
            lengths = [math.sqrt(dx * dx + dy * dy) for dx, dy in offsets]
            if self.timing == "equal_frames" or not any(lengths):
                lengths = [1.0] * (b - a)
            so_far = list(accumulate(lengths))
            for i in range(a + 1, b):
                time = times[a] + (times[b] - times[a]) * so_far[i - a - 1] / so_far[-1]
                times[i] = min(time, times[b])  # rounding must not move it behind the next
        return times

    def sample(self, n: int) -> tuple[Tensor, Tensor]:
        """Position and scale in each of n frames.

        Frame i is at t = i / (n - 1), a single frame at 0. With j the last keyframe that is not later:
        v = v_j + ((v_(j+1) - v_j) * (t - t_j)) / (t_(j+1) - t_j)  for each of x, y and scale.

        Returns:
            Positions (n, 2) as x, y in pixels, and scales (n,), both float64.

        Raises:
            UserError: n < 1.
        """
        import torch

        if n < 1:
            raise UserError(f"a trajectory can be sampled at one frame or more, not {n}.")
        times = self.times()
        scaled = [(t, k.scale) for t, k in zip(times, self.keyframes, strict=True) if k.scale]
        if not scaled:
            scales = [s for s in self.scales if s]
            scales += scales[-1:] * (len(self.scales) - len(scales))
            scaled = [(i / max(len(scales) - 1, 1), s) for i, s in enumerate(scales)]
        xs, ys = ([getattr(k, axis) for k in self.keyframes] for axis in "xy")
        tracks = (times, xs), (times, ys), tuple(zip(*scaled, strict=True))
        rows = [[_interpolate(at, to, i / max(n - 1, 1)) for at, to in tracks] for i in range(n)]
        values = torch.tensor(rows, dtype=torch.float64)
        return values[:, :2], values[:, 2]

    # --- files -------------------------------------------------------------------------------------

    def to_json(self) -> str:
        """The trajectory as JSON for :meth:`from_json`."""
        return json.dumps({"version": _VERSION, **asdict(self)})

    @classmethod
    def from_json(cls, text: str) -> Trajectory:
        """Read the JSON of :meth:`to_json` or of the path editor; UserError if it is anything else."""
        try:
            fields = json.loads(text)
            version = fields.pop("version")
            if version != _VERSION:
                raise UserError(f"the trajectory has version {version!r}, not {_VERSION}; draw it again.")
            keyframes = tuple(Keyframe(**keyframe) for keyframe in fields.pop("keyframes"))
            return cls(keyframes, **fields)
        except (json.JSONDecodeError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise UserError(f"this is not the JSON of a trajectory ({error!r}); export it again.") from error

    def to_txt(self, n: int) -> str:
        """GenCompositor's format: one ``x,y`` per frame, without fractions and scales."""
        positions, _ = self.sample(n)
        # 2.9999999 is a 3 with rounding errors and must not become 2. Nothing here is negative.
        return "".join(f"{int(x)},{int(y)}\n" for x, y in (positions + 1e-6).tolist())

    @classmethod
    def from_txt(cls, text: str, size: tuple[int, int]) -> Trajectory:
        """Read GenCompositor's format, one keyframe per line; UserError if it is anything else."""
        keyframes = []
        for number, line in enumerate(text.strip().splitlines(), 1):
            try:
                x, y = (float(word) for word in line.split(","))
            except ValueError as error:
                raise UserError(f"line {number} of the path is {line!r}; write it as x,y.") from error
            keyframes.append(Keyframe(x, y))
        return cls(tuple(keyframes), size)


def _interpolate(times, values, t: float) -> float:
    """Linear between knots, constant outside."""
    j = bisect_right(times, t)
    if j in (0, len(times)):
        return values[0 if j == 0 else -1]
    return values[j - 1] + (values[j] - values[j - 1]) * (t - times[j - 1]) / (times[j] - times[j - 1])


def track_point(video: Tensor, point: tuple[float, float], window: int = 48) -> Trajectory:
    """Follow one point through a video by optical flow (iterative Lucas-Kanade of scikit-image).

    The point is lost when it leaves the frame, or when the 21x21 pixels around it no longer look like those
    of the first frame (correlation below 0.5): behind an occlusion, after a cut, after much turning or
    zooming, or where there is no texture. It then rests where it was seen last.

    Args:
        video: (T, 3, H, W), floating or uint8.
        point: x, y in the first frame, in pixels.
        window: pixels to search on each side; a few times the motion between two frames.

    Returns:
        A trajectory with one keyframe per frame. If the point is lost, a warning says when.

    Raises:
        UserError: the video has another shape, or the point is outside the frame.
    """
    import torch
    from skimage.registration import optical_flow_ilk  # slow to import

    if video.ndim != 4 or video.shape[1] != 3 or not video.numel():
        raise UserError(f"the video to track in has shape {tuple(video.shape)}; it must be (T, 3, H, W).")
    frames, _, height, width = video.shape
    x, y = (float(v) for v in point)
    if not (0 <= x <= width - 1 and 0 <= y <= height - 1):
        raise UserError(f"the point ({x:g}, {y:g}) is outside the {width}x{height} frame; choose one inside.")
    reach = torch.arange(-10, 11)

    def patch(t: int, x: float, y: float) -> Tensor:  # (441,), the border repeated outside
        rows, columns = ((round(v) + reach).clamp(0, n - 1) for v, n in ((y, height), (x, width)))
        return video[t][:, rows[:, None], columns].double().mean(0).flatten()

    path, clicked = [Keyframe(x, y)], patch(0, x, y)
    for t in range(1, frames):
        found, likeness = None, 0.5
        # Something fast at the rim can disturb the flow in a whole window, but not in a smaller one.
        for side in (window, window // 2, window // 4):
            left, top = max(round(x) - side, 0), max(round(y) - side, 0)
            crop = video[t - 1 : t + 1, :, top : round(y) + side + 1, left : round(x) + side + 1]
            flow = optical_flow_ilk(*crop.float().mean(1).cpu().numpy(), radius=15)  # rows come first
            # The flow is smooth, so its value at the nearest pixel will do.
            dy, dx = flow[:, round(y) - top, round(x) - left].tolist()
            if 0 <= x + dx <= width - 1 and 0 <= y + dy <= height - 1:
                correlation = torch.stack([clicked, patch(t, x + dx, y + dy)]).corrcoef()[0, 1].item()
                if correlation > likeness:  # not if it is nan, as on a plain area
                    found, likeness = (x + dx, y + dy), correlation
        if found is None:
            warnings.warn(
                f"The point is lost in frame {t} of 0..{frames - 1}; it then rests at ({x:.1f}, {y:.1f}).",
                Notice,
                stacklevel=2,
            )
            path += path[-1:] * (frames - t)
            break
        x, y = found
        path.append(Keyframe(x, y))
    return Trajectory(tuple(path), (height, width))
