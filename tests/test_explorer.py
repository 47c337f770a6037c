"""The attention explorer's Python side: what is saved, what requests are answered, what is refused."""

import io
import itertools
import json
from collections import namedtuple
from contextlib import ExitStack
from dataclasses import replace
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ipywidgets import Widget
from PIL import Image
from torch.nn import functional as F

from vera_lite.diagnostics import (
    AttentionCall,
    CallSite,
    Capture,
    CapturePlan,
    Columns,
    GroupMass,
    KnockOut,
    LayerAttention,
    Rows,
    StoreQK,
    Tap,
    TextStream,
    TokenGrid,
    VideoStream,
    jensen_shannon,
    mask_ratio,
)
from vera_lite.widgets.causal_lane import Interventions
from vera_lite.widgets.explorer import AttentionExplorer, GroupMatrix
from vera_lite.widgets.explorer_state import Denoising, quantise

Band = namedtuple("Band", ("mean", "low", "high"))
GRID = TokenGrid.wan(5, 24, 40, spatial_stride=4)  # 2 x 3 x 5 tokens
VIDEO = torch.rand(5, 3, 24, 40, generator=torch.Generator().manual_seed(0))
_VIDEO = GRID.streams[0]
AFTER_TEXT = TokenGrid(
    (
        TextStream("text", torch.arange(3), ("the", "ball", ".")),
        replace(_VIDEO, positions=_VIDEO.positions + 3),
    )
)
WORDS = TokenGrid((TextStream("text", torch.arange(3), ("a", "ball", "rolls")),))


def make_call(layer=0, step=0, queries=30, keys=30, sink=None, dtype=torch.float32, seed=0):
    g = torch.Generator().manual_seed(100 * seed + 10 * layer + step)
    query, key, value = (torch.randn(2, 3, n, 8, generator=g).to(dtype) for n in (queries, keys, keys))
    if sink is not None:
        query, key = query.abs(), key.clone()
        key[:, :, sink] = 3
    output = F.scaled_dot_product_attention(query, key, value)
    site = CallSite(f"blocks.{layer}.attn1", step=step)
    return AttentionCall(site, query, key, value, None, False, 8**-0.5, output)


def stores(layers=2, steps=1, measurement=None, **options):
    measurement = measurement or StoreQK()
    return [measurement(make_call(i, s, **options)) for i in range(layers) for s in range(steps)]


def saved(explorer, run, step, layer, word, direction):
    """The saved maps (1 + H or 1, M) and their largest error, read as the script reads them."""
    facts = explorer._facts
    axes = (
        len(facts["runs"]),
        len(explorer.steps),
        len(explorer.layers),
        len(explorer.words),
        len(facts["directions"]),
        facts["groups"],
    )
    place = run, step, layer, word, facts["directions"].index(direction)
    codes = np.frombuffer(explorer._overview, np.uint8).reshape(*axes, -1)[place]
    ranges = np.frombuffer(explorer._ranges, np.float32).reshape(*axes, -1)[place]
    return decode(codes, ranges, explorer.sinks if direction == "from" else [])


def decode(codes, ranges, apart):
    zero, scale = ranges[:, :1], ranges[:, 1:2]
    maps = zero + codes / 255 * scale
    maps[:, apart] = ranges[:, 2 : 2 + len(apart)]
    return torch.from_numpy(maps), torch.from_numpy(scale / 510)


def with_mean(maps):
    return torch.cat([maps.mean(0, keepdim=True), maps])


# --- maps ------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10**6), st.floats(-30, 3), st.integers(2, 40), st.booleans())
def test_quantisation_is_off_by_half_a_code(seed, exponent, tokens, with_sink):
    maps = torch.rand(3, tokens, generator=torch.Generator().manual_seed(seed)) * 10**exponent
    apart = [tokens - 1] if with_sink else []
    codes, ranges = quantise(maps, apart)
    decoded, bound = decode(codes.numpy(), ranges.numpy().astype(np.float64), apart)
    assert ((decoded - maps).abs() <= bound * 1.001 + 1e-7 * maps.amax()).all()
    assert torch.equal(decoded[:, apart].float(), maps[:, apart])


def test_a_flat_map_survives():
    codes, ranges = quantise(torch.full((1, 4), 0.25))
    assert ranges.tolist() == [[0.25, 0.0]]
    assert not codes.any()


def numbers(explorer, kind, run=0, step=0, layer=0, word=0, direction="from"):
    """A saved number about the mean map and about each head's (1 + H,)."""
    facts = explorer._facts
    kinds = [m["kind"] for m in facts["measures"]]
    axes = len(facts["runs"]), len(explorer.steps), len(explorer.layers), len(explorer.words)
    axes = *axes, len(facts["directions"]), len(kinds), 1 + len(explorer.heads)
    saved = torch.from_numpy(np.frombuffer(explorer._numbers, np.float32).copy()).view(axes)
    return saved[run, step, layer, word, facts["directions"].index(direction), kinds.index(kind)]


def gaze(weights, layer=0):
    """A capture whose one row is given for each head: (H, M)."""
    return Capture(CallSite(f"blocks.{layer}.attn1"), tuple(range(len(weights))), weights[None, :, None], 0.0)


def test_numbers_tell_entropy_masses_and_the_share_in_the_mask():
    flat = torch.full((30,), 1 / 30)
    point = F.one_hot(torch.tensor(7), 30).float()
    mask = torch.zeros(5, 1, 24, 40)
    mask[:, :, :12] = 1  # the upper half of every frame
    explorer = AttentionExplorer([gaze(torch.stack([flat, point]))], GRID, VIDEO, mask=mask, sinks=[7])
    expected = {"entropy": [1, 0], "sinks": [1 / 30, 1], "mask": [0.5, 0.5]}  # row 1 of 3: half is masked
    for kind, of_heads in expected.items():
        torch.testing.assert_close(numbers(explorer, kind)[1:], torch.tensor(of_heads).float())
    assert explorer._facts["area"]["from"] == 0.5
    assert numbers(explorer, "patches").isnan().all(), "nobody knows whose row it is"
    after_text = AttentionExplorer(
        [gaze(torch.cat([torch.full((1, 3), 0.2), torch.full((1, 30), 0.4 / 30)], 1))],
        AFTER_TEXT,
        VIDEO,
        sinks=[],
    )
    labels = [m["label"] for m in after_text._facts["measures"]]
    assert labels[:2] == ["mass on text", "mass on video"] and "stream" not in explorer._facts["measures"]
    saved_numbers = np.frombuffer(after_text._numbers, np.float32).reshape(len(labels), 2)
    np.testing.assert_allclose(saved_numbers[:3, 1], [0.6, 0.4, 1], rtol=1e-5)


def test_numbers_of_a_patch_tell_how_far_it_looks():
    source = StoreQK()(make_call())
    explorer = AttentionExplorer([source], GRID, VIDEO, words={"patch": [7]}, sinks=[])
    slot = torch.arange(30) // 15
    cells = torch.stack([slot, torch.arange(30) % 15 // 5, torch.arange(30) % 5], 1).float()
    rows = with_mean(source.rows([7])[0, :, 0])
    away = rows @ (cells - cells[7]).abs()
    torch.testing.assert_close(numbers(explorer, "slots"), away[:, 0])
    torch.testing.assert_close(numbers(explorer, "patches"), away[:, 1:].square().sum(1).sqrt())
    torch.testing.assert_close(numbers(explorer, "own slot"), rows[:, slot == 0].sum(1))
    captured = AttentionExplorer([Rows([7])(make_call())], GRID, VIDEO, sinks=[])
    assert captured._facts["tokens"] == [[7]] and captured.words == [("video (0, 1, 2)", [0])]
    torch.testing.assert_close(numbers(captured, "slots"), away[:, 0])


def test_cells_of_two_grids_have_no_distance():
    coarse = TokenGrid((VideoStream("seen", torch.arange(8), ((0, 1, 2, 3, 4),), (2, 4), (5, 24, 40)),))
    sources, words = stores(keys=8), {"patch": [7]}
    explorer = AttentionExplorer(sources, GRID, VIDEO, key_grid=coarse, words=words, sinks=[])
    assert numbers(explorer, "entropy").isfinite().all()
    assert all(numbers(explorer, kind).isnan().all() for kind in ("patches", "slots", "own slot"))


def test_two_runs_are_compared_by_their_divergence():
    a, b = stores(layers=2), stores(layers=2, seed=1)
    explorer = AttentionExplorer(a, GRID, VIDEO, words={"patch": [7]}, compare=b)
    exact = jensen_shannon(*(with_mean(s[1].rows([7])[0, :, 0]) for s in (a, b))).float()
    for run in (0, 1):
        torch.testing.assert_close(numbers(explorer, "divergence", run, layer=1), exact)
    same = AttentionExplorer(a, GRID, VIDEO, words={"patch": [7]}, compare=a)
    assert numbers(same, "divergence").abs().max() < 1e-6


def test_the_saved_overview_is_the_stores_rows_and_columns():
    sources = stores(layers=3, steps=2)
    explorer = AttentionExplorer(sources, GRID, VIDEO, words={"one": [4], "two": [7, 8]})
    for place, source in enumerate(sources):
        layer, step = place // 2, place % 2
        for word, tokens in enumerate(([4], [7, 8])):
            for direction, exact in (
                ("from", source.rows(tokens)[0].mean(1)),
                ("to", source.columns(tokens)[0].mean(-1)),
            ):
                maps, bound = saved(explorer, 0, step, layer, word, direction)
                assert maps.shape == (4, 30)
                assert ((maps - with_mean(exact)).abs() <= bound * 1.001 + 1e-7).all()


def test_captured_rows_and_a_second_run():
    runs = [stores(measurement=Rows(torch.tensor([3, 9])), seed=seed) for seed in (0, 1)]
    explorer = AttentionExplorer(runs[0], GRID, VIDEO, compare=runs[1], names=("with", "without"))
    assert explorer.words == [("video (0, 0, 3)", [0]), ("video (0, 1, 4)", [1])]
    assert explorer._facts["tokens"] == [[3], [9]]
    assert explorer._facts["directions"] == ["from"]
    assert explorer._facts["residuals"] == [[[c.residual for c in run]] for run in runs]
    for run, captures in enumerate(runs):
        for layer, capture in enumerate(captures):
            for row in range(2):
                maps, bound = saved(explorer, run, 0, layer, row, "from")
                exact = with_mean(capture.values[0, :, row])
                assert ((maps - exact).abs() <= bound * 1.001 + 1e-7).all()
    explorer.layer, explorer.word = 1, 1
    assert torch.equal(explorer.current_maps(), torch.stack([run[1].values[0, :, 1] for run in runs]))


def test_columns_measurements_are_captures_too():
    captures = stores(measurement=Columns(torch.arange(30) // 15, ["early", "late"]))
    explorer = AttentionExplorer(captures, GRID, VIDEO, words={"late": [1]})
    assert torch.equal(explorer.current_maps()[0], captures[0].values[0, :, 1])


def test_one_scale_holds_every_map():
    sources = stores(layers=2, sink=5)
    explorer = AttentionExplorer(sources, GRID, VIDEO, words={"one": [4]}, sinks=[5])
    rows = torch.stack([s.rows([4])[0, :, 0] for s in sources])
    without = rows.index_fill(-1, torch.tensor([5]), 0)
    expected = [[r.mean(1).max(), w.mean(1).max()] for r, w in [(rows, without)]]
    expected += [[rows.max(), without.max()]]
    torch.testing.assert_close(torch.tensor(explorer._facts["tops"][0][0]), torch.tensor(expected))


def test_text_has_a_scale_of_its_own():
    maps = torch.zeros(1, 1, 1, 33)
    maps[..., 0], maps[..., 3] = 0.9, 0.1
    explorer = AttentionExplorer([Capture(CallSite("layer 0"), (0,), maps, 0.0)], AFTER_TEXT, VIDEO, sinks=[])
    video, text = (kind[0][0] for kind in explorer._facts["tops"][0])
    assert (video, text) == pytest.approx((0.1, 0.9))


# --- requests --------------------------------------------------------------------------------------


def answer(explorer, **content):
    with mock.patch.object(explorer, "send") as send:
        explorer._handle_custom_msg(content, [])
    return send.call_args.args


@pytest.mark.parametrize("direction", ["from", "to"])
def test_a_clicked_token_is_answered_exactly(direction):
    a, b = stores(seed=0), stores(seed=1)
    explorer = AttentionExplorer(a, GRID, VIDEO, compare=b, sinks=[2])
    reply, buffers = answer(explorer, id="x-1", layer=1, step=0, word=0, query=11, direction=direction)
    assert reply == {"id": "x-1"}
    codes = np.frombuffer(buffers[0], np.uint8).reshape(2, 4, 30)
    ranges = np.frombuffer(buffers[1], np.float32).reshape(2, 4, 3)
    for run, source in enumerate((a[1], b[1])):
        exact = source.rows([11])[0, :, 0] if direction == "from" else source.columns([11])[0, :, :, 0]
        apart = [2] if direction == "from" else []
        maps, bound = decode(codes[run], ranges[run], apart)
        assert ((maps - with_mean(exact)).abs() <= bound * 1.001 + 1e-7).all()
    assert explorer.error == ""


def test_a_clicked_token_has_an_atlas():
    a, b = stores(seed=0, layers=2, steps=2), stores(seed=1, layers=2, steps=2)
    explorer = AttentionExplorer(a, GRID, VIDEO, compare=b, words={"clicked": [11]}, sinks=[2])
    kinds = [m["kind"] for m in explorer._facts["measures"]]
    for direction in ("from", "to"):
        content = {"layer": "all", "step": 1, "word": 0, "query": 11, "direction": direction}
        reply, (buffer,) = answer(explorer, id="x-2", **content)
        assert reply == {"id": "x-2"}
        found = torch.frombuffer(bytearray(buffer), dtype=torch.float32).view(2, 2, len(kinds), 4)
        for run, layer, kind in itertools.product(range(2), range(2), kinds):
            saved_number = numbers(explorer, kind, run, 1, layer, 0, direction)
            torch.testing.assert_close(found[run, layer, kinds.index(kind)], saved_number, equal_nan=True)


@pytest.mark.parametrize(
    ("bad", "named"),
    [
        ({"layer": 2}, "layer 2"),
        ({"layer": "0"}, "layer '0'"),
        ({"step": -1}, "step -1"),
        ({"query": 30}, "query 30"),
        ({"query": None}, "query None"),
        ({"word": 1, "query": -1}, "word 1"),
        ({"direction": "up"}, "direction 'up'"),
    ],
)
def test_a_request_out_of_range_is_shown_and_told(bad, named):
    explorer = AttentionExplorer(stores(), GRID, VIDEO)
    good = {"id": 1, "layer": 0, "step": 0, "word": 0, "query": 3, "direction": "from"}
    with mock.patch.object(explorer, "send") as send, pytest.raises(ValueError):
        explorer._handle_custom_msg(good | bad, [])
    send.assert_called_once_with({"id": 1, "failed": True})
    assert named in explorer.error
    answer(explorer, **good)
    assert explorer.error == ""


def test_captured_rows_cannot_answer_for_other_tokens():
    explorer = AttentionExplorer(stores(measurement=Rows([3])), GRID, VIDEO)
    explorer.query = 5
    with pytest.raises(ValueError, match="StoreQK"):
        explorer.current_maps()


def test_state_set_in_python_is_checked():
    explorer = AttentionExplorer(stores(), GRID, VIDEO)
    explorer.selected_layers = [1, 0, 1]
    assert explorer.selected_layers == [0, 1]
    for name, value in {
        "layer": 2,
        "head": 3,
        "step": 1,
        "frame": 5,
        "word": 1,
        "stream": 1,
        "run": 1,
        "query": 30,
    }.items():
        with pytest.raises(ValueError, match=name):
            setattr(explorer, name, value)
    with pytest.raises(ValueError, match="layer 2"):
        explorer.selected_layers = [2]


# --- cross-attention, text, sinks, masks -------------------------------------------------------------


def test_cross_attention_shows_who_looks_at_a_word():
    sources = stores(keys=3)
    words = {"ball": WORDS.words("ball")}
    explorer = AttentionExplorer(sources, GRID, VIDEO, key_grid=WORDS, words=words, direction="to")
    maps, bound = saved(explorer, 0, 0, 1, 0, "to")
    assert ((maps - with_mean(sources[1].columns([1])[0, ..., 0])).abs() <= bound * 1.001 + 1e-7).all()
    assert [(s["name"], s["side"]) for s in explorer._facts["streams"]] == [
        ("video", "query"),
        ("text", "key"),
    ]
    assert explorer.stream == 0
    explorer.query, explorer.direction = 29, "from"
    assert torch.equal(explorer.current_maps()[0], sources[0].rows([29])[0, :, 0])


def test_streams_know_their_tokens_and_frames():
    order = torch.randperm(30, generator=torch.Generator().manual_seed(1)) + 3
    grid = TokenGrid((AFTER_TEXT.streams[0], replace(_VIDEO, positions=order)))
    explorer = AttentionExplorer(stores(queries=33, keys=33), grid, VIDEO)
    text, video = explorer._facts["streams"]
    positions = np.frombuffer(explorer._positions, np.int32)
    assert text["words"] == ["the", "ball", "."] and text["start"] == 0
    assert positions[video["start"] :].tolist() == order.tolist()
    assert video["cells"] == [2, 3, 5] and video["slots"] == [0, 1, 1, 1, 1]


def test_sinks_are_found_named_and_left_out_of_the_mask_ratio():
    mask = torch.zeros(5, 1, 24, 40)
    mask[..., :8, :8] = 1  # token 0 of each slot, where the sink is
    sources = stores(queries=300 // 10, keys=30, sink=15)
    explorer = AttentionExplorer(sources, GRID, VIDEO, mask=mask, sinks=[15], words={"one": [4]})
    assert explorer._facts["sinks"] == [{"token": 15, "name": "video (1, 0, 0)"}]
    coverage = GRID.coverage("video", mask)
    for layer, source in enumerate(sources):
        row = with_mean(source.rows([4])[0, :, 0])
        found = [numbers(explorer, kind, layer=layer) for kind in ("mask", "mask without sinks")]
        for ratio, exclude in zip(found, (None, torch.tensor([15])), strict=True):
            torch.testing.assert_close(ratio, mask_ratio(row, coverage, exclude).float())
        assert (found[0] > 2 * found[1]).all()
    assert explorer._facts["area"]["from"] == pytest.approx(float(coverage.mean()))


def test_sinks_are_found_by_themselves():
    grid = TokenGrid.wan(5, 64, 64, spatial_stride=4)
    video = torch.rand(5, 3, 64, 64)
    sources = stores(queries=128, keys=128, sink=77)
    assert AttentionExplorer(sources, grid, video).sinks == [77]
    rows = stores(queries=128, keys=128, sink=77, measurement=Rows([0, 9, 70]))
    assert AttentionExplorer(rows, grid, video).sinks == [77]
    assert AttentionExplorer(stores(queries=128, keys=128), grid, video).sinks == []


def test_the_threshold_of_the_residual_depends_on_the_precision():
    assert AttentionExplorer(stores(), GRID, VIDEO)._facts["threshold"] == 1e-4
    half = AttentionExplorer(stores(dtype=torch.bfloat16), GRID, VIDEO)._facts
    assert half["threshold"] == 0.05 > half["residuals"][0][0][0] > 1e-4


# --- other ways in -----------------------------------------------------------------------------------


def test_of_stores_names_layers():
    sources = stores()
    explorer = AttentionExplorer.of_stores(dict(zip(("first", "last"), sources, strict=True)), GRID, VIDEO)
    assert explorer.layers == ["first", "last"]
    explorer.layer = 1
    middle = (1 * 3 + 1) * 5 + 2
    assert torch.equal(explorer.current_maps()[0], sources[1].rows([middle])[0, :, 0])


def test_equal_words_keep_apart():
    sources, pairs = stores(), [("right", [3]), ("right", [9])]
    explorer = AttentionExplorer(sources, GRID, VIDEO, words=pairs)
    assert explorer._facts["words"] == ["right", "right"]
    for word, (_, tokens) in enumerate(pairs):
        explorer.word = word
        assert torch.equal(explorer.current_maps()[0], sources[0].rows(tokens)[0, :, 0])


def test_of_layer_attention_shows_every_layer():
    attention = torch.rand(4, 2, 33, generator=torch.Generator().manual_seed(0))
    found = LayerAttention(AFTER_TEXT, attention, {}, torch.full((4,), 1e-6), torch.tensor([1, 2]))
    curve = Band(*torch.rand(3, 4))
    options = {"curve": curve, "baselines": {"area": 0.1}}
    explorer = AttentionExplorer.of_layer_attention(found, VIDEO, "ball", **options)
    assert explorer.layers == [f"layer {i}" for i in range(4)] and explorer.words == [("ball", [0])]
    assert explorer._facts["tokens"] == [[1, 2]]
    explorer.layer = 2
    assert torch.equal(explorer.current_maps()[0], attention[2])
    drawn = np.frombuffer(explorer._curve, np.float32).reshape(4, 4)
    np.testing.assert_allclose(drawn[0], curve.mean, rtol=1e-6)
    np.testing.assert_allclose(drawn[3], 0.1, rtol=1e-6)


def test_the_matrix_is_mean_mass_between_groups():
    grid = TokenGrid.wan(5, 24, 40, ("background", "edit", "alpha"), spatial_stride=4)
    labels, names = grid.groups()
    calls = [make_call(i, s, queries=90, keys=90) for i in range(2) for s in range(2)]
    matrix = GroupMatrix.of_group_mass([GroupMass(labels, names)(c) for c in calls], labels, names)
    assert matrix.values.shape == (2, 2, 3, 3) and matrix.rows == matrix.columns == names
    weights = (calls[1].query[0] @ calls[1].key[0].mT * calls[1].scale).softmax(-1).mean(0)
    expected = weights.view(3, 30, 3, 30).sum(-1).mean(1)  # layer 0, step 1
    torch.testing.assert_close(matrix.values[1, 0], expected, atol=1e-5, rtol=1e-5)
    rows = [Rows([0])(c) for c in calls]
    explorer = AttentionExplorer(rows, grid, VIDEO, matrix=matrix)
    assert np.frombuffer(explorer._matrix, np.float32)[9 * 2 :][:9] == pytest.approx(expected.flatten())


def test_the_video_that_is_looked_at_comes_first():
    streams = [replace(_VIDEO, name=name) for name in ("asking", "seen")]
    sources = stores(keys=30)
    explorer = AttentionExplorer(
        sources, TokenGrid((streams[0],)), VIDEO, key_grid=TokenGrid((streams[1],)), words={"one": [4]}
    )
    assert [s["name"] for s in explorer._facts["streams"]] == ["asking", "seen"] and explorer.stream == 1


# --- denoising and the causal lane -------------------------------------------------------------------


def test_films_are_kept_step_by_step():
    sources = stores(layers=1, steps=3)
    ramp = torch.linspace(0, 1, 3).view(3, 1, 1, 1, 1).expand(3, 5, 1, 24, 40)
    denoising = Denoising([1.0, 0.8, 0.3], {"alpha": ramp, "edit": VIDEO.expand(3, *VIDEO.shape)})
    explorer = AttentionExplorer(sources, GRID, VIDEO, denoising=denoising)
    assert explorer._facts["films"] == ["alpha", "edit"] and explorer._facts["sigmas"] == [1.0, 0.8, 0.3]
    for step, grey in enumerate((0, 128, 255)):
        sheet = np.asarray(Image.open(io.BytesIO(explorer._films[0][step])))
        assert abs(int(sheet[3, 3, 0]) - grey) <= 2
    Guess = namedtuple("Guess", ("sigma", "x_0"))
    states = [Guess(s, ramp[i]) for i, s in enumerate(denoising.sigmas)]
    again = Denoising.of(states, lambda x_0: {"alpha": x_0[None] * 2 - 0.5})
    torch.testing.assert_close(again.films["alpha"], (ramp * 2 - 0.5).clamp(0, 1))
    assert again.sigmas == list(denoising.sigmas)


class Painter(torch.nn.Module):
    """Two layers of attention with three heads of 8; the video is what the tokens carry at the end."""

    def __init__(self):
        super().__init__()
        self.layers = torch.nn.ModuleList(torch.nn.Identity() for _ in range(2))
        for layer in self.layers:
            layer.forward = lambda x: x + F.scaled_dot_product_attention(x, x, x)
        self.x = torch.randn(1, 3, 30, 8, generator=torch.Generator().manual_seed(0))

    def forward(self):
        x = self.x
        for layer in self.layers:
            x = layer(x)
        return x

    def video(self):
        values = self()[0].mean((0, 2)).sigmoid()
        return GRID.to_video(values, "video")[:, None].expand(-1, 3, -1, -1)


def paint():
    """A model that can be cut, and an explorer of it."""
    model, plan = Painter(), CapturePlan([("layers", StoreQK(), "all")], 10**8)
    with Tap(model, plan):
        model()
    options = {"interventions": Interventions(model, model.video), "sinks": []}
    return model, AttentionExplorer(plan.captures["all"], GRID, VIDEO, **options)


@pytest.fixture
def painted():
    return paint()


@pytest.mark.parametrize("queries", [None, [0, 3]])
@pytest.mark.parametrize("cells", [None, [(0, 1), (1, 1), (1, 2)]])
@pytest.mark.parametrize("keys", [None, [5, 6]])
def test_a_cut_is_a_knock_out_and_says_what_was_looked_at(painted, keys, cells, queries):
    model, explorer = painted
    if keys is None and cells is None:
        with pytest.raises(ValueError, match="keys, cells"):
            explorer.cut(keys, cells, queries)
        return
    video = explorer.cut(keys, cells, queries)
    chosen = list(itertools.product(range(2), range(3))) if cells is None else cells
    flags = [None if c is None else torch.isin(torch.arange(30), torch.tensor(c)) for c in (keys, queries)]
    with ExitStack() as cuts:
        for layer in (0, 1):
            heads = torch.tensor([head for one, head in chosen if one == layer])
            cuts.enter_context(KnockOut(model, flags[0], f"layers.{layer}", flags[1], heads))
        expected = model.video()
    torch.testing.assert_close(video, expected)
    intact, entry = explorer._cuts
    assert (intact["looked"], intact["lost"]) == (0, 0)
    assert entry["lost"] == pytest.approx(float((expected - model.video()).abs().mean()), rel=1e-4)
    assert entry["lost"] > 0
    mass = 0
    for layer, head in chosen:
        weights = explorer._sources.tables[0][0][layer].tile(None, keys)[0, head]  # (Q, keys)
        mass += float(weights[queries if queries else slice(None)].sum()) / 30
    assert entry["looked"] == pytest.approx(mass / 6, rel=1e-4)
    explorer.cut([1], label="another")
    assert [e["label"] for e in explorer._cuts[::2]] == ["nothing cut", "another"]


def test_a_cut_of_the_page_is_made_and_a_wrong_one_is_refused(painted):
    _, explorer = painted
    reply, buffers = answer(explorer, id="x-9", cut={"keys": [3], "cells": [[0, 1]], "queries": None})
    assert (reply, buffers) == ({"id": "x-9"}, [])
    assert explorer._cuts[1]["label"] == "1 patch in 1 of 6 heads"
    for wrong in (
        {"keys": [30]},
        {"keys": []},
        {"keys": [0.5]},
        {"cells": [(2, 0)]},
        {"cells": []},
        {"keys": [1], "queries": [30]},
        {"keys": list(range(30))},  # nobody would see anything
    ):
        with pytest.raises(ValueError):
            explorer.cut(**wrong)
    assert len(explorer._cuts) == 2
    with pytest.raises(ValueError, match="interventions"):
        AttentionExplorer(stores(), GRID, VIDEO).cut([1])


def test_captured_rows_know_what_a_cut_took(painted):
    model, explorer = painted
    plan = CapturePlan([("layers", Rows([4, 9]), "rows")], 10**8)
    with Tap(model, plan):
        model()
    of_rows = AttentionExplorer(
        plan.captures["rows"], GRID, VIDEO, sinks=[], interventions=Interventions(model, model.video)
    )
    of_rows.cut([7])
    expected = torch.stack([c.values[0, :, :, 7].mean() for c in plan.captures["rows"]]).mean()
    assert of_rows._cuts[1]["looked"] == pytest.approx(float(expected), rel=1e-5)


# --- budget and refusals -----------------------------------------------------------------------------


def saved_bytes(explorer):
    """As a notebook saves it."""
    return len(json.dumps(Widget.get_manager_state(widgets=[explorer])["state"][explorer.model_id]))


def test_heads_are_saved_where_they_fit_and_too_much_is_refused():
    sources = stores(layers=4, steps=4)
    explorer = AttentionExplorer(sources, GRID, VIDEO)
    full, of_heads = saved_bytes(explorer), 4 / 3 * 4 * 4 * 2 * 3 * (30 + 8)
    assert explorer._facts["groups"] == 4
    # What every widget saves beside its data is not in the budget.
    margin = 2500
    assert AttentionExplorer(sources, GRID, VIDEO, budget_bytes=full)._facts["groups"] == 4
    means = AttentionExplorer(sources, GRID, VIDEO, budget_bytes=full - margin)
    assert means._facts["groups"] == 1
    assert full - saved_bytes(means) == pytest.approx(of_heads, abs=8)
    torch.testing.assert_close(saved(means, 0, 3, 1, 0, "to")[0], saved(explorer, 0, 3, 1, 0, "to")[0][:1])
    with pytest.raises(ValueError, match="4 layers, 4 steps, 1 words"):
        AttentionExplorer(sources, GRID, VIDEO, budget_bytes=int(full - of_heads - margin))


def not_finite():
    return Capture(CallSite("blocks.0"), (0,), torch.full((1, 1, 1, 30), torch.nan), 0.0)


REFUSALS = {
    "no captures": (lambda: [], {}),
    "a hole": (lambda: stores(steps=2)[:3], {}),
    "twice": (lambda: stores() + stores(), {}),
    "both kinds": (lambda: stores(1) + stores(measurement=Rows([0]))[1:], {}),
    "other heads": (lambda: [StoreQK(heads=[0])(make_call()), *stores()[1:]], {}),
    "nan": (lambda: [not_finite()], {"sinks": []}),
    "another grid": (stores, {"key_grid": WORDS}),
    "group mass": (lambda: stores(measurement=GroupMass(torch.arange(30) % 2)), {}),
    "other rows": (lambda: [Rows([0])(make_call()), Rows([0, 1])(make_call(1))], {}),
    "video size": (stores, {"video": VIDEO[:4]}),
    "video axes": (stores, {"video": VIDEO[:, :1]}),
    "video in 0..255": (stores, {"video": VIDEO * 255}),
    "video with nan": (stores, {"video": VIDEO.index_fill(0, torch.tensor([1]), torch.nan)}),
    "word": (stores, {"words": {"it": [30]}}),
    "empty word": (stores, {"words": {"it": []}}),
    "row": (lambda: stores(measurement=Rows([0])), {"words": {"it": [1]}}),
    "direction": (stores, {"direction": "up"}),
    "columns of rows": (lambda: stores(measurement=Rows([0])), {"direction": "to"}),
    "sinks": (stores, {"sinks": [30]}),
    "runs": (stores, {"compare": stores(3)}),
    "curve": (stores, {"curve": Band(*torch.rand(3, 5))}),
    "baselines": (stores, {"baselines": {"area": 0.1}}),
    "matrix": (stores, {"matrix": GroupMatrix(torch.rand(1, 3, 2, 2), "ab", "ab")}),
    "mask": (stores, {"mask": torch.zeros(5, 1, 2, 2)}),
    "sigmas": (stores, {"denoising": Denoising([1.0, 0.5], {})}),
    "film of other steps": (
        stores,
        {"denoising": Denoising([1.0], {"edit": VIDEO[None].expand(2, *VIDEO.shape)})},
    ),
    "film of another size": (stores, {"denoising": Denoising([1.0], {"edit": VIDEO[None, :4]})}),
}


@pytest.mark.parametrize(("captures", "options"), REFUSALS.values(), ids=REFUSALS)
def test_what_does_not_fit_is_refused(captures, options):
    with pytest.raises(ValueError):
        AttentionExplorer(captures(), **{"grid": GRID, "video": VIDEO} | options)


@pytest.mark.parametrize("labels", [torch.arange(29) % 2, torch.zeros(31, dtype=torch.long)])
def test_a_matrix_needs_a_label_for_every_query(labels):
    captures = [GroupMass(torch.arange(30) % 2)(make_call())]
    with pytest.raises(ValueError, match="30 queries"):
        GroupMatrix.of_group_mass(captures, labels, ("a", "b"))
