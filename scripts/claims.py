"""Render the ledger anew from the kept results: `python scripts/claims.py`.

Writes results/claims.yaml, docs/claims.html and the README's table. A result that does not bear the verdict
that is written stops it: read the result, write verdict and reason anew, and run it again.
"""

import sys
from pathlib import Path

from vera_lite.errors import UserError
from vera_lite.evaluation import ledger
from vera_lite.media.files import replacing

ROOT = Path(__file__).parents[1]
LEDGER, PAGE, README = ROOT / "results" / "claims.yaml", ROOT / "docs" / "claims.html", ROOT / "README.md"
BEGIN, END = "<!-- claims:begin -->", "<!-- claims:end -->"


def with_claims(readme: str, claims: list[dict]) -> str:
    """The README with the ledger's tables between its two markers."""
    before, _, rest = readme.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{ledger.markdown(claims)}\n{END}{after}"


def main() -> None:
    try:
        claims = ledger.render(ledger.read_ledger(LEDGER), ROOT)
    except UserError as error:
        sys.exit(str(error))
    ledger.write_ledger(claims, LEDGER)
    for path, text in {PAGE: ledger.page(claims), README: with_claims(README.read_text(), claims)}.items():
        with replacing(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    print(f"{len(claims)} claims, {sum('found' in claim for claim in claims)} of them from kept results")


if __name__ == "__main__":
    main()
