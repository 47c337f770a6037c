"""How far the videos of a model are from real ones as a whole: FVD and KVD, and how much of it is chance.

Both compare features of N and M videos, (N, D) and (M, D). They are as good as the network that makes the
features, so a number without the network's name means nothing.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from vera_lite.errors import check_tensor

#: Below so many clips on a side, published FVDs are mostly sample size.
ENOUGH = 2048


def frechet_distance(x: Tensor, y: Tensor) -> float:
    """Squared distance of two Gaussians fitted to the features: FVD (Unterthiner et al. 2018).

    |mean_x - mean_y|^2 + tr(S_x) + tr(S_y) - 2 tr((S_x S_y)^1/2). The last trace is the nuclear norm of
    X Y^T / sqrt((N - 1)(M - 1)) with centred X and Y: exact, never negative, and no D x D root is needed.
    It grows as samples get fewer: of 40 clips and 400 features from one distribution it is far above 0.

    Papers mostly use an I3D network, whose weights come as TorchScript without a checksum: they are not
    loaded here. :class:`.VideoMAEFeatures` is the other usual one.
    """
    x, y = _pair(x, y)
    gap, x, y = x.mean(0) - y.mean(0), x - x.mean(0), y - y.mean(0)
    root = torch.linalg.matrix_norm(x @ y.T, "nuc") / ((len(x) - 1) * (len(y) - 1)) ** 0.5
    spread = x.square().sum() / (len(x) - 1) + y.square().sum() / (len(y) - 1)
    return float((gap.square().sum() + spread - 2 * root).clamp_min(0))


def kernel_distance(x: Tensor, y: Tensor) -> float:
    """Squared maximum mean discrepancy with the kernel (x.y / D + 1)^3, unbiased: KVD.

    Its mean is 0 at any N if both sides have one distribution, so single values may be negative.
    """
    x, y = _pair(x, y)

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (a @ b.T).div_(a.shape[1]).add_(1).pow_(3)

    def within(a: Tensor) -> Tensor:
        values = kernel(a, a)
        return (values.sum() - values.trace()) / (len(a) * (len(a) - 1))

    return float(within(x) + within(y) - 2 * kernel(x, y).mean())


def _pair(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    check_tensor("features", x, "N", "D")
    check_tensor("features", y, "M", x.shape[1])
    if min(len(x), len(y)) < 2:
        raise ValueError(f"a distance of distributions needs two clips a side, got {len(x)} and {len(y)}.")
    return x.double(), y.double()


@dataclass(frozen=True)
class Distance:
    """A distance of distributions, and what it is worth."""

    value: float
    low: float  #: of 95 % of the values when the clips are drawn anew, with replacement.
    high: float
    chance: float  #: 95 % of the values lie below it when the two sides are shuffled: what one
    #: distribution would give at these sample sizes. A value below it shows no difference.
    clips: tuple[int, int]
    features: str


def measure_distance(
    x: Tensor,
    y: Tensor,
    features: str,
    distance: Callable[[Tensor, Tensor], float] = frechet_distance,
    draws: int = 200,
    seed: int = 0,
) -> Distance:
    """A distance with its interval and its chance level; warns below :data:`ENOUGH` clips.

    Resamples hold clips twice, which raises a Fréchet distance: its interval may lie above its value.

    Args:
        x, y: (N, D) and (M, D).
        features: the network that made them, with frames and resolution.
        distance: of two sets of features.
        draws: resamples, and shuffles.
        seed: of the draws.
    """
    if min(len(x), len(y)) < ENOUGH:
        warnings.warn(
            f"{len(x)} and {len(y)} clips are few for a distance of distributions: compare with `chance`, "
            "and only with values of equally many clips.",
            stacklevel=2,
        )
    value, both = distance(x, y), torch.cat([x, y])
    generator = torch.Generator().manual_seed(seed)

    def drawn(clips: Tensor) -> Tensor:
        return clips[torch.randint(len(clips), (len(clips),), generator=generator)]

    def shuffled() -> float:
        order = torch.randperm(len(both), generator=generator)
        return distance(both[order[: len(x)]], both[order[len(x) :]])

    resampled = torch.tensor([distance(drawn(x), drawn(y)) for _ in range(draws)]).double()
    low, high = resampled.quantile(torch.tensor([0.025, 0.975]).double()).tolist()
    chance = float(torch.tensor([shuffled() for _ in range(draws)]).double().quantile(0.95))
    return Distance(value, low, high, chance, (len(x), len(y)), features)


class RandomFeatures:
    """Features of a fixed network without training: they show how the distances behave, not how good a video
    is. Videos (B, T, 3, H, W) in [0, 1] -> (B, 64)."""

    name = "random-features"

    def __init__(self, seed: int = 0):
        generator = torch.Generator().manual_seed(seed)
        self.first = torch.randn(32, 3, 3, 5, 5, generator=generator) / 15
        self.second = torch.randn(64, 32, 3, 3, 3, generator=generator) / 30

    def __call__(self, videos: Tensor) -> Tensor:
        x = 2 * videos.transpose(1, 2) - 1
        x = F.conv3d(x, self.first, stride=(1, 2, 2), padding=(1, 2, 2)).relu()
        return F.conv3d(x, self.second, stride=2, padding=1).relu().mean((2, 3, 4))
