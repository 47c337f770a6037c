"""What the audit of the papers' tables is made of: one module a paper, one function a claim.

A function has the claim's name in results/claims.yaml. It returns margins: labelled numbers that must all be
above 0 for the claim to hold. A claim that a difference is more than chance has one margin with an interval.
`facts` are numbers that the ledger's reasons quote.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from scipy import stats

from vera_lite.evaluation.statistics import VERDICTS, verdict


@dataclass(frozen=True)
class Found:
    """What the numbers say of one claim."""

    margins: dict[str, float]  #: all above 0 if the claim holds.
    unit: str = "points"
    #: of the only margin, where the paper's own numbers give one.
    interval: tuple[float, float] | None = None
    facts: dict[str, float] = field(default_factory=dict)

    @property
    def worst(self) -> str:
        """Label of the smallest margin."""
        return min(self.margins, key=lambda label: self.margins[label])

    def row(self, claim: str) -> dict:
        """The claim in the report."""
        effect = self.margins[self.worst]
        low, high = self.interval or (effect, effect)
        held = sum(m > 0 for m in self.margins.values())
        return {
            "claim": claim,
            "verdict": verdict(low, high) if self.interval else VERDICTS[held < len(self.margins)],
            "effect": round(effect, 4),
            "interval": self.interval and [round(low, 4), round(high, 4)],
            "unit": self.unit,
            "where": self.worst,
            "held": f"{held} of {len(self.margins)}",
            "margins": {label: round(m, 4) for label, m in self.margins.items()},
            "facts": {name: round(value, 4) for name, value in self.facts.items()},
        }


AUDIT: dict[str, Callable[[], Found]] = {}


def claim(name: str) -> Callable[[Callable[[], Found]], Callable[[], Found]]:
    """Enter a function into :data:`AUDIT`."""

    def enter(function: Callable[[], Found]) -> Callable[[], Found]:
        AUDIT[name] = function
        return function

    return enter


def spearman(a, b) -> float:
    """Rank correlation of two lists, in [-1, 1]."""
    return float(stats.spearmanr(a, b).statistic)


def within_tolerance(errors: dict[tuple[str, str], float], tolerance: float) -> dict[str, float]:
    """Margins of numbers that should be equal, up to the rounding of both."""
    return {f"{row}, {column}": tolerance - abs(e) for (row, column), e in errors.items()}
