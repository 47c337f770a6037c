"""Notebook 02: its exercises judge right and wrong answers, its classes equal the library's."""

import re

import pytest
import torch
from notebook_cells import Book
from torch.testing import assert_close

from vera_lite import viz
from vera_lite.backbone import WanConfig, rotary_table
from vera_lite.backbone.wan import SelfAttention
from vera_lite.pipelines import VeraPipeline
from vera_lite.toy.world import render

BOOK = Book("02_mot_layered_dit")


@pytest.fixture
def book():
    """The notebook's definitions."""
    return BOOK.definitions(CASES=("a case",), ADD=0, BACKGROUND=1, seed=0, steps=12)


# ---------------------------------------------------------------------- exercises

EXERCISES = {"merge": "check_merge", "branch_mask": "check_branch_mask"}


@pytest.mark.parametrize("name", EXERCISES)
def test_the_solution_passes(name, book):
    book[EXERCISES[name]](BOOK.solution(book, name))


@pytest.mark.parametrize("name", EXERCISES)
def test_an_unsolved_exercise_says_so(name, book, capsys):
    book["attempt"](name, lambda: book[EXERCISES[name]](book[name]))
    assert capsys.readouterr().out == f"{name}: not solved yet\n"


def straight(multiplied, alpha):
    return multiplied / alpha.clamp_min(1e-6)


WRONG_MERGES = {
    "mattes do not add": lambda e, a, f, b: (
        straight(a * e + (1 - a) * b * f, a + b),
        (a + b).clamp(max=1),
    ),
    "too thin": lambda e, a, f, b: (e, torch.maximum(a, b)),
    "0 / 0": lambda e, a, f, b: (
        (a * e + (1 - a) * b * f) / (a + (1 - a) * b),
        a + (1 - a) * b,
    ),
    "multiplied by alpha": lambda e, a, f, b: (a * e + (1 - a) * b * f, a + (1 - a) * b),
    "as far as its matte": lambda e, a, f, b: (a * e + (1 - a) * f, a + (1 - a) * b),
    "swapped": lambda e, a, f, b: (
        straight((1 - b) * a * e + b * f, a + b - a * b),
        a + b - a * b,
    ),
    "not the same over": lambda e, a, f, b: ((e + f) / 2, a + (1 - a) * b),
    "shape": lambda e, a, f, b: (e, a.expand_as(e)),
}

WRONG_MASKS = {
    "rows are queries": lambda sees, n: sees.T.repeat_interleave(n, 0).repeat_interleave(n, 1),
    "interleaved": lambda sees, n: sees.repeat(n, n),
    "inverted": lambda sees, n: ~sees.repeat_interleave(n, 0).repeat_interleave(n, 1),
    "boolean": lambda sees, n: torch.kron(sees.float(), torch.ones(n, n)),
    "wrong shape": lambda sees, n: sees.repeat_interleave(n, 0),
}


@pytest.mark.parametrize("hint", WRONG_MERGES)
def test_a_wrong_merge_is_named(hint, book):
    with pytest.raises(AssertionError, match=re.escape(hint)):
        book["check_merge"](WRONG_MERGES[hint])


@pytest.mark.parametrize("hint", WRONG_MASKS)
def test_a_wrong_mask_is_named(hint, book):
    with pytest.raises(AssertionError, match=re.escape(hint)):
        book["check_branch_mask"](WRONG_MASKS[hint])


def test_one_wire_can_be_cut_in_the_trained_model(book):
    """The solved exercise changes nothing where it cuts nothing, and the matte where it does."""
    clips = render(712, [9, 13])
    pipe = VeraPipeline.from_pretrained()
    sources = clips.source[1:], [clips.instruction[1]]
    call = (None, torch.zeros(3, 1, 48, 1))  # read for its number of tokens
    book |= {"pipe": pipe, "sources": sources, "steps": 2, "calls": [call]}
    book["branch_mask"] = BOOK.solution(book, "branch_mask")

    plain = pipe.generate(*sources, steps=2, generator=book["generator"]()).alpha[0, 4]
    assert_close(book["alpha_without"](1, 1), plain, rtol=1e-3, atol=1e-4)
    assert (book["alpha_without"](1, 2) - plain).abs().max() > 0.05


# ---------------------------------------------------------------------- classes


@pytest.mark.parametrize(("heads", "grid"), [(1, (1, 1, 2)), (2, (1, 2, 3)), (4, (2, 3, 2))])
def test_the_notebooks_attention_is_the_librarys(heads, grid, book):
    torch.manual_seed(heads)
    dim, tokens = 8 * heads, grid[0] * grid[1] * grid[2]
    mine = book["JointAttention"](dim, heads)
    for parameter in mine.parameters():  # the norms' weights too, which all start at 1
        torch.nn.init.normal_(parameter)
    config = WanConfig(num_attention_heads=heads, attention_head_dim=8)
    library = SelfAttention(config, experts=3, joint=True)
    library.load_state_dict(book["stacked"](mine.state_dict()))
    x, rotary = torch.randn(3, 2, tokens, dim), rotary_table(8, grid)

    out, weights = mine(x, rotary)
    assert_close(out, library(x, rotary), rtol=1e-4, atol=1e-4)
    assert_close(weights.sum(-1), torch.ones(2, heads, 3 * tokens))

    library.joint = False
    block = torch.block_diag(*[torch.ones(tokens, tokens)] * 3).bool()
    assert_close(mine(x, rotary, block)[0], library(x, rotary), rtol=1e-4, atol=1e-4)


def test_attention_weights_are_proven_before_they_are_shown(book):
    torch.manual_seed(0)
    attention = SelfAttention(WanConfig(num_attention_heads=2, attention_head_dim=8), 3, joint=True)
    x, rotary = torch.randn(3, 1, 6, 16), rotary_table(8, (1, 2, 3))
    with torch.no_grad():
        out = attention(x, rotary)
    weights = book["attention_weights"](attention, x, rotary, out)
    assert weights.shape == (2, 18, 18)
    assert_close(book["mass"](weights).sum(1), torch.ones(3))
    with pytest.raises(AssertionError, match="not close"):
        book["attention_weights"](attention, x, rotary, out.flip(0))


def test_mass_counts_keys_by_branch(book):
    weights = torch.zeros(1, 6, 6)
    weights[0, :2, 4:] = 0.5  # edit looks at the composite only
    weights[0, 2:, :2] = 0.5  # the others look at edit
    expected = torch.tensor([[0.0, 0, 1], [1, 0, 0], [1, 0, 0]])
    assert_close(book["mass"](weights), expected)


# ---------------------------------------------------------------------- the comparison


def test_differences_are_held_against_the_spread_of_the_seeds(book):
    rows = {
        "Vera": (30, 31, 32),
        "worse": (20, 21, 22),
        "equal": (31, 32, 29),
        "better": (40, 41, 42),
    }
    book["variants"] = list(rows)
    book["runs"] = [
        {"variant": variant, "seed": seed, "metrics": {"a case": {"psnr": value}}}
        for seed in range(3)
        for variant, value in ((v, numbers[seed]) for v, numbers in rows.items())
    ]
    assert book["values"]("a case", "psnr") == {v: list(numbers) for v, numbers in rows.items()}
    verdicts = {peer: book["compare"]("a case", "psnr", peer) for peer in rows}
    assert "+10.00 better" in verdicts["worse"]
    assert "-10.00 worse" in verdicts["better"]
    assert "within noise" in verdicts["equal"]


# ---------------------------------------------------------------------- pictures


def test_a_contact_sheet_shows_the_frames_it_was_given():
    gray, colour = torch.rand(1, 4, 5), torch.rand(3, 4, 5)
    figure = viz.contact_sheet({"a": [gray, None], "b": [colour, gray]}, ["x", "y"], "title")
    shown = [[len(ax.images) for ax in figure.axes[i : i + 2]] for i in (0, 2)]
    assert shown == [[1, 0], [1, 1]]
    assert figure.get_suptitle() == "title"
    assert [ax.get_title() for ax in figure.axes[:2]] == ["x", "y"]
    assert [figure.axes[i].get_ylabel() for i in (0, 2)] == ["a", "b"]
    assert_close(torch.tensor(figure.axes[2].images[0].get_array()), colour.permute(1, 2, 0))


def test_a_clip_is_shown_every_other_frame():
    video = torch.arange(5).float().view(5, 1, 1, 1).expand(5, 1, 2, 2) / 10
    figure = viz.show_clip({"alpha": video}, "title")
    assert [ax.get_title() for ax in figure.axes] == ["frame 0", "frame 2", "frame 4"]
    values = [float(ax.images[0].get_array()[0, 0, 0]) for ax in figure.axes]
    assert values == pytest.approx([0, 0.2, 0.4])


def test_attention_matrices_share_one_scale_and_name_the_branches():
    one, two = torch.eye(6) / 2, torch.ones(6, 6)
    figure = viz.attention_matrices({"one": one, "two": two}, ["E", "A", "C"], "title")
    left, right = figure.axes[:2]
    assert left.images[0].get_clim() == right.images[0].get_clim() == (0, 1)
    assert left.get_xticks().tolist() == [0.5, 2.5, 4.5]
    assert [label.get_text() for label in left.get_yticklabels()] == ["E", "A", "C"]


def test_seed_dots_mark_every_seed_and_the_mean():
    figure = viz.seed_dots({"case": {"ours": [1.0, 3.0], "theirs": []}}, "title", ["dB"])
    dots, bar = figure.axes[0].lines
    assert dots.get_xdata().tolist() == [1, 3]
    assert {float(x) for x in bar.get_xdata()} == {2}
