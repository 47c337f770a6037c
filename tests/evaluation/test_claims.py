"""The ledger: it is what the kept results bear, and it notices when they change."""

import json
import shutil
from collections import Counter
from pathlib import Path

import claims as script
import pytest
import yaml

from vera_lite.cli import main
from vera_lite.errors import UserError
from vera_lite.evaluation import ledger

ROOT = Path(__file__).resolve().parents[2]
CLAIMS = ledger.read_ledger(script.LEDGER)


# ---------------------------------------------------------------------- the committed ledger


def test_every_claim_is_borne_by_its_kept_result():
    assert ledger.problems(CLAIMS, ROOT) == []


def test_the_ledger_covers_the_papers():
    papers = Counter(claim["paper"] for claim in CLAIMS)
    assert len(CLAIMS) >= 50 and min(papers[paper] for paper in ledger.PAPERS) >= 10
    assert {claim["kind"] for claim in CLAIMS} == set(ledger.KINDS)
    assert {claim["verdict"] for claim in CLAIMS} == set(ledger.MARKS)
    results = Counter(claim["test"]["result"] for claim in CLAIMS if claim["test"])
    audited = results.pop("paper_audit")
    assert audited >= 25 and sum(results.values()) >= 25
    assert all((ROOT / "benchmarks" / f"{name}.py").is_file() for name in [*results, "paper_audit"])


def test_the_whole_audit_is_in_the_ledger():
    audit = json.loads((ROOT / "benchmarks/results/paper_audit.json").read_text())["claims"]
    in_ledger = {c["id"] for c in CLAIMS if c["test"] and c["test"]["result"] == "paper_audit"}
    assert in_ledger == {row["claim"] for row in audit}


def test_reasons_are_filled_from_results():
    for claim in CLAIMS:
        assert "{" not in ledger.reason(claim)
        effect = ledger.effect(claim)
        assert bool(effect) == bool(claim["test"]), claim["id"]


def test_page_and_readme_are_rendered_from_it():
    assert script.PAGE.read_text() == ledger.page(CLAIMS), "run `python scripts/claims.py`"
    readme = script.README.read_text()
    assert readme == script.with_claims(readme, CLAIMS), "run `python scripts/claims.py`"
    assert sum(sum(row.values()) for row in ledger.counts(CLAIMS).values()) == len(CLAIMS)


# ---------------------------------------------------------------------- a project of three claims


REPORT = {
    "runs": [
        {"variant": v, "seed": s, "metrics": {"a/score": 10 + s + 5 * (v == "full"), "curve": [1, 2, 3 + s]}}
        for v in ("full", "less")
        for s in (0, 1, 2)
    ]
}


def claim_of(name, test, verdict="supported", reason="by {effect:.1f}"):
    return {"id": name, "paper": "MiVE", "place": "Table 1", "statement": "It <helps>.", "kind": "ablation",
            "test": test, "verdict": verdict, "reason": reason}  # fmt: skip


STUDY = {"result": "study", "ours": {"variant": "full"}, "theirs": {"variant": "less"}, "unit": "points"}

CURVE = ["metrics", "curve", [0, 2]]


@pytest.fixture
def project(tmp_path):
    """A folder with a ledger of three claims and the report of a study, rendered."""
    results = tmp_path / "benchmarks" / "results"
    results.mkdir(parents=True)
    (tmp_path / "results").mkdir()
    (results / "study.json").write_text(json.dumps(REPORT))
    claims = [
        claim_of("helps", STUDY | {"value": ["metrics", "a/score"]}),
        claim_of("curve", {"result": "study", "ours": STUDY["ours"], "value": CURVE, "unit": ""}),
        claim_of("users", None, "not testable here", "no votes"),
    ]
    ledger.write_ledger(ledger.render(claims, tmp_path), tmp_path / "results" / "claims.yaml")
    return tmp_path


def change(project, gain):
    """Another result: ``full`` is better than ``less`` by these gains."""
    runs = json.loads(json.dumps(REPORT["runs"]))
    for run in runs[:3]:
        run["metrics"]["a/score"] = 10 + run["seed"] + gain[run["seed"]]
    (project / "benchmarks/results/study.json").write_text(json.dumps({"runs": runs}))


def claims_of(project):
    return ledger.read_ledger(project / "results" / "claims.yaml")


def test_effects_are_paired_by_seed(project):
    change(project, (5, 6, 7))
    helps, curve, users = ledger.render(claims_of(project), project)
    assert helps["found"]["effect"] == 6 and helps["found"]["seeds"] == [0, 1, 2]
    assert helps["found"]["held"] == "3 of 3 seeds"
    assert helps["found"]["interval"] == pytest.approx([6 - 2.4841, 6 + 2.4841], abs=1e-3)
    assert curve["found"]["effect"] == 1.5 and ledger.measure(users, project) is None
    lower = claim_of("lower", STUDY | {"value": ["metrics", "a/score"], "lower_is_better": True})
    assert ledger.measure(lower, project)[0] == "not supported"
    small = claim_of("small", STUDY | {"value": ["metrics", "a/score"], "smallest_effect": 4})
    assert ledger.measure(small, project)[0] == "undecided"
    assert ledger.reason(helps) == "by 6.0" and ledger.effect(users) == ""


def test_a_difference_over_clips_is_taken_with_the_interval_of_its_report(project):
    report = {"clips": 48, "rows": {"theirs": {"minus ours": [-5.0, -8.0, -3.0]}}}
    (project / "benchmarks/results/study.json").write_text(json.dumps(report))
    test = {"result": "study", "difference": ["rows", "theirs", "minus ours"], "unit": "points"}
    assert ledger.measure(claim_of("a", test), project)[0] == "not supported"
    verdict, found = ledger.measure(claim_of("a", test | {"lower_is_better": True}), project)
    assert verdict == "supported" and found["held"] == "48 clips"
    assert found["effect"] == 5 and found["interval"] == [3, 8]
    with pytest.raises(UserError, match="does not hold"):
        ledger.measure(claim_of("a", test | {"difference": ["rows", "nobody"]}), project)


def test_a_result_that_changes_under_an_unchanged_verdict_is_noticed(project):
    claims = claims_of(project)
    assert ledger.problems(claims, project) == []
    change(project, (5, 5, 5.001))
    assert [said.partition(":")[0] for said in ledger.problems(claims, project)] == ["helps", "curve"]
    rendered = ledger.render(claims, project)  # the verdict is borne, so numbers may follow
    assert ledger.problems(rendered, project) == []
    assert rendered[0]["reason"] == claims[0]["reason"] and rendered[0]["found"] != claims[0]["found"]


def test_a_result_that_contradicts_the_verdict_is_not_rendered(project):
    change(project, (1, -1, 0))
    with pytest.raises(UserError, match=r"helps \(undecided, not supported\)"):
        ledger.render(claims_of(project), project)
    assert "undecided" in ledger.problems(claims_of(project), project)[0]


def test_a_verdict_that_is_edited_alone_is_noticed(project):
    claims = claims_of(project)
    claims[0]["verdict"] = "undecided"
    assert ledger.problems(claims, project) == ["helps: the result says supported, the ledger undecided."]
    claims[0] = claims_of(project)[0]
    claims[0]["found"]["effect"] = 5.1
    assert len(ledger.problems(claims, project)) == 1


def test_a_reason_cannot_quote_what_is_not_there(project):
    claim = claims_of(project)[0]
    for wrong in ("by {gain}", "by {}", "by {effect:d}", "by {effect"):
        with pytest.raises(UserError, match="helps"):
            ledger.reason(claim | {"reason": wrong})


def test_a_ledger_survives_being_written(project):
    path = project / "results" / "claims.yaml"
    before = path.read_text()
    ledger.write_ledger(ledger.read_ledger(path), path)
    assert path.read_text() == before and before.startswith("# What the four papers claim")
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(
    "break_it",
    [
        lambda claims: claims[0].pop("reason"),
        lambda claims: claims[0].update(paper="Sora"),
        lambda claims: claims[0].update(verdict="proven"),
        lambda claims: claims[0].update(test=None),
        lambda claims: claims[2].update(test={"result": "study"}),
        lambda claims: claims[1].update(id="helps"),
        lambda claims: claims.insert(0, "a sentence"),
    ],
)
def test_a_broken_ledger_is_one_sentence(project, break_it, capsys):
    path = project / "results" / "claims.yaml"
    claims = yaml.safe_load(path.read_text())
    break_it(claims)
    path.write_text(yaml.safe_dump(claims))
    assert main(["claims", "--ledger", str(path)]) == 2
    said = capsys.readouterr().err
    assert said.startswith("vera-lite: ") and said.count("\n") == 1 and str(path) in said


@pytest.mark.parametrize(
    "test",
    [
        STUDY | {"value": ["metrics", "b"]},
        STUDY | {"value": ["metrics", "a/score"], "ours": {"variant": "fuller"}},
        STUDY | {"value": ["metrics"]},
        {"result": "lost", "value": ["a"], "unit": ""},
        {"result": "study", "value": ["metrics", "a/score"], "unit": ""},  # two variants have each seed
    ],
)
def test_a_test_that_finds_nothing_is_one_sentence(project, test):
    with pytest.raises(UserError):
        ledger.measure(claim_of("x", test), project)


# ---------------------------------------------------------------------- the command


def test_the_command_lists_filters_and_shows(capsys):
    path = ["--ledger", str(script.LEDGER)]
    assert main(["claims", *path]) == 0
    listed = capsys.readouterr().out
    assert all(claim["id"] in listed for claim in CLAIMS)
    assert main(["claims", *path, "--paper", "MiVE", "--verdict", "undecided"]) == 0
    lines = capsys.readouterr().out.splitlines()[:-2]
    wanted = [c["id"] for c in CLAIMS if c["paper"] == "MiVE" and c["verdict"] == "undecided"]
    assert [line.split()[2] for line in lines] == wanted
    for option, values in (("--paper", ledger.PAPERS), ("--verdict", ledger.MARKS)):
        assert all(main(["claims", *path, option, value]) == 0 for value in values)
    assert main(["claims", *path, "--verdict", "proven"]) == 2
    capsys.readouterr()
    shown = next(claim for claim in CLAIMS if claim["test"])
    assert main(["claims", shown["id"], *path]) == 0
    assert shown["found"]["command"] in capsys.readouterr().out


def test_the_command_checks(project, capsys):
    path = ["--ledger", str(project / "results" / "claims.yaml")]
    assert main(["claims", "--check", *path]) == 0
    change(project, (1, -1, 0))
    assert main(["claims", "--check", *path]) == 1
    assert "helps: the result says undecided" in capsys.readouterr().out
    shutil.rmtree(project / "benchmarks")
    assert main(["claims", "--check", *path]) == 2
    assert main(["claims", "nonsense", *path]) == 2
    assert main(["claims", "--ledger", str(project / "nothing.yaml")]) == 2


def test_the_command_writes_a_page(project, capsys):
    out = project / "new" / "page.html"
    assert main(["claims", "--page", str(out), "--ledger", str(project / "results" / "claims.yaml")]) == 0
    text = out.read_text()
    assert text.count("<tr data-paper") == 3 and "It &lt;helps&gt;." in text and "{{" not in text
