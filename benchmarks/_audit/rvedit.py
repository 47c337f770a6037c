"""RVEDiT: Tables 1 to 3, and the text about them."""

import numpy as np

from _audit import Found, claim, within_tolerance
from vera_lite.evaluation.published import TABLES

JUDGES = {"Gemini": TABLES["rvedit_gemini"], "Qwen": TABLES["rvedit_qwen"]}
TABLE_2, TABLE_3 = TABLES["rvedit_ablation"], TABLES["rvedit_axes"]
PROSE = TABLES["rvedit_prose"]
CATEGORIES = {"LC": "local change", "LR": "local remove", "LA": "local add", "GS": "global style"}
AXES = ("IC", "CF", "VQ")
CELLS = tuple(f"{category} {axis}" for category in CATEGORIES for axis in AXES)
RVEDIT, RIVAL = "RVEDiT", "Kiwi-Edit"
BARE, NO_ROUTING, NO_ALIGNMENT = "without both", "without routing (L_s = L)", "without alignment (lambda = 0)"
SWEEP = {0.0: NO_ALIGNMENT, 0.25: "lambda = 0.25", 0.5: "lambda = 0.5", 0.75: "full", 1.0: "lambda = 1"}


def category_lead(judge: str, category: str) -> float:
    """Mean over the three axes of a category: RVEDiT's minus the best other's."""
    table, columns = JUDGES[judge], [f"{category} {axis}" for axis in AXES]
    best = max(table.mean(row, columns) for row in table.rows if row != RVEDIT)
    return table.mean(RVEDIT, columns) - best


@claim("rvedit-best-overall")
def _():
    return Found({judge: table.lead(RVEDIT, "Overall") for judge, table in JUDGES.items()})


@claim("rvedit-overall-is-the-mean")
def _():
    margins = {}
    for judge, table in JUDGES.items():
        errors = within_tolerance(table.mean_errors(), table.tolerance)
        margins |= {f"{judge}, {at}": margin for at, margin in errors.items()}
    return Found(margins)


@claim("rvedit-consistently-better")
def _():
    cells = {(j, c): table.gain(RVEDIT, c, RIVAL) for j, table in JUDGES.items() for c in CELLS}
    won = {j: sum(g > 0 for (judge, _), g in cells.items() if judge == j) for j in JUDGES}
    return Found(
        {f"{c}, {j}": g for (j, c), g in cells.items()}, facts={"gemini": won["Gemini"], "qwen": won["Qwen"]}
    )


@claim("rvedit-strongest-on-local-add")
def _():
    return Found({judge: category_lead(judge, "LA") for judge in JUDGES})


@claim("rvedit-strongest-on-local-change")
def _():
    return Found({judge: category_lead(judge, "LC") for judge in JUDGES})


@claim("rvedit-ahead-on-local-remove")
def _():
    return Found({judge: category_lead(judge, "LR") for judge in JUDGES})


@claim("rvedit-averaged-over-judges")
def _():
    # The caption; its two blocks would then have to be equal.
    gemini, qwen = (table.column("Overall") for table in JUDGES.values())
    return Found({row: 0.01 - abs(gemini[row] - qwen[row]) for row in gemini})


@claim("rvedit-judges-are-independent")
def _():
    offsets = {}
    equal = {}
    for row in JUDGES["Gemini"].rows:
        pairs = list(zip(*(t.cells(row, CELLS) for t in JUDGES.values()), strict=True))
        equal[row] = sum(a == b for a, b in pairs)
        offsets[row] = JUDGES["Qwen"].cell(row, "Overall") - JUDGES["Gemini"].cell(row, "Overall")
    # Two judges may well give one cell the same mean.
    others = [o for row, o in offsets.items() if row != "Lucy-Edit"]
    facts = {"least": min(others), "most": max(others)}
    facts |= {"lucy": equal["Lucy-Edit"], "icve": equal["ICVE"]}
    return Found(
        {f"1 less the equal cells beyond one, {row}": 1 - max(0, n - 1) for row, n in equal.items()},
        "cells",
        facts=facts,
    )


@claim("rvedit-table-2-adds-up")
def _():
    return Found(within_tolerance(TABLE_2.mean_errors(), TABLE_2.tolerance))


@claim("rvedit-table-3-adds-up")
def _():
    return Found(within_tolerance(TABLE_3.mean_errors(), TABLE_3.tolerance))


@claim("rvedit-table-3-expands-table-2")
def _():
    errors = {
        (row, name): TABLE_2.cell(row, name) - TABLE_3.mean(row, [f"{c} {axis}" for axis in AXES])
        for row in TABLE_2.rows
        for c, name in CATEGORIES.items()
    }
    return Found(within_tolerance(errors, TABLE_2.tolerance))


@claim("rvedit-remove-drops-seventeen")
def _():
    drop = TABLE_2.gain("full", "local remove", BARE)
    said = PROSE.cell("points that Local Remove drops without both", "high")
    return Found({"half a point less the error": 0.5 - abs(drop - said)})


@claim("rvedit-alignment-is-for-fidelity")
def _():
    loss = {axis: TABLE_3.gain("full", f"LA {axis}", NO_ALIGNMENT) for axis in AXES}
    return Found({f"{axis} falls more than IC": loss[axis] - loss["IC"] for axis in ("CF", "VQ")})


@claim("rvedit-compliance-is-flat")
def _():
    said = PROSE.cells("IC from lambda 0.25 to 1")
    found = [TABLE_3.cell(SWEEP[w], "IC") for w in SWEEP if w >= 0.25]
    return Found(
        {
            "lowest, above the low end": min(found) - said[0] + 0.005,
            "highest, below the high end": said[1] - max(found) + 0.005,
        }
    )


@claim("rvedit-fidelity-varies-by-three")
def _():
    said = PROSE.cell("points by which CF and VQ vary meanwhile", "high")
    columns = {axis: [TABLE_3.cell(SWEEP[w], axis) for w in SWEEP if w >= 0.25] for axis in ("CF", "VQ")}
    ranges = {axis: max(values) - min(values) for axis, values in columns.items()}
    return Found({f"{said:g} less the range of {axis}": said - r for axis, r in ranges.items()}, facts=ranges)


@claim("rvedit-too-much-anchoring")
def _():
    column = TABLE_3.column("LA IC")
    from_full, from_none = (column[row] - column["lambda = 1"] for row in ("full", NO_ALIGNMENT))
    return Found(
        {"drop from no anchoring less the drop from the full model": from_none - from_full},
        facts={"quarter": column["lambda = 0.25"], "full": column["full"]},
    )


@claim("rvedit-moderate-weight-helps")
def _():
    score = {w: TABLE_3.cell(row, "Overall") for w, row in SWEEP.items()}
    return Found(
        {f"lambda {w:g} over none": score[w] - score[0.0] for w in (0.25, 0.5, 0.75)},
        facts={"quadratic": quadratic_at(score, 0.75), "full": score[0.75]},
    )


def quadratic_at(score: dict[float, float], left_out: float) -> float:
    """What a least-squares parabola through the other points says of the one that is left out."""
    x = [w for w in score if w != left_out]
    return float(np.polyval(np.polyfit(x, [score[w] for w in x], 2), left_out))


@claim("rvedit-intermediate-depth-is-best")
def _():
    return Found({row: TABLE_3.gain("full", "Overall", row) for row in ("L_s = 8", "L_s = 25", NO_ROUTING)})


@claim("rvedit-more-than-the-sum")
def _():
    both, *single = (TABLE_3.gain("full", "Overall", row) for row in (BARE, NO_ROUTING, NO_ALIGNMENT))
    gains = {cell: TABLE_3.gain("full", cell, BARE) for cell in CELLS}
    largest = max(gains, key=lambda cell: gains[cell])
    rest = [g for cell, g in gains.items() if cell != largest]
    facts = {"share": 100 * gains[largest] / sum(gains.values()), "rest": sum(rest) / len(rest)}
    facts |= {"without": sum(rest) / 12 - sum(single)}
    return Found({"drop without both less the two single drops": both - sum(single)}, facts=facts)


@claim("rvedit-gains-in-fidelity-and-quality")
def _():
    gains = {axis: TABLE_3.gain("full", axis, BARE) for axis in AXES}
    cells = [TABLE_3.gain("full", f"{c} {axis}", BARE) for c in CATEGORIES for axis in ("CF", "VQ")]
    facts = {"compliance": gains["IC"], "worse": sum(g < 0 for g in cells)}
    return Found({axis: gains[axis] for axis in ("CF", "VQ")}, facts=facts)


@claim("rvedit-easier-categories-stay-intact")
def _():
    single = max(TABLE_3.gain("full", "Overall", row) for row in (NO_ROUTING, NO_ALIGNMENT))
    loss = {c: TABLE_3.gain("full", f"{c} IC", BARE) for c in ("LC", "GS")}
    return Found(
        {f"largest single ablation less the loss of IC, {CATEGORIES[c]}": single - v for c, v in loss.items()}
    )


@claim("rvedit-number-of-blocks")
def _():
    table = TABLES["rvedit_settings"]
    right = table.cell("released backbone", "blocks")
    return Found(
        {row: 0.5 - abs(n - right) for row, n in table.column("blocks").items()},
        "blocks",
        facts={"blocks": right},
    )


@claim("rvedit-routing-depth-is-one-number")
def _():
    depths = TABLES["rvedit_settings"].column("L_s")
    return Found({row: 0.5 - abs(n - depths["section 5"]) for row, n in depths.items()}, "blocks")


@claim("rvedit-alignment-weight-is-one-number")
def _():
    weights = TABLES["rvedit_settings"].column("lambda")
    return Found({row: 0.005 - abs(w - weights["section 5"]) for row, w in weights.items()}, "")


@claim("rvedit-triplets")
def _():
    each = PROSE.cell("clips of each category from each of three data sets", "high")
    return Found(
        {
            "half a triplet less the error": 0.5
            - abs(3 * len(CATEGORIES) * each - PROSE.cell("triplets in all", "high"))
        },
        "triplets",
    )
