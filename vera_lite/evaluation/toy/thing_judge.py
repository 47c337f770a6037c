"""Plain vision that reads nouns, colours, places, motions and backgrounds off videos of things on places.

There is no network, and the judge does not know the request: it says what it sees, and only then is that
compared with what was asked. It knows the scene without the thing. The thing's mass, centre and size give a
square around it in every frame, and what is seen there is compared with every sprite at many tilts, laid over
the scene: the sprite with the least squared error is what it is.
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
_MISFIT = 0.03  # mean squared error above which a thing is no sprite
_UNSURE = 0.004  # one above which the sprite is sought near its place and size, too: a tenth of the truth
_CANDIDATES = 16  # sprites that are sought there
_COVERED = 0.1  # squared error of a cell above which a thing may cover the background there
_VIEWS = 24  # of each background picture
STILL = 0.08  # half-frames; the shortest path is twice as long


@dataclass(frozen=True)
class Seen:
    """What is seen; ``noun``, ``place`` and ``motion`` are None where no thing is, ``colour`` also where the
    noun has its own. ``misfit`` is the mean squared error of the best sprite. ``steady``: the thing is in
    every frame, of about the same size, and never jumps."""

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
    """(noun, colour) of K sprites; then of each at every tilt colour times matte (K, tilts, 3, side, side),
    matte (K, tilts, 1, side, side), and where the thing's middle is (K, tilts, 2), seen from its centre of
    mass and in root mean square radii."""
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
    """Say what a thing is.

    Args:
        video: (T, 3, H, W) in [0, 1], which shows it.
        alpha: (T, 1, H, W) in [0, 1], where about it is.
        scene: (T, 3, H, W), the same without it.
    """
    alpha = alpha[:, 0]
    area = (alpha > 0.5).float().mean((1, 2))
    shown = area >= _SMALLEST
    if not shown.any():
        return Seen()
    frames = shown.nonzero()[:, 0]
    centre, radius = _poses(alpha[frames])
    names, painted, matte, middle = _sprites(*video.shape[-2:])
    # At the rim of the frame a thing is cut, and where it seems to be is wrong: such frames count little.
    rim = torch.cat([alpha[:, 0], alpha[:, -1], alpha[:, :, 0], alpha[:, :, -1]], 1)[frames].amax(1) > 0.5
    weight = area[frames] * torch.where(rim, 0.05, 1.0)
    weight = weight / weight.sum()

    def match(centre: Tensor, radius: Tensor, among: Tensor) -> tuple[float, Tensor, Tensor]:
        """The least error, the sprites of ``among`` from the best on, and where the best one's middle is in
        each frame."""
        shown = torch.ones_like(video[frames, :1])  # what lies outside of the frame is not compared
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
    if misfit > _UNSURE:  # the matte has holes or too much: look around it, too
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
    """About where a video (T, 3, H, W) shows something that the scene does not: (T, 1, H, W) in [0, 1].

    A soft shadow makes all channels of the scene darker by one factor below one half; that is not counted.
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
    """Names and looks of many views of all background pictures."""
    picture = torch.arange(len(PICTURES)).repeat_interleave(_VIEWS)
    views = draw_view(Draws(0, range(len(picture))))
    videos = backdrop(picture, *views, ClipConfig(frames, height, width))
    return [PICTURES[k] for k in picture.tolist()], _look(videos[:, frames // 2])


def _look(images: Tensor) -> Tensor:
    """Colour and its local spread in 8 x 8 cells: (N, 3, H, W) -> (N, 6, 8, 8)."""
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
    """Compare what is seen in Vera's layers with what was asked.

    Args:
        edit, alpha: the generated layers (T, 3 or 1, H, W) in [0, 1].
        source: (T, 3, H, W).
        facts: of the clip, see :func:`vera_lite.toy.scenes.render_scenes`.

    Returns:
        For "add": noun, place, motion, steady, and colour if the noun comes in colours; for "background":
        background. Nothing of a thing that passes behind another, as it is cut.
    """
    if facts["task"] == "background":
        return {"background": read_background(edit, alpha) == facts["background"]["name"]}
    body = (2 * alpha - 1).clamp(0, 1)  # shadows lie below one half
    return compare(read_thing(composite(edit, body, source), body, source), facts)


def judge_frames(source: Tensor, final: Tensor, facts: dict) -> dict[str, bool]:
    """The same from the result alone: what differs from the source is taken for the edit."""
    if facts["task"] == "background":
        alpha = 0.3 + 0.7 * ((final - source).abs().amax(1, keepdim=True) > 0.05)
        return {"background": read_background(final, alpha) == facts["background"]["name"]}
    return compare(read_thing(final, difference_matte(final, source), source), facts, steady=False)


def compare(seen: Seen, facts: dict, steady: bool = True) -> dict[str, bool]:
    """Which facts of a thing are as they were asked for, and if wanted whether it is steady. Nothing is said
    of a thing that passes behind another, as it is cut."""
    if facts.get("behind"):
        return {}
    keys = ("noun", "colour", "place", "motion") if facts["colour"] else ("noun", "place", "motion")
    verdict = {key: getattr(seen, key) == facts[key] for key in keys}
    return verdict | {"steady": seen.steady} if steady else verdict


# --- edits ---------------------------------------------------------------------------------------


def edit_share(result: Tensor, source: Tensor, scene: Tensor, changed: Tensor, facts: dict) -> float:
    """How much of what was asked for happened, in [0, 1]; styles have their own measure.

    * Removal: the share of the changed pixels that are like the scene without the thing, and nearer to it
      than to the source.
    * Another colour or noun: 0 if the noun is wrong, else the share of noun and colour that are right; 0 also
      if the colour is the old one.
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
