"""Figures show the numbers that they were given."""

import pytest
import torch
from torch.testing import assert_close

from vera_lite import viz


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


def test_who_sees_shows_what_is_given():
    readers = {"one": torch.tensor([True, False]), "two": torch.tensor([True, True])}
    figure = viz.who_sees(readers, ["a", "b"], ["left", "right"], "title")
    [ax] = figure.axes
    assert figure.get_suptitle() == "title" and [t.get_text() for t in ax.texts] == ["a", "a", "b"]
    colours = [patch.get_facecolor()[:3] for patch in ax.patches]
    assert colours[1] == (1, 1, 1) and colours[0] == colours[2] != colours[3]
    assert [t.get_text() for t in ax.get_yticklabels()] == ["one", "two"]
    assert [t.get_text() for t in figure.legends[0].get_texts()] == ["left", "right"]


def test_points_are_shown_by_group():
    points = {"a": torch.tensor([[0.0, 1], [2, 3]]), "b": torch.tensor([[4.0, 5]])}
    figure = viz.scatter({"left": points, "right": points}, "title")
    for ax, heading in zip(figure.axes, ("left", "right"), strict=True):
        assert ax.get_title() == heading
        shown = [torch.as_tensor(c.get_offsets().data).float() for c in ax.collections]
        assert torch.equal(shown[0], points["a"]) and torch.equal(shown[1], points["b"])
    assert [t.get_text() for t in figure.legends[0].get_texts()] == ["a", "b"]


def test_lines_show_mean_seeds_and_range():
    lines = {"ours": {0: [1.0, 3.0], 2: [4.0]}}
    figure = viz.line_panels({"a": lines, "b": {"theirs": {1: [0.0]}}}, "title", "x", {"a": ("chance", 2.0)})
    left, right = figure.axes
    assert figure.get_suptitle() == "title" and [ax.get_title() for ax in (left, right)] == ["a", "b"]
    assert left.lines[0].get_xydata().tolist() == [[0, 2], [2, 4]]  # means
    assert left.lines[1].get_xydata().tolist() == [[0, 1], [0, 3]]  # seeds
    [band] = left.collections
    assert {tuple(p) for p in band.get_paths()[0].vertices.tolist()} == {(0, 1), (0, 3), (2, 4)}
    assert left.lines[-1].get_ydata() == [2, 2]
    names = [t.get_text() for t in figure.legends[0].get_texts()]
    assert names == ["ours", "chance", "theirs"]
    assert left.get_xlim() == right.get_xlim() and left.get_ylim() != right.get_ylim()
    figure = viz.line_panels({"a": lines, "b": {"theirs": {1: [0.0]}}}, "title", "x", sharey=True)
    assert figure.axes[0].get_ylim() == figure.axes[1].get_ylim()


def test_matrices_can_be_other_things_than_attention():
    figure = viz.attention_matrices({"m": torch.eye(2)}, "ab", "title", labels=("row", "column", "bar"))
    ax, bar = figure.axes
    assert (ax.get_ylabel(), ax.get_xlabel(), bar.get_ylabel()) == ("row", "column", "bar")


def test_intervals_stand_beside_their_names_and_a_line_at_zero():
    rows = {
        "one": (1.0, 0.5, 1.5, "supported"),
        "a name that is long": (-1.0, -3.0, 1.0, "undecided"),
        "two": (2.0, 1, 3, "supported"),
    }
    figure = viz.intervals(rows, "title", "points", width=10)
    [ax] = figure.axes
    zero, *lines = ax.lines
    assert zero.get_xdata() == [0, 0] and ax.get_xlabel() == "points"
    assert [list(line.get_xdata()) for line in lines[::2]] == [[0.5, 1.5], [-3, 1], [1, 3]]
    assert [list(line.get_xdata()) for line in lines[1::2]] == [[1], [-1], [2]]
    assert [t.get_text() for t in ax.get_yticklabels()] == ["one", "a name\nthat is\nlong", "two"]
    colours = [line.get_color() for line in lines[1::2]]
    assert colours[0] == colours[2] != colours[1]
    alone = viz.intervals({"one": (1.0, 0.5, 1.5, "undecided")}, "title", "points")
    assert alone.axes[0].lines[2].get_color() == colours[1]  # in every figure the same
    assert [t.get_text() for t in figure.legends[0].get_texts()] == ["supported", "undecided"]
