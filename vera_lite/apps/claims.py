"""What `vera-lite claims` does: list the ledger, show one claim, write its page, or test it anew."""

import textwrap
from pathlib import Path

from vera_lite.errors import UserError
from vera_lite.evaluation import ledger
from vera_lite.media.files import replacing

LEDGER = Path("results", "claims.yaml")


def show_claims(
    path: Path = LEDGER,
    claim: str | None = None,
    paper: str | None = None,
    verdict: str | None = None,
    page: Path | None = None,
    check: bool = False,
) -> int:
    """Print the claims; returns the exit code.

    Args:
        path: of the ledger, in the folder ``results`` of a checkout.
        claim: show only this one, in full.
        paper, verdict: show only theirs.
        page: also write an HTML page of all claims.
        check: hold every claim against its kept result; 1 if one does not bear it.

    Raises:
        UserError: the ledger or a result cannot be read, or there is no such claim.
    """
    claims = ledger.read_ledger(path)
    if claim is not None and claim not in {c["id"] for c in claims}:
        raise UserError(f"there is no claim {claim} in {path}; `vera-lite claims` lists all.")
    if page is not None:
        text = ledger.page(claims)
        page.parent.mkdir(parents=True, exist_ok=True)
        with replacing(page) as temporary:
            temporary.write_text(text, encoding="utf-8")
        print(f"wrote {page}")
    wanted = {"id": claim, "paper": paper, "verdict": verdict}
    shown = [c for c in claims if all(value in (None, c[part]) for part, value in wanted.items())]
    if check:
        found = ledger.problems(shown, path.absolute().parent.parent)
        print("\n".join(found) or f"{len(shown)} claims are borne by their results")
        return bool(found)
    if claim is not None:
        print(_in_full(shown[0]))
    elif page is None:
        print("\n".join(_line(c) for c in shown))
        print(f"\n{len(shown)} of {len(claims)} claims; `vera-lite claims ID` shows one in full")
    return 0


def _line(claim: dict) -> str:
    statement = textwrap.shorten(claim["statement"], 64, placeholder=" ...")
    return f"{ledger.MARKS[claim['verdict']]} {claim['verdict']:18}{claim['id']:43}{statement}"


def _in_full(claim: dict) -> str:
    found = claim.get("found") or {}
    parts = {
        claim["paper"]: f"{claim['place']} ({claim['kind']})",
        "verdict": claim["verdict"],
        "why": ledger.reason(claim),
        "effect": ledger.effect(claim),
        "test": found.get("command"),
        "result": found and f"{found['file']}, sha256 {found['sha256'][:12]}",
    }
    return "\n".join([claim["statement"], *(f"  {name:14}{text}" for name, text in parts.items() if text)])
