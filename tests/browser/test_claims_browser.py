"""The page of the ledger in Chromium, with the network off."""

from collections import Counter

import claims as script
import pytest

from vera_lite.evaluation import ledger

CLAIMS = ledger.read_ledger(script.LEDGER)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_filters_by_paper_and_verdict(offline, accessible, tmp_path, scheme):
    offline.emulate_media(color_scheme=scheme)
    path = tmp_path / "claims.html"
    path.write_text(ledger.page(CLAIMS))
    offline.goto(path.as_uri())
    accessible(offline)
    rows, told = offline.locator("tbody tr:visible"), offline.locator("output")
    assert rows.count() == len(CLAIMS)
    found = Counter((c["paper"], c["verdict"]) for c in CLAIMS)
    for paper in ("MiVE", "Vera"):
        offline.get_by_label("paper").select_option(paper)
        for verdict in ledger.MARKS:
            offline.get_by_label("verdict").select_option(verdict)
            assert rows.count() == found[paper, verdict]
            assert told.text_content() == f"{found[paper, verdict]} of {len(CLAIMS)} claims"
    offline.get_by_label("paper").select_option("")
    offline.get_by_label("verdict").select_option("")
    first = CLAIMS[0]
    row = offline.locator(f"tr[id='{first['id']}']")
    row.locator("summary").click()
    row.get_by_text(first["found"]["command"]).wait_for()
    text = row.inner_text()
    assert first["statement"] in text and f"{ledger.MARKS[first['verdict']]} {first['verdict']}" in text
