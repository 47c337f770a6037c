"""Shared by the toy benchmarks: batches of unseen clips, and the numbers of one row of a report."""

from collections import defaultdict
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from vera_lite.evaluation.metrics import PooledPSNR

TEST_SEED = 2_000_000  # no training or validation world has this seed


def batches(clips: int, size: int) -> Iterator[range]:
    """Numbers 0 .. clips - 1 in ranges of at most ``size``."""
    return (range(first, min(first + size, clips)) for first in range(0, clips, size))


class Tally:
    """Numbers of one row: PSNRs in dB that pool the squared error over clips, and means over clips."""

    def __init__(self):
        self._psnrs: dict[str, PooledPSNR] = defaultdict(PooledPSNR)
        self._values: dict[str, list[float]] = defaultdict(list)

    def psnr(self, name: str, a: Tensor, b: Tensor, where: Tensor | None = None) -> None:
        """Count videos (..., 3, H, W) in [0, 1], where the boolean (..., 1, H, W) is True."""
        where = torch.ones_like(a[..., :1, :, :], dtype=torch.bool) if where is None else where
        self._psnrs[name].add(a, b, where)

    def add(self, values: dict[str, float | Sequence[float]], prefix: str = "") -> None:
        """Count one value of each name, or one for each of several clips."""
        for name, value in values.items():
            self._values[prefix + name] += value if isinstance(value, Sequence) else [value]

    def row(self) -> dict[str, float]:
        """The PSNRs, then the means."""
        means = {name: sum(v) / len(v) for name, v in self._values.items()}
        return {name: psnr.value() for name, psnr in self._psnrs.items()} | means
