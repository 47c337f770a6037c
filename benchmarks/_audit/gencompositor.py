"""GenCompositor: both comparisons, ablation, user study."""

from _audit import Found, claim, spearman
from vera_lite.evaluation.published import TABLES
from vera_lite.evaluation.statistics import possible_votes, wilson

HARMONISATION, TRAJECTORY = TABLES["gencompositor_harmonisation"], TABLES["gencompositor_trajectory"]
PARTS = TABLES["gencompositor_ablation"]
GEN = "GenCompositor"


@claim("gencompositor-harmonises-best")
def _():
    return Found({c: HARMONISATION.lead(GEN, c) for c in HARMONISATION.columns}, "")


@claim("gencompositor-vbench-best")
def _():
    return Found({c: TRAJECTORY.lead(GEN, c) for c in TRAJECTORY.columns[:4]}, "%")


@claim("gencompositor-fvd-and-kvd-best")
def _():
    agree = spearman(*(list(TRAJECTORY.column(c).values()) for c in ("FVD", "KVD")))
    return Found({c: TRAJECTORY.lead(GEN, c) for c in ("FVD", "KVD")}, "", facts={"agree": agree})


@claim("gencompositor-every-part-helps")
def _():
    variants = PARTS.rows.keys() - {"full"}
    return Found(
        {f"{c} without: {v}": PARTS.gain("full", c, v) for v in sorted(variants) for c in PARTS.columns}, ""
    )


@claim("gencompositor-needs-fusion")
def _():
    others = [v for v in PARTS.rows if v not in ("full", "cross-attention")]
    most = max(PARTS.gain("full", "PSNR", v) for v in others)
    return Found(
        {"drop beyond that of any other part": PARTS.gain("full", "PSNR", "cross-attention") - most}, "dB"
    )


@claim("gencompositor-branch-keeps-the-background")
def _():
    drops = {v: PARTS.gain("full", "background", v) for v in PARTS.rows if v != "full"}
    branch = drops.pop("no background branch")
    return Found({"drop beyond that of any other part": branch - max(drops.values())}, "%")


@claim("gencompositor-votes-are-possible")
def _():
    table = TABLES["gencompositor_votes"]
    votes = table.cell("harmonisation", "people") * table.cell("harmonisation", "sets")
    can_be = possible_votes([f"{p:.2f}" for p in table.column("preferred").values()])
    return Found(
        {"the study's votes are one of the possible numbers": 1 if votes in can_be else -1},
        "",
        facts={"votes": votes, "fewest": can_be[0]},
    )


def _preferred(task: str) -> Found:
    table = TABLES["gencompositor_votes"]
    votes = int(table.cell(task, "people") * table.cell(task, "sets"))
    rate, chance = table.cell(task, "preferred") / 100, 1 / table.cell(task, "methods")
    low, high = wilson(round(rate * votes), votes)
    return Found({"above chance": rate - chance}, "of the votes", (low - chance, high - chance))


@claim("gencompositor-preferred-in-harmonisation")
def _():
    return _preferred("harmonisation")


@claim("gencompositor-preferred-on-trajectories")
def _():
    return _preferred("trajectory")
