"""Tables that the four papers print, with where each was read, to audit and to stand beside ours."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path

import yaml


@dataclass(frozen=True)
class Table:
    """One printed table, or the part of one that a single judge or subset fills."""

    paper: str
    place: str  #: in the paper: number of the table, what it measures, in which unit.
    source: str  #: what the numbers were read from.
    columns: tuple[str, ...]
    rows: dict[str, tuple[float | None, ...]]  #: None: an empty cell.
    lower_is_better: tuple[str, ...] = ()
    decimals: int = 2  #: digits that the paper prints after the point.
    means: dict[str, list[str]] = field(default_factory=dict)  #: column: the columns it is the mean of.
    ranks: dict[str, str] = field(default_factory=dict)  #: column: the column it ranks; 1 is the best.
    note: str = ""

    def column(self, name: str) -> dict[str, float]:
        """Values by row, without the empty cells."""
        at = self.columns.index(name)
        return {row: value for row, cells in self.rows.items() if (value := cells[at]) is not None}

    def cell(self, row: str, column: str) -> float:
        """One number; KeyError if its cell is empty."""
        return self.column(column)[row]

    def cells(self, row: str, columns: Iterable[str] | None = None) -> tuple[float, ...]:
        """Numbers of a row, of all columns or of some."""
        return tuple(self.cell(row, column) for column in columns or self.columns)

    def mean(self, row: str, columns: Iterable[str]) -> float:
        """Exact mean of printed numbers, rounded only to a float at the end."""
        values = [Decimal(str(value)) for value in self.cells(row, columns)]
        return float(sum(values) / len(values))

    def gain(self, row: str, column: str, other: str) -> float:
        """How much better ``row`` is than ``other``; negative if it is worse."""
        difference = Decimal(str(self.cell(row, column))) - Decimal(str(self.cell(other, column)))
        return float(-difference if column in self.lower_is_better else difference)

    def lead(self, row: str, column: str, but: Iterable[str] = ()) -> float:
        """How much better ``row`` is than the best other row (leaving out ``but``)."""
        others = self.column(column).keys() - {row, *but}
        return min(self.gain(row, column, other) for other in others)

    def mean_errors(self) -> dict[tuple[str, str], float]:
        """Printed minus recomputed mean by (row, column), of every column that the paper calls a mean.

        A mean of printed numbers may be off by one unit of the last digit (:attr:`tolerance`): half of it was
        lost in rounding the mean, and up to half in rounding the numbers.
        """
        return {
            (row, column): float(Decimal(str(self.cell(row, column))) - Decimal(str(self.mean(row, parts))))
            for column, parts in self.means.items()
            for row in self.rows
        }

    def rank_errors(self) -> list[tuple[str, str]]:
        """(row, column) of every printed rank that does not follow from the column that it ranks."""
        return [
            (row, column)
            for column, ranked in self.ranks.items()
            for row, rank in self.column(column).items()
            if rank != 1 + sum(self.gain(other, ranked, row) > 0 for other in self.column(ranked))
        ]

    @property
    def tolerance(self) -> float:
        """One unit of the last printed digit."""
        return 10.0**-self.decimals


def _load() -> dict[str, Table]:
    text = Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8")
    tables = {}
    for name, fields in yaml.safe_load(text).items():
        rows = {str(row): tuple(cells) for row, cells in fields.pop("rows").items()}
        columns = tuple(map(str, fields.pop("columns")))
        if any(len(cells) != len(columns) for cells in rows.values()):
            raise ValueError(f"published table {name} has rows of another length than its heading.")
        lower = tuple(fields.pop("lower_is_better", ()))
        tables[name] = Table(**fields, rows=rows, columns=columns, lower_is_better=lower)
    return tables


#: All of published.yaml, by name.
TABLES = _load()

#: MiVE, Table 1: mask ratio by depth (share of the layers; 0 is the first layer).
MIVE_TABLE_1 = {"depth": (0.0, 1 / 6, 1 / 3, 1 / 2, 2 / 3, 5 / 6, 1.0)} | TABLES["mive_attention"].rows
#: MiVE, Tables 3 and 4, and their axes.
MIVE_AXES = TABLES["mive_conditioning"].columns
MIVE_TABLE_3 = TABLES["mive_conditioning"].rows
MIVE_TABLE_4 = TABLES["mive_layers"].rows
#: GenCompositor, ablation.
GENCOMPOSITOR_ABLATION = TABLES["gencompositor_ablation"].rows
#: RVEDiT, Table 2, and the three axes of Table 3 over all categories.
RVEDIT_ABLATION = TABLES["rvedit_ablation"].rows
RVEDIT_AXES = {row: TABLES["rvedit_axes"].cells(row, ("IC", "CF", "VQ")) for row in RVEDIT_ABLATION}
