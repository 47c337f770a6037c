"""An exported notebook, opened with the network off."""

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from test_layer_viewer_browser import SHOW

from vera_lite.cli import main


def test_a_notebook_becomes_a_page_that_works_offline(offline, tmp_path):
    offline.emulate_media(color_scheme="dark")  # the page is light, so its frames are, too
    path = tmp_path / "story.ipynb"
    cells = [new_markdown_cell("A matte $\\alpha$ and\n\n$$x^2$$"), new_code_cell(SHOW)]
    nbformat.write(new_notebook(cells=cells), path)
    assert main(["export", str(path)]) == 0

    offline.goto(path.with_suffix(".html").as_uri())
    widget = offline.frame_locator("iframe")
    inside = widget.locator("body")
    offline.wait_for_function("document.querySelector('iframe').offsetHeight !== 600")
    told = inside.evaluate("b => [document.documentElement.scrollHeight, innerHeight]")
    assert told[0] <= told[1] < told[0] + 40, "all of the widget, and no more"
    assert inside.evaluate("b => getComputedStyle(b).backgroundColor") == "rgb(255, 255, 255)"
    widget.get_by_role("button", name="matte").click()
    widget.get_by_role("button", name="next frame").click()
    widget.locator("canvas[aria-label='matte, frame 1']").wait_for()
    # A formula that is drawn as one has a height of its own, and its letter is no TeX.
    assert offline.locator("math").count() == 2
    assert offline.locator("math").first.text_content() == "α"
    assert offline.locator("msup").bounding_box()["height"] > 10
