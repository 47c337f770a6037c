"""A ledger of claims: what the papers say, what was measured, and a verdict that the result must bear.

A claim is a mapping, as results/claims.yaml holds it. People write what is claimed (``id``, ``paper``,
``place``, ``statement``, ``kind``), how it is tested (``test``), the ``verdict`` and the ``reason``. The
last part, ``found``, is rendered from a kept result. A result that has changed is found out by its hash
(:func:`problems`), and :func:`render` refuses it if it no longer bears the verdict that is written.

``test`` names a report in benchmarks/results and where the effect stands in it::

    test: {result: paper_audit}            # the entry of the audit that has the claim's id
    test:
      result: rvedit_ablation              # by seed: ours minus theirs
      ours: {variant: full}                # of the runs that have these values ...
      theirs: {variant: without routing}   # without it: ours minus 0
      value: [metrics, overall/score]      # ... the number at this path; of a list, the mean
      theirs_value: [...]                  # if it is another one
      lower_is_better: true
      unit: points of 100
      smallest_effect: 0.5                 # that would matter; 0 if not given
    test:
      result: compare_systems              # over clips: the report holds [mean, low, high]
      difference: [rows, name, compliance_minus_vera]
      lower_is_better: true
      unit: points of 100

A claim that cannot be tested here has no ``test``.
"""

import hashlib
import html
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml

from vera_lite.errors import UserError
from vera_lite.media.files import replacing

PAPERS = ("Vera", "GenCompositor", "RVEDiT", "MiVE")
KINDS = ("arithmetic", "ablation", "mechanism", "comparison")
#: What a claim can be, and the mark that says so without colour.
MARKS = {"supported": "✓", "not supported": "✗", "undecided": "?", "not testable here": "–"}
WRITTEN = ("id", "paper", "place", "statement", "kind", "test", "verdict", "reason")
PAGE = Path(__file__).with_name("ledger.html")
HEADER = """\
# What the four papers claim, and what holds. `found` is rendered from benchmarks/results:
#   python scripts/claims.py
# renders it anew, with docs/claims.html and the README's table. It refuses a result that no longer bears the
# verdict written here: read the result, then write verdict and reason anew. Numbers in a reason are names in
# braces, filled from the result. The format is described in vera_lite/evaluation/ledger.py.
"""


def read_ledger(path: str | Path) -> list[dict]:
    """The claims of a ledger.

    Raises:
        UserError: there is no such file, or a claim lacks a part or has a value that is not allowed.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"there is no ledger {path}; run in a checkout of vera-lite, or give --ledger.")
    try:
        claims = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is no YAML ({str(error).splitlines()[0]}): restore it.") from error
    if not isinstance(claims, list):
        raise UserError(f"{path} holds no list of claims: restore it.")
    allowed = {"paper": PAPERS, "kind": KINDS, "verdict": tuple(MARKS)}
    for number, claim in enumerate(claims, 1):
        parts = claim if isinstance(claim, dict) else {}
        name = parts.get("id", f"number {number}")
        if missing := [part for part in WRITTEN if part not in parts]:
            raise UserError(f"{path}: claim {name} lacks {', '.join(missing)}.")
        for part, values in allowed.items():
            if claim[part] not in values:
                raise UserError(
                    f"{path}: {part} of {name} is one of {', '.join(values)}, not {claim[part]!r}."
                )
        if (claim["test"] is None) != (claim["verdict"] == "not testable here"):
            raise UserError(f"{path}: {name} needs a test, or the verdict 'not testable here'; not both.")
    if twice := [name for name, count in Counter(claim["id"] for claim in claims).items() if count > 1]:
        raise UserError(f"{path} has two claims {twice[0]}: rename one.")
    return claims


def write_ledger(claims: Sequence[dict], path: str | Path) -> None:
    """Write a ledger whole or not at all."""
    text = yaml.safe_dump(list(claims), sort_keys=False, allow_unicode=True, width=110)
    with replacing(path) as temporary:
        temporary.write_text(HEADER + "\n" + text.replace("\n- id:", "\n\n- id:"), encoding="utf-8")


# --- what a result says --------------------------------------------------------------------------


def measure(claim: dict, root: Path) -> tuple[str, dict] | None:
    """The verdict that the kept result bears, and what becomes ``found``; None if there is no test.

    Args:
        claim: of the ledger.
        root: folder of the project.

    Raises:
        UserError: there is no such result, or it does not hold what the test asks for.
    """
    test = claim["test"]
    if test is None:
        return None
    file = f"benchmarks/results/{test['result']}.json"
    report, digest = _report(root / file)
    command = f"python benchmarks/{test['result']}.py" + (" --run" if "runs" in report else "")
    found = {"command": command, "file": file, "sha256": digest}
    try:
        by = _audited if "claims" in report else _by_clip if "difference" in test else _by_seed
        verdict, measured = by(claim, report)
    except (KeyError, IndexError, TypeError, StopIteration) as error:
        raise UserError(
            f"{file} does not hold what the test of {claim['id']} asks for ({error!r})."
        ) from error
    return verdict, found | measured


def _report(path: Path) -> tuple[dict, str]:
    if not path.is_file():
        raise UserError(f"there is no result {path}: measure it, or take the claim's test away.")
    text = path.read_text(encoding="utf-8")  # with one kind of line ends, or the hash would differ by system
    return json.loads(text), hashlib.sha256(text.encode()).hexdigest()


def _audited(claim: dict, report: dict) -> tuple[str, dict]:
    row = next(row for row in report["claims"] if row["claim"] == claim["id"])
    found = {name: row[name] for name in ("effect", "unit", "interval", "held", "where", "facts")}
    return row["verdict"], {name: value for name, value in found.items() if value not in (None, {})}


def _by_clip(claim: dict, report: dict) -> tuple[str, dict]:
    from vera_lite.evaluation.statistics import verdict  # slow to import

    test, found = claim["test"], report
    for part in test["difference"]:
        found = found[part]
    mean, *ends = (-value if test.get("lower_is_better") else value for value in found)
    low, high = sorted(ends)
    measured = {"effect": round(mean, 4), "unit": test["unit"], "interval": [round(low, 4), round(high, 4)]}
    return verdict(low, high, test.get("smallest_effect", 0.0)), measured | {
        "held": f"{report['clips']} clips"
    }


def _by_seed(claim: dict, report: dict) -> tuple[str, dict]:
    from vera_lite.evaluation.statistics import seed_interval, verdict  # slow to import

    test = claim["test"]
    runs = report["runs" if "runs" in report else "models"]
    ours = _values(runs, test.get("ours", {}), test["value"])
    theirs = dict.fromkeys(ours, 0.0)
    if "theirs" in test:
        theirs = _values(runs, test["theirs"], test.get("theirs_value", test["value"]))
    seeds = sorted(ours.keys() & theirs.keys())
    if not seeds:
        raise KeyError("no run")
    sign = -1 if test.get("lower_is_better") else 1
    gains = [sign * (ours[seed] - theirs[seed]) for seed in seeds]
    smallest = test.get("smallest_effect", 0.0)
    low, high = seed_interval(gains)
    return verdict(low, high, smallest), {
        "effect": round(fmean(gains), 4),
        "unit": test["unit"],
        "interval": [round(low, 4), round(high, 4)],
        "held": f"{sum(gain > smallest for gain in gains)} of {len(gains)} seeds",
        "seeds": seeds,
    }


def _values(runs: list[dict], case: dict, path: Sequence[str | list[int]]) -> dict[int, float]:
    """One number by seed, of the runs that have all values of ``case``."""

    def value(found: Any) -> float:
        for part in path:
            found = found[part if isinstance(part, str) else slice(*part)]
        return fmean(found) if isinstance(found, list) else found

    found = [(run.get("seed", i), value(run)) for i, run in enumerate(runs) if case.items() <= run.items()]
    if len(dict(found)) < len(found):
        raise KeyError(f"{case} has several runs of one seed")
    return dict(found)


def problems(claims: Sequence[dict], root: Path) -> list[str]:
    """One sentence for each claim that its kept result does not bear, as it is written and rendered."""
    said = []
    for claim in claims:
        verdict, found = measure(claim, root) or (claim["verdict"], None)
        if verdict != claim["verdict"]:
            said.append(f"{claim['id']}: the result says {verdict}, the ledger {claim['verdict']}.")
        elif found != claim.get("found"):
            said.append(
                f"{claim['id']}: {found and found['file']} has changed; run `python scripts/claims.py`."
            )
    return said


def render(claims: Sequence[dict], root: Path) -> list[dict]:
    """The claims with ``found`` as the kept results have it.

    Raises:
        UserError: a result does not bear the verdict that is written: people have to write that anew, and the
            reason with it.
    """
    rendered, refused = [], []
    for claim in claims:
        verdict, found = measure(claim, root) or (claim["verdict"], None)
        if verdict != claim["verdict"]:
            refused.append(f"{claim['id']} ({verdict}, not {claim['verdict']})")
        rendered.append({part: claim[part] for part in (*WRITTEN, "headline") if part in claim})
        if found:
            rendered[-1]["found"] = found
    if refused:
        raise UserError(
            f"results do not bear the verdict of {', '.join(refused)}: write verdict and reason anew."
        )
    return rendered


# --- to be read ------------------------------------------------------------------------------------


def reason(claim: dict) -> str:
    """The reason, with numbers of the result in place of names in braces; UserError if it has none such."""
    found = claim.get("found") or {}
    low, high = found.get("interval") or (None, None)
    numbers = {"effect": found.get("effect"), "low": low, "high": high} | found.get("facts", {})
    try:
        return claim["reason"].format(**numbers)
    except (KeyError, IndexError, ValueError, TypeError) as error:
        raise UserError(
            f"the reason of {claim['id']} quotes what its result does not hold: {error}."
        ) from error


def effect(claim: dict) -> str:
    """Effect, interval, and how often it held, in one line; empty without a test."""
    found = claim.get("found")
    if not found:
        return ""
    ends = found.get("interval")
    band = f" [{ends[0]:+.3g}, {ends[1]:+.3g}]" if ends else ""
    where = f" ({found['where']})" if "where" in found else ""
    return f"{found['effect']:+.3g}{band} {found['unit']}".rstrip() + f"{where}; {found['held']}"


def counts(claims: Sequence[dict]) -> dict[str, dict[str, int]]:
    """How many claims have each verdict, by paper."""
    return {
        paper: {v: sum(c["paper"] == paper and c["verdict"] == v for c in claims) for v in MARKS}
        for paper in PAPERS
    }


def markdown(claims: Sequence[dict]) -> str:
    """Two tables: verdicts by paper, and the claims marked as ``headline``."""
    lines = [f"| paper | {' | '.join(MARKS)} |", "|---|" + "---|" * len(MARKS)]
    lines += [f"| {p} | {' | '.join(map(str, row.values()))} |" for p, row in counts(claims).items()]
    lines += ["", "| claim | verdict | why |", "|---|---|---|"]
    lines += [
        f"| {c['paper']}: {c['statement']} | {MARKS[c['verdict']]} {c['verdict']} | {reason(c)} |"
        for c in claims
        if c.get("headline")
    ]
    return "\n".join(lines)


def page(claims: Sequence[dict]) -> str:
    """One HTML page that filters by paper and verdict and works without Python, network or other files."""
    rows = []
    for claim in claims:
        found, text = claim.get("found") or {}, {k: html.escape(str(v)) for k, v in claim.items()}
        facts = {
            "place": text["place"],
            "kind": text["kind"],
            "seeds": ", ".join(map(str, found.get("seeds", []))),
            "test": f"<code>{html.escape(found['command'])}</code>" if found else "",
            "result": f"<code>{found['file']}</code>, sha256 {found['sha256'][:12]}" if found else "",
        }
        details = "".join(f"<dt>{name}</dt><dd>{value}</dd>" for name, value in facts.items() if value)
        rows.append(
            f'<tr data-paper="{text["paper"]}" data-verdict="{text["verdict"]}" id="{text["id"]}">'
            f"<td>{text['paper']}</td><td>{text['statement']}<details><summary>{text['id']}</summary>"
            f"<dl>{details}</dl></details></td><td class=verdict>{MARKS[claim['verdict']]} "
            f"{text['verdict']}</td>"
            f"<td>{html.escape(effect(claim))}</td><td>{html.escape(reason(claim))}</td></tr>"
        )
    options = {
        name: "".join(f"<option>{value}</option>" for value in values)
        for name, values in {"papers": PAPERS, "verdicts": MARKS}.items()
    }
    text = PAGE.read_text(encoding="utf-8")
    for name, value in (options | {"rows": "\n".join(rows)}).items():
        text = text.replace(f"{{{{ {name} }}}}", value)
    return text
