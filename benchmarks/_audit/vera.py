"""Vera: project page, data set card, abstract."""

import math

from _audit import Found, claim
from vera_lite.evaluation.published import TABLES

ADDITION, BACKGROUND = TABLES["vera_addition"], TABLES["vera_background"]
VERA, LARGE = "Vera-1.3B", "Vera-14B"
TASKS = {"object addition": ADDITION, "background change": BACKGROUND}
KEPT = ("PSNR", "SSIM", "LPIPS")
RATED = ("CS", "CT", "IS")


@claim("vera-preserves-best")
def _():
    return Found({f"{c}, {t}": table.lead(VERA, c, [LARGE]) for t, table in TASKS.items() for c in KEPT}, "")


@claim("vera-gains-add-up")
def _():
    printed = TABLES["vera_gains"].column("dB")
    off = {t: table.lead(VERA, "PSNR", [LARGE]) - printed[t] for t, table in TASKS.items()}
    return Found({f"0.1 less the error, {t}": 0.1 - abs(e) for t, e in off.items()}, "dB")


@claim("vera-halves-the-error")
def _():
    margins = {}
    for task, table in TASKS.items():
        others = table.rows.keys() - {VERA, LARGE}
        structure = (1 - table.cell(VERA, "SSIM")) / min(1 - table.cell(o, "SSIM") for o in others)
        perception = table.cell(VERA, "LPIPS") / min(table.cell(o, "LPIPS") for o in others)
        margins |= {f"half less the rest of 1 - SSIM, {task}": 0.5 - structure}
        margins |= {f"half less the rest of LPIPS, {task}": 0.5 - perception}
    return Found(margins, "of the best other")


@claim("vera-quality-on-addition")
def _():
    return Found({c: ADDITION.lead(VERA, c, [LARGE]) for c in RATED}, "of 5")


@claim("vera-quality-on-backgrounds")
def _():
    return Found({c: BACKGROUND.lead(VERA, c, [LARGE]) for c in RATED}, "of 5")


@claim("vera-consistency-is-alike")
def _():
    spread = {
        f"{c}, {t}": max(table.column(c).values()) - min(table.column(c).values())
        for t, table in TASKS.items()
        for c in ("OC", "TF")
    }
    return Found({f"0.05 less the range of {name}": 0.05 - s for name, s in spread.items()}, "")


@claim("vera-exactly-as-filmed")
def _():
    rounding = 10 * math.log10(12 * 255**2)  # of the error that rounding to 8 bits leaves
    return Found({t: table.cell(LARGE, "PSNR") - rounding for t, table in TASKS.items()}, "dB")


@claim("vera-frames")
def _():
    table = TABLES["vera_dataset"]
    printed = table.cell("frames in the abstract", "81 frames")
    parts = sum(table.column("81 frames").values()) - table.cell("total", "81 frames") - printed
    frames = 81 * parts
    trained = 49 * table.cell("total", "49 frames")
    return Found(
        {"half a thousand less the error": 500 - abs(frames - printed)}, "frames", facts={"trained": trained}
    )
