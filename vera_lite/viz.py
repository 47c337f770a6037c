"""Small pictures for notebooks: pure functions from tensors to a matplotlib Figure.

Figures do not use pyplot: a notebook cell shows one by ending with it, and none stays open. The colours
(Okabe and Ito; cividis) also suit people with colour vision deficiencies.
"""

import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import MaxNLocator
from torch import Tensor

DPI = 80
#: Okabe-Ito without yellow, which vanishes on white.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")


def _figure(width: float, height: float, title: str) -> Figure:
    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    figure.suptitle(title, fontsize=11)
    return figure


def _grid(
    rows: Sequence[str], columns: Sequence[str], title: str, width: float, height: float, fontsize: int
):
    """A figure with named rows and columns of pictures, without ticks, and its axes by [row][column]."""
    figure = _figure(width, height, title)
    grid = figure.subplots(len(rows), len(columns), squeeze=False)
    for ax in grid.flat:
        ax.set(xticks=[], yticks=[])
    for ax, name in zip(grid[:, 0], rows, strict=True):
        ax.set_ylabel(name, rotation=0, ha="right", va="center")
    for ax, name in zip(grid[0], columns, strict=True):
        ax.set_title(name, fontsize=fontsize)
    return figure, grid


def _style(i: int) -> dict:
    """The i-th colour, dash and mark."""
    marks = {"ls": ("-", "--", "-.", ":")[i % 4], "marker": ("o", "s", "^", "D")[i % 4]}
    return {"color": PALETTE[i % len(PALETTE)], "lw": 2, "ms": 4, **marks}


def _open(ax, **labels) -> None:
    """Axes without a frame at the top and the right."""
    ax.set(**labels)
    ax.spines[["top", "right"]].set_visible(False)


def _legend(figure: Figure, handles: Sequence, names: Sequence[str]) -> None:
    columns = min(len(names), 4)
    figure.legend(handles, names, loc="outside lower center", ncols=columns, frameon=False)


def image(frame: Tensor) -> np.ndarray:
    """A frame (1 or 3, H, W) in [0, 1] as (H, W, 3) for imshow."""
    return frame.detach().float().clamp(0, 1).expand(3, -1, -1).permute(1, 2, 0).numpy()


def contact_sheet(
    rows: Mapping[str, Sequence[Tensor | None]],
    columns: Sequence[str],
    title: str,
    side: float = 1.15,
) -> Figure:
    """Frames in a grid, pixels kept square and sharp.

    Args:
        rows: label -> one frame per column, each (1 or 3, H, W) in [0, 1], or None for a gap.
        columns: their headings.
        title: what to see.
        side: inches of a frame's width.
    """
    label = 0.085 * max(len(line) for name in rows for line in name.split("\n"))
    heading = 0.17 * (title.count("\n") + max(c.count("\n") for c in columns)) + 0.55
    first = next(frame for frames in rows.values() for frame in frames if frame is not None)
    tall = side * min(1.0, first.shape[-2] / first.shape[-1])
    width, height = (side + 0.09) * len(columns) + label, (tall + 0.09) * len(rows) + heading
    figure, grid = _grid(list(rows), columns, title, width, height, fontsize=10)
    for axes, frames in zip(grid, rows.values(), strict=True):
        for ax, frame in zip(axes, frames, strict=True):
            ax.spines[:].set(color="0.8", visible=frame is not None)
            if frame is not None:
                ax.imshow(image(frame), interpolation="nearest")
    return figure


def show_clip(rows: Mapping[str, Tensor], title: str, every: int = 2) -> Figure:
    """Videos (T, 1 or 3, H, W) below each other, every ``every``-th frame from left to right."""
    frames = range(0, len(next(iter(rows.values()))), every)
    sheet = {name: [video[t] for t in frames] for name, video in rows.items()}
    return contact_sheet(sheet, [f"frame {t}" for t in frames], title)


def attention_matrices(
    matrices: Mapping[str, Tensor],
    names: Sequence[str],
    title: str,
    *,
    numbers: bool = False,
    labels: tuple[str, str, str] = ("query: who looks", "key: looked at", "attention"),
    side: float = 2.6,
) -> Figure:
    """Attention weights or masses on one colour scale: a row per query, a column per key.

    Args:
        matrices: heading -> (R, R); each name has a run of rows and of columns, all equally long.
        names: of the runs; lines separate them.
        title: what to see.
        numbers: write each value into its cell.
        labels: of rows, columns and colour bar.
        side: inches of a matrix.
    """
    figure = _figure((side + 0.1) * len(matrices) + 2.0, side + 1.05, title)
    axes = figure.subplots(1, len(matrices), squeeze=False)[0]
    top = max(float(m.max()) for m in matrices.values())
    for ax, (heading, matrix) in zip(axes, matrices.items(), strict=True):
        values = matrix.detach().numpy()
        run = len(values) / len(names)
        shown = ax.imshow(values, vmin=0, vmax=top, cmap="cividis", interpolation="nearest")
        middles = [run * (i + 0.5) - 0.5 for i in range(len(names))]
        ax.set_xticks(middles, names, fontsize=9)
        ax.set_yticks(middles, names if ax is axes[0] else [""] * len(names), fontsize=9)
        ax.tick_params(length=0)
        ax.set(title=heading, xlabel=labels[1])
        for border in [run * i - 0.5 for i in range(1, len(names))]:
            ax.axhline(border, color="white", lw=1.5)
            ax.axvline(border, color="white", lw=1.5)
        for (i, j), value in np.ndenumerate(values) if numbers else ():
            shade = "black" if value > 0.6 * top else "white"
            ax.text(j, i, f"{value:.2f}", ha="center", va="center", color=shade, fontsize=10)
    axes[0].set_ylabel(labels[0])
    figure.colorbar(shown, ax=axes, shrink=0.8, label=labels[2])
    return figure


def heat_maps(
    rows: Mapping[str, Sequence[Tensor]],
    columns: Sequence[str],
    title: str,
    *,
    outlines: Mapping[str, Tensor] | None = None,
    label: str = "attention",
    each_its_own: bool = False,
    side: float = 1.05,
) -> Figure:
    """Maps in a grid on one colour scale from 0, with a colour bar.

    Args:
        rows: name -> one map (h, w) per column, not negative.
        columns: their headings.
        title: what to see.
        outlines: name of a row -> (H, W) in [0, 1]; its 0.5 contour is drawn on each map of the row.
        label: of the colour bar.
        each_its_own: stretch the colours of each map from its smallest to its largest value, as many tools
            do, without a colour bar.
        side: inches of a map.
    """
    width, height = (side + 0.08) * len(columns) + 1.7, (side + 0.08) * len(rows) + 0.75
    figure, grid = _grid(list(rows), columns, title, width, height, fontsize=9)
    top = max(float(m.max()) for maps in rows.values() for m in maps)
    for axes, (name, maps) in zip(grid, rows.items(), strict=True):
        for ax, values in zip(axes, maps, strict=True):
            scale = {} if each_its_own else {"vmin": 0, "vmax": top}
            shown = ax.imshow(values.detach().float().numpy(), cmap="cividis", extent=(0, 1, 1, 0), **scale)
            if outlines and name in outlines:
                mask = outlines[name].numpy()
                y, x = ((np.arange(n) + 0.5) / n for n in mask.shape)
                ax.contour(x, y, mask, levels=[0.5], colors="white", linewidths=1.2)
    if not each_its_own:
        figure.colorbar(shown, ax=grid, shrink=0.9, label=label)
    return figure


def bands(
    lines: Mapping[str, tuple[Sequence[float], Sequence[float] | None, Sequence[float] | None]],
    title: str,
    xlabel: str,
    ylabel: str,
    x: Sequence[float] | None = None,
) -> Figure:
    """Lines with the band around each: name -> (middle, low, high); without a band low and high are None."""
    figure = _figure(6.8, 3.6, title)
    ax = figure.subplots()
    for i, (name, (middle, low, high)) in enumerate(lines.items()):
        at = range(len(middle)) if x is None else x
        ax.plot(at, middle, label=name, **_style(i))
        if low is not None:
            ax.fill_between(at, low, high, color=_style(i)["color"], alpha=0.2, lw=0)
    _open(ax, xlabel=xlabel, ylabel=ylabel, ylim=(0, None))
    ax.legend(frameon=False, fontsize=9)
    return figure


def curves(lines: Mapping[str, Sequence[float]], title: str, xlabel: str, ylabel: str) -> Figure:
    """Lines over steps, each with its own colour and dash."""
    figure = _figure(6.4, 3.4, title)
    ax = figure.subplots()
    for i, (name, values) in enumerate(lines.items()):
        ax.plot(values, label=name, **_style(i) | {"marker": None})
    lowest = min(min(values) for values in lines.values())
    _open(ax, xlabel=xlabel, ylabel=ylabel, ylim=(0, None) if lowest >= 0 else None)
    _legend(figure, ax.lines, list(lines))
    return figure


def position_maps(panels: Mapping[str, Tensor], title: str) -> Figure:
    """Rotary positions of two videos, time against height, in one panel per reading.

    A square is a token of column 0, in the colour of its video, with the number of its frame. Tokens at one
    position share a square.

    Args:
        panels: heading -> (2, T, h, 2), the time and height position of each video, frame and row.
        title: what to see.
    """
    extents = {name: p.flatten(0, 2).amax(0) + 1 for name, p in panels.items()}
    height = max(int(e[1]) for e in extents.values())
    widths = [float(e[0]) for e in extents.values()]
    figure = _figure(0.34 * sum(widths) + 1.1 * len(panels) + 0.6, 0.34 * height + 1.5, title)
    axes = figure.subplots(1, len(panels), width_ratios=widths, squeeze=False)[0]
    for ax, (name, positions) in zip(axes, panels.items(), strict=True):
        for video, frame, row in np.ndindex(*positions.shape[:3]):
            t, h = positions[video, frame, row].tolist()
            shared = bool((positions[1 - video] == positions[video, frame, row]).all(-1).any())
            width = 0.45 if shared else 0.9
            left = t - 0.45 + (0.45 if shared and video else 0)
            ax.add_patch(Rectangle((left, h - 0.45), width, 0.9, color=PALETTE[video], lw=0))
            ax.text(left + width / 2, h, frame, color="white", ha="center", va="center", fontsize=8)
        ax.set(xlim=(-0.6, extents[name][0] - 0.4), ylim=(height - 0.4, -0.6), aspect="equal")
        ax.set_title(name, fontsize=10)
        ax.set_xlabel("time position")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes[0].set_ylabel("height position")
    patches = [Patch(color=colour) for colour in PALETTE[:2]]
    _legend(figure, patches, ["composite (number: frame)", "foreground"])
    return figure


def seed_dots(
    panels: Mapping[str, Mapping[str, Sequence[float]]], title: str, xlabels: Sequence[str]
) -> Figure:
    """One row per variant: a dot per seed and a bar at the mean; panels share a scale.

    Args:
        panels: heading -> variant -> values of the seeds; all panels have the same variants.
        title: what to see.
        xlabels: one per panel.
    """
    variants = list(next(iter(panels.values())))
    figure = _figure(2.1 * len(panels) + 2.2, 0.38 * len(variants) + 1.3, title)
    axes = figure.subplots(1, len(panels), sharex=True, sharey=True, squeeze=False)[0]
    for ax, (heading, values), xlabel in zip(axes, panels.items(), xlabels, strict=True):
        for row, variant in enumerate(variants):
            seeds = torch.tensor(values[variant], dtype=torch.float64)
            colour = PALETTE[0] if row == 0 else PALETTE[1]
            if len(seeds):
                ax.plot(seeds, [row] * len(seeds), "o", color=colour, alpha=0.6, ms=5)
                ax.plot([seeds.mean()] * 2, [row - 0.3, row + 0.3], color=colour, lw=2.5)
        ax.set_title(heading, fontsize=10)
        ax.grid(axis="x", color="0.9")
        ax.set_axisbelow(True)
        _open(ax, xlabel=xlabel)
    axes[0].set_yticks(range(len(variants)), variants)
    axes[0].invert_yaxis()
    return figure


_VERDICTS = ("supported", "not supported", "undecided")  # in the order of their colours


def intervals(
    rows: Mapping[str, tuple[float, float, float, str]], title: str, xlabel: str, width: int = 52
) -> Figure:
    """Effects under each other, with a line at 0: name -> (middle, low, high, verdict).

    Args:
        rows: name -> (middle, low, high, verdict); a verdict has the same colour and mark in every figure.
        title: what to see.
        xlabel: of the effects.
        width: of the names, in characters; longer ones are broken.
    """
    names = [textwrap.fill(name, width) for name in rows]
    lines = sum(name.count("\n") + 1 for name in names)
    figure = _figure(4.6 + 0.075 * width, 0.21 * (lines + len(rows)) + 1.3, title)
    ax = figure.subplots()
    ax.axvline(0, color="0.45", lw=1.2, ls=(0, (1, 2)))
    drawn = {}
    for at, (middle, low, high, verdict) in enumerate(rows.values()):
        style = _style(_VERDICTS.index(verdict)) | {"ls": "none", "ms": 7}
        ax.plot([low, high], [at, at], color=style["color"], lw=2)
        (drawn[verdict],) = ax.plot([middle], [at], **style)
    ax.set_yticks(range(len(names)), names, fontsize=9)
    ax.invert_yaxis()
    _open(ax, xlabel=xlabel)
    shown = [verdict for verdict in _VERDICTS if verdict in drawn]
    _legend(figure, [drawn[verdict] for verdict in shown], shown)
    return figure


def line_panels(
    panels: Mapping[str, Mapping[str, Mapping[float, Sequence[float]]]],
    title: str,
    xlabel: str,
    references: Mapping[str, tuple[str, float]] | None = None,
    *,
    sharey: bool = False,
    side: float = 2.7,
) -> Figure:
    """Lines side by side over one x axis: one dot per seed, a line through the means, a band over the range.

    Args:
        panels: heading -> line -> x -> values of the seeds there, one or more.
        title: what to see.
        xlabel: of all panels.
        references: heading -> (name, value) of a grey horizontal line.
        sharey: one scale for all panels; otherwise each panel has its own.
        side: inches of a panel.
    """
    figure = _figure((side + 0.45) * len(panels) + 0.2, side + 0.85, title)
    axes = figure.subplots(1, len(panels), sharex=True, sharey=sharey, squeeze=False)[0]
    names = list(dict.fromkeys(name for lines in panels.values() for name in lines))
    drawn = {}
    for ax, (heading, lines) in zip(axes, panels.items(), strict=True):
        for name, points in lines.items():
            style = _style(names.index(name)) | {"ms": 5}
            x, seeds = list(points), [sorted(values) for values in points.values()]
            means = [sum(values) / len(values) for values in seeds]
            (drawn[name],) = ax.plot(x, means, label=name, **style)
            ax.fill_between(
                x, [v[0] for v in seeds], [v[-1] for v in seeds], color=style["color"], alpha=0.18, lw=0
            )
            for at, values in zip(x, seeds, strict=True):
                if len(values) > 1:
                    ax.plot([at] * len(values), values, ".", color=style["color"], alpha=0.5, ms=4)
        if references and heading in references:
            name, value = references[heading]
            drawn[name] = ax.axhline(value, color="0.45", lw=1.2, ls=(0, (1, 2)), label=name)
        ax.set_title(heading, fontsize=10)
        _open(ax, xlabel=xlabel)
    _legend(figure, list(drawn.values()), list(drawn))
    return figure


def scatter(panels: Mapping[str, Mapping[str, Tensor]], title: str, side: float = 3.0) -> Figure:
    """Points in a plane, one panel per heading; each group has its own colour and mark.

    Args:
        panels: heading -> group -> points (N, 2); all panels have the same groups.
        title: what to see.
        side: inches of a panel.
    """
    figure = _figure((side + 0.2) * len(panels) + 0.2, side + 1.0, title)
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for ax, (heading, groups) in zip(axes, panels.items(), strict=True):
        for i, (name, points) in enumerate(groups.items()):
            ax.scatter(
                *points.T.numpy(), c=PALETTE[i], marker="osD^v"[i % 5], s=20, alpha=0.8, lw=0, label=name
            )
        ax.set(xticks=[], yticks=[])
        ax.set_title(heading, fontsize=10)
        ax.spines[:].set_color("0.8")
    handles, names = axes[0].get_legend_handles_labels()
    _legend(figure, handles, names)
    return figure


def who_sees(
    readers: Mapping[str, Tensor], tokens: Sequence[str], groups: Sequence[str], title: str
) -> Figure:
    """Which tokens each reader sees: coloured squares for seen tokens, empty squares for the others.

    Args:
        readers: name -> (N,) of bool, from top to bottom.
        tokens: N short names.
        groups: group of each token; each group has its colour.
        title: what to see.
    """
    names = list(dict.fromkeys(groups))
    figure = _figure(0.52 * len(tokens) + 1.5, 0.42 * len(readers) + 1.4, title)
    ax = figure.subplots()
    for row, visible in enumerate(readers.values()):
        for column, (token, group, seen) in enumerate(zip(tokens, groups, visible.tolist(), strict=True)):
            colour = PALETTE[names.index(group)] if seen else "white"
            ax.add_patch(Rectangle((column - 0.45, row - 0.42), 0.9, 0.84, fc=colour, ec="0.75", lw=0.8))
            if seen:
                ax.text(column, row, token, color="white", ha="center", va="center", fontsize=8)
    ax.set(xlim=(-0.6, len(tokens) - 0.4), ylim=(len(readers) - 0.4, -0.6), aspect="equal", xticks=[])
    ax.set_yticks(range(len(readers)), readers)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    _legend(figure, [Patch(color=PALETTE[i]) for i in range(len(names))], names)
    return figure
