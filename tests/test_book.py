"""The parts of the book that can rot without a sign."""

from pathlib import Path

import book
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
ROWS = yaml.safe_load((ROOT / "docs" / "book" / "equations.yaml").read_text())


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row['paper']} {row['equation']}")
def test_every_equation_is_computed_on_one_line(row):
    assert book.line_of(row) > 0


def test_a_line_that_is_gone_is_named():
    with pytest.raises(ValueError, match="nothing like this"):
        book.line_of({"file": "vera_lite/errors.py", "find": "nothing like this"})


def test_the_table_of_equations_has_a_row_for_each(tmp_path, monkeypatch):
    monkeypatch.setattr(book, "STAGING", tmp_path)
    book.stage_equations()
    assert len((tmp_path / "equations.md").read_text().splitlines()) == 4 + len(ROWS)
