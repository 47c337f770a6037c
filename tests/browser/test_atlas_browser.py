"""The explorer's head atlas, denoising player, causal lane and files in Chromium."""

import csv
import re
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image
from test_explorer import AFTER_TEXT, GRID, VIDEO, numbers, paint, stores
from test_explorer_browser import COLOUR, at, get, reply

from vera_lite.widgets.causal_lane import Interventions
from vera_lite.widgets.explorer import AttentionExplorer, GroupMatrix
from vera_lite.widgets.explorer_state import Denoising

# --- the atlas -------------------------------------------------------------------------------------


def cells(page, layers):
    """Colours of the atlas: (rows, layers) of "rgb(...)"."""
    fills = page.locator(".atlas > rect").evaluate_all("all => all.map((r) => r.getAttribute('fill'))")
    return np.array(fills).reshape(-1, layers)


def cividis(share):
    """The colour of a share of the scale, as the script mixes it."""
    stops = [(0, 34, 78), (18, 53, 112), (59, 73, 108), (87, 93, 109), (112, 113, 115), (138, 134, 120)]
    stops += [(165, 156, 116), (195, 179, 105), (225, 204, 85), (254, 232, 56)]
    place = share * 9
    low = min(int(place), 8)
    return [a + (place - low) * (b - a) for a, b in zip(stops[low], stops[low + 1], strict=True)]


def test_the_atlas_has_every_head_and_opens_its_map(show):
    explorer = AttentionExplorer(stores(layers=4), GRID, VIDEO, words={"patch": [7]})
    page = show(explorer)
    for choice, kind in (("entropy over the clip", "entropy"), ("distance in patches", "patches")):
        page.get_by_label("measure").select_option(choice)
        found = cells(page, layers=4)
        exact = torch.stack([numbers(explorer, kind, layer=layer) for layer in range(4)], 1)  # (1 + H, L)
        for row, layer in ((0, 0), (1, 3), (3, 2)):
            shown = [int(v) for v in re.findall(r"\d+", found[row, layer])]
            assert shown == pytest.approx(cividis(float(exact[row, layer] / exact.max())), abs=2)
    box = page.locator(".atlas > rect").nth(4 + 2).bounding_box()  # head 0 of layer 2
    page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    assert (get(page, "layer"), get(page, "head")) == (2, 0)
    page.locator(".title").filter(has_text="blocks.2.attn1, head 0").wait_for()
    value = float(numbers(explorer, "patches", layer=2)[1])
    assert float(page.locator(".readout").text_content().split(": ")[1]) == pytest.approx(value, rel=0.01)


def test_the_atlas_subtracts_two_runs(show):
    a, b = stores(layers=3), stores(layers=3, seed=1)
    explorer = AttentionExplorer(a, GRID, VIDEO, compare=b, words={"patch": [7]})
    page = show(explorer)
    page.get_by_label("atlas and strips").select_option("A − B")
    found = cells(page, layers=3)
    kinds = [[numbers(explorer, "entropy", run, layer=x) for x in range(3)] for run in (0, 1)]
    gap = torch.stack(kinds[0], 1) - torch.stack(kinds[1], 1)
    for row, layer in ((0, 0), (2, 1), (3, 2)):
        red, _, blue = (int(v) for v in re.findall(r"\d+", found[row, layer]))
        assert (red > blue) == (gap[row, layer] > 0) or abs(red - blue) < 12
    ends = [float(text.replace("−", "-")) for text in page.locator(".panel.wide output").all_text_contents()]
    assert ends == pytest.approx([-float(gap.abs().max()), float(gap.abs().max())], rel=0.01)


def test_a_clicked_token_gets_its_atlas_from_python(show):
    explorer = AttentionExplorer(stores(layers=3), GRID, VIDEO, words={"patch": [7]}, sinks=[])
    page = show(explorer, live=True)
    saved_cells = cells(page, layers=3)
    page.mouse.click(*at(page, (1, 2), (3, 5)))  # the same patch, now as a click
    assert set(cells(page, layers=3).flat) == {"none"}
    for i in (0, 1):
        reply(page, explorer, page.evaluate(f"sent[{i}]"))
    assert (cells(page, layers=3) == saved_cells).all()


# --- files -------------------------------------------------------------------------------------------


def saved_file(page, kind, folder):
    with page.expect_download() as download:
        page.get_by_role("button", name=kind, exact=True).click()
    path = folder / download.value.suggested_filename
    download.value.save_as(path)
    assert path.suffix == f".{kind.lower()}"
    return path


def test_pictures_and_numbers_come_out_of_the_page(show, tmp_path):
    sources = stores(layers=3, queries=33, keys=33)
    explorer = AttentionExplorer(sources, AFTER_TEXT, VIDEO, words={"patch": [10]}, sinks=[])
    explorer.layer = 1
    page = show(explorer)
    exact = sources[1].rows([10])[0, :, 0].mean(0)
    rows = list(csv.DictReader(saved_file(page, "CSV", tmp_path).open()))
    assert [int(row["token"]) for row in rows] == list(range(33))
    assert (rows[1]["word"], rows[10]["row"], rows[10]["column"]) == ("ball", "1", "2")
    np.testing.assert_allclose([float(row["A"]) for row in rows], exact, atol=float(exact.max()) / 400)
    with np.load(saved_file(page, "npz", tmp_path)) as arrays:
        assert arrays["tokens"].tolist() == list(range(33)) and arrays["map"].shape == (1, 33)
        np.testing.assert_allclose(arrays["map"][0], exact, atol=float(exact.max()) / 400)
        kinds = [m["kind"] for m in explorer._facts["measures"]]
        atlas = arrays["atlas"]
        assert atlas.shape == (len(kinds), 1, 3, 4)
        np.testing.assert_allclose(
            atlas[kinds.index("entropy"), 0, 2], numbers(explorer, "entropy", layer=2), rtol=1e-5
        )
    picture = np.asarray(Image.open(saved_file(page, "PNG", tmp_path)).convert("RGB"))
    assert picture.std() > 20 and tuple(picture[0, 0]) == (255, 255, 255)


# --- denoising ---------------------------------------------------------------------------------------


def test_the_player_shows_map_films_and_matrix_in_step(show):
    ramp = torch.linspace(0, 1, 3).view(3, 1, 1, 1, 1).expand(3, 5, 1, 24, 40)
    matrix = GroupMatrix(torch.rand(3, 2, 2, 2), tuple("ab"), tuple("ab"))
    denoising = Denoising([1.0, 0.8, 0.3], {"alpha": ramp})
    options = {"denoising": denoising, "matrix": matrix, "words": {"patch": [7]}}
    explorer = AttentionExplorer(stores(layers=2, steps=3), GRID, VIDEO, **options)
    page = show(explorer)
    for step, (sigma, grey) in enumerate(((1, 0), (0.8, 128), (0.3, 255))):
        page.get_by_label("sigma").fill(str(step))
        page.locator(".films").get_by_text(f"sigma {sigma} (step {step + 1} of 3)").wait_for()
        shown = page.locator(".films canvas").nth(1).evaluate(COLOUR)
        assert abs(shown[0] - grey) <= 3
        assert page.locator(".title").text_content().endswith(f"sigma {sigma}")
        found = [float(c) for c in page.locator("td").all_text_contents()]
        assert found == pytest.approx(matrix.values[step, 0].flatten().tolist(), abs=6e-4)
        entropy = float(numbers(explorer, "entropy", step=step)[0])
        assert f"entropy {entropy:.2f}" in page.locator(".said").text_content()
    page.get_by_role("button", name="play").click()
    page.wait_for_function("model.get('step') === 0")  # it played over the end
    assert get(page, "frame") == 0
    page.get_by_role("button", name="pause").click()


# --- the causal lane ---------------------------------------------------------------------------------


def cards(page):
    return page.get_by_role("group", name="all cuts").get_by_role("button")


def test_patches_and_heads_are_cut_by_dragging(show):
    _, explorer = paint()
    page = show(explorer, live=True)
    run = page.get_by_role("button", name="cut and run again")
    assert run.is_disabled() and get(page, "query") == -1
    page.get_by_role("button", name="choose what to cut").click()
    page.get_by_label("patches in all frames").uncheck()
    page.mouse.move(*at(page, (1, 1), (3, 5)))
    page.mouse.down()
    page.mouse.move(*at(page, (2, 3), (3, 5)), steps=4)
    page.mouse.up()
    boxes = [page.locator(".atlas > rect").nth(i).bounding_box() for i in (2, 7)]  # head 0 of 0, head 2 of 1
    x, y = ([b[axis] + b[size] / 2 for b in boxes] for axis, size in (("x", "width"), ("y", "height")))
    page.mouse.move(x[0], y[0])
    page.mouse.down()
    page.mouse.move(x[0], y[1], steps=4)
    page.mouse.up()
    page.get_by_text("chosen: 6 tokens in 3 of 6 heads").wait_for()
    assert page.locator(".atlas .cut").count() == 3 and get(page, "query") == -1, "nothing was asked"
    run.click()
    page.get_by_text("the model runs").wait_for()
    request = page.evaluate("sent.at(-1)")
    expected = {"keys": [6, 7, 8, 11, 12, 13], "cells": [[0, 0], [0, 1], [0, 2]], "queries": None}
    assert request["cut"] == expected
    # Python answers with a new entry of the lane.
    with mock.patch.object(explorer, "send"):
        explorer._handle_custom_msg(request, [])
    page.evaluate(
        """entries => model.set('_cuts', entries.map((e) => ({ ...e, film: model.get('_picture') })))""",
        [{k: v for k, v in e.items() if k != "film"} for e in explorer._cuts],
    )
    page.evaluate("call('msg:custom', { id: sent.at(-1).id }, [])")
    assert cards(page).count() == 2
    looked, lost = (f"{float(f'{100 * explorer._cuts[1][k]:.2g}'):g} %" for k in ("looked", "lost"))
    assert f"cut {looked} of the attention, changed {lost}" in cards(page).nth(1).text_content()
    page.get_by_role("button", name="clear").click()
    assert run.is_disabled() and page.locator(".atlas .cut").count() == 0


def test_words_are_cut_and_hidden_from_one_token(show):
    model, _ = paint()
    sources = stores(queries=33, keys=33)
    lane = Interventions(model, model.video)
    page = show(
        AttentionExplorer(sources, AFTER_TEXT, VIDEO, words={"patch": [9]}, interventions=lane), live=True
    )
    page.get_by_role("button", name="choose what to cut").click()
    first, *_, last = (page.get_by_role("button", name=word, exact=True) for word in ("the", "ball", "."))
    first.hover()
    page.mouse.down()
    last.hover()
    page.mouse.up()
    cut = page.locator(".chips .cut")
    assert cut.all_text_contents() in (["the", "."], ["the", "ball", "."])  # as fast as the pointer moved
    page.get_by_role("button", name="clear").click()
    for word in ("ball", ".", "the", "the"):
        page.get_by_role("button", name=word, exact=True).click()
    assert cut.all_text_contents() == ["ball", "."]
    page.get_by_label("hide from the shown token only").check()
    page.get_by_role("button", name="cut and run again").click()
    assert page.evaluate("sent.at(-1).cut") == {"keys": [1, 2], "cells": None, "queries": [9]}


def test_a_saved_page_plays_the_cuts_that_were_made(show):
    _, explorer = paint()
    explorer.cut([7], label="without the middle")
    explorer.cut(cells=[(0, 1)])
    page = show(explorer)
    assert page.get_by_role("button", name="choose what to cut").is_disabled()
    page.get_by_text("A new cut needs Python; these were made before.").wait_for()
    page.wait_for_function("document.querySelectorAll('.lane canvas').length === 5")
    page.wait_for_timeout(100)  # films are decoded
    pixels = "c => Array.from(c.getContext('2d').getImageData(0, 0, c.width, c.height).data).join()"
    films = [cards(page).nth(i).locator("canvas").first.evaluate(pixels) for i in range(3)]
    assert len(set(films)) == 3
    assert page.locator(".scatter circle").count() == 2
    cards(page).nth(1).click()
    assert cards(page).nth(1).get_attribute("aria-pressed") == "true"
    page.get_by_label("frame", exact=True).fill("3")
    assert cards(page).nth(0).locator("canvas").evaluate(pixels) != films[0]
    assert show(AttentionExplorer(stores(), GRID, VIDEO)).locator(".lane").is_hidden()


LANE = """\
import torch
from torch.nn import functional as F
from vera_lite.diagnostics import CapturePlan, StoreQK, Tap, TokenGrid
from vera_lite.widgets.causal_lane import Interventions
from vera_lite.widgets.explorer import AttentionExplorer

class Painter(torch.nn.Module):
    def forward(self):
        x = torch.randn(1, 2, 30, 8, generator=torch.Generator().manual_seed(0))
        values = F.scaled_dot_product_attention(x, x, 4 * x)[0].mean((0, 2)).sigmoid()
        return grid.to_video(values, "video")[:, None].expand(-1, 3, -1, -1)

grid, model = TokenGrid.wan(5, 24, 40, spatial_stride=4), Painter()
plan = CapturePlan([(".*", StoreQK(), "all")], 10**8)
with Tap(model, plan):
    video = model()
lane = Interventions(model, model, modules=[""])
explorer = AttentionExplorer(plan.captures["all"], grid, video, interventions=lane)
explorer"""


def test_a_cut_runs_the_model_in_jupyterlab(lab):
    notebook = lab(LANE)
    page = notebook.page
    page.locator(".vera-explorer[data-alive=true]").wait_for()
    page.get_by_role("button", name="choose what to cut").click()
    page.mouse.move(*at(page, (0, 0), (3, 5)))
    page.mouse.down()
    page.mouse.move(*at(page, (1, 1), (3, 5)), steps=3)
    page.mouse.up()
    page.get_by_text("chosen: 8 tokens in all heads").wait_for()  # in both slots
    page.get_by_role("button", name="cut and run again").click()
    cards(page).nth(1).wait_for()
    entry = "[(e['label'], round(e['looked'], 4)) for e in explorer._cuts[1:]]"
    mass = "round(float(plan.captures['all'][0].columns([0, 1, 5, 6, 15, 16, 20, 21]).sum(-1).mean()), 4)"
    notebook.wait_for(f"{entry} == [('8 patches', {mass})]", "True")
    assert page.get_by_text("the model runs").is_hidden()
