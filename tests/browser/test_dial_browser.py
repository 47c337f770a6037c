"""The dial in Chromium, on a page without Python or network."""

import pytest
import torch
from test_layer_viewer_browser import LOWEST_CONTRAST

from vera_lite.widgets.dial import Dial

#: the shade of the picture's first pixel
SHADE = """async (picture) => {
    await picture.decode();
    const canvas = document.createElement("canvas");
    canvas.getContext("2d").drawImage(picture, 0, 0);
    return canvas.getContext("2d").getImageData(0, 0, 1, 1).data[0];
}"""


@pytest.fixture
def show(offline, tmp_path):
    dial = Dial(
        {"size": [0, 1, 2], "kind": ["x", "y"], "on": [False, True]},
        lambda size, kind, on: (torch.full((1, 4, 4), (4 * size + 2 * (kind == "y") + on) / 255), f"{size}"),
        "a title",
    )
    path = tmp_path / "page.html"
    path.write_text(dial.to_static())
    offline.goto(path.as_uri())
    offline.locator("img.vera-picture").wait_for()
    return offline


def test_every_control_changes_the_picture(show):
    picture, sentence = show.locator("img.vera-picture"), show.locator(".vera-sentence")
    assert picture.evaluate(SHADE) == 0
    slider = show.get_by_role("slider", name="size")
    slider.focus()
    show.keyboard.press("ArrowRight")
    assert picture.evaluate(SHADE) == 4 and sentence.text_content() == "1"
    assert slider.get_attribute("aria-valuetext") == "1"
    show.get_by_role("button", name="y").click()
    assert picture.evaluate(SHADE) == 6
    assert show.get_by_role("button", name="y").get_attribute("aria-pressed") == "true"
    show.get_by_role("checkbox", name="on").check()
    assert picture.evaluate(SHADE) == 7
    assert picture.get_attribute("alt") == "a title, size: 1, kind: y, on: True"
    slider.fill("2")
    assert picture.evaluate(SHADE) == 11


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_in_both_themes(show, page, scheme):
    page.emulate_media(color_scheme=scheme)
    contrast = LOWEST_CONTRAST.replace(".vera-layer-viewer", ".vera-dial")
    assert show.evaluate(contrast) >= 4.5
