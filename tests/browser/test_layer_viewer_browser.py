"""The layer viewer in Chromium: exact pixels, keys, and the three hosts."""

import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient
from test_clip import make_clip

from vera_lite.media.clip import composite, to_float, to_uint8
from vera_lite.widgets.layer_viewer import LayerViewer

SHOW = """\
import torch
from vera_lite.media.clip import LayeredClip
from vera_lite.widgets.layer_viewer import LayerViewer

torch.manual_seed(0)
source, edit, alpha = torch.rand(3, 4, 3, 12, 20)
clip = LayeredClip(source, edit, alpha[:, :1], source, alpha[:, :1], "a test")
viewer = LayerViewer(clip)
viewer"""

CANVAS = ".vera-picture canvas"
PIXELS = "canvas => [...canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data]"


@pytest.fixture
def show(offline, tmp_path):
    """Put a widget on a static page, cut off from the network."""

    def open_page(widget):
        path = tmp_path / "page.html"
        path.write_text(widget.to_static())
        offline.goto(path.as_uri())
        offline.locator(CANVAS).wait_for()
        return offline

    return open_page


def pixels(page):
    canvas = page.locator(CANVAS)
    height, width = (int(canvas.get_attribute(name)) for name in ("height", "width"))
    image = np.array(canvas.evaluate(PIXELS)).reshape(height, width, 4)
    assert (image[..., 3] == 255).all()
    return image[..., :3]


def planted_clip():
    """Alpha with many exact zeros and ones, at an odd size."""
    clip = make_clip()
    clip.alpha.copy_((clip.alpha * 2 - 0.5).clamp(0, 1))
    return clip


def eight_bits(clip, frame):
    return {name: to_uint8(getattr(clip, name)[frame]) for name in ("source", "edit", "alpha", "composite")}


def numpy_image(x):
    return to_uint8(x).expand(3, -1, -1).permute(1, 2, 0).numpy().astype(int)


def test_every_view_holds_the_exact_pixels(show):
    clip = planted_clip()
    page = show(LayerViewer(clip))
    page.get_by_role("button", name="next frame").click()
    layers = {name: to_float(layer) for name, layer in eight_bits(clip, 1).items()}
    source, edit, alpha = layers["source"], layers["edit"], layers["alpha"]
    views = {
        "final": composite(edit, alpha, source),
        "source": source,
        "straight": edit,
        "premultiplied": alpha * edit,
        "matte": alpha,
        "composite": layers["composite"],
    }
    for view, expected in views.items():
        page.get_by_role("button", name=view, exact=True).click()
        assert abs(pixels(page) - numpy_image(expected)).max() <= 1, view
    page.get_by_role("button", name="final", exact=True).click()
    untouched = (alpha[0] == 0).numpy()
    assert untouched.any()
    np.testing.assert_array_equal(pixels(page)[untouched], numpy_image(source)[untouched])


def test_layers_go_on_and_off(show):
    clip = planted_clip()
    page = show(LayerViewer(clip))
    layers = {name: to_float(layer) for name, layer in eight_bits(clip, 0).items()}
    page.locator(".vera-layer-viewer").focus()
    page.keyboard.press("3")
    np.testing.assert_array_equal(pixels(page), numpy_image(layers["edit"]))
    page.keyboard.press("2")
    np.testing.assert_array_equal(pixels(page), numpy_image(layers["source"]))
    page.get_by_role("button", name="1 source").click()
    assert set(np.unique(pixels(page))) == {102, 153}, "nothing but the checkerboard"
    assert page.get_by_role("button", name="1 source").get_attribute("aria-pressed") == "false"


def test_keys_work_wherever_the_focus_is(show):
    page = show(LayerViewer(make_clip()))
    matte, wipe = page.get_by_role("button", name="matte"), page.get_by_label("wipe to source")
    matte.click()
    page.keyboard.press("ArrowRight")  # a button has no use for it
    page.locator("[aria-label='matte, frame 1']").wait_for()
    page.get_by_label("frame", exact=True).press("ArrowRight")  # once, not twice
    page.locator("[aria-label='matte, frame 2']").wait_for()
    wipe.press("ArrowRight")
    assert wipe.input_value() == "0.01"
    page.get_by_role("button", name="checker").press(" ")  # chooses, and does not play
    page.locator("[aria-label='checker, frame 2']").wait_for()
    assert page.get_by_role("button", name="play").count() == 1
    page.locator(".vera-layer-viewer").press("v")
    matte.and_(page.locator("[aria-pressed=true]")).wait_for()


def test_the_wipe_shows_the_source_on_the_left(show):
    clip = planted_clip()
    page = show(LayerViewer(clip))
    whole = pixels(page)
    page.get_by_label("wipe to source").fill("0.4")
    edge = round(0.4 * 13)
    image, source = pixels(page), numpy_image(clip.source[0])
    np.testing.assert_array_equal(image[:, :edge], source[:, :edge])
    np.testing.assert_array_equal(image[:, edge:], whole[:, edge:])


@pytest.mark.parametrize("zoom", [1.0, 1.25])
@pytest.mark.parametrize("density", [1, 2])
def test_the_readout_names_the_pixel_under_the_pointer(browser, tmp_path, zoom, density):
    clip = make_clip()
    clip.source[:], clip.edit[:], clip.alpha[:] = 0, 0, 0
    y, x = 6, 11
    planted = ["source 51 51 51", "edit 204 204 204", "alpha 128", "final 128 128 128"]
    clip.source[0, :, y, x], clip.edit[0, :, y, x], clip.alpha[0, :, y, x] = 0.2, 0.8, 0.5
    path = tmp_path / "page.html"
    path.write_text(LayerViewer(clip).to_static())
    with browser.new_context(device_scale_factor=density) as context:
        page = context.new_page()
        page.goto(path.as_uri())
        page.evaluate("zoom => document.body.style.zoom = zoom", zoom)
        box = page.locator(CANVAS).bounding_box()
        for dx, dy in ((0.05, 0.05), (0.95, 0.95)):  # just inside two corners of the pixel
            page.mouse.move(box["x"] + (x + dx) * box["width"] / 13, box["y"] + (y + dy) * box["height"] / 9)
            text = page.locator(".vera-readout span").all_text_contents()
            assert text == [f"x {x}, y {y}", *planted]
        page.mouse.move(box["x"] + (x + 1.05) * box["width"] / 13, box["y"] + (y + 0.5) * box["height"] / 9)
        assert "alpha 0" in page.locator(".vera-readout span").all_text_contents()


def test_playing_moves_and_less_motion_stops_at_the_end(show, page):
    page.emulate_media(reduced_motion="reduce")
    page = show(LayerViewer(make_clip(), fps=50))
    slider = page.get_by_label("frame", exact=True)
    page.locator(".vera-layer-viewer").focus()
    page.keyboard.press(" ")
    page.get_by_role("button", name="play").wait_for()  # it says pause meanwhile
    page.wait_for_function("document.querySelector('.vera-frame').value === '2'")
    page.wait_for_timeout(100)
    assert slider.input_value() == "2"
    page.emulate_media(reduced_motion="no-preference")
    page.keyboard.press(" ")
    page.wait_for_timeout(300)
    page.get_by_role("button", name="pause").press(" ")  # still going round
    page.get_by_role("button", name="play").wait_for()


LOWEST_CONTRAST = """() => {
    const channels = (colour) => colour.match(/[\\d.]+/g).map(Number);
    const over = ([r, g, b, a = 1], under) => [r, g, b].map((c, i) => a * c + (1 - a) * under[i]);
    const ground = (element) => {
        if (!element) return [255, 255, 255];
        const colour = channels(getComputedStyle(element).backgroundColor);
        return colour[3] === 0 ? ground(element.parentElement) : over(colour, ground(element.parentElement));
    };
    const light = (rgb) => rgb.map((c) => c / 255)
        .map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4))
        .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
    const root = document.querySelector(".vera-layer-viewer");
    const texts = [...root.querySelectorAll("button, span, label, .vera-caption")];
    return Math.min(...texts.map((element) => {
        const under = ground(element);
        const [a, b] = [light(over(channels(getComputedStyle(element).color), under)), light(under)];
        return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    }));
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_in_both_themes(show, page, scheme):
    page.emulate_media(color_scheme=scheme)
    assert show(LayerViewer(make_clip())).evaluate(LOWEST_CONTRAST) >= 4.5


def test_live_in_jupyterlab(lab):
    notebook = lab(SHOW)
    page = notebook.page
    page.locator(CANVAS).wait_for()

    # What is done in the browser can be read in Python, and the other way round.
    page.get_by_role("button", name="3 alpha").click()
    page.get_by_label("frame", exact=True).fill("2")
    page.get_by_label("wipe to source").fill("0.25")
    notebook.wait_for("viewer.frame, viewer.visible, viewer.wipe", "(2, ['source', 'edit'], 0.25)")
    notebook.ask("viewer.frame, viewer.view = 1, 'matte'")
    page.locator("[aria-label='matte, frame 1']").wait_for()

    # JupyterLab's own keys do not get through.
    cells = notebook.cell_count()
    page.locator(".vera-layer-viewer").focus()
    for key in ("a", "b", "d", "d", "j", "k", "ArrowUp", "ArrowDown", "ArrowRight"):
        page.keyboard.press(key)
    assert notebook.cell_count() == cells
    notebook.wait_for("viewer.frame", "2")

    # A callback that fails says so.
    notebook.ask("viewer.observe(lambda change: 1 / 0, 'wipe')")
    page.get_by_label("wipe to source").fill("0.5")
    banner = page.get_by_role("alert")
    banner.filter(has_text="ZeroDivisionError: division by zero").wait_for()
    banner.get_by_role("button", name="close").click()
    banner.wait_for(state="hidden")
    notebook.wait_for("viewer.error", "''")

    page.evaluate("jupyterapp.commands.execute('apputils:change-theme', { theme: 'JupyterLab Dark' })")
    page.wait_for_function("document.body.dataset.jpThemeName === 'JupyterLab Dark'")
    try:
        assert page.evaluate(LOWEST_CONTRAST) >= 4.5
    finally:
        page.evaluate("jupyterapp.commands.execute('apputils:change-theme', { theme: 'JupyterLab Light' })")


def test_saved_and_reopened_without_its_kernel(lab_server, lab_page):
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(SHOW)])
    NotebookClient(notebook, kernel_name="python3").execute()
    lab_server.open(lab_page, notebook)
    lab_page.locator(CANVAS).wait_for()
    lab_page.get_by_role("button", name="matte").click()
    lab_page.get_by_role("button", name="next frame").click()
    lab_page.locator("[aria-label='matte, frame 1']").wait_for()
    assert len(np.unique(pixels(lab_page))) > 50
