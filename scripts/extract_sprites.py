"""Draw the sprites of the toy world from Noto Color Emoji: `python scripts/extract_sprites.py [FONT]`.

The font is Debian's package fonts-noto-color-emoji, under the SIL Open Font License 1.1. The result is one
picture, vera_lite/assets/sprites/sprites.png, with the sprites row by row in the order of
vera_lite.toy.sprites.NOUNS. Each has its own colours and is as large as its cell allows.
"""

import argparse
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from vera_lite.media.files import replacing
from vera_lite.toy.sprites import CELL, COLUMNS, NOUNS, SHEET

FONT = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
STRIKE = 109  # the one size that the font's bitmaps have


def sprite(character: str, font: ImageFont.FreeTypeFont) -> Image.Image:
    """One emoji, cropped to what is drawn and scaled into the middle of a cell."""
    glyph = Image.new("RGBA", (160, 160))
    ImageDraw.Draw(glyph).text((10, 10), character, font=font, embedded_color=True)
    glyph = glyph.crop(glyph.getbbox())
    scale = CELL / max(glyph.size)
    glyph = glyph.resize([max(1, round(side * scale)) for side in glyph.size], Image.Resampling.LANCZOS)
    cell = Image.new("RGBA", (CELL, CELL))
    cell.paste(glyph, [(CELL - side) // 2 for side in glyph.size])
    return cell


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("font", nargs="?", type=Path, default=FONT)
    font = ImageFont.truetype(parser.parse_args().font, STRIKE)
    sheet = Image.new("RGBA", (COLUMNS * CELL, -(-len(NOUNS) // COLUMNS) * CELL))
    for i, noun in enumerate(NOUNS.values()):
        sheet.paste(sprite(noun.character, font), (i % COLUMNS * CELL, i // COLUMNS * CELL))
    with replacing(SHEET) as path:
        sheet.save(path, format="png", optimize=True)
    print(f"wrote {SHEET} ({SHEET.stat().st_size / 1e3:.0f} kB, {len(NOUNS)} sprites)")


if __name__ == "__main__":
    main()
