"""The rating panel in Chromium: blind answers by mouse and keys, resumed after a reload, saved as a file."""

import json

import pytest
from evaluation.test_rating import METHODS, darker, grey, make_pairs
from test_layer_viewer_browser import LOWEST_CONTRAST

from vera_lite.widgets.base import iframe
from vera_lite.widgets.rating import Pair, RatingPanel

SHOW = """\
import torch
from vera_lite.widgets.rating import Pair, RatingPanel

dark, light = torch.zeros(2, 3, 6, 8), torch.ones(2, 3, 6, 8)
panel = RatingPanel([Pair(f"clip {k}", ("dark", "light"), (dark, light), f"edit {k}") for k in range(3)])
panel"""
CONTRAST = LOWEST_CONTRAST.replace(".vera-layer-viewer", ".vera-rating").replace(
    "button, span", "button:enabled, span, a, input, textarea, figcaption, summary, .vera-instruction"
)
SHADES = """() => Object.fromEntries([...document.querySelectorAll('.vera-rating canvas')].map((canvas) =>
    [canvas.getAttribute('aria-label'), canvas.getContext('2d').getImageData(0, 0, 1, 1).data[0] / 255]))"""


@pytest.fixture
def show(offline, tmp_path):
    """Put a panel on a static page, cut off from the network."""

    def open_page(panel):
        path = tmp_path / "page.html"
        path.write_text(panel.to_static())
        offline.goto(path.as_uri())
        offline.locator(".vera-progress").filter(has_text="pair").wait_for()
        return offline

    return open_page


def saved(page):
    return [json.loads(line) for line in page.get_by_label("answers as text").input_value().splitlines()]


def rate_all(page, rule, screens):
    for k in range(screens):
        page.locator(".vera-progress").filter(has_text=f"pair {k + 1} of {screens}").wait_for()
        shades = page.evaluate(SHADES)
        page.locator(f"[data-answer='{rule(shades['A'], shades['B'])}']").click()


def test_what_is_seen_is_what_is_counted(show, tmp_path):
    checks = [Pair("check", METHODS, (grey(0.0), grey(1.0)), "look", better="layers")]
    panel = RatingPanel(make_pairs() + checks, seed=2, repeats=2)
    page = show(panel)
    page.get_by_label("your name or number").fill("seven")
    rate_all(page, darker, 7)
    page.get_by_text("Thank you").wait_for()
    with page.expect_download() as download:
        page.get_by_role("link", name="save my answers").click()
    path = tmp_path / "seven.jsonl"
    download.value.save_as(path)
    ratings = panel.read(path)
    assert len(ratings) == 7 and {r.rater for r in ratings} == {"seven"}
    assert {r.preference for r in ratings} == {2} and [r.passed for r in ratings if r.item == "check"][0]
    assert all(r.seconds < 60 for r in ratings)


def test_keys_answer_turn_back_and_change_a_mind(show):
    page = show(RatingPanel(make_pairs()))
    page.locator(".vera-rating").focus()
    page.keyboard.press("1")
    page.keyboard.press("3")
    page.keyboard.press("ArrowRight")  # the third is not answered, so there is no fourth yet
    page.locator(".vera-progress").filter(has_text="pair 3 of 4").wait_for()
    page.keyboard.press("ArrowLeft")
    page.locator("[data-answer='0'][aria-pressed=true]").wait_for()
    page.keyboard.press("5")
    page.locator(".vera-progress").filter(has_text="pair 3 of 4").wait_for()
    assert [(row["screen"], row["answer"]) for row in saved(page)] == [(0, -2), (1, 2)]
    page.get_by_label("your name or number").press("4")  # a name may hold digits
    assert len(saved(page)) == 2 and saved(page)[0]["rater"] == "4"
    page.get_by_role("button", name="pause").press(" ")
    page.get_by_role("button", name="play").wait_for()


def test_a_reload_goes_on_where_it_was(show):
    page = show(RatingPanel(make_pairs()))
    page.get_by_label("your name or number").fill("seven")
    page.locator(".vera-rating").focus()
    page.keyboard.press("2")
    page.reload()
    page.locator(".vera-progress").filter(has_text="pair 2 of 4").wait_for()
    assert page.get_by_label("your name or number").input_value() == "seven"
    assert [row["answer"] for row in saved(page)] == [-1]
    # The next person starts anew, but not by one slip.
    page.get_by_role("button", name="start again").click()
    assert len(saved(page)) == 1
    page.get_by_role("button", name="really?").click()
    page.locator(".vera-progress").filter(has_text="pair 1 of 4").wait_for()
    page.reload()
    page.locator(".vera-progress").filter(has_text="pair 1 of 4").wait_for()
    assert saved(page) == [] and page.get_by_label("your name or number").input_value() == ""


def test_in_an_exported_notebook_answers_can_be_copied(offline, tmp_path):
    path = tmp_path / "page.html"
    path.write_text(iframe(RatingPanel(make_pairs()).to_static(), 620))  # may run scripts, and nothing else
    offline.goto(path.as_uri())
    panel = offline.frame_locator("iframe")
    panel.get_by_role("button", name="no difference").click()
    panel.locator(".vera-progress").filter(has_text="pair 2 of 4").wait_for()
    panel.get_by_text("answers as text").click()
    assert '"answer":0' in panel.get_by_label("answers as text").input_value()
    assert not panel.get_by_role("link", name="save my answers").is_visible()


def test_less_motion_stops_at_the_end(show, page):
    page.emulate_media(reduced_motion="reduce")
    page = show(RatingPanel(make_pairs(), fps=50))
    page.get_by_role("button", name="play").wait_for()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_in_both_themes(show, page, scheme):
    page.emulate_media(color_scheme=scheme)
    assert show(RatingPanel(make_pairs())).evaluate(CONTRAST) >= 4.5


def test_live_in_jupyterlab(lab):
    notebook = lab(SHOW)
    page = notebook.page
    page.locator(".vera-progress").filter(has_text="pair 1 of 3").wait_for()
    page.locator(".vera-rating").focus()
    cells = notebook.cell_count()
    for key in ("1", "a", "b", "5"):
        page.keyboard.press(key)
    assert notebook.cell_count() == cells
    notebook.wait_for("[row['answer'] for row in panel.answers], panel.screen", "([-2, 2], 2)")
    notebook.ask("panel.screen = 0")
    page.locator("[data-answer='-2'][aria-pressed=true]").wait_for()
    page.get_by_label("your name or number").fill("seven")
    notebook.wait_for("{r.rater for r in panel.ratings()}", "{'seven'}")
