"""Shared by the toy benchmarks: batches of unseen clips, and the numbers of one row of a report."""

from collections import defaultdict
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from vera_lite.evaluation.statistics import bootstrap, wilson

TEST_SEED = 2_000_000  # no training or validation world has this seed
DRAWS = 1000  # resamples of clips


def batches(clips: int, size: int) -> Iterator[range]:
    """Numbers 0 .. clips - 1 in ranges of at most ``size``."""
    return (range(first, min(first + size, clips)) for first in range(0, clips, size))


class Row(dict[str, float]):
    """The numbers of one row, and 95 % intervals over the clips that they were measured on."""

    def __init__(self, values: dict[str, float] | None = None):
        super().__init__(values or {})
        self.intervals: dict[str, tuple[float, float]] = {}


class Tally:
    """Numbers of one row: PSNRs in dB that pool the squared error over clips, and means over clips."""

    def __init__(self):
        self._errors: dict[str, list[list[float]]] = defaultdict(list)  # squared error and count of each clip
        self._values: dict[str, list[float]] = defaultdict(list)

    def psnr(self, name: str, a: Tensor, b: Tensor, where: Tensor | None = None) -> None:
        """Count a clip (T, 3, H, W) in [0, 1] or several (B, T, 3, H, W), where the boolean (..., 1, H, W) is
        True."""
        where = torch.ones_like(a, dtype=torch.bool) if where is None else where.expand_as(a)
        square = (a.double() - b.double()).square() * where
        sums = [v.sum((-4, -3, -2, -1)).double().view(-1) for v in (square, where)]
        self._errors[name] += torch.stack(sums, 1).tolist()

    def add(self, values: dict[str, float | Sequence[float]], prefix: str = "") -> None:
        """Count one value of each name, or one for each of several clips."""
        for name, value in values.items():
            self._values[prefix + name] += value if isinstance(value, Sequence) else [value]

    def row(self) -> Row:
        """The PSNRs, then the means. Shares of clips have Wilson's interval, the others a bootstrap's."""
        row = Row()
        for name, sums in self._errors.items():
            errors = torch.tensor(sums, dtype=torch.float64)
            row[name] = float(_decibels(errors))
            if len(errors) > 1:
                draws = torch.randint(
                    len(errors), (DRAWS, len(errors)), generator=torch.Generator().manual_seed(0)
                )
                ends = torch.tensor([0.025, 0.975], dtype=torch.float64)
                low, high = _decibels(errors[draws]).quantile(ends, interpolation="nearest").tolist()
                row.intervals[name] = low, high
        for name, values in self._values.items():
            row[name] = sum(values) / len(values)
            if set(values) <= {0, 1}:
                row.intervals[name] = wilson(int(sum(values)), len(values))
            elif len(values) > 1:
                found = bootstrap(torch.tensor(values), DRAWS)
                row.intervals[name] = float(found.low), float(found.high)
        return row


def _decibels(errors: Tensor) -> Tensor:
    """(..., C, 2) squared errors and counts of C clips -> PSNR (...) of all of them, for values in [0, 1]."""
    square, count = errors.sum(-2).unbind(-1)
    return -10 * (square / count).log10()
