"""The attention explorer in Chromium: patches under pointers, requests, brushes, and the three hosts."""

import base64
import io
import math
import re
from dataclasses import replace
from unittest import mock

import nbformat
import numpy as np
import pytest
import torch
from nbclient import NotebookClient
from PIL import Image
from playwright.sync_api import TimeoutError
from test_explorer import GRID, VIDEO, WORDS, make_call, numbers, saved_bytes, stores
from test_layer_viewer_browser import LOWEST_CONTRAST

from vera_lite.diagnostics import CallSite, Capture, GroupMass, Rows, TokenGrid, VideoStream
from vera_lite.widgets.explorer import AttentionExplorer, GroupMatrix

STAGE = ".stage canvas"


def get(page, name):
    return page.evaluate(f"model.get('{name}')")


def reply(page, explorer, request):
    """Answer a request of the page as Python does."""
    with mock.patch.object(explorer, "send") as send:
        explorer._handle_custom_msg(request, [])
    content, buffers = send.call_args.args
    page.evaluate(
        """([content, buffers]) => {
            const view = (text) => new DataView(Uint8Array.from(atob(text), (c) => c.charCodeAt(0)).buffer);
            call("msg:custom", content, buffers.map(view));
        }""",
        [content, [base64.b64encode(b).decode() for b in buffers]],
    )


def at(page, cell, grid, canvas=0, dx=0.5, dy=0.5):
    """Page coordinates of a point in a patch."""
    picture = page.locator(STAGE).nth(canvas)
    picture.scroll_into_view_if_needed()
    box = picture.bounding_box()
    (y, x), (h, w) = cell, grid
    return box["x"] + (x + dx) * box["width"] / w, box["y"] + (y + dy) * box["height"] / h


def hover(page, cell, grid=(3, 5), **point):
    page.mouse.move(*at(page, cell, grid, **point))
    return page.locator(".readout").text_content()


def readings(text):
    """(value, error) pairs of a readout."""
    return [tuple(map(float, pair)) for pair in re.findall(r"(-?[\d.]+(?:e[+-]\d+)?) ± ([\d.e+-]+)", text)]


def planted(size, grid, rank, frames=((0,), (1, 2))):
    """An explorer whose one map is one lit patch."""
    tokens = len(frames) * grid[0] * grid[1]
    stream = VideoStream("video", torch.arange(tokens), frames, grid, (3, *size))
    values = torch.zeros(1, 1, 1, tokens)
    values[..., rank] = 0.25
    capture = Capture(CallSite("blocks.0"), (0,), values, 1e-7)
    video = torch.full((3, 3, *size), 0.5)
    return AttentionExplorer([capture], TokenGrid((stream,)), video, sinks=[])


# --- where things are ----------------------------------------------------------------------------


WIDE, TALL = ((37, 53), (5, 7)), ((53, 37), (7, 3))


@pytest.mark.parametrize(
    ("size", "grid", "density", "zoom"), [(*WIDE, 1, 1.25), (*WIDE, 2, 1), (*TALL, 1, 1), (*TALL, 2, 1.25)]
)
def test_a_planted_patch_is_lit_and_found(browser, show, size, grid, density, zoom):
    h, w = grid
    cell = (h - 2, 1)
    explorer = planted(size, grid, rank=h * w + cell[0] * w + cell[1])
    explorer.frame, explorer.opacity = 2, 1.0
    with browser.new_context(device_scale_factor=density, viewport={"width": 1000, "height": 900}) as context:
        page = show(explorer, page=context.new_page())
        page.evaluate("zoom => document.body.style.zoom = zoom", zoom)
        box = page.locator(STAGE).bounding_box()
        picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
        lit = np.abs(np.array(picture).astype(int) - (254, 232, 56)).max(-1) < 10
        lit &= np.arange(lit.shape[0])[:, None] < (box["y"] + box["height"]) * density  # not the colour bar
        lit &= np.arange(lit.shape[1]) < (box["x"] + box["width"]) * density  # not the atlas
        rows, columns = (np.flatnonzero(lit.any(axis)) for axis in (1, 0))
        expected = np.array([at(page, cell, grid, dx=d, dy=d) for d in (0, 1)]) * density
        assert lit[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
        found = np.array([(columns[0], rows[0]), (columns[-1] + 1, rows[-1] + 1)])
        assert abs(found - expected).max() <= 1 + density
        for dx, dy in ((0.04, 0.04), (0.96, 0.96)):
            assert readings(hover(page, cell, grid, dx=dx, dy=dy))[0][0] == 0.25
        for dx, dy in ((-0.04, 0.5), (0.5, 1.04)):
            assert readings(hover(page, cell, grid, dx=dx, dy=dy))[0][0] == 0


def test_only_the_frames_of_its_slot_are_lit(show):
    page = show(planted((12, 20), (3, 5), rank=7))  # slot 0 is frame 0
    pixels = "c => c.getContext('2d').getImageData(0, 0, c.width, c.height).data.join()"
    frames = [c.evaluate(pixels) for c in page.locator("[aria-label='all frames'] canvas").all()]
    assert frames[0] != frames[1] == frames[2]


# --- values --------------------------------------------------------------------------------------


def test_hover_tells_both_runs_and_their_difference(show):
    a, b = stores(seed=0), stores(seed=1)
    explorer = AttentionExplorer(a, GRID, VIDEO, compare=b, words={"one": [4]}, names=("on", "off"))
    explorer.layer, explorer.head, explorer.frame = 1, 2, 3
    page = show(explorer)
    for canvas in range(3):  # one cursor for all
        text = hover(page, (2, 3), canvas=canvas)
        assert "token 28, video (1, 2, 3)" in text
        exact = [float(s[1].rows([4])[0, 2, 0, 28]) for s in (a, b)]
        for (value, error), expected in zip(readings(text), [*exact, exact[0] - exact[1]], strict=True):
            assert abs(value - expected) <= error + 1e-3 * abs(expected) + 1e-7
    page.get_by_label("frame", exact=True).fill("0")
    text = page.locator(".readout").text_content()
    assert "token 13, video (0, 2, 3)" in text, "the pointer rests, the frame moves on"
    assert page.locator("figcaption").nth(2).text_content().startswith("on − off")


def scale(page, pane=0):
    """The numbers at the colour bar."""
    return [float(text) for text in page.locator("figcaption").nth(pane).locator("b").all_text_contents()]


def test_the_scale_is_printed_and_its_own_at_first(show):
    sources = stores(layers=3)
    explorer = AttentionExplorer(sources, GRID, VIDEO, words={"one": [4]})
    page = show(explorer)
    tops = [float(s.rows([4])[0, :, 0].mean(0).max()) for s in sources]
    for choice in ("its own", "one for all maps"):
        if choice != "its own":
            page.get_by_label("scale").select_option(choice)
        for layer, top in enumerate(tops):
            page.get_by_label("layer", exact=True).fill(str(layer))
            end = top if choice == "its own" else max(tops)
            assert scale(page) == pytest.approx([0, end / 2, end], rel=1e-2)


COLOUR = """c => [...c.getContext('2d').getImageData(c.width / 10, c.height / 6, 1, 1).data.slice(0, 3)]"""


def test_the_video_is_not_read_as_attention(show):
    """Without attention, black and white look nearly alike; the colour bar is blended like the map."""
    grid = TokenGrid((VideoStream("video", torch.arange(30), ((0,), (1,)), (3, 5), (2, 24, 40)),))
    values = torch.zeros(1, 1, 1, 30)
    values[..., 29] = 0.25
    video = torch.stack([torch.zeros(3, 24, 40), torch.ones(3, 24, 40)])
    explorer = AttentionExplorer([Capture(CallSite("blocks.0"), (0,), values, 0.0)], grid, video, sinks=[])
    page = show(explorer)
    black = page.locator(STAGE).evaluate(COLOUR)
    page.get_by_label("frame", exact=True).fill("1")
    white = page.locator(STAGE).evaluate(COLOUR)
    assert 5 < max(abs(a - b) for a, b in zip(black, white, strict=True)) < 50
    first = re.search(r"rgb\((\d+),(\d+),(\d+)\)", page.locator(".scale").get_attribute("style"))
    bar = [int(v) for v in first.groups()]
    assert all(min(a, b) <= c <= max(a, b) for a, b, c in zip(black, white, bar, strict=True))
    page.get_by_label("show", exact=True).select_option("map alone")
    assert page.locator(STAGE).evaluate(COLOUR) == [0, 34, 78]
    page.get_by_label("show", exact=True).select_option("video alone")
    assert page.locator(STAGE).evaluate(COLOUR) == [255, 255, 255]
    assert page.locator(".scale").count() == 0
    # Below the threshold the video is bare; so is the bar.
    page.get_by_label("show", exact=True).select_option("map alone")
    page.get_by_label("hide below").fill("0.5")
    assert len(set(page.locator(STAGE).evaluate(COLOUR))) == 1
    assert "rgb(128,128,128)" in page.locator(".scale").get_attribute("style")


def test_sinks_are_listed_and_left_out_on_demand(show):
    sources = stores(sink=15)
    explorer = AttentionExplorer(sources, GRID, VIDEO, words={"one": [4]}, sinks=[15])
    explorer.frame = 1
    page = show(explorer)
    page.get_by_role("button", name="help").click()
    page.get_by_text("Sinks: video (1, 0, 0).").wait_for()
    value, error = readings(hover(page, (0, 0)))[0]
    assert value == pytest.approx(float(explorer.current_maps().mean(1)[0, 15]), rel=1e-3) and error == 0
    page.get_by_label("leave sinks out").check()
    assert "NaN" in hover(page, (0, 0))
    assert "SINKS LEFT OUT" in page.locator(".said").text_content()
    others = torch.stack([s.rows([4])[0, :, 0].mean(0) for s in sources]).index_fill(1, torch.tensor(15), 0)
    for choice, top in (("one for all maps", others.max()), ("its own", others[0].max())):
        page.get_by_label("scale").select_option(choice)
        assert scale(page)[2] == pytest.approx(float(top), rel=0.01)


def test_a_residual_above_the_threshold_is_red(show):
    captures = [
        replace(Rows([3])(make_call(i)), residual=residual)
        for i, residual in enumerate((1e-5, 0.5, math.nan))
    ]
    page = show(AttentionExplorer(captures, GRID, VIDEO))
    for layer, ok, text in (
        ("0", "true", "1.0e-5, within"),
        ("1", "false", "0.5, ABOVE"),
        ("2", "false", "NaN, ABOVE"),
    ):
        page.get_by_label("layer", exact=True).fill(layer)
        assert page.locator(".check").get_attribute("data-ok") == ok
        assert ("NOT EXACT" in page.locator(".check").text_content()) == (ok == "false")
        assert text in page.locator(".help [data-ok]").text_content()


def test_words_carry_their_weights_and_the_matrix_its_masses(show):
    sources = stores(keys=3)
    masses = [GroupMass(torch.tensor([0, 1, 1]), ("first", "rest"))(make_call(i, keys=3)) for i in range(2)]
    matrix = GroupMatrix.of_group_mass(masses, torch.arange(30) // 15, ("early", "late"))
    explorer = AttentionExplorer(sources, GRID, VIDEO, key_grid=WORDS, words={"ball": [1]}, direction="to",
                                 matrix=matrix)  # fmt: skip
    page = show(explorer, live=True)
    page.mouse.click(*at(page, (1, 2), (3, 5)))
    assert (get(page, "query"), get(page, "direction")) == (7, "from")
    reply(page, explorer, page.evaluate("sent.at(-1)"))
    titles = [b.get_attribute("title") for b in page.locator(".chips button").all()]
    exact = sources[0].rows([7])[0, :, 0].mean(0)
    for title, weight in zip(titles, exact.tolist(), strict=True):
        (value, error), *_ = readings(title)
        assert abs(value - weight) <= error + 1e-3
    page.locator(".chips button").nth(2).click()
    assert (get(page, "query"), get(page, "direction")) == (2, "to")
    page.get_by_label("layer", exact=True).fill("1")
    cells = [float(c) for c in page.locator("td").all_text_contents()]
    assert cells == pytest.approx(matrix.values[0, 1].flatten().tolist(), abs=6e-4)


# --- what is asked of Python -----------------------------------------------------------------------


def test_a_click_asks_python_and_shows_the_answer(show):
    sources = stores()
    explorer = AttentionExplorer(sources, GRID, VIDEO)
    page = show(explorer, live=True)
    assert page.evaluate("sent.length") == 0, "saved maps need no request"
    page.mouse.click(*at(page, (2, 4), (3, 5)))
    assert get(page, "query") == 14
    assert "computing" in page.locator(".said").text_content()
    reply(page, explorer, page.evaluate("sent[0]"))
    thumbnails = page.locator("[aria-label='all layers'] canvas").all()
    faint = [float(c.evaluate("c => getComputedStyle(c).opacity")) < 1 for c in thumbnails]
    assert faint == [False, True], "the other layer was not computed"
    page.get_by_label("head", exact=True).select_option("1")
    for cell in ((0, 0), (2, 1)):
        value, error = readings(hover(page, cell))[0]
        expected = float(sources[0].rows([14])[0, 1, 0, 5 * cell[0] + cell[1]])
        assert abs(value - expected) <= error + 1e-3 * expected
    assert page.evaluate("sent[1].layer") == "all", "then the atlas"
    reply(page, explorer, page.evaluate("sent[1]"))
    page.get_by_label("map of").select_option("to")
    reply(page, explorer, page.evaluate("sent[2]"))
    expected = float(sources[0].columns([14])[0, 1, 11, 0])
    value, error = readings(hover(page, (2, 1)))[0]
    assert abs(value - expected) <= error + 1e-3 * expected
    reply(page, explorer, page.evaluate("sent[3]"))
    page.get_by_label("map of").select_option("from")
    assert page.evaluate("sent.length") == 4, "maps are kept"


def test_a_dragged_slider_queues_nothing(show):
    sources = stores(layers=12)
    explorer = AttentionExplorer(sources, GRID, VIDEO)
    page = show(explorer, live=True)
    page.mouse.click(*at(page, (0, 0), (3, 5)))
    for layer in range(1, 12):
        page.get_by_label("layer", exact=True).fill(str(layer))
    assert page.evaluate("sent.map((m) => m.layer)") == [0]
    # A reply that nobody waits for changes nothing.
    first = page.evaluate("sent[0]")
    reply(page, explorer, first | {"id": "another-1", "layer": 11})
    assert page.evaluate("sent.length") == 1
    assert "computing" in page.locator(".said").text_content()
    # The first reply is not shown as the present layer's; the present layer is asked for next.
    reply(page, explorer, first)
    assert page.evaluate("sent.map((m) => m.layer)") == [0, 11]
    assert "±" not in hover(page, (1, 1))
    reply(page, explorer, page.evaluate("sent[1]"))
    value, error = readings(hover(page, (1, 1)))[0]
    expected = float(sources[11].rows([0])[0, :, 0, 6].mean())
    assert abs(value - expected) <= error + 1e-3 * expected
    assert page.evaluate("sent.map((m) => m.layer)") == [0, 11, "all"]


def test_a_refused_request_is_not_repeated(show):
    page = show(AttentionExplorer(stores(), GRID, VIDEO), live=True)
    page.mouse.click(*at(page, (0, 0), (3, 5)))
    page.evaluate("call('msg:custom', { id: sent[0].id, failed: true }, [])")
    page.evaluate("model.set('error', 'UserError: no.')")
    page.get_by_role("alert").filter(has_text="UserError: no.").wait_for()
    assert page.evaluate("sent.map((m) => m.layer)") == [0, "all"], "the map is not asked for again"
    page.get_by_role("button", name="close").click()
    assert get(page, "error") == "" and page.get_by_role("alert").is_hidden()


def test_a_late_answer_is_shown_and_a_lost_kernel_is_told(show, offline):
    explorer = AttentionExplorer(stores(), GRID, VIDEO)
    offline.clock.install()
    page = show(explorer, live=True)
    page.mouse.click(*at(page, (0, 0), (3, 5)))
    page.evaluate("live = false")  # the kernel is busy or gone
    page.clock.run_for(21000)
    assert "Python gave no answer: run the cell again" in page.locator(".said").text_content()
    assert page.locator(".vera-explorer").get_attribute("data-alive") == "false"
    assert page.evaluate("sent.length") == 1, "it does not ask for ever"
    reply(page, explorer, page.evaluate("sent[0]"))
    assert readings(hover(page, (1, 1))) and "entropy" not in page.locator(".said").text_content()
    assert page.locator(".vera-explorer").get_attribute("data-alive") == "true"
    # A connection that breaks is no error of the page.
    page.evaluate("() => { model.save_changes = model.send = () => { throw Error('Kernel is dead'); } }")
    page.get_by_label("frame", exact=True).fill("2")
    page.wait_for_function("document.querySelector('.vera-explorer').dataset.alive === 'false'")


def test_without_python_it_says_what_is_missing(show):
    sources = stores(layers=4, steps=4)
    budget = saved_bytes(AttentionExplorer(sources, GRID, VIDEO)) - 2500
    explorer = AttentionExplorer(sources, GRID, VIDEO, budget_bytes=budget)
    assert explorer._facts["groups"] == 1, "heads must not fit for this test"
    page = show(explorer)
    page.mouse.click(*at(page, (0, 0), (3, 5)))
    assert get(page, "query") == -1
    assert "Needs Python" in page.locator(".readout").text_content()
    assert "others need Python" in page.locator(".where").text_content()
    head = page.get_by_label("head", exact=True).locator("option").nth(1)
    thumbnail = page.get_by_role("button", name="head 0")
    for control in (head, thumbnail):
        assert control.is_disabled() and "Needs Python" in control.get_attribute("title")
    page.get_by_label("layer", exact=True).fill("1")
    assert "blocks.1.attn1" in page.locator(".title").text_content()
    assert readings(hover(page, (1, 1)))
    assert page.evaluate("sent.length") == 0


# --- choosing ------------------------------------------------------------------------------------


def brush(page, first, last, layers):
    svg = page.locator(".atlas")
    svg.scroll_into_view_if_needed()
    box = svg.bounding_box()
    y = box["y"] + box["height"] - 60 * box["width"] / 600  # in the curve
    x = [box["x"] + box["width"] * (46 + (layer + 0.5) * 546 / layers) / 600 for layer in (first, last)]
    page.mouse.move(x[0], y)
    page.mouse.down()
    page.mouse.move(x[1], y, steps=5)
    page.mouse.up()


def test_the_brush_and_the_thumbnails_choose(show):
    page = show(AttentionExplorer(stores(layers=6), GRID, VIDEO, mask=torch.ones(5, 1, 24, 40)))
    brush(page, 4, 2, layers=6)
    assert get(page, "selected_layers") == [2, 3, 4]
    box = page.locator(".atlas").bounding_box()
    page.mouse.move(box["x"] + 0.9 * box["width"], box["y"] + box["height"] - 50)
    assert get(page, "selected_layers") == [2, 3, 4], "the button is up"
    for name, trait, value in (
        ("frame 3", "frame", 3),
        ("head 2", "head", 2),
        ("layer 5", "layer", 5),
    ):
        button = page.get_by_role("button", name=name)
        button.click()
        assert get(page, trait) == value
        assert button.get_attribute("aria-pressed") == "true"


def test_steps_have_a_strip_and_maps_their_numbers(show):
    explorer = AttentionExplorer(stores(layers=2, steps=3), GRID, VIDEO, words={"patch": [7]})
    page = show(explorer)
    buttons = page.get_by_role("group", name="all steps").get_by_role("button")
    assert buttons.count() == 3
    pixels = "b => Array.from(b.firstChild.getContext('2d').getImageData(0, 0, 56, 34).data).join()"
    assert len({buttons.nth(i).evaluate(pixels) for i in range(3)}) == 3
    assert page.locator(".title").text_content() == "Where patch looks: blocks.0.attn1, mean of heads, step 0"
    buttons.nth(2).click()
    page.get_by_role("group", name="all heads").get_by_role("button").nth(2).click()
    page.locator(".title").filter(has_text="blocks.0.attn1, head 1, step 2").wait_for()
    for kind, text in (
        ("entropy", "entropy {:.2f}"),
        ("patches", "{:.1f} patches"),
        ("slots", "{:.1f} time slots"),
    ):
        number = float(numbers(explorer, kind, step=2)[2])
        assert text.format(number) in page.locator(".said").text_content()


def test_keys(show):
    page = show(AttentionExplorer(stores(layers=4), GRID, VIDEO))
    page.locator(".vera-explorer").focus()
    for keys, trait, value in (
        (["ArrowRight", "ArrowRight", "ArrowLeft"], "frame", 1),
        (["ArrowUp", "ArrowUp", "ArrowDown"], "layer", 1),
        (["]", "]", "["], "head", 0),
        (["Shift+ArrowRight", "Shift+ArrowRight", "Shift+ArrowLeft"], "selected_layers", [0, 1, 2]),
        (["Escape"], "selected_layers", []),
    ):
        for key in keys:
            page.keyboard.press(key)
        assert get(page, trait) == value
    page.keyboard.press(" ")
    page.wait_for_function("model.get('frame') === 0")  # played to the end and over
    page.get_by_role("button", name="pause").click()


def test_less_motion_stops_at_the_end(show):
    page = show(AttentionExplorer(stores(), GRID, VIDEO, fps=50))
    page.emulate_media(reduced_motion="reduce")
    page.get_by_role("button", name="play").click()
    page.get_by_role("button", name="play").wait_for()  # it says pause meanwhile
    assert get(page, "frame") == 4


def test_the_query_is_marked_in_every_frame(show):
    page = show(AttentionExplorer(stores(), GRID, VIDEO, words={"patch": [22]}))  # slot 1, row 1, column 2
    edge = """c => [
        ...c.getContext('2d').getImageData((2 / 5) * c.width, c.height / 2, 1, 1).data.slice(0, 3)
    ]"""
    assert "Dashed: the query, which is in frames 1 to 4." in page.locator(".where").text_content()
    page.get_by_label("frame", exact=True).fill("3")
    assert "White frame: the query." in page.locator(".where").text_content()
    assert page.locator(STAGE).evaluate(edge) == [255, 255, 255]
    thumbnails = page.locator("[aria-label='all frames'] canvas")
    marked = [c.evaluate(edge)[0] > 200 for c in thumbnails.all()]
    assert marked == [False, True, True, True, True]
    page = show(
        AttentionExplorer(stores(keys=3), GRID, VIDEO, key_grid=WORDS, words={"it": [1]}, direction="to")
    )
    assert "The query: “ball”." in page.locator(".where").text_content()
    pressed = page.locator(".chips button[aria-pressed=true]")
    assert pressed.all_text_contents() == ["ball"]


def test_it_can_be_used_without_a_mouse(show):
    explorer = AttentionExplorer(stores(layers=8, keys=3), GRID, VIDEO, key_grid=WORDS, direction="to")
    page = show(explorer, live=True)
    stops = page.locator("button:not([tabindex='-1']), input, select, [tabindex='0']")
    assert sum(stop.is_visible() and stop.is_enabled() for stop in stops.all()) < 25
    page.locator(STAGE).focus()
    for key in ("ArrowRight", "ArrowRight", "ArrowDown", "ArrowLeft"):
        page.keyboard.press(key)
    assert "video (0, 2, 2)" in page.locator(".readout").text_content()
    page.keyboard.press("Enter")
    assert (get(page, "query"), get(page, "direction"), get(page, "frame")) == (12, "from", 0)
    page.get_by_role("button", name="a", exact=True).focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    assert (get(page, "query"), get(page, "direction")) == (1, "to")
    page.locator(".atlas").focus()
    for key in ("ArrowRight", "ArrowRight", "ArrowLeft", "ArrowDown", "ArrowDown"):
        page.keyboard.press(key)
    assert (get(page, "layer"), get(page, "head")) == (1, 1)
    page.get_by_role("button", name="layer 1", exact=True).focus()
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    assert get(page, "layer") == 4


def test_strips_follow_what_is_chosen(show):
    page = show(AttentionExplorer(stores(layers=24), GRID, VIDEO))
    strip = page.get_by_role("group", name="all layers")
    assert strip.evaluate("s => s.scrollLeft") == 0
    before = page.evaluate("scrollY")
    page.get_by_label("layer", exact=True).fill("22")
    chosen, box = page.get_by_role("button", name="layer 22").bounding_box(), strip.bounding_box()
    assert box["x"] <= chosen["x"] and chosen["x"] + chosen["width"] <= box["x"] + box["width"] + 1
    assert page.evaluate("scrollY") == before


@pytest.mark.parametrize("width", [1280, 1600])
def test_it_fits_the_screen(show, page, width):
    page.set_viewport_size({"width": width, "height": 900})
    matrix = GroupMatrix(torch.rand(1, 8, 3, 3), tuple("abc"), tuple("abc"))
    mask = torch.ones(5, 1, 24, 40)
    page = show(AttentionExplorer(stores(layers=8), GRID, VIDEO, mask=mask, matrix=matrix))
    assert page.locator(".vera-explorer").bounding_box()["height"] <= 700
    left, right = (page.locator(".column").nth(i).bounding_box() for i in (0, 1))
    assert right["x"] >= left["x"] + left["width"] and abs(left["y"] - right["y"]) < 2
    assert page.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_in_both_themes(show, page, scheme):
    page.emulate_media(color_scheme=scheme)
    explorer = AttentionExplorer(stores(keys=3), GRID, VIDEO, key_grid=WORDS)
    page = show(explorer)
    contrast = LOWEST_CONTRAST.replace(".vera-layer-viewer", ".vera-explorer")
    assert page.evaluate(contrast) >= 4.5


def test_views_come_and_go(show):
    page = show(AttentionExplorer(stores(), GRID, VIDEO))
    page.evaluate(
        """async () => {
            const url = URL.createObjectURL(new Blob([model.get("_esm")], { type: "text/javascript" }));
            const { default: widget } = await import(url);
            const el = document.body.appendChild(document.createElement("div"));
            globalThis.cleanup = widget.render({ model, el });
        }"""
    )
    assert page.locator(".vera-explorer").count() == 2
    page.get_by_label("frame", exact=True).first.fill("2")
    page.wait_for_function(
        "[...document.querySelectorAll('[aria-label=frame]')].every((i) => i.value === '2')"
    )
    page.evaluate("cleanup()")
    assert page.locator(".vera-explorer").count() == 1
    page.get_by_label("frame", exact=True).fill("3")
    assert get(page, "frame") == 3


# --- in JupyterLab -------------------------------------------------------------------------------

SHOW = """\
import torch
from torch.nn import functional as F
from vera_lite.diagnostics import AttentionCall, CallSite, StoreQK, TokenGrid
from vera_lite.widgets.explorer import AttentionExplorer

torch.manual_seed(0)
grid, video = TokenGrid.wan(5, 24, 40, spatial_stride=4), torch.rand(5, 3, 24, 40)

def store():
    q, k, v = torch.randn(3, 1, 2, 30, 8)
    output = F.scaled_dot_product_attention(q, k, v)
    return StoreQK()(AttentionCall(CallSite(""), q, k, v, None, False, 8**-0.5, output))

explorer = AttentionExplorer.of_stores({f"block {i}": store() for i in range(4)}, grid, video)
explorer"""


def test_live_in_jupyterlab(lab):
    notebook = lab(SHOW)
    page = notebook.page
    page.locator(STAGE).wait_for()
    page.locator(".vera-explorer[data-alive=true]").wait_for()
    page.get_by_label("layer", exact=True).fill("2")
    page.locator(STAGE).click()  # the middle
    brush(page, 1, 3, layers=4)
    notebook.wait_for("explorer.layer, explorer.query, explorer.selected_layers", "(2, 7, [1, 2, 3])")
    page.locator(".title").filter(has_text="the patch in row 1, column 2, frame 0").wait_for()
    page.wait_for_function("!document.querySelector('.said').textContent.includes('computing')")
    (value, error), *_ = readings(hover(page, (1, 1)))
    notebook.wait_for(
        f"abs(float(explorer.current_maps().mean(1)[0, 6]) - {value}) <= {error} + 1e-4", "True"
    )

    cells = notebook.cell_count()
    page.locator(".vera-explorer").focus()
    for key in ("a", "b", "d", "d", "j", "k", "ArrowUp", "ArrowRight", "]"):
        page.keyboard.press(key)
    assert notebook.cell_count() == cells
    notebook.wait_for("explorer.layer, explorer.frame, explorer.head", "(3, 1, 0)")

    notebook.ask("explorer._maps = lambda *_: 1 / 0")
    page.get_by_label("map of").select_option("to")
    page.get_by_role("alert").filter(has_text="ZeroDivisionError").wait_for()
    notebook.ask("del explorer._maps; explorer.query = 3")
    page.locator(".title").filter(has_text="row 0, column 3").wait_for()
    page.get_by_role("alert").wait_for(state="hidden")


def test_saved_and_reopened_without_its_kernel(lab_server, lab_page):
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(SHOW)])
    NotebookClient(notebook, kernel_name="python3").execute()
    lab_server.open(lab_page, notebook)
    try:
        lab_page.locator(STAGE).wait_for(timeout=20_000)
    except TimeoutError:  # a widget has 2 seconds to start, too few on a busy machine
        lab_server.open(lab_page, notebook)
        lab_page.locator(STAGE).wait_for()
    lab_page.get_by_label("layer", exact=True).fill("2")
    lab_page.locator(".title").filter(has_text="block 2").wait_for()
    assert readings(hover(lab_page, (1, 1)))
    lab_page.locator(STAGE).click()
    lab_page.locator(".readout").filter(has_text="Needs Python").wait_for()


def test_five_explorers_at_once(lab):
    notebook = lab(SHOW + "\nmany = [explorer]\nexplorer")
    page, alive = notebook.page, ".vera-explorer[data-alive=true]"
    for count in range(1, 6):
        page.wait_for_function(f"document.querySelectorAll('{alive}').length === {count}")
        if count < 5:
            notebook.ask(
                "many.append(AttentionExplorer(explorer._sources.tables[0][0], grid, video))\nmany[-1]"
            )
    for i in (4, 2):
        one = page.locator(alive).nth(i)
        one.get_by_label("layer", exact=True).fill("3")
        one.locator(STAGE).click()
        one.locator(".said").filter(has_text="entropy").wait_for()
    notebook.wait_for(
        "[one.layer for one in many], [one.query for one in many]", "([0, 0, 3, 0, 3], [-1, -1, 7, -1, 7])"
    )
