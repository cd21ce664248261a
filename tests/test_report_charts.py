"""Charts of a report: where their parts stand, what colour they have, and their PNGs."""

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fuse.report import png, svg
from fuse.report.colours import DIVERGING, SEQUENTIAL, Scale, ink, text
from fuse.report.page import Heat, Scatter, line
from fuse.report.points import common_plane, some, turned_plane

NUMBERS = st.floats(-5, 5)


def heat(values: list[list[float | None]], scale: Scale | None = None, name: str = "c") -> Heat:
    rows, columns = [f"r{i}" for i in range(len(values))], [f"{name}{j}" for j in range(len(values[0]))]
    return Heat("h", "t", rows, columns, values, scale or Scale(0, 1), "down", "across")


def test_colours_of_a_scale():
    scale = Scale(-1, 1, DIVERGING)
    assert [scale.at(v) for v in (-1, -9, 0, 1, 9)] == [
        DIVERGING[0], DIVERGING[0], DIVERGING[2], DIVERGING[4], DIVERGING[4],
    ]  # fmt: skip
    assert Scale(0, 8).at(0.5) == tuple(round((a + b) / 2) for a, b in zip(SEQUENTIAL[0], SEQUENTIAL[1], strict=True))
    assert Scale(2, 2).at(2) == SEQUENTIAL[0]
    assert text((0, 128, 255)) == "#0080ff"


@given(NUMBERS, st.sampled_from([SEQUENTIAL, DIVERGING]))
def test_numbers_can_be_read_on_their_cells(value, colours):
    """Contrast of at least 4.5 (WCAG 2.2, 1.4.3)."""
    back = Scale(-5, 5, colours).at(value)

    def luminance(hexed: str) -> float:
        parts = [int(hexed[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return float(np.dot([0.2126, 0.7152, 0.0722], linear))

    low, high = sorted((luminance(text(back)), luminance(ink(back))))
    assert (high + 0.05) / (low + 0.05) >= 4.5


@given(st.integers(1, 20), st.integers(1, 20), st.integers(1, 30))
def test_cells_lie_in_the_picture_and_beside_each_other(rows, columns, letters):
    drawn = svg.heat(heat([[0.5] * columns for _ in range(rows)], name="c" * letters))
    assert len(drawn.cells) == rows * columns
    assert len({(cell["x"], cell["y"]) for cell in drawn.cells}) == rows * columns
    for cell in drawn.cells:
        assert cell["x"] >= 0 and cell["x"] + cell["width"] <= drawn.width
        assert cell["y"] >= 0 and cell["y"] + cell["height"] <= drawn.height
        assert ("text" in cell) == (columns <= svg.MOST)
    assert all(0 <= label["x"] <= drawn.width and 0 <= label["y"] <= drawn.height for label in drawn.labels)
    assert all(len(label["text"]) <= svg.LONGEST for label in drawn.labels)


def test_what_a_cell_tells():
    first, none = svg.heat(heat([[0.256, None]])).cells
    assert (first["text"], first["told"], first["fill"]) == ("0.26", "r0, c0: 0.256", text(Scale(0, 1).at(0.256)))
    assert none["told"] == "r0, c1: none" and "fill" not in none
    assert svg.short_label("a\u202eb" + "c" * 30) == "a\\u202eb" + "c" * 9 + "…"
    assert line("two\n lines") == "two lines"
    assert heat([[None]]).alt == "Heat map of 1 by 1 cells, down by across; no cell has a value."


def test_dots_keep_their_distances():
    drawn = svg.scatter(Scatter("s", "t", {"a": [(0, 0), (4, 0)], "b": [(0, 2)], "one": [(4, 2)]}))
    places = [[tuple(map(float, p.removesuffix("h0").split())) for p in g["path"].split("M")[1:]] for g in drawn.groups]
    (left, right), (above,), _ = places
    assert right[0] - left[0] == pytest.approx(2 * (left[1] - above[1])) and left[0] == above[0]
    assert all(0 < x < drawn.width and 0 < y < drawn.height for group in places for x, y in group)
    assert [group["round"] for group in drawn.groups] == [True, False, True]
    assert svg.scatter(Scatter("s", "t", {"a": [(1.0, 1.0)]})).groups[0]["path"] == f"M{svg.WIDE / 2} {svg.TALL / 2}h0"
    assert svg.scatter(Scatter("s", "t", {})).groups == []


@pytest.mark.parametrize(
    "chart",
    [
        heat([[0.5, None], [2.0, -1.0]]), heat([[0.1] * 30]), heat([[0.5]], Scale(0, 0)),
        Heat("h", "$\\frac$ <b> \u4f60", ["$x$"], ["a$"], [[0.5]], Scale(0, 1), "$", "^_"),
        Scatter("s", "$", {"$x$": [(0.0, 1.0)], "_b": []}),
    ],
    ids=["small", "wide", "flat", "hostile", "dots"],
)  # fmt: skip
@pytest.mark.filterwarnings("error")
def test_every_chart_has_a_png(chart):
    shown = Image.open(io.BytesIO(png.draw(chart)))
    pixels = np.asarray(shown.convert("RGB"))
    assert shown.format == "PNG" and shown.size[0] >= 400 and (pixels[0, 0] == 255).all()
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 2


def test_a_png_has_the_colours_of_its_cells():
    pixels = np.asarray(Image.open(io.BytesIO(png.draw(heat([[0.0, 0.5]])))).convert("RGB")).reshape(-1, 3)
    for value in (0.0, 0.5):
        assert (pixels == Scale(0, 1).at(value)).all(1).sum() > 1000


def test_main_directions_of_both_sides():
    random = np.random.default_rng(0)
    a, b = random.standard_normal((30, 6)) * [5, 3, 1, 1, 1, 1], random.standard_normal((20, 6)) + 4
    plane = common_plane(a, b)
    rows = np.concatenate([a, b])
    values, vectors = np.linalg.eigh(np.cov(rows.T))
    expected = (rows - rows.mean(0)) @ vectors[:, [-1, -2]]
    found = np.concatenate([plane.a, plane.b])
    np.testing.assert_allclose(np.abs(found), np.abs(expected), atol=1e-9)
    assert plane.shares == (pytest.approx(values[-2:].sum() / values.sum()),)
    assert plane.a.shape == (30, 2) and plane.b.shape == (20, 2)


def test_a_turned_copy_lies_on_the_first():
    random = np.random.default_rng(1)
    a = random.standard_normal((40, 5)) * [9, 5, 1, 1, 1]
    turn, _ = np.linalg.qr(random.standard_normal((8, 5)))
    plane = turned_plane(a, 3 * a @ turn.T + 7)
    np.testing.assert_allclose(plane.a, plane.b, atol=1e-9)
    assert plane.shares[0] == pytest.approx(plane.shares[1])
    assert np.linalg.norm(plane.a) == pytest.approx(1)


def test_planes_of_little():
    for a, b in ((np.ones((1, 3)), np.ones((1, 3))), (np.ones((4, 1)), np.arange(4.0)[:, None])):
        for plane in (common_plane, turned_plane):
            found = plane(a, b)
            assert found.a.shape == (len(a), 2) and np.isfinite(found.a).all() and np.isfinite(found.b).all()
    assert some(np.arange(2000)).tolist()[::249] == [0, 1999] and len(some(np.arange(251))) == 250
    assert some(np.arange(3)).tolist() == [0, 1, 2]
