"""Draw one architecture picture per paper, in one style: `python scripts/architectures.py [FOLDER]`.

Writes `vera.svg`, `gencompositor.svg`, `rvedit.svg` and `mive.svg` into FOLDER, by default
`docs/architectures`. Blue is what is given, orange is noise that becomes video, green is language, purple is
where streams meet, grey is everything else.
"""

import sys
from html import escape
from pathlib import Path

OUT = Path(__file__).parents[1] / "docs" / "architectures"
WIDTH = 960
#: Fill and edge by role: tints of Okabe and Ito's colours, which colour-blind readers tell apart.
ROLES = {
    "given": ("#d6e9f8", "#0072b2"),
    "noise": ("#fbe3c8", "#d55e00"),
    "language": ("#d3efe4", "#009e73"),
    "meet": ("#f1dbe8", "#aa4488"),
    "plain": ("#f1f1f1", "#555555"),
}


class Picture:
    """An SVG picture that grows box by box; lengths are in pixels."""

    def __init__(self, title: str, height: int):
        self.title, self.height = title, height
        self.parts: list[str] = []
        self.text(24, 34, title, size=19, bold=True, anchor="start")

    def text(self, x, y, text, size=14, bold=False, anchor="middle", colour="#111111") -> None:
        style = f"font-size:{size}px" + (";font-weight:600" if bold else "")
        place = f'x="{x}" y="{y}" text-anchor="{anchor}" fill="{colour}" style="{style}"'
        self.parts.append(f"<text {place}>{escape(text)}</text>")

    def caption(self, text) -> None:
        """A bold sentence at the foot."""
        self.text(24, self.height - 18, text, bold=True, anchor="start")

    def box(self, x, y, width, height, text="", role="plain", size=14, dashed=False) -> None:
        """Lines of ``text`` stand in the middle; the first one is bold where there are more."""
        fill, edge = ROLES[role]
        dash = ' stroke-dasharray="5 4"' if dashed else ""
        self.parts.append(
            f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="6" fill="{fill}" stroke="{edge}" '
            f'stroke-width="1.6"{dash}/>'
        )
        lines = text.split("\n") if text else []
        step = size + 4
        top = y + height / 2 - step * (len(lines) - 1) / 2 + size * 0.36
        for i, line in enumerate(lines):
            first = i == 0 and len(lines) > 1
            self.text(x + width / 2, round(top + i * step, 1), line, size if i == 0 else size - 2, bold=first)

    def arrow(self, *points, label="", dashed=False, colour="#333333", at=None) -> None:
        """A line through (x, y) points with a head at its end, and words above its middle or at ``at``."""
        path = "M" + " L".join(f"{x} {y}" for x, y in points)
        dash = ' stroke-dasharray="5 4"' if dashed else ""
        self.parts.append(
            f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="1.8"{dash} '
            'marker-end="url(#head)"/>'
        )
        if label:
            (x0, y0), (x1, y1) = points[0], points[1]
            x, y = at or ((x0 + x1) / 2, (y0 + y1) / 2 - 7)
            self.text(x, y, label, size=12, colour=colour)

    def svg(self) -> str:
        head = (
            '<marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
            'orient="auto"><path d="M0 0 L8 4 L0 8 z" fill="#333333"/></marker>'
        )
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {self.height}" width="{WIDTH}" '
            f'height="{self.height}" role="img" aria-label="{escape(self.title)}" '
            'font-family="Helvetica, Arial, sans-serif">'
            f"<defs>{head}</defs>"
            f'<rect width="{WIDTH}" height="{self.height}" fill="#ffffff"/>'
            + "".join(self.parts)
            + "</svg>\n"
        )


def vera() -> Picture:
    p = Picture("Vera: three towers draw three layers and meet in one attention", 470)
    p.box(452, 60, 104, 330, role="meet")
    for line, y in (("joint", 206), ("attention", 224), ("over all", 250), ("3N tokens", 268)):
        p.text(504, y, line, bold=y < 240, size=14 if y < 240 else 12)
    rows = ("edit", "matte", "composite")
    for k, (name, y) in enumerate(zip(rows, (72, 187, 302), strict=True)):
        p.box(24, y, 130, 34, f"noisy {name}", "noise")
        p.box(206, y + 8, 104, 60, "tokens\n+ embedding" if k else "tokens\npatches")
        p.arrow((154, y + 17), (206, y + 28))
        if k:
            what = "mask (optional)" if k == 1 else "source"
            p.box(24, y + 44, 130, 34, what, "given", dashed=k == 1)
            p.arrow((154, y + 61), (206, y + 50), label="add", at=(180, y + 76))
        p.box(336, y + 8, 92, 60, "own\nq, k, v")
        p.arrow((310, y + 38), (336, y + 38))
        p.arrow((428, y + 38), (452, y + 38))
        p.box(580, y + 8, 110, 60, "own\nfeed-forward")
        p.arrow((556, y + 38), (580, y + 38))
        p.box(756, y + 16, 92, 44, name + ("\nnot used after" if k == 2 else ""), "noise")
        p.arrow((690, y + 38), (756, y + 38), label="head")
    p.box(324, 48, 380, 354, role="plain", dashed=True)
    p.parts.insert(1, p.parts.pop())  # behind the boxes that it holds
    p.parts.insert(1, p.parts.pop())
    p.text(514, 424, "× L blocks; the prompt enters each of them by cross-attention", size=13)
    p.text(24, 452, "final = matte · edit + (1 − matte) · source", size=15, bold=True, anchor="start")
    p.text(360, 452, "where the matte is 0, the source's own pixels stay", size=13, anchor="start")
    p.box(880, 108, 60, 160, "final\nvideo", "given")
    p.arrow((848, 110), (880, 140))
    p.arrow((848, 225), (880, 225))
    p.box(872, 318, 76, 44, "source", "given")
    p.arrow((910, 318), (910, 268))
    return p


def gencompositor() -> Picture:
    p = Picture("GenCompositor: two videos, one sequence, no shared positions", 440)
    p.box(24, 78, 150, 40, "noisy composite", "noise")
    p.box(24, 128, 150, 40, "background, hole cut", "given", size=13)
    p.box(24, 262, 150, 56, "foreground\nobject on white", "given")
    p.box(214, 92, 110, 62, "patches\nof stacked channels", size=12)
    p.arrow((174, 98), (214, 112))
    p.arrow((174, 148), (214, 136))
    p.box(214, 262, 110, 56, "patches\nown projection", size=13)
    p.arrow((174, 290), (214, 290))
    p.box(372, 70, 74, 280, role="meet")
    for line, y in (("one", 186), ("sequence", 204), ("[z ; f]", 232)):
        p.text(409, y, line, bold=y < 220, size=13)
    p.arrow((324, 123), (372, 123), label="z", at=(337, 117))
    p.arrow((324, 290), (372, 290), label="f", at=(337, 284))
    p.text(409, 372, "ERoPE: f counts on", size=12)
    p.text(409, 388, "where z ends", size=12)
    p.box(490, 70, 150, 280, "full self-attention\nevery token sees both\n× L blocks", "plain")
    p.arrow((446, 210), (490, 210))
    p.box(700, 92, 90, 62, "z\nkept", "noise")
    p.box(700, 262, 90, 56, "f\ndropped", "plain", dashed=True)
    p.arrow((640, 123), (700, 123))
    p.arrow((640, 290), (700, 290), dashed=True)
    p.box(836, 92, 100, 62, "composite\nvideo", "given")
    p.arrow((790, 123), (836, 123), label="head")
    p.box(24, 186, 150, 56, "path and size\n→ mask m", "given")
    p.box(214, 186, 110, 56, "branch\nsees z, hole, m", size=13)
    p.arrow((174, 214), (214, 214))
    p.arrow((324, 214), (350, 214), (350, 52), (565, 52), (565, 70))
    p.text(580, 60, "added to z outside the mask only", size=12, anchor="start")
    p.text(
        24,
        420,
        "The path comes from the mask, the looks from the foreground.",
        size=14,
        bold=True,
        anchor="start",
    )
    return p


def rvedit() -> Picture:
    p = Picture("RVEDiT: coarse tokens for shallow blocks, all tokens for deep ones", 480)
    p.box(24, 70, 130, 40, "instruction", "language")
    p.box(24, 122, 130, 40, "source video", "given")
    p.box(196, 76, 120, 80, "frozen VLM\nreads both", "language")
    p.arrow((154, 90), (196, 102))
    p.arrow((154, 142), (196, 130))
    p.box(364, 66, 150, 56, "K editing tokens\nthe gist", "language")
    p.box(590, 66, 150, 56, "native tokens\nevery patch and word", "language")
    p.arrow((316, 94), (364, 94))
    p.arrow((316, 144), (552, 144), (552, 94), (590, 94))
    p.box(24, 262, 130, 40, "noisy target", "noise")
    p.box(24, 316, 130, 40, "source video", "given")
    p.box(196, 264, 120, 90, "tokens\nsource added,\nfading with noise", size=13)
    p.arrow((154, 282), (196, 292))
    p.arrow((154, 336), (196, 326))
    p.box(364, 254, 150, 110, "shallow blocks\n1 … L_s\ncross-attention: gist", "plain")
    p.box(590, 254, 150, 110, "deep blocks\nL_s + 1 … L\ncross-attention: all", "plain")
    p.arrow((316, 309), (364, 309))
    p.arrow((514, 309), (590, 309))
    p.arrow((410, 122), (410, 254), colour="#007a58")
    p.arrow((470, 122), (470, 200), (632, 200), (632, 254), colour="#007a58")
    p.arrow((698, 122), (698, 254), colour="#007a58")
    p.box(800, 280, 136, 58, "edited video", "given")
    p.arrow((740, 309), (800, 309), label="head")
    p.box(
        364,
        396,
        376,
        44,
        "a pass that reads the answer (training only, no gradient)",
        "meet",
        size=13,
        dashed=True,
    )
    p.arrow((552, 396), (552, 330), dashed=True, colour="#aa4488")
    p.text(562, 384, "align attention: InfoNCE", size=12, anchor="start", colour="#8a2f6c")
    p.text(
        24, 468, "Loss = flow matching − λ · InfoNCE at one random depth", size=14, bold=True, anchor="start"
    )
    return p


def mive() -> Picture:
    p = Picture("MiVE: two depths of a reader join the video in one self-attention", 440)
    p.box(24, 66, 150, 38, "instruction", "language")
    p.box(24, 114, 150, 38, "edited first frame", "given")
    p.box(24, 162, 150, 38, "source video", "given")
    p.box(220, 66, 130, 134, "frozen VLM\none prompt", "language")
    for y in (85, 133, 181):
        p.arrow((174, y), (220, y))
    p.box(392, 70, 130, 46, "early layer\nwhere", "language")
    p.box(392, 150, 130, 46, "late layer\nwhat", "language")
    p.arrow((350, 93), (392, 93))
    p.arrow((350, 173), (392, 173))
    p.box(566, 106, 100, 54, "adapter\njoins both", "plain")
    p.arrow((522, 93), (566, 122))
    p.arrow((522, 173), (566, 146))
    p.box(24, 256, 150, 38, "noisy target", "noise")
    p.box(24, 304, 150, 38, "source video", "given")
    p.box(220, 256, 130, 86, "channels\nside by side", "plain")
    p.box(24, 352, 150, 38, "edited first frame", "given")
    p.arrow((174, 275), (220, 282))
    p.arrow((174, 323), (220, 314))
    p.arrow((174, 371), (285, 371), (285, 342), label="first, clean, in both halves", at=(330, 388))
    p.box(392, 276, 130, 46, "video tokens v", "noise")
    p.arrow((350, 299), (392, 299))
    p.box(566, 226, 100, 146, role="meet")
    for line, y in (("one", 278), ("sequence", 296), ("[c ; v]", 324)):
        p.text(616, y, line, bold=y < 310, size=13)
    p.arrow((616, 160), (616, 226), label="context c", at=(656, 198))
    p.arrow((522, 299), (566, 299))
    p.box(706, 226, 110, 146, "Wan blocks\nself-attention only\n× L", "plain", size=13)
    p.arrow((666, 299), (706, 299))
    p.box(852, 270, 90, 58, "edited\nvideo", "given")
    p.arrow((816, 299), (852, 299))
    p.text(
        24,
        424,
        "Clean tokens are modulated as at t = 0, noisy ones as at the present t.",
        size=14,
        bold=True,
        anchor="start",
    )
    return p


def main() -> None:
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else OUT
    out.mkdir(parents=True, exist_ok=True)
    for draw in (vera, gencompositor, rvedit, mive):
        (out / f"{draw.__name__}.svg").write_text(draw().svg())


if __name__ == "__main__":
    main()
