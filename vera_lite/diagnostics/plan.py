"""What to measure in which layers and steps, with the cost known before a run.

shapes = attention_shapes(model, lambda: model(...))
plan = CapturePlan([Entry("attn1$", GroupMass(frames), "frames")], budget_bytes=2 * 10**9)
print(plan.check(shapes))
with Tap(model, plan):
    model(...)
plan.captures["frames"]
"""

import math
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import nn

from vera_lite.diagnostics.call import AttentionCall, AttentionShape, Capture, Cost
from vera_lite.diagnostics.measurements import Measurement
from vera_lite.diagnostics.store import AttentionStore
from vera_lite.diagnostics.tap import Tap


class Entry(NamedTuple):
    """One line of a plan."""

    #: regular expression, searched for in the module's qualified name. The measurement must fit every call
    #: that matches: a call that does not fit is an error.
    where: str
    measurement: Measurement  #: what to measure there.
    name: str | None = None  #: of the captures; ``where`` by default.
    steps: Collection[int] | None = None  #: which steps; all by default.

    @property
    def label(self) -> str:
        return self.where if self.name is None else self.name

    def matches(self, module: str, step: int) -> bool:
        return (self.steps is None or step in self.steps) and re.search(self.where, module) is not None

    def cost(self, shape: AttentionShape) -> Cost:
        try:
            return self.measurement.cost(shape)
        except ValueError as error:
            raise ValueError(f"{error} Entry {self.label!r} matches it: is it too wide?") from error


@dataclass(frozen=True)
class EntryEstimate:
    """The cost of one entry of a plan."""

    name: str
    calls: int  #: how many it measures.
    stored_bytes: int  #: of all its captures.
    transient_bytes: int  #: the largest further memory while one of them is made.
    flops: int  #: of all its measurements.


@dataclass(frozen=True)
class Estimate:
    """The cost of a plan; ``print`` shows it as a table."""

    entries: tuple[EntryEstimate, ...]  #: in the plan's order.
    model_flops: int  #: of the model's own attention calls.
    budget_bytes: int

    @property
    def total(self) -> EntryEstimate:
        return EntryEstimate(
            "total",
            sum(e.calls for e in self.entries),
            sum(e.stored_bytes for e in self.entries),
            max(e.transient_bytes for e in self.entries),
            sum(e.flops for e in self.entries),
        )

    @property
    def peak_bytes(self) -> int:
        """All stored bytes and the largest transient: the most by which memory can grow."""
        return self.total.stored_bytes + self.total.transient_bytes

    def __str__(self) -> str:
        lines = [*self.entries, self.total]
        width = max(len(e.name) for e in lines)
        header = f"{'':{width}}  {'calls':>6}  {'stored':>9}  {'transient':>9}  {'FLOPs':>8}  of attention"
        rows = [
            f"{e.name:{width}}  {e.calls:>6}  {_size(e.stored_bytes):>9}  {_size(e.transient_bytes):>9}  "
            f"{e.flops:>8.1e}  {e.flops / self.model_flops:>12.1%}"
            for e in lines
        ]
        peak = f"predicted peak {_size(self.peak_bytes)} of a budget of {_size(self.budget_bytes)}"
        return "\n".join([header, *rows, peak])


class CapturePlan:
    """Measurements of chosen layers and steps within a memory budget; an observer for a :class:`Tap`.

    Captures of several runs add up; make a new plan to start afresh.

    Args:
        entries: :class:`Entry`, or plain (where, measurement) tuples.
        budget_bytes: for everything stored and the largest transient.

    Attributes:
        captures: by entry name, in the order of the calls: layer by layer, step by step.
        stored_bytes: of the captures.

    Raises:
        ValueError: no entry, or two with one name; during a run, a call that would exceed the budget (it is
            not measured), or that a measurement does not fit.
    """

    def __init__(self, entries: Sequence[Entry | tuple], budget_bytes: int):
        self.entries = [Entry(*entry) for entry in entries]
        self.budget_bytes = budget_bytes
        self.stored_bytes = 0
        self.captures: dict[str, list[Capture | AttentionStore]] = {e.label: [] for e in self.entries}
        if not self.entries or len(self.captures) < len(self.entries):
            raise ValueError("a capture plan needs one or more entries of different names.")

    def __call__(self, call: AttentionCall) -> None:
        """Measure one call with every entry that matches it."""
        shape = AttentionShape.of(call)
        for entry in self.entries:
            if entry.matches(shape.module, shape.step):
                cost = entry.cost(shape)
                needed = self.stored_bytes + cost.result_bytes + cost.transient_bytes
                if needed > self.budget_bytes:
                    raise self._over_budget(needed, f"{entry.label!r} at {shape.module}, step {shape.step}")
                self.captures[entry.label].append(entry.measurement(call))
                self.stored_bytes += cost.result_bytes

    @property
    def unmatched(self) -> list[str]:
        """Names of entries without any capture so far; a tap warns of them when it ends."""
        return [name for name, found in self.captures.items() if not found]

    def estimate(self, shapes: Sequence[AttentionShape]) -> Estimate:
        """The cost of capturing these calls.

        Args:
            shapes: every attention call of the run, from :func:`attention_shapes` or made by hand.

        Raises:
            ValueError: a measurement does not fit a call that its entry matches, or an entry matches none.
        """
        entries = []
        for entry in self.entries:
            costs = [entry.cost(s) for s in shapes if entry.matches(s.module, s.step)]
            if not costs:
                modules = list(dict.fromkeys(s.module for s in shapes))
                raise ValueError(
                    f"entry {entry.label!r} matches none of the {len(shapes)} attention calls, which are "
                    f"in {', '.join(modules[:4])}{', ...' * (len(modules) > 4)}."
                )
            entries.append(
                EntryEstimate(
                    entry.label,
                    len(costs),
                    sum(c.result_bytes for c in costs),
                    max(c.transient_bytes for c in costs),
                    sum(c.flops for c in costs),
                )
            )
        return Estimate(tuple(entries), sum(s.flops for s in shapes), self.budget_bytes)

    def check(self, shapes: Sequence[AttentionShape]) -> Estimate:
        """The estimate. ValueError if it is not within budget, or as in :meth:`estimate`."""
        estimate = self.estimate(shapes)
        if estimate.peak_bytes > self.budget_bytes:
            largest = max(estimate.entries, key=lambda e: e.stored_bytes + e.transient_bytes)
            raise self._over_budget(estimate.peak_bytes, repr(largest.name))
        return estimate

    def _over_budget(self, needed: int, culprit: str) -> ValueError:
        return ValueError(
            f"this capture needs {_size(needed)}, the budget is {_size(self.budget_bytes)}: take fewer "
            f"heads, layers, steps or queries, above all in {culprit}."
        )


def attention_shapes(model: nn.Module, run: Callable[[], Any]) -> list[AttentionShape]:
    """Sizes of every attention call that ``run()`` makes in the model.

    It takes one run without measurements, or nothing for a model on the meta device.
    """
    shapes = []
    with Tap(model, lambda call: shapes.append(AttentionShape.of(call))):
        run()
    return shapes


def _size(count: float) -> str:
    """1550000000 -> "1.55 GB"."""
    count = float(f"{count:.2e}")
    power = min(int(math.log10(max(count, 1))) // 3, 5)
    return f"{count / 1000**power:.3g} {('B', 'kB', 'MB', 'GB', 'TB', 'PB')[power]}"
