"""Words in a picture: a font that has the letters, and lines that fit."""

import unicodedata

from PIL import ImageFont

Font = ImageFont.ImageFont | ImageFont.FreeTypeFont | ImageFont.TransposedFont

# Looked for where the system keeps its fonts; Pillow's own has ASCII only.
FONTS = (
    "DejaVuSans.ttf", "NotoSans-Regular.ttf", "LiberationSans-Regular.ttf", "Arial.ttf", "arial.ttf",
    "NotoSansCJK-Regular.ttc", "NotoSansSC-Regular.otf", "wqy-microhei.ttc", "PingFang.ttc", "msyh.ttc",
    "Arial Unicode.ttf",
)  # fmt: skip
NO_CHARACTER = "\U0010ffff"


def font_for(text: str, size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """The first font at hand with every letter of the text; where none has them all, the one that lacks the fewest."""
    letters = {c for c in text if not c.isspace() and c.isprintable()}
    best, fewest = ImageFont.load_default(size), len(letters) + 1
    for name in ("", *FONTS):
        try:
            font = ImageFont.truetype(name, size) if name else ImageFont.load_default(size)
        except OSError:
            continue
        lacking = _lacking(font, letters)
        if lacking < fewest:
            best, fewest = font, lacking
        if not lacking:
            break
    return best


def _lacking(font: ImageFont.FreeTypeFont | ImageFont.ImageFont, letters: set[str]) -> int:
    if not isinstance(font, ImageFont.FreeTypeFont):
        return sum(ord(c) > 126 for c in letters)
    return sum(_drawn(font, letter) == _drawn(font, NO_CHARACTER) for letter in letters)


def _drawn(font: ImageFont.FreeTypeFont, letter: str) -> tuple[tuple[int, int], list[int]]:
    mask = font.getmask(letter)
    width, height = mask.size
    return mask.size, [mask.getpixel((x, y)) for y in range(height) for x in range(width)]


def elide(text: str, font: Font, width: int) -> str:
    """The text in one line of at most `width` pixels, with "..." for what does not fit."""
    line = " ".join(text.split())
    while line and font.getlength(line) > width:
        line = line.removesuffix("...")[:-1] + "..." if line != "..." else ""
    return line


def wrap(text: str, font: Font, width: int) -> list[str]:
    """The text in lines of at most `width` pixels, broken at spaces, and inside a word only where it is too long alone.

    Line breaks of the text stay; other control characters become spaces. Never empty: "" is one empty line.
    """
    lines: list[str] = []
    for paragraph in text.splitlines() or [""]:
        clean = "".join(" " if unicodedata.category(c)[0] == "C" else c for c in paragraph)
        line = ""
        for word in clean.split():
            joined = f"{line} {word}" if line else word
            if font.getlength(joined) <= width:
                line = joined
                continue
            if line:
                lines.append(line)
            *full, line = _pieces(word, font, width)
            lines += full
        lines.append(line)
    return lines


def _pieces(word: str, font: Font, width: int) -> list[str]:
    pieces, piece = [], ""
    for letter in word:
        if piece and font.getlength(piece + letter) > width:
            pieces.append(piece)
            piece = ""
        piece += letter
    return [*pieces, piece]
