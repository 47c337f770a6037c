"""Image processing that names nouns, colours, places, motions and backgrounds in videos of things on places.

There is no network. The judge first describes what it sees, without knowing the request, and then compares
this with the request. It knows the scene without the thing. A square around the thing in every frame is
compared with every sprite at many tilts, laid over the scene. The sprite with the smallest squared error is
the answer.
"""

import functools
import itertools
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from vera_lite.media.clip import composite
from vera_lite.toy.drawing import ClipConfig, Draws
from vera_lite.toy.scenes import PICTURES, backdrop, draw_view
from vera_lite.toy.sprites import COLOURED, FIRST, NOUNS
from vera_lite.toy.things import PLACE_STEP, Thing, look
from vera_lite.toy.words import COLOURS, MOTIONS, PLACES

_TILTS = torch.linspace(-0.36, 0.36, 9)
_SIDE, _REACH = 16, 2.2  # pixels of a square, and how far it reaches, in root mean square radii
_SMALLEST = 0.006  # share of the frame; with less matte above one half, nothing is there
_MISFIT = 0.03  # with a larger mean squared error, a thing is no sprite
_UNSURE = 0.004  # with a larger one, places and sizes nearby are tried too: a tenth of the true things
_CANDIDATES = 16  # sprites that are tried there
_COVERED = 0.1  # squared error of a cell above which a thing may cover the background there
_VIEWS = 24  # of each background picture
STILL = 0.08  # half-frames; the shortest path is twice as long


@dataclass(frozen=True)
class Seen:
    """What the judge sees. ``noun``, ``place`` and ``motion`` are None if there is no thing, ``colour`` also
    if the noun has its own colour. ``misfit`` is the mean squared error of the best sprite. ``steady``: the
    thing is in every frame, has about the same size, and never jumps."""

    noun: str | None = None
    colour: str | None = None
    place: str | None = None
    motion: str | None = None
    misfit: float = 1.0
    steady: bool = False


def _poses(alpha: Tensor) -> tuple[Tensor, Tensor]:
    """Centres (N, 2) as (x, y) and root mean square radii (N,) in half-frames of mattes (N, H, W)."""
    height, width = alpha.shape[-2:]
    x = (torch.arange(width) + 0.5) / width * 2 - 1
    y = ((torch.arange(height) + 0.5) / height * 2 - 1)[:, None]
    mass = alpha.sum((1, 2)).clamp_min(1e-6)
    cx, cy = ((alpha * v).sum((1, 2)) / mass for v in (x, y))
    spread = (x - cx[:, None, None]) ** 2 + (y - cy[:, None, None]) ** 2
    return torch.stack([cx, cy], 1), ((alpha * spread).sum((1, 2)) / mass).sqrt()


def _squares(images: Tensor, centre: Tensor, radius: Tensor) -> Tensor:
    """The squares around things: (N, C, H, W) -> (N, C, side, side); zero outside of the frame."""
    u = torch.linspace(-1, 1, _SIDE) * _REACH
    x = centre[:, :1, None] + radius[:, None, None] * u[None, None, :]
    y = centre[:, 1:, None] + radius[:, None, None] * u[None, :, None]
    grid = torch.stack(torch.broadcast_tensors(x, y), -1)
    return F.grid_sample(images, grid, align_corners=False)


@functools.lru_cache(maxsize=4)
def _sprites(height: int, width: int) -> tuple[list[tuple[str, str | None]], Tensor, Tensor, Tensor]:
    """(noun, colour) of K sprites, and for each at every tilt: colour times matte (K, tilts, 3, side, side),
    matte (K, tilts, 1, side, side), and the place of the thing's middle (K, tilts, 2), relative to its centre
    of mass and in root mean square radii."""
    names = [(noun, colour) for noun in NOUNS for colour in (COLOURS if noun in COLOURED else (None,))]
    assert len(names) == FIRST["fish"] + len(COLOURS)
    K, tilts = len(names), len(_TILTS)
    noun = torch.tensor([list(NOUNS).index(n) for n, _ in names])
    colour = torch.tensor([list(COLOURS).index(c) if c else 0 for _, c in names])
    middle = torch.zeros(K, tilts)
    thing = Thing(noun, colour, noun, noun, torch.full((K, tilts), 0.5), _TILTS.expand(K, -1), middle, middle)
    rgb, matte = (v.flatten(0, 1) for v in look(thing, ClipConfig(tilts, height, width)))
    centre, radius = _poses(matte[:, 0])
    painted, matte = (_squares(v, centre, radius).unflatten(0, (K, tilts)) for v in (rgb * matte, matte))
    return names, painted, matte, (-centre / radius[:, None]).unflatten(0, (K, tilts))


def read_thing(video: Tensor, alpha: Tensor, scene: Tensor) -> Seen:
    """Describe a thing.

    Args:
        video: (T, 3, H, W) in [0, 1], with the thing.
        alpha: (T, 1, H, W) in [0, 1], roughly where the thing is.
        scene: (T, 3, H, W), the video without the thing.
    """
    alpha = alpha[:, 0]
    area = (alpha > 0.5).float().mean((1, 2))
    shown = area >= _SMALLEST
    if not shown.any():
        return Seen()
    frames = shown.nonzero()[:, 0]
    centre, radius = _poses(alpha[frames])
    names, painted, matte, middle = _sprites(*video.shape[-2:])
    # A thing at the rim of the frame is cut, so its place is wrong: such frames count little.
    rim = torch.cat([alpha[:, 0], alpha[:, -1], alpha[:, :, 0], alpha[:, :, -1]], 1)[frames].amax(1) > 0.5
    weight = area[frames] * torch.where(rim, 0.05, 1.0)
    weight = weight / weight.sum()

    def match(centre: Tensor, radius: Tensor, among: Tensor) -> tuple[float, Tensor, Tensor]:
        """The smallest error, the sprites of ``among`` from the best to the worst, and the middle of the best
        one in each frame."""
        shown = torch.ones_like(video[frames, :1])  # pixels outside of the frame are not compared
        squares = [_squares(v, centre, radius) for v in (video[frames], scene[frames], shown)]
        drawn, uncovered = painted[among], 1 - matte[among]
        error = torch.stack(
            [
                ((drawn + uncovered * behind - seen).square() * inside).mean((2, 3, 4)) / inside.mean()
                for seen, behind, inside in zip(*squares, strict=True)
            ]
        )  # (frames, sprites, tilts)
        by_sprite = (error.amin(2) * weight[:, None]).sum(0)
        order = by_sprite.argsort()
        tilt = error[:, order[0]].argmin(1)
        path = centre + middle[among[order[0]], tilt] * radius[:, None]
        return float(by_sprite[order[0]]), among[order], path

    misfit, order, path = match(centre, radius, torch.arange(len(names)))
    if misfit > _UNSURE:  # the matte has holes, or covers too much: try places and sizes nearby
        steps = itertools.product((-0.3, 0.0, 0.3), (-0.3, 0.0, 0.3), (0.85, 1.0, 1.2))
        moved = ((centre + torch.tensor([x, y]) * radius[:, None], radius * grow) for x, y, grow in steps)
        misfit, order, path = min((match(*pose, order[:_CANDIDATES]) for pose in moved), key=lambda m: m[0])
    noun, colour = names[order[0]]
    third = max(1, len(path) // 3)
    seen = Seen(
        noun,
        colour,
        _name_place(path[:2].mean(0)),
        _name_motion(path[-third:].mean(0) - path[:third].mean(0)),
        misfit,
        bool(shown.all() and area.min() > 0.4 * area.max() and (path.diff(dim=0).norm(dim=1) < 0.16).all()),
    )
    return seen if misfit < _MISFIT else Seen(misfit=misfit)


def _name_place(at: Tensor) -> str:
    column, row = (min(2, max(0, round(float(v) / PLACE_STEP) + 1)) for v in at)
    return PLACES[3 * row + column]


def _name_motion(step: Tensor) -> str:
    x, y = step.tolist()
    if step.norm() < STILL:
        return "still"
    ways = {"left": -x, "right": x, "up": -y, "down": y}
    assert set(ways) < set(MOTIONS)
    return max(ways, key=lambda name: ways[name])


def difference_matte(video: Tensor, scene: Tensor) -> Tensor:
    """Roughly where a video (T, 3, H, W) shows something that is not in the scene: (T, 1, H, W) in [0, 1].

    Soft shadows do not count. They darken all channels of the scene by one factor, at most by half.
    """
    from skimage.measure import label

    darker = (video * scene).sum(1, keepdim=True) / (scene * scene).sum(1, keepdim=True).clamp_min(1e-4)
    apart = (video - darker.clamp(0.5, 1) * scene).abs().amax(1, keepdim=True)
    matte = ((apart - 0.05) / 0.1).clamp(0, 1)
    for frame in matte[:, 0]:  # large pieces are the thing, the rest is noise
        pieces = torch.from_numpy(label((frame > 0.3).numpy(), connectivity=2))
        sizes = pieces.flatten().bincount()
        sizes[0] = 0
        frame.mul_((sizes > 0.2 * sizes.max())[pieces])
    return matte


# --- layers --------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=4)
def _backgrounds(frames: int, height: int, width: int) -> tuple[list[str], Tensor]:
    """Names and features of many views of all background pictures."""
    picture = torch.arange(len(PICTURES)).repeat_interleave(_VIEWS)
    views = draw_view(Draws(0, range(len(picture))))
    videos = backdrop(picture, *views, ClipConfig(frames, height, width))
    return [PICTURES[k] for k in picture.tolist()], _look(videos[:, frames // 2])


def _look(images: Tensor) -> Tensor:
    """Features: colour and its local spread in 8 x 8 cells, (N, 3, H, W) -> (N, 6, 8, 8)."""
    mean, square = (F.adaptive_avg_pool2d(v, 8) for v in (images, images.square()))
    return torch.cat([mean, 3 * (square - mean.square()).clamp_min(0).sqrt()], 1)


def read_background(video: Tensor, alpha: Tensor) -> str:
    """The name of the background that a video (T, 3, H, W) shows where alpha (T, 1, H, W) is 1."""
    names, looks = _backgrounds(*video.shape[:1], *video.shape[-2:])
    middle = len(video) // 2
    weight = F.adaptive_avg_pool2d(alpha[middle : middle + 1], 8) ** 2
    error = (looks - _look(video[middle : middle + 1])).square().sum(1, keepdim=True)
    error = (error.clamp_max(_COVERED) * weight).sum((1, 2, 3))
    return names[int(error.argmin())]


def judge_layers(edit: Tensor, alpha: Tensor, source: Tensor, facts: dict) -> dict[str, bool]:
    """Compare Vera's layers with the request.

    Args:
        edit, alpha: the generated layers (T, 3 or 1, H, W) in [0, 1].
        source: (T, 3, H, W).
        facts: of the clip, see :func:`vera_lite.toy.scenes.render_scenes`.

    Returns:
        For "add": noun, place, motion, steady, and colour if the noun comes in colours; for "background":
        background. Nothing for a thing that passes behind another, because it is cut.
    """
    if facts["task"] == "background":
        return {"background": read_background(edit, alpha) == facts["background"]["name"]}
    body = (2 * alpha - 1).clamp(0, 1)  # shadows lie below one half
    return compare(read_thing(composite(edit, body, source), body, source), facts)


def judge_frames(source: Tensor, final: Tensor, facts: dict) -> dict[str, bool]:
    """The same from the result alone: the edit is what differs from the source."""
    if facts["task"] == "background":
        alpha = 0.3 + 0.7 * ((final - source).abs().amax(1, keepdim=True) > 0.05)
        return {"background": read_background(final, alpha) == facts["background"]["name"]}
    return compare(read_thing(final, difference_matte(final, source), source), facts, steady=False)


def compare(seen: Seen, facts: dict, steady: bool = True) -> dict[str, bool]:
    """Which facts of a thing are as requested, and optionally whether it is steady; nothing for a thing that
    passes behind another, because it is cut."""
    if facts.get("behind"):
        return {}
    keys = ("noun", "colour", "place", "motion") if facts["colour"] else ("noun", "place", "motion")
    verdict = {key: getattr(seen, key) == facts[key] for key in keys}
    return verdict | {"steady": seen.steady} if steady else verdict


# --- edits ---------------------------------------------------------------------------------------


def edit_share(result: Tensor, source: Tensor, scene: Tensor, changed: Tensor, facts: dict) -> float:
    """How much of the request was done, in [0, 1]; styles have their own measure.

    * Removal: the share of the changed pixels that are close to the scene without the thing, and closer to it
      than to the source.
    * Another colour or noun: 0 if the noun is wrong or the colour is still the old one; otherwise the share
      of noun and colour that are right.
    * A new thing: the share of noun, colour (if the noun comes in colours), place and motion that are right.

    Args:
        result, source, scene: (T, 3, H, W) in [0, 1]; the scene is without the edited thing.
        changed: (T, 1, H, W), 1 where the true edit changes pixels.
        facts: of the clip, see :class:`~vera_lite.toy.edits.ToyEdits`.
    """
    before, after = facts["before"], facts["after"]
    if not after:
        away, near = ((result - v).abs().amax(1, keepdim=True) for v in (source, scene))
        return float(((near < away) & (near < 0.2))[changed > 0].float().mean())
    seen = read_thing(result, difference_matte(result, scene), scene)
    verdict = compare(seen, after, steady=False)
    if not before:
        return sum(verdict.values()) / len(verdict)
    right = [verdict[key] for key in ("noun", "colour") if key in verdict]
    same_noun = before["noun"] == after["noun"]
    return 0.0 if not right[0] or (same_noun and not right[1]) else sum(right) / len(right)
