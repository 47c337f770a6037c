"""The papers' tables: what adds up and what does not, by hand; and an audit that would notice."""

import importlib
import json
from dataclasses import replace
from pathlib import Path

import pytest

from vera_lite.evaluation.published import TABLES, Table

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def audit():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        yield importlib.import_module("paper_audit")


@pytest.fixture(scope="module")
def found(audit):
    return {row["claim"]: row for row in audit.run()}


# ---------------------------------------------------------------------- a table


SMALL = Table(
    paper="Vera",
    place="here",
    source="nowhere",
    columns=("a", "b", "error", "mean", "rank"),
    rows={
        "ours": (3.0, 4.01, 0.2, 3.51, 1),
        "theirs": (2.0, 5.0, 0.3, 3.5, 2),
        "third": (1.0, None, 0.1, None, None),
    },
    lower_is_better=("error",),
    means={"mean": ["a", "b"]},
    ranks={"rank": "mean"},
)


def test_a_table_knows_what_is_better():
    assert SMALL.gain("ours", "a", "theirs") == 1 and SMALL.gain("ours", "error", "theirs") == 0.1
    assert SMALL.lead("ours", "error") == -0.1 and SMALL.lead("ours", "error", ["third"]) == 0.1
    assert SMALL.column("b") == {"ours": 4.01, "theirs": 5} and SMALL.cells("ours", "ab") == (3, 4.01)
    with pytest.raises(KeyError):
        SMALL.cell("third", "b")


def test_means_are_exact_and_ranks_are_recomputed():
    rows = {name: SMALL.rows[name] for name in ("ours", "theirs")}
    table = replace(SMALL, rows=rows)
    assert table.mean("ours", "ab") == 3.505  # a float sum would say 3.5049999999999999
    assert table.mean_errors() == {("ours", "mean"): 0.005, ("theirs", "mean"): 0}
    assert table.rank_errors() == [] and table.tolerance == 0.01
    wrong = replace(table, rows=rows | {"ours": (3.0, 4.01, 0.2, 3.4, 1)})
    assert wrong.rank_errors() == [("ours", "rank"), ("theirs", "rank")]


def test_every_table_says_where_it_is_from():
    assert {table.paper for table in TABLES.values()} == {"Vera", "GenCompositor", "RVEDiT", "MiVE"}
    for table in TABLES.values():
        assert table.place and table.source
        named = {*table.lower_is_better, *table.means, *table.ranks, *table.ranks.values()}
        assert named.union(*table.means.values()) <= set(table.columns)


# ---------------------------------------------------------------------- findings, each worked out by hand


def off(name):
    """Rows and columns whose printed mean is off by more than rounding."""
    table = TABLES[name]
    return {at: round(e, 4) for at, e in table.mean_errors().items() if abs(e) > table.tolerance + 1e-9}


def test_what_adds_up_and_what_does_not():
    assert off("rvedit_gemini") == off("rvedit_qwen") == off("rvedit_axes") == {}
    assert len(TABLES["rvedit_gemini"].mean_errors()) == 6
    assert TABLES["rvedit_gemini"].mean_errors()["VACE", "Overall"] == 0.005  # 16.655, printed 16.66
    assert off("rvedit_ablation") == {("without both", "Overall"): -0.06, ("L_s = 25", "Overall"): -0.0325}


def test_numbers_that_the_papers_do_not_print():
    gemini, qwen = (TABLES[f"rvedit_{judge}"].column("Overall") for judge in ("gemini", "qwen"))
    both = {row: (gemini[row] + qwen[row]) / 2 for row in gemini}
    assert both == pytest.approx(
        {
            "VACE": 22.535,
            "Lucy-Edit": 49.24,
            "ICVE": 59.46,
            "DITTO": 44.385,
            "Kiwi-Edit": 68.62,
            "RVEDiT": 69.95,
        }
    )
    # The copied row changes places with DITTO from judge to judge.
    assert gemini["Lucy-Edit"] > gemini["DITTO"] and qwen["Lucy-Edit"] < qwen["DITTO"]
    means = {
        name: {row: round(TABLES[name].mean(row, TABLES[name].columns), 2) for row in TABLES[name].rows}
        for name in ("mive_conditioning", "mive_layers")
    }
    assert list(means["mive_conditioning"].values()) == [6.33, 7.96, 8.27, 8.51]
    assert list(means["mive_layers"].values()) == [7.35, 8.41, 8.51]
    for subset in ("simple", "complex"):
        people, judges = TABLES[f"mive_{subset}"].column("people"), TABLES[f"mive_judges_{subset}"]
        assert judges.column("people") == people
    floor = [p for column in ("simple", "complex") for p in TABLES["mive_p_values"].column(column).values()]
    assert floor.count(0.0001) == 6, "a floor, not values"
    glm = TABLES["mive_attention"].rows["GLM-4.6V"]
    assert sum(glm[4:]) / 3 > sum(glm[1:4]) / 3, "deeper layers look more"


#: claim: verdict, how many margins hold, the smallest one.
FINDINGS = {
    "rvedit-overall-is-the-mean": ("supported", "12 of 12", 0.005),
    "rvedit-consistently-better": ("not supported", "15 of 24", -11.61),
    "rvedit-strongest-on-local-add": ("supported", "2 of 2", 3.26),
    "rvedit-strongest-on-local-change": ("not supported", "0 of 2", -2.0133),
    "rvedit-ahead-on-local-remove": ("not supported", "1 of 2", -1.83),
    "rvedit-judges-are-independent": ("not supported", "4 of 6", -10),
    "rvedit-table-2-adds-up": ("not supported", "7 of 9", -0.05),
    "rvedit-table-3-adds-up": ("supported", "36 of 36", 0.005),
    "rvedit-table-3-expands-table-2": ("not supported", "35 of 36", -0.02),
    "rvedit-remove-drops-seventeen": ("supported", "1 of 1", 0.43),
    "rvedit-alignment-is-for-fidelity": ("supported", "2 of 2", 4.2),
    "rvedit-compliance-is-flat": ("not supported", "0 of 2", 69.12 - 72.59 + 0.005),
    "rvedit-fidelity-varies-by-three": ("not supported", "0 of 2", 3 - 5.81),
    "rvedit-too-much-anchoring": ("not supported", "0 of 1", 58.39 - 59.49),
    "rvedit-moderate-weight-helps": ("not supported", "1 of 3", 72.75 - 76.07),
    "rvedit-more-than-the-sum": ("supported", "1 of 1", 5.65 - 2.65 - 1.35),
    "rvedit-gains-in-fidelity-and-quality": ("not supported", "1 of 2", 78.22 - 78.30),
    "rvedit-easier-categories-stay-intact": ("not supported", "0 of 2", 2.65 - 7.38),
    "rvedit-number-of-blocks": ("not supported", "1 of 4", -3.5),
    "rvedit-triplets": ("supported", "1 of 1", 0.5),
    "mive-early-layers-look-at-the-person": ("not supported", "1 of 2", -0.0714),
    "mive-means-follow": ("supported", "10 of 10", 0.005),
    "mive-best-on-complex": ("supported", "6 of 6", 0.08),
    "mive-leads-three-axes-on-simple": ("supported", "6 of 6", 0.15),
    "mive-surpasses-commercial-systems": ("not supported", "3 of 4", -0.07),
    "mive-people-prefer-it-on-complex": ("undecided", "1 of 1", 0.14),
    "mive-judges-converge": ("undecided", "1 of 1", 0.6),
    "mive-preserves-what-is-not-edited": ("not supported", "2 of 5", -0.23),
    "mive-similarity-is-inconsistent": ("supported", "1 of 1", 0.8 - 0.5),
    "mive-minutes": ("not supported", "0 of 1", 0.05 - 0.4),
    "gencompositor-every-part-helps": ("supported", "32 of 32", 0.0004),
    "gencompositor-votes-are-possible": ("supported", "1 of 1", 1),
    "vera-gains-add-up": ("supported", "2 of 2", 0.1),
    "vera-halves-the-error": ("supported", "4 of 4", 0.5 - 0.010 / 0.021),
    "vera-consistency-is-alike": ("not supported", "2 of 4", 0.05 - 0.34),
    "vera-frames": ("supported", "1 of 1", 500 - 405),
}


@pytest.mark.parametrize("claim", FINDINGS)
def test_a_finding_is_what_a_pencil_says(found, claim):
    verdict, held, effect = FINDINGS[claim]
    row = found[claim]
    assert (row["verdict"], row["held"], row["effect"]) == (verdict, held, pytest.approx(effect, abs=1e-4))


def test_facts_that_reasons_quote(found):
    expected = {
        "rvedit-consistently-better": {"gemini": 6, "qwen": 9},
        "rvedit-judges-are-independent": {"lucy": 12, "icve": 3, "least": 11.75, "most": 15.13},
        "rvedit-moderate-weight-helps": {"quadratic": 72.89, "full": 77.42},
        # Local Remove's compliance alone: 39.86 to 84.32, of 67.82 in all twelve cells.
        "rvedit-more-than-the-sum": {"share": 100 * 44.46 / 67.82, "rest": 23.36 / 11},
        "rvedit-gains-in-fidelity-and-quality": {"compliance": 16.48, "worse": 4},
        "mive-early-layers-look-at-the-person": {"qwen3": -0.6, "glm": 0.7143},
        "mive-surpasses-commercial-systems": {"ours": 8.75, "theirs": 8.9825},
        "mive-similarity-is-inconsistent": {"simple": 0.2, "complex": -0.6},
        "gencompositor-fvd-and-kvd-best": {"agree": 0.4},
        "gencompositor-votes-are-possible": {"votes": 380, "fewest": 190},
        "vera-frames": {"trained": 587804},
    }
    for claim, facts in expected.items():
        for name, value in facts.items():
            assert found[claim]["facts"][name] == pytest.approx(value, abs=0.006), (claim, name)


# ---------------------------------------------------------------------- the audit


def test_the_kept_audit_is_what_the_tables_say(audit, found):
    kept = json.loads((BENCHMARKS / "results" / "paper_audit.json").read_text())["claims"]
    assert [row["claim"] for row in kept] == list(found)
    for row in kept:
        same = found[row["claim"]]
        assert row["margins"] == pytest.approx(same["margins"], abs=2e-4)
        assert (row["verdict"], row["held"], row["where"]) == (same["verdict"], same["held"], same["where"])


def test_one_wrong_cell_is_noticed(audit, found, monkeypatch):
    # Were Kiwi-Edit's Local Change two points lower under both judges, the claim would hold.
    rvedit = importlib.import_module("_audit.rvedit")
    for judge, table in rvedit.JUDGES.items():
        cells = list(table.rows["Kiwi-Edit"])
        cells[1] -= 6.1
        monkeypatch.setitem(
            rvedit.JUDGES, judge, replace(table, rows=table.rows | {"Kiwi-Edit": tuple(cells)})
        )
    again = {row["claim"]: row for row in audit.run()}
    changed = {claim for claim, row in again.items() if row["verdict"] != found[claim]["verdict"]}
    assert changed == {"rvedit-strongest-on-local-change", "rvedit-overall-is-the-mean"}
    assert all(row["held"] in audit.table({"claims": again.values()}) for row in again.values())
