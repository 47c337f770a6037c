"""Notebook 02: one wire can be cut, its classes equal the library's, its measures say what they claim."""

import pytest
import torch
from notebook_cells import BOOKS
from torch.testing import assert_close

from vera_lite.backbone import WanConfig, grid_positions, rotary_table
from vera_lite.backbone.wan import SelfAttention
from vera_lite.pipelines import VeraPipeline
from vera_lite.systems.vera import JointAttention
from vera_lite.toy.world import render


@pytest.fixture
def book():
    return BOOKS["02_mot_layered_dit"].definitions()


def test_one_wire_can_be_cut_in_the_trained_model(book):
    """The solved exercise changes nothing where it cuts nothing, and the matte where it does."""
    clips = render(712, [9, 13])
    pipe = VeraPipeline.from_pretrained()
    sources = clips.source[1:], [clips.instruction[1]]
    call = (None, torch.zeros(3, 1, 48, 1))  # read for its number of tokens
    book |= {"pipe": pipe, "sources": sources, "steps": 2, "calls": [call]}
    book["branch_mask"] = BOOKS["02_mot_layered_dit"].solution(book, "branch_mask")

    plain = pipe.generate(*sources, steps=2, generator=book["generator"]()).alpha[0, 4]
    assert_close(book["alpha_without"](1, 1), plain, rtol=1e-3, atol=1e-4)
    assert (book["alpha_without"](1, 2) - plain).abs().max() > 0.05


@pytest.mark.parametrize(("heads", "grid"), [(1, (1, 1, 2)), (2, (1, 2, 3)), (4, (2, 3, 2))])
def test_the_notebooks_attention_is_the_librarys(heads, grid, book):
    torch.manual_seed(heads)
    dim, tokens = 8 * heads, grid[0] * grid[1] * grid[2]
    mine = book["JointAttention"](dim, heads)
    for parameter in mine.parameters():  # the norms' weights too, which all start at 1
        torch.nn.init.normal_(parameter)
    config = WanConfig(num_attention_heads=heads, attention_head_dim=8)
    branches = [SelfAttention(config) for _ in range(3)]
    for b, branch in enumerate(branches):
        state = {n.replace(f".{b}.", "."): p for n, p in mine.state_dict().items() if f".{b}." in n}
        branch.load_state_dict({n.replace("to_out", "to_out.0"): p for n, p in state.items()})
    x, rotary = torch.randn(3, 2, tokens, dim), rotary_table(grid_positions(grid), config.rotary_widths)

    out, weights = mine(x, rotary)
    joint = torch.stack(JointAttention()(branches, list(x), rotary))
    assert_close(out, joint, rtol=1e-4, atol=1e-4)
    assert_close(weights.sum(-1), torch.ones(2, heads, 3 * tokens))

    block = torch.block_diag(*[torch.ones(tokens, tokens)] * 3).bool()
    apart = torch.stack([branch(y, rotary) for branch, y in zip(branches, x, strict=True)])
    assert_close(mine(x, rotary, block)[0], apart, rtol=1e-4, atol=1e-4)


def test_attention_weights_are_proven_before_they_are_shown(book):
    torch.manual_seed(0)
    config = WanConfig(num_attention_heads=2, attention_head_dim=8)
    branches = [SelfAttention(config) for _ in range(3)]
    x, rotary = torch.randn(3, 1, 6, 16), rotary_table(grid_positions((1, 2, 3)), config.rotary_widths)
    with torch.no_grad():
        out = JointAttention()(branches, list(x), rotary)
    weights = book["attention_weights"](branches, list(x), rotary, out)
    assert weights.shape == (2, 18, 18)
    assert_close(book["mass"](weights).sum(1), torch.ones(3))
    with pytest.raises(AssertionError, match="not close"):
        book["attention_weights"](branches, list(x), rotary, out[::-1])


def test_mass_counts_keys_by_branch(book):
    weights = torch.zeros(1, 6, 6)
    weights[0, :2, 4:] = 0.5  # edit looks at the composite only
    weights[0, 2:, :2] = 0.5  # the others look at edit
    expected = torch.tensor([[0.0, 0, 1], [1, 0, 0], [1, 0, 0]])
    assert_close(book["mass"](weights), expected)


def test_differences_are_judged_by_the_interval_over_seeds(book):
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
    assert "+10.00 supported" in verdicts["worse"]
    assert "-10.00 not supported" in verdicts["better"]
    assert "undecided" in verdicts["equal"]
