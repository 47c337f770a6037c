"""The path editor in Chromium: Python's bits, real drags, and the three hosts."""

import io
import json
import random
from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch
from PIL import Image
from test_layer_viewer_browser import LOWEST_CONTRAST
from test_path_editor import SIZE, background, clip, foreground, path

from vera_lite.apps.export_notebook import STATE, VIEW
from vera_lite.errors import UserError
from vera_lite.media.clip import composite, to_uint8
from vera_lite.media.placement import place
from vera_lite.media.trajectory import Keyframe, Trajectory
from vera_lite.widgets.base import iframe
from vera_lite.widgets.path_editor import PathEditor

CANVAS = ".vera-path-editor canvas"
CONTRAST = LOWEST_CONTRAST.replace(".vera-layer-viewer", ".vera-path-editor").replace(
    "button, span", "button, span, td, th, a, summary, select, textarea, td input, .message"
)
SHOW = """\
import torch
from vera_lite.media.trajectory import Keyframe, Trajectory
from vera_lite.widgets.path_editor import PathEditor

torch.manual_seed(0)
editor = PathEditor(torch.rand(5, 3, 20, 30), (torch.ones(5, 3, 6, 6), torch.ones(5, 1, 6, 6)))
editor"""


@pytest.fixture
def show(offline, tmp_path):
    """Put an editor on a static page, cut off from the network."""

    def open_page(editor, page=offline):
        text = editor.to_static()
        assert text.count("if (state._css)") == 1
        file = tmp_path / "page.html"
        file.write_text(text.replace("if (state._css)", "globalThis.model = model;\n  if (state._css)"))
        page.goto(file.as_uri())
        drawn = "c?.getContext('2d').getImageData(0, 0, 1, 1).data[3] === 255"
        page.wait_for_function(f"() => {{ const c = document.querySelector('{CANVAS}'); return {drawn}; }}")
        return page

    return open_page


def get(page, name):
    return page.evaluate(f"model.get('{name}')")


def drawn(page, number=0):
    """The path as Python reads it."""
    return Trajectory.from_json(json.dumps(get(page, "objects")[number]["trajectory"]))


def places(page, number=0):
    return [(k["x"], k["y"]) for k in get(page, "objects")[number]["trajectory"]["keyframes"]]


def at(page, x, y, size=SIZE, dx=0.5, dy=0.5):
    """Page coordinates of a point in a pixel."""
    box = page.locator(CANVAS).bounding_box()
    return box["x"] + (x + dx) * box["width"] / size[1], box["y"] + (y + dy) * box["height"] / size[0]


def click(page, x, y, **point):
    page.mouse.click(*at(page, x, y, **point))


def drag(page, start, end, **point):
    page.mouse.move(*at(page, *start, **point))
    page.mouse.down()
    page.mouse.move(*at(page, *end, **point), steps=5)
    page.mouse.up()


def handle(page, number):
    return page.get_by_role("button", name=f"keyframe {number} of ")


def message(page):
    return page.get_by_role("status").text_content()


def pixels(page):
    return np.array(
        page.locator(CANVAS).evaluate(
            "c => [...c.getContext('2d').getImageData(0, 0, c.width, c.height).data]"
        )
    ).reshape(*SIZE, 4)[..., :3]


# --- the module, compared with Python ------------------------------------------------------------


@pytest.fixture
def module(offline):
    """``module(function, *arguments)`` calls what the script exports."""
    offline.evaluate(
        """async (source) => {
            const url = URL.createObjectURL(new Blob([source], { type: "text/javascript" }));
            globalThis.module = await import(url);
        }""",
        str(PathEditor._esm),
    )
    return lambda function, *arguments: offline.evaluate(
        f"(all) => {{ const f = {function}; return f(...all); }}", list(arguments)
    )


SAMPLED = """(cases) => cases.map(([text, size, n]) => {
    const trajectory = module.parse(text, size);
    return [module.times(trajectory), module.sample(trajectory, n)];
})"""


def random_trajectory(draw):
    """Many ties, rests, empty scales and known times."""
    height, width = draw.randint(1, 90), draw.randint(1, 120)
    count = draw.randint(1, 8)
    times = sorted(draw.choice([draw.random(), 0.0, 1.0, 0.5]) for _ in range(count))
    keyframes, has_scales = [], draw.random() < 0.5
    for time in times:
        x, y = draw.uniform(0, width - 1), draw.uniform(0, height - 1)
        if keyframes and draw.random() < 0.2:
            x, y = keyframes[-1].x, keyframes[-1].y
        scale = draw.choice([None, 0.0, draw.uniform(0.01, 4)]) if has_scales else None
        keyframes.append(Keyframe(x, y, scale, draw.choice([None, None, time])))
    scales = (1.0,)
    if not any(k.scale for k in keyframes):
        scales = (draw.uniform(0.1, 3), *(draw.choice([None, 0.0, draw.random() + 0.1]) for _ in range(3)))
    timing = draw.choice(["equal_frames", "constant_speed"])
    return Trajectory(tuple(keyframes), (height, width), timing, scales)


def test_sampling_gives_pythons_bits(module):
    draw = random.Random(0)
    stored = json.loads((Path(__file__).parents[1] / "data" / "trajectories.json").read_text())
    cases = [(Trajectory.from_json(json.dumps(c["trajectory"])), c["n"]) for c in stored]
    # Rounding would put the second keyframe behind the third: 0.06 + (0.87 - 0.06) is above 0.87.
    late = path((0, 0, None, 0.06), (10, 0), (10, 0, None, 0.87), timing="constant_speed")
    cases += [(late, 9)] + [(random_trajectory(draw), draw.randint(1, 60)) for _ in range(400)]
    answers = module(SAMPLED, [[t.to_json(), list(t.size), n] for t, n in cases])
    for (trajectory, n), (times, rows) in zip(cases, answers, strict=True):
        positions, scales = trajectory.sample(n)
        assert times == trajectory.times(), trajectory
        assert rows == torch.cat([positions, scales[:, None]], 1).tolist(), trajectory


BAD = [
    "no json",
    "[1]",
    "null",
    "{}",
    {"version": 2},
    {"colour": "red"},
    {"size": 5},
    {"timing": "fast"},
    {"keyframes": []},
    {"keyframes": [[1, 2]]},
    {"keyframes": [{"x": 1}]},
    {"keyframes": [{"x": "1", "y": 2}]},
    {"keyframes": [{"x": True, "y": 2}]},
    {"keyframes": [{"x": 1, "y": 2, "z": 3}]},
    {"keyframes": [{"x": 1, "y": 2, "scale": -1}]},
    {"keyframes": [{"x": 1, "y": 2, "time": 1.5}]},
    {"keyframes": [{"x": 1, "y": 2, "time": 0.5}, {"x": 1, "y": 2, "time": 0.4}]},
    {"keyframes": [{"x": 1, "y": 2, "scale": 2}], "scales": [0.5]},
    {"scales": 0.5},
    {"scales": [None, 0]},
    {"scales": [-1, 1]},
]


def test_what_python_refuses_is_refused(module):
    good = path((1, 2)).to_json()
    texts = [bad if isinstance(bad, str) else json.dumps(json.loads(good) | bad) for bad in BAD]
    attempt = """(texts, size) => texts.map((text) => {
        try { module.parse(text, size); } catch (e) { return e.message; }
    })"""
    for text, answer in zip(texts, module(attempt, texts, list(SIZE)), strict=True):
        with pytest.raises(UserError):
            Trajectory.from_json(text)
        assert answer and answer.startswith("This is not the JSON of a trajectory here: "), text
    assert module(attempt, [good], list(SIZE)) == [None]
    assert "is 20,30, not 20,31" in module(attempt, [good], [20, 31])[0]


# --- the pointer ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "density", "zoom", "pixel"),
    [
        ((32, 32), 1, 1, (5, 31)),
        ((32, 32), 1, 1.25, (31, 0)),
        ((31, 53), 2, 1.25, (17, 8)),
        ((300, 100), 2, 1, (0, 299)),
        ((720, 1280), 1, 1.25, (642, 400)),
    ],
)
def test_a_click_lands_on_the_pixel_it_points_at(browser, show, size, density, zoom, pixel):
    with browser.new_context(device_scale_factor=density, viewport={"width": 1000, "height": 900}) as context:
        page = show(PathEditor(torch.rand(3, *size)), page=context.new_page())
        page.evaluate("zoom => document.body.style.zoom = zoom", zoom)
        is_small = size[1] < 100
        for dx, dy in ((0.05, 0.05), (0.95, 0.95)) if is_small else ((0.5, 0.5),):
            click(page, *pixel, size=size, dx=dx, dy=dy)
            assert places(page) == [pixel]
            box, (x, y) = handle(page, 1).bounding_box(), at(page, *pixel, size=size)
            assert abs(box["x"] + box["width"] / 2 - x) < 1 and abs(box["y"] + box["height"] / 2 - y) < 1
            page.keyboard.press("Delete")
        width = page.locator(CANVAS).bounding_box()["width"] / zoom
        assert width == pytest.approx({32: 448, 53: 424, 100: 100, 1280: 640}[size[1]], abs=1)


def test_a_drag_is_exact_and_one_step_for_undo(show):
    page = show(PathEditor(background(), trajectories=path((4, 4), (20, 10))))
    drag(page, (20.4, 9.6), (26.8, 3.4))  # not held by its middle
    moved = [(4, 4), (26, 4)]
    assert places(page) == moved and get(page, "keyframe") == 1
    page.keyboard.press("Control+z")
    assert places(page) == [(4, 4), (20, 10)]
    assert page.get_by_role("button", name="undo").is_disabled()
    page.keyboard.press("Control+Shift+Z")
    assert places(page) == moved
    page.get_by_role("button", name="undo").click()
    assert places(page) == [(4, 4), (20, 10)]
    page.get_by_role("button", name="redo").click()
    assert places(page) == moved
    drag(page, (10, 15), (12, 17))  # adds one, and puts it where the button goes up
    assert places(page) == [*moved, (12, 17)]
    page.keyboard.press("Control+z")
    assert places(page) == moved
    assert page.evaluate("document.activeElement.className") == "vera-path-editor", "keys still come here"
    handle(page, 2).press("ArrowLeft")
    assert page.get_by_role("button", name="redo").is_disabled(), "something else was done since"


def test_keyframes_are_removed_and_inserted(show):
    page = show(PathEditor(background(), trajectories=path((4, 4), (24, 4), (24, 16))))
    page.mouse.click(*at(page, 14, 4))
    assert len(places(page)) == 3 and "Double-click to insert" in message(page)
    page.mouse.dblclick(*at(page, 14, 4))
    assert places(page) == [(4, 4), (14, 4), (24, 4), (24, 16)] and get(page, "keyframe") == 1
    handle(page, 3).dblclick()
    assert len(places(page)) == 4, "a handle is no line"
    page.mouse.click(*at(page, 24, 4), button="right")
    assert places(page) == [(4, 4), (14, 4), (24, 16)]
    page.mouse.click(*at(page, 10, 12), button="right")
    assert len(places(page)) == 3, "nothing is there"
    handle(page, 1).focus()
    page.keyboard.press("Delete")
    assert places(page) == [(14, 4), (24, 16)]
    page.get_by_role("button", name="remove keyframe 2").click()
    assert places(page) == [(14, 4)]
    assert handle(page, 1).evaluate("b => b === document.activeElement"), "the one before has the focus"
    page.get_by_role("button", name="+ keyframe").click()
    assert places(page) == [(14, 4), (14, 9)]  # the middle of the frame
    handle(page, 1).focus()
    page.get_by_role("button", name="+ keyframe").click()
    assert places(page) == [(14, 4), (14, 6.5), (14, 9)]


def test_outside_the_frame_is_its_edge_with_a_warning(show):
    page = show(PathEditor(background(), trajectories=path((4, 4), (20, 10))))
    drag(page, (20, 10), (40, 12))
    assert places(page)[1] == (29, 12)
    assert message(page) == "Keyframe 2 lay outside the 30x20 frame and was moved to its edge."
    assert "warns" in page.get_by_role("status").get_attribute("class")
    drag(page, (29, 12), (25, 12))
    assert "outside" not in message(page)
    text = json.loads(path((1, 1), (2, 2), (3, 3)).to_json())
    text["keyframes"][0]["x"], text["keyframes"][2]["y"] = -3, 99
    page.get_by_text("path as JSON").click()
    page.get_by_label("path as JSON").fill(json.dumps(text))
    page.get_by_role("button", name="load").click()
    assert message(page) == "Keyframes 1, 3 lay outside the 30x20 frame and were moved to its edge."
    assert places(page) == [(0, 1), (2, 2), (3, 19)]


def test_the_wheel_changes_the_scale_only_of_a_focused_keyframe(show):
    page = show(PathEditor(background(), trajectories=path((4, 4, 0.5), (20, 10))))
    handle(page, 2).focus()
    page.get_by_role("button", name="play").focus()
    assert get(page, "keyframe") == 1
    page.mouse.move(*at(page, 10, 10))
    page.mouse.wheel(0, 100)
    page.wait_for_timeout(50)
    assert drawn(page) == path((4, 4, 0.5), (20, 10))
    handle(page, 2).focus()
    page.mouse.wheel(0, -100)
    page.wait_for_function("model.get('objects')[0].trajectory.keyframes[1].scale === 0.553")
    page.mouse.wheel(0, 100)
    page.wait_for_function("model.get('objects')[0].trajectory.keyframes[1].scale === 0.5")


# --- keys, table, sliders ------------------------------------------------------------------------


def test_the_keyboard_reaches_everything(show):
    page = show(PathEditor(background(), trajectories=path((4, 4), (20, 10))))
    page.locator(".vera-path-editor").focus()
    page.keyboard.press("ArrowRight")
    assert get(page, "frame") == 1
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    focused = page.evaluate("document.activeElement.getAttribute('aria-label')")
    assert focused == "keyframe 2 of 2, x 20, y 10, scale 1.00, time 1.00"
    assert handle(page, 2).evaluate("b => getComputedStyle(b).outlineStyle") == "solid"
    assert (get(page, "keyframe"), get(page, "frame")) == (1, 4), "and the preview is there"
    for key in ("ArrowLeft", "ArrowUp", "Shift+ArrowLeft", "ArrowDown", "ArrowDown"):
        page.keyboard.press(key)
    assert places(page) == [(4, 4), (9, 11)]
    page.keyboard.press("+")
    assert drawn(page).keyframes[1].scale == 1.1
    page.keyboard.press("-")
    assert drawn(page).keyframes[1].scale == 1.0
    page.keyboard.press("Control+z")  # both scalings; the moves are a step of their own
    assert drawn(page) == path((4, 4), (9, 11))
    page.keyboard.press("Control+z")
    assert places(page) == [(4, 4), (20, 10)]
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "play"
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.keyboard.press("Escape")
    assert get(page, "keyframe") == -1


def test_the_table_and_the_picture_keep_in_step(show):
    page = show(PathEditor(background(), trajectories=path((4, 4), (20, 10), (25, 5))))

    def put(name, text):
        page.get_by_label(name, exact=True).fill(text)
        page.keyboard.press("Enter")

    for name, text in (("x", "7.25"), ("y", "3"), ("scale", "0.5"), ("time", "0.75")):
        put(f"{name} of keyframe 2", text)
    assert drawn(page) == path((4, 4), (7.25, 3, 0.5, 0.75), (25, 5))
    box, (x, y) = handle(page, 2).bounding_box(), at(page, 7.25, 3)
    assert abs(box["x"] + box["width"] / 2 - x) < 1 and abs(box["y"] + box["height"] / 2 - y) < 1
    assert (get(page, "keyframe"), get(page, "frame")) == (1, 3)
    time = page.get_by_label("time of keyframe 1", exact=True)
    assert time.get_attribute("placeholder") == "auto 0.00" and time.input_value() == ""

    put("time of keyframe 3", "0.5")  # before keyframe 2
    assert message(page) == "The time of keyframe 3 must be a number from 0.75 to 1."
    put("x of keyframe 1", "")
    assert message(page) == "The x of keyframe 1 must be a number from 0 to 29."
    put("y of keyframe 1", "four")
    assert message(page) == "The y of keyframe 1 must be a number from 0 to 19."
    assert page.get_by_label("y of keyframe 1").input_value() == "4"
    assert drawn(page) == path((4, 4), (7.25, 3, 0.5, 0.75), (25, 5))
    put("y of keyframe 1", "-2")
    assert message(page).startswith("Keyframe 1 lay outside")
    assert page.get_by_label("y of keyframe 1").input_value() == "0"
    put("scale of keyframe 2", "")
    put("time of keyframe 2", "")
    assert drawn(page) == path((4, 0), (7.25, 3), (25, 5))

    drag(page, (25, 5), (20, 6))
    assert page.get_by_label("x of keyframe 3").input_value() == "20"
    page.get_by_label("scale of the selected keyframe").fill("0.3")
    assert page.get_by_label("scale of keyframe 3", exact=True).input_value() == "0.3"
    # What is being typed is the field's own to undo.
    page.get_by_label("x of keyframe 3").press("1")
    page.keyboard.press("Control+z")
    assert drawn(page) == path((4, 0), (7.25, 3), (20, 6, 0.3))


def test_a_scale_for_a_keyframe_replaces_those_of_the_clip(show):
    page = show(PathEditor(background(), trajectories=path((4, 4), (20, 10), scales=(0.5, 0.7))))
    handle(page, 2).focus()
    assert page.get_by_label("scale of keyframe 2", exact=True).get_attribute("placeholder") == "auto 0.70"
    page.keyboard.press("ArrowLeft")
    assert drawn(page) == path((4, 4), (19, 10), scales=(0.5, 0.7))
    page.get_by_label("scale of the selected keyframe").fill("0.4")
    assert drawn(page) == path((4, 4), (19, 10, 0.4))


def test_timing_is_chosen(show):
    page = show(PathEditor(background(), trajectories=path((0, 0), (20, 0), (20, 10))))
    page.get_by_label("timing").select_option("constant speed")
    assert drawn(page).times()[1] == pytest.approx(2 / 3)
    assert "time 0.67" in handle(page, 2).get_attribute("aria-label")
    page.get_by_label("timing").press("Control+z")
    assert drawn(page).timing == "equal_frames"


# --- objects -------------------------------------------------------------------------------------


def test_two_objects_have_paths_of_their_own(show):
    pairs = [foreground(), foreground(height=10)]
    page = show(PathEditor(background(), pairs))
    assert "place the first keyframe" in message(page)
    click(page, 3, 4)
    page.get_by_role("button", name="object 2", exact=True).click()
    click(page, 8, 9)
    click(page, 20, 9)
    page.get_by_role("button", name="+ object").click()
    page.get_by_label("foreground").select_option("1")
    click(page, 25, 15)
    assert [places(page, i) for i in range(3)] == [[(3, 4)], [(8, 9), (20, 9)], [(25, 15)]]
    assert [item["foreground"] for item in get(page, "objects")] == [0, 1, 0]
    colours = page.locator(".tab").evaluate_all(
        "tabs => tabs.map((t) => getComputedStyle(t).borderBottomColor)"
    )
    assert len(set(colours)) == 3
    page.get_by_role("button", name="object 2", exact=True).click()
    page.get_by_role("button", name="remove object").click()
    assert [places(page, i) for i in range(2)] == [[(3, 4)], [(25, 15)]] and get(page, "object") == 1
    page.keyboard.press("Control+z")
    assert [places(page, i) for i in range(3)] == [[(3, 4)], [(8, 9), (20, 9)], [(25, 15)]]
    assert get(page, "object") == 1, "undo goes where it changes something"
    assert page.locator(".handle").count() == 2


# --- what is seen --------------------------------------------------------------------------------


def test_the_preview_is_the_foreground_placed_over_the_background(show):
    _, alpha = foreground(width=15, height=11)  # an odd size has a pixel in its middle
    colour = torch.linspace(0, 1, 15).expand(5, 3, 11, 15)
    video, trajectory = background(), path((6, 5), (22, 13))
    editor = PathEditor(video, (colour, alpha), trajectory)
    editor.onion_skin = False
    page = show(editor)
    placed, matte = place(colour, alpha, *trajectory.sample(5), SIZE)
    expected = to_uint8(composite(placed, matte, video)).permute(0, 2, 3, 1).numpy().astype(int)
    for frame in range(5):
        page.get_by_label("frame", exact=True).fill(str(frame))
        assert abs(pixels(page) - expected[frame]).max() <= 2


def test_scaled_and_between_pixels_the_object_is_in_its_place(show):
    rows, columns = torch.meshgrid(torch.arange(16.0), torch.arange(21.0), indexing="ij")
    alpha = (6.5 - (rows - 7.5).hypot(columns - 10)).clamp(0, 1)[None, None]
    alpha[..., 11:] *= 0.5  # its weight is not in its middle
    editor = PathEditor(torch.zeros(5, 3, *SIZE), (torch.ones(1, 3, 16, 21), alpha))
    editor.onion_skin = False
    editor.trajectories = path((9, 8.5, 0.6), (18.25, 10.75, 1.3))
    page = show(editor)
    positions, scales = editor.trajectory.sample(5)
    _, matte = place(torch.ones(5, 3, 16, 21), alpha.expand(5, -1, -1, -1), positions, scales, SIZE)
    for frame in range(5):
        page.get_by_label("frame", exact=True).fill(str(frame))
        shown, expected = pixels(page)[..., 0] / 255, matte[frame, 0].numpy()
        assert shown.sum() == pytest.approx(expected.sum(), rel=0.06)
        for axis, places in enumerate(np.indices(SIZE)):
            centre = (places * expected).sum() / expected.sum()
            assert (places * shown).sum() / shown.sum() == pytest.approx(centre, abs=0.05), axis


def test_the_onion_skin_is_translucent_and_the_disc_as_large_as_told(show):
    editor = PathEditor(torch.zeros(9, 3, *SIZE), trajectories=path((3, 3), (26, 16)))
    editor.disc = 4
    page = show(editor)
    positions = editor.trajectory.sample(9)[0].round().int().tolist()
    blue = np.array([0, 0x72, 0xB2])
    image = pixels(page)
    for i, (x, y) in enumerate(positions):
        strength = {0: 1, 2: 0.3, 4: 0.3, 6: 0.3, 8: 0.3}.get(i, 0)
        assert abs(image[y, x] - strength * blue).max() <= 2
    page.get_by_label("onion skin").uncheck()
    page.get_by_label("frame", exact=True).fill("4")
    for size in (4, 8):
        page.get_by_label("disc").fill(str(size))
        inside = (pixels(page)[..., 2] > 0xB2 / 2).sum()
        assert inside == pytest.approx(np.pi * size**2 / 4, abs=3)


def test_playing_hides_the_path_and_less_motion_stops_at_the_end(show, page):
    page.emulate_media(reduced_motion="reduce")
    page = show(PathEditor(background(), trajectories=path((3, 3), (26, 16)), fps=5))
    page.locator(".vera-path-editor").focus()
    page.keyboard.press(" ")
    assert handle(page, 1).evaluate("b => getComputedStyle(b).opacity") == "0"
    page.get_by_role("button", name="play").wait_for()  # it says pause meanwhile
    assert get(page, "frame") == 4
    assert handle(page, 1).evaluate("b => getComputedStyle(b).opacity") == "1"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_in_both_themes(show, page, scheme):
    page.emulate_media(color_scheme=scheme)
    page = show(PathEditor(background(), trajectories=[path((3, 3), (26, 16)), path((5, 5))]))
    page.get_by_text("path as JSON").click()
    handle(page, 1).focus()
    assert page.evaluate(CONTRAST) >= 4.5
    drag(page, (26, 16), (40, 16))
    assert "outside" in message(page)
    assert page.evaluate(CONTRAST) >= 4.5


def test_nothing_is_cut_off_in_a_narrow_cell(show):
    page = show(PathEditor(clip(3, 720, 1280), trajectories=path((3, 3), (26, 16), size=(720, 1280))))
    page.set_viewport_size({"width": 420, "height": 900})
    page.get_by_text("path as JSON").click()
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    click(page, 1000, 400, size=(720, 1280))
    x, y = places(page)[-1]
    assert abs(x - 1000) <= 4 and abs(y - 400) <= 4  # a screen pixel is some of the video's
    box = handle(page, 3).bounding_box()
    page.mouse.move(box["x"] + 10, box["y"] + 10)
    page.mouse.down()
    page.mouse.move(box["x"] + 12, box["y"] + 10)
    page.mouse.up()
    assert places(page)[-1] == (x, y), "a hand that shakes moves nothing"


# --- out of the browser --------------------------------------------------------------------------


def test_json_goes_out_and_in(show, tmp_path):
    page = show(PathEditor(background()))
    click(page, 3, 4)
    click(page, 20, 9)
    page.get_by_text("path as JSON: no Python is connected").click()
    text = page.get_by_label("path as JSON").input_value()
    assert Trajectory.from_json(text) == path((3, 4), (20, 9))
    page.get_by_role("button", name="copy").click()
    assert message(page) == "Copied."
    with page.expect_download() as download:
        page.get_by_text("save as a file").click()
    assert Trajectory.from_json(Path(download.value.path()).read_text()) == path((3, 4), (20, 9))

    other = path((1, 2, 0.5, 0.1), (3.3, 4.7, None, 0.9), timing="constant_speed")
    page.get_by_label("path as JSON").fill(other.to_json())
    page.get_by_role("button", name="load").click()
    assert drawn(page) == other
    page.get_by_label("path as JSON").fill(path((1, 1), size=(9, 9)).to_json())
    page.get_by_role("button", name="load").click()
    assert "size (height, width) is 9,9, not 20,30" in message(page)
    assert drawn(page) == other
    page.get_by_role("button", name="undo").click()
    assert drawn(page) == path((3, 4), (20, 9))


def test_it_works_inside_a_sandboxed_frame(offline, tmp_path):
    file = tmp_path / "page.html"
    file.write_text(iframe(PathEditor(background()).to_static(), 780))
    offline.goto(file.as_uri())
    widget = offline.frame_locator("iframe")
    widget.locator("canvas").click(position={"x": 100, "y": 100})
    widget.get_by_role("button", name="keyframe 1 of 1").wait_for()
    widget.get_by_text("path as JSON").click()
    assert widget.get_by_text("save as a file").is_hidden(), "a sandboxed frame may not download"
    widget.get_by_role("button", name="copy").click()
    widget.get_by_text("Copied.").wait_for()


def test_views_come_and_go(show):
    page = show(PathEditor(background(), trajectories=path((3, 3))))
    page.evaluate(
        """async () => {
            const url = URL.createObjectURL(new Blob([model.get("_esm")], { type: "text/javascript" }));
            const { default: widget } = await import(url);
            const el = document.body.appendChild(document.createElement("div"));
            globalThis.cleanup = widget.render({ model, el });
        }"""
    )
    handle(page, 1).nth(1).press("ArrowRight")
    assert handle(page, 1).first.get_attribute("aria-label").startswith("keyframe 1 of 1, x 4,")
    page.get_by_role("button", name="undo").first.click()
    assert places(page) == [(3, 3)]
    page.evaluate("cleanup()")
    assert page.locator(CANVAS).count() == 1
    click(page, 10, 10)
    assert places(page) == [(3, 3), (10, 10)]


# --- in JupyterLab -------------------------------------------------------------------------------


def test_live_in_jupyterlab(lab):
    notebook = lab(SHOW)
    page = notebook.page
    page.locator(CANVAS).wait_for()
    page.locator(CANVAS).scroll_into_view_if_needed()
    page.get_by_text("path as JSON", exact=True).wait_for()
    click(page, 3, 4)
    click(page, 20, 9)
    drag(page, (20, 9), (26, 15))
    page.keyboard.press("+")
    expected = "[Trajectory(keyframes=(Keyframe(x=3.0, y=4.0, scale=None, time=None), "
    expected += "Keyframe(x=26.0, y=15.0, scale=1.1, time=None)), size=(20, 30), "
    expected += "timing='equal_frames', scales=(1.0,))]"
    notebook.wait_for("editor.trajectories", expected)
    notebook.wait_for("editor.keyframe, editor.frame, editor.error", "(1, 4, '')")

    # JupyterLab's own keys do not get through, and undo is the editor's.
    cells = notebook.cell_count()
    handle(page, 2).focus()
    for key in ("a", "b", "d", "d", "j", "k", "z", "Control+z", "Control+z"):
        page.keyboard.press(key)
    assert notebook.cell_count() == cells
    notebook.wait_for("[(k.x, k.y) for k in editor.trajectory.keyframes]", "[(3.0, 4.0), (20.0, 9.0)]")

    # What Python sets is seen, and can be undone.
    notebook.ask("editor.trajectories = Trajectory((Keyframe(7, 8, 0.5),), (20, 30))")
    page.get_by_label("keyframe 1 of 1, x 7, y 8, scale 0.50").wait_for()
    page.get_by_role("button", name="undo").click()
    handle(page, 2).wait_for()
    notebook.wait_for("len(editor.trajectory.keyframes)", "2")

    page.evaluate("jupyterapp.commands.execute('apputils:change-theme', { theme: 'JupyterLab Dark' })")
    page.wait_for_function("document.body.dataset.jpThemeName === 'JupyterLab Dark'")
    try:
        assert page.evaluate(CONTRAST) >= 4.5
        # Computed styles say nothing of placeholders, which JupyterLab would make fainter.
        page.wait_for_timeout(1000)  # until the new theme is drawn
        field = page.get_by_label("time of keyframe 1", exact=True).screenshot()
        letters = np.array(Image.open(io.BytesIO(field)).convert("L"))[4:-4, 4:-4]
        assert letters.max() > 160 and letters.min() < 40
    finally:
        page.evaluate("jupyterapp.commands.execute('apputils:change-theme', { theme: 'JupyterLab Light' })")


def test_saved_and_reopened_without_its_kernel(lab_server, lab_page):
    editor = PathEditor(background(), (torch.ones(5, 3, 6, 6), torch.ones(5, 1, 6, 6)))
    view = {VIEW: {"model_id": editor.model_id, "version_major": 2, "version_minor": 0}}
    cell = nbformat.v4.new_code_cell(outputs=[nbformat.v4.new_output("display_data", view)])
    notebook = nbformat.v4.new_notebook(cells=[cell])
    notebook.metadata.widgets = {STATE: editor.get_manager_state(widgets=[editor, editor.layout])}
    lab_server.open(lab_page, notebook)
    lab_page.locator(CANVAS).wait_for()
    click(lab_page, 3, 4)
    click(lab_page, 20, 9)
    handle(lab_page, 2).wait_for()
    assert (pixels(lab_page)[7:11, 18:22] == 255).all(), "the foreground"
    lab_page.get_by_text("no Python is connected, so copy it to keep the path").click()
    text = lab_page.get_by_label("path as JSON").input_value()
    assert Trajectory.from_json(text) == path((3, 4), (20, 9))
