"""Several models' attention over one image, side by side: a panel for each, with its answer under it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw

from fuse.report.attention import Map
from fuse.report.overlay import FAINT, GAP, INK, PANEL, PAPER, fit, heat, scale_bar, top_of_scale, write_png
from fuse.report.text import Font, elide, font_for, wrap

COLUMNS = 4  # panels beside each other, the image included
ANSWER = 6  # lines of an answer; a longer one is cut, and whole in the PNG's texts
HEAD, NOTE, LINE = 28, 26, 22  # pixels: of a title, of the note under a panel, of a line of text


@dataclass(frozen=True)
class Panel:
    """One model. map: float64 [h, w] over the image, None where nothing can be drawn. note: the line under it."""

    title: str
    map: Map | None
    note: str
    answer: str


def side_by_side(
    image: Image.Image, panels: Sequence[Panel], path: Path, *, question: str, sentences: Sequence[str] = ()
) -> None:
    """Write a PNG: the question, the image, a panel for each model with its answer under it, and sentences below.

    Every panel has a scale of its own, whose top is `top_of_scale`. The texts are stored in the PNG too (`question`,
    and `answer 1` and so on). A model without a map has the image in grey. Raises MachineError where the
    picture cannot be written. The look is our choice.
    """
    said = "".join([question, *sentences, *(panel.title + panel.answer for panel in panels)])
    title, text, small = (font_for(said, size) for size in (18, 16, 13))
    picture = fit(image.convert("RGB"))
    columns = min(COLUMNS, len(panels) + 1)
    width = GAP + columns * (PANEL + GAP)
    answers = [_cut(panel.answer or "(no words)", text) for panel in panels]
    cell = HEAD + picture.height + NOTE + LINE * max((len(lines) for lines in answers), default=0)
    asked = wrap(question, text, width - 2 * GAP)
    below = [line for sentence in sentences for line in wrap(sentence, text, width - 2 * GAP)]
    top = GAP + LINE * len(asked) + GAP // 2
    bottom = top + -(-(len(panels) + 1) // columns) * (cell + GAP)
    page = Image.new("RGB", (width, bottom + 40 + LINE * len(below) + GAP // 2), PAPER)
    draw = ImageDraw.Draw(page)
    _lines(draw, (GAP, GAP), asked, text)
    shown = [("image", f"{image.width} x {image.height} pixels", picture, [])]
    for panel, lines in zip(panels, answers, strict=True):
        heated = picture.convert("L").convert("RGB")
        if panel.map is not None:
            heated = heat(picture, panel.map / top_of_scale(panel.map))
        shown.append((panel.title, panel.note, heated, lines))
    for number, (name, note, drawn, lines) in enumerate(shown):
        left, upper = GAP + number % columns * (PANEL + GAP), top + number // columns * (cell + GAP)
        draw.text((left, upper), elide(name, title, PANEL), INK, font=title)
        page.paste(drawn, (left, upper + HEAD))
        draw.text((left, upper + HEAD + 4 + drawn.height), elide(note, small, PANEL), FAINT, font=small)
        _lines(draw, (left, upper + HEAD + NOTE + drawn.height), lines, text)
    scale_bar(page, draw, (GAP, bottom), small, "each panel has a scale of its own")
    _lines(draw, (GAP, bottom + 32), below, text)
    write_png(page, path, _texts(question, panels))


def _texts(question: str, panels: Sequence[Panel]) -> Mapping[str, str]:
    return {"question": question, **{f"answer {n}": panel.answer for n, panel in enumerate(panels, 1)}}


def _cut(answer: str, font: Font) -> list[str]:
    lines = wrap(answer, font, PANEL)
    return lines if len(lines) <= ANSWER else [*lines[: ANSWER - 1], f"({len(lines) - ANSWER + 1} more lines)"]


def _lines(draw: ImageDraw.ImageDraw, place: tuple[int, int], lines: Sequence[str], font: Font) -> None:
    for number, line in enumerate(lines):
        draw.text((place[0], place[1] + LINE * number), line, INK, font=font)
