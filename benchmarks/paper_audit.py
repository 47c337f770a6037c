"""Read the four papers' tables with a pencil: does what the text says follow from the numbers beside it?

    python benchmarks/paper_audit.py                the audit, claim by claim
    python benchmarks/paper_audit.py --json OUT     also as JSON; needs a second

The claims are functions in benchmarks/_audit, one module a paper.
"""

import argparse
from pathlib import Path

from _audit import AUDIT, gencompositor, mive, rvedit, vera  # noqa: F401  (their functions enter AUDIT)
from _harness import report_head, write_json


def run() -> list[dict]:
    """The whole audit, paper by paper."""
    return [function().row(name) for name, function in AUDIT.items()]


def table(report: dict) -> str:
    """One line for each claim."""
    lines = [f"  {'claim':44}{'verdict':16}{'held':10}{'margin':>10}  where it is smallest"]
    for row in report["claims"]:
        lines.append(
            f"  {row['claim']:44}{row['verdict']:16}{row['held']:10}{row['effect']:>10.3f}  {row['where']}"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="also write the report to this file")
    arguments = parser.parse_args()
    report = report_head("paper_audit", "scipy") | {"claims": run()}
    print(table(report))
    if arguments.json is not None:
        write_json(report, arguments.json)


if __name__ == "__main__":
    main()
