"""Attention maps drawn over an image, one panel for each branch: VisionFuse's "different regions" figure.

Drawn with Pillow alone. The look (grey image, colours of the magma table, scale, layout) is our choice.
"""

from collections.abc import Mapping
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, PngImagePlugin

from fuse.errors import MachineError, RecipeError
from fuse.report.attention import Map
from fuse.report.text import Font, elide, font_for, wrap

PANEL, GAP, LINES = 420, 24, 40  # longest side of a panel, space around it, lines of answer; pixels and lines
INK, FAINT, PAPER = (24, 24, 27), (98, 98, 106), (255, 255, 255)
STRENGTH = 0.6  # how much of a pixel is heat
# matplotlib's magma (CC0) at 0, 1/8 ... 1; equal steps of value are equal steps of lightness
MAGMA = np.array([
    (0, 0, 4), (29, 17, 71), (81, 18, 124), (131, 38, 129), (183, 55, 121), (229, 80, 100), (252, 137, 97),
    (254, 196, 136), (252, 253, 191),
], dtype=np.float64)  # fmt: skip


def overlay(
    image: Image.Image, maps: Mapping[str, Map], path: Path, answer: str, *, question: str = "",
    shares: Mapping[str, float] | None = None, notes: Mapping[str, str] | None = None,
) -> None:  # fmt: skip
    """Write a PNG: the image, then one panel for each branch with its map as heat, then the question and the answer.

    maps: branch name -> [h, w], values >= 0, over the whole image, as `fuse.branches.places.canvas` gives them. shares:
    branch name -> part of the answer's attention, for the line under the panel. notes: branch name -> what that line
    says of its tokens (the map's cells where left out). Every branch has a scale of its own, whose top is the 99th
    percentile of its positive values, so that one hot token does not hide the rest. The texts are stored in the PNG too
    (`question`, `answer`).

    Raises RecipeError when the path does not end in .png, MachineError when it cannot be written, ValueError for maps
    that are not two-dimensional or hold a negative or non-finite value.
    """
    if path.suffix.lower() != ".png":
        raise RecipeError("the attention picture is a PNG", where=path, hint=f"name it {path.with_suffix('.png').name}")
    for name, values in maps.items():
        if values.ndim != 2 or not np.isfinite(values).all() or (values < 0).any():
            raise ValueError(f"branch {name}: a map is two-dimensional, finite and not negative")
    picture = fit(image.convert("RGB"))
    tops = {name: top_of_scale(values) for name, values in maps.items()}
    panels = [("image", "", picture)]
    for name, values in maps.items():
        heated = heat(picture, values / tops[name])
        share = f"{shares[name]:.1%} of the attention, " if shares and name in shares else ""
        cells = (notes or {}).get(name, f"{values.shape[0]} x {values.shape[1]} cells")
        bright = f"brightest {tops[name]:.2g}" if values.any() else "all of them 0"
        panels.append((name, f"{share}{cells}, {bright}", heated))
    caption = "each panel has a scale of its own"
    for name, part in (shares or {}).items():
        if name not in maps:
            caption += f"; {name}, which has no one grid: {part:.1%} of the attention"
    page = _page(panels, question, answer, caption)
    write_png(page, path, {"question": question, "answer": answer})


def top_of_scale(values: Map) -> float:
    """The value drawn brightest: the 99th percentile of the positive ones, 1 where there is none."""
    positive = values[values > 0]
    return float(np.quantile(positive, 0.99)) if positive.size else 1.0


def heat(image: Image.Image, values: Map) -> Image.Image:
    """The image in grey with values ([h, w], 0 to 1) over it, interpolated between the cells' centres."""
    width, height = image.size
    top, bottom, down = _between((np.arange(height) + 0.5) / height, values.shape[0])
    left, right, along = _between((np.arange(width) + 0.5) / width, values.shape[1])
    rows = values[top] * (1 - down)[:, None] + values[bottom] * down[:, None]
    warm = rows[:, left] * (1 - along) + rows[:, right] * along
    grey = np.asarray(image.convert("L"), dtype=np.float64)[..., None]
    mixed = (1 - STRENGTH) * grey + STRENGTH * colours(warm)
    return Image.fromarray(mixed.round().astype(np.uint8))


def colours(values: Map) -> Map:
    """Values from 0 to 1 (others are cut) as red, green, blue from 0 to 255: [...] -> [..., 3]."""
    at = np.clip(values, 0, 1)
    steps = np.linspace(0, 1, len(MAGMA))
    return np.stack([np.interp(at, steps, MAGMA[:, channel]) for channel in range(3)], axis=-1)


def _between(places: Map, n: int) -> tuple[NDArray[np.intp], NDArray[np.intp], Map]:
    # the cells on both sides of each place (0 to 1 over n cells), and how far it lies from the first to the second
    at = np.clip(places * n - 0.5, 0, n - 1)
    first = np.floor(at).astype(np.intp)
    return first, np.minimum(first + 1, n - 1), at - first


def fit(image: Image.Image) -> Image.Image:
    """The image with PANEL pixels on its longer side."""
    ratio = PANEL / max(image.size)
    width, height = (max(1, round(side * ratio)) for side in image.size)
    return image.resize((width, height), Image.Resampling.LANCZOS)


def _page(panels: list[tuple[str, str, Image.Image]], question: str, answer: str, caption: str) -> Image.Image:
    everything = "".join([question, answer, *(title for title, _, _ in panels)])
    title_font, font, small = (font_for(everything, size) for size in (18, 17, 13))
    columns = len(panels) if len(panels) <= 3 else 2 if len(panels) == 4 else 3
    cell_w, cell_h = PANEL, panels[0][2].height + 54
    width = GAP + columns * (cell_w + GAP)
    lines = [line for text in (question, answer) if text for line in [*_told(text, font, width - 2 * GAP), ""]]
    rows = -(-len(panels) // columns)
    bottom = GAP + rows * (cell_h + GAP)
    page = Image.new("RGB", (width, bottom + 44 + 24 * len(lines)), PAPER)
    draw = ImageDraw.Draw(page)
    for number, (title, note, picture) in enumerate(panels):
        left = GAP + number % columns * (cell_w + GAP)
        upper = GAP + number // columns * (cell_h + GAP)
        draw.text((left, upper), elide(title, title_font, cell_w), INK, font=title_font)
        page.paste(picture, (left, upper + 28))
        draw.text((left, upper + 32 + picture.height), note, FAINT, font=small)
    scale_bar(page, draw, (GAP, bottom), small, caption)
    for number, line in enumerate(lines):
        draw.text((GAP, bottom + 36 + 24 * number), line, INK, font=font)
    return page


def _told(text: str, font: Font, width: int) -> list[str]:
    lines = wrap(text, font, width)
    return lines if len(lines) <= LINES else [*lines[:LINES], f"({len(lines) - LINES} more lines)"]


def scale_bar(page: Image.Image, draw: ImageDraw.ImageDraw, place: tuple[int, int], font: Font, text: str) -> None:
    """Draw the colours from 0 to the brightest at a place, 18 pixels high, with a text behind them."""
    bar = colours(np.tile(np.linspace(0, 1, 120), (12, 1))).round().astype(np.uint8)
    page.paste(Image.fromarray(bar), (place[0] + 16, place[1] + 2))
    draw.text((place[0], place[1]), "0", FAINT, font=font)
    draw.text((place[0] + 144, place[1]), f"brightest; {text}", FAINT, font=font)


def write_png(page: Image.Image, path: Path, texts: Mapping[str, str]) -> None:
    """Write a page with texts in it, whole or not at all. Raises MachineError where it cannot be written."""
    notes = PngImagePlugin.PngInfo()
    for key, text in texts.items():
        notes.add_itxt(key, text)
    held = BytesIO()
    page.save(held, "PNG", pnginfo=notes)
    try:
        path.write_bytes(held.getvalue())
    except OSError as error:
        raise MachineError(f"cannot be written ({error.strerror})", where=path) from None
