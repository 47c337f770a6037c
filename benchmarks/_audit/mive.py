"""MiVE: Tables 1 to 7, and the text about them."""

import math

from scipy import stats

from _audit import Found, claim, spearman, within_tolerance
from vera_lite.evaluation.published import TABLES
from vera_lite.evaluation.statistics import holm

ATTENTION = TABLES["mive_attention"]
SUBSETS = {"simple": TABLES["mive_simple"], "complex": TABLES["mive_complex"]}
BY_JUDGE = {"simple": TABLES["mive_judges_simple"], "complex": TABLES["mive_judges_complex"]}
CONDITIONING, LAYERS = TABLES["mive_conditioning"], TABLES["mive_layers"]
SCORES = CONDITIONING.columns
MIVE, KLING = "MiVE", "Kling O1"
NUMBERS = TABLES["mive_numbers"].column("value")


@claim("mive-early-layers-look-at-the-person")
def _():
    margins, facts = {}, {}
    for model, ratios in ATTENTION.rows.items():
        margins[f"fall with depth (minus Spearman), {model}"] = -spearman(range(len(ratios)), ratios)
        # The same without the first layer.
        facts[model.split("-")[0].lower()] = spearman(range(len(ratios) - 1), ratios[1:])
    return Found(margins, "", facts=facts)


@claim("mive-qwen-localises-better")
def _():
    return Found({"first layer": ATTENTION.gain("Qwen3-VL-8B", "0", "GLM-4.6V")}, "mask ratio")


@claim("mive-means-follow")
def _():
    margins = {}
    for subset, table in BY_JUDGE.items():
        errors = {
            (row, subset): table.cell(row, "Gemini") - SUBSETS[subset].mean(row, SCORES) for row in table.rows
        }
        margins |= within_tolerance(errors, table.tolerance)
    return Found(margins)


@claim("mive-ranks-follow")
def _():
    wrong = sum(len(table.rank_errors()) for table in BY_JUDGE.values())
    ranks = sum(len(table.rows) * len(table.ranks) for table in BY_JUDGE.values())
    return Found({"half a rank less the wrong ones": 0.5 - wrong}, "ranks", facts={"ranks": ranks})


@claim("mive-best-on-complex")
def _():
    return Found({axis: SUBSETS["complex"].lead(MIVE, axis) for axis in SCORES}, "of 10")


@claim("mive-leads-three-axes-on-simple")
def _():
    table = SUBSETS["simple"]
    margins = {f"{axis}, over the best other": table.lead(MIVE, axis) for axis in ("IA", "VA", "SC")}
    return Found(
        margins | {f"{axis}, over the third": table.lead(MIVE, axis, [KLING]) for axis in ("CC", "TS", "PR")},
        "of 10",
    )


@claim("mive-surpasses-commercial-systems")
def _():
    margins = {
        f"{judge}, {s}": t.gain(MIVE, judge, KLING)
        for s, t in BY_JUDGE.items()
        for judge in ("Gemini", "InternVL")
    }
    four = ("CC", "TS", "PR", "SC")
    ours, theirs = (SUBSETS["simple"].mean(row, four) for row in (MIVE, KLING))
    return Found(margins, "of 10", facts={"ours": ours, "theirs": theirs})


def _people(subset: str) -> Found:
    """The interval that a two-sided p value stands for, if the mean difference is about normal."""
    table = SUBSETS[subset]
    gain, p = table.gain(MIVE, "people", KLING), TABLES["mive_p_values"].cell(KLING, subset)
    half = stats.norm.ppf(0.975) * gain / stats.norm.isf(p / 2)
    return Found({f"over {KLING}": gain}, "of 5", (gain - half, gain + half), {"p": p})


@claim("mive-people-prefer-it-on-simple")
def _():
    return _people("simple")


@claim("mive-people-prefer-it-on-complex")
def _():
    return _people("complex")


@claim("mive-significance-survives-correction")
def _():
    table = TABLES["mive_p_values"]
    p = {(row, s): table.cell(row, s) for s in table.columns for row in table.rows}
    raised = dict(zip(p, holm(list(p.values())), strict=True))
    return Found(
        {f"0.05 less p, {row}, {s}": 0.05 - v for (row, s), v in raised.items() if p[row, s] < 0.05}, ""
    )


@claim("mive-judges-converge")
def _():
    agree = {}
    for subset, table in BY_JUDGE.items():
        columns = [list(table.column(c).values()) for c in ("Gemini", "InternVL")]
        agree[subset] = spearman(*columns)
    # Fisher's z of the lower one; five methods are few.
    z, reach = math.atanh(agree["simple"]), stats.norm.ppf(0.975) / math.sqrt(5 - 3)
    facts = {"simple": agree["simple"], "complex": agree["complex"]}
    return Found(
        {"Spearman, simple": agree["simple"]}, "", (math.tanh(z - reach), math.tanh(z + reach)), facts
    )


@claim("mive-self-attention-wins")
def _():
    means = {row: CONDITIONING.mean(row, SCORES) for row in CONDITIONING.rows}
    return Found(
        {f"mean over {row}": means["self"] - m for row, m in means.items() if row != "self"}, "of 10"
    )


@claim("mive-self-attention-wins-most-axes")
def _():
    won = sum(CONDITIONING.lead("self", axis) > 0 for axis in SCORES)
    return Found({"axes won beyond half": won - len(SCORES) / 2}, "axes")


@claim("mive-unified-encoders-win")
def _():
    return Found(
        {
            f"{axis}, {row}": CONDITIONING.gain(row, axis, "decoupled")
            for row in CONDITIONING.rows
            if row != "decoupled"
            for axis in SCORES
        },
        "of 10",
    )


@claim("mive-two-layers-win-four-axes")
def _():
    return Found({axis: LAYERS.lead("first and last", axis) for axis in ("IA", "TS", "PR", "SC")}, "of 10")


@claim("mive-preserves-what-is-not-edited")
def _():
    rivals = {
        f"over {row}": LAYERS.gain("first and last", "CC", row)
        for row in LAYERS.rows
        if row != "first and last"
    }
    return Found(
        rivals
        | {f"over {row}": CONDITIONING.gain("self", "CC", row) for row in CONDITIONING.rows if row != "self"},
        "of 10",
    )


@claim("mive-similarity-is-inconsistent")
def _():
    table = TABLES["mive_similarity"]
    agree = {}
    for subset, people in SUBSETS.items():
        ssim = table.column(f"SSIM {subset}")
        agree[subset] = spearman([ssim[row] for row in people.rows], list(people.column("people").values()))
    return Found(
        {
            "difference of the two correlations with people, less a half": agree["simple"]
            - agree["complex"]
            - 0.5
        },
        "",
        facts=agree,
    )


@claim("mive-pairs")
def _():
    most = NUMBERS["categories of OpenVE-3M"] * NUMBERS["pairs at most of each"]
    total = NUMBERS["pairs from OpenVE-3M"] + NUMBERS["synthetic pairs"]
    return Found(
        {
            "1 less the error of the parts": 1 - abs(most - NUMBERS["pairs from OpenVE-3M"]),
            "1 less the error of the sum": 1 - abs(total - NUMBERS["pairs in all"]),
        },
        "pairs",
    )


@claim("mive-epochs")
def _():
    seen = NUMBERS["training steps"] * NUMBERS["GPUs, one pair each"] / NUMBERS["pairs in all"]
    return Found({"half an epoch less the error": 0.5 - abs(seen - NUMBERS["epochs"])}, "epochs")


@claim("mive-minutes")
def _():
    parts = sum(v for name, v in NUMBERS.items() if name.startswith("seconds of"))
    return Found(
        {"0.05 minutes less the error": 0.05 - abs(parts / 60 - NUMBERS["minutes end to end"])},
        "minutes",
        facts={"missing": 60 * NUMBERS["minutes end to end"] - parts},
    )
