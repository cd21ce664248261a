"""Boxes of visual tokens on the image, and attention drawn with them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fuse.branches.places import (
    broken_rows,
    canvas,
    cropped,
    grid_boxes,
    marked_tiles,
    padded,
    tile_boxes,
)


def areas(boxes: np.ndarray) -> np.ndarray:
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


@given(rows=st.integers(1, 9), columns=st.integers(1, 9))
def test_the_cells_of_a_grid_cover_it_once(rows: int, columns: int) -> None:
    boxes = grid_boxes(rows, columns)
    assert boxes.shape == (rows * columns, 4)
    assert np.allclose(areas(boxes).sum(), 1)
    assert np.allclose(boxes[0, :2], 0)
    assert np.allclose(boxes[-1, 2:], 1)
    assert np.allclose(boxes[min(1, columns - 1), 1], 0), "raster order: the second cell is in the first row"


def test_rows_that_end_in_line_breaks() -> None:
    boxes = broken_rows(24 * 49, (640, 320))
    assert boxes is not None
    assert boxes.shape == (24 * 49, 4)
    breaks = areas(boxes) == 0
    assert np.flatnonzero(breaks).tolist() == [49 * (i + 1) - 1 for i in range(24)]
    assert np.allclose(areas(boxes)[~breaks], 1 / (24 * 48))
    assert broken_rows(1, (10, 10)) is None


def test_tiles_and_a_thumbnail() -> None:
    boxes = tile_boxes(7, 4, (300, 200))  # 3 x 2 tiles of 2 x 2 tokens, and the whole
    assert boxes is not None
    assert boxes.shape == (28, 4)
    assert np.allclose(boxes[0], (0, 0, 1 / 6, 1 / 4))
    assert np.allclose(boxes[4 * 3], (0, 1 / 2, 1 / 6, 3 / 4)), "the fourth tile begins the second row"
    assert np.allclose(boxes[24], (0, 0, 1 / 2, 1 / 2)), "the last tile is the whole image"
    assert np.allclose(areas(boxes).sum(), 2)
    one = tile_boxes(1, 4, (300, 200))
    assert one is not None and np.allclose(one[-1], (0.5, 0.5, 1, 1))
    two = tile_boxes(2, 1, (300, 200))
    assert two is not None and np.allclose(two, [(0, 0, 1, 1)] * 2)
    assert tile_boxes(2, 5, (300, 200)) is None


def test_tiles_numbered_by_markers() -> None:
    layout = ("<f>", "<row_1_col_1>", 4, "<row_1_col_2>", 4, "\n", "<f>", "<global-img>", 4, "<f>")
    boxes = marked_tiles(layout, (200, 100))
    assert boxes is not None
    assert np.allclose(boxes[4], (0.5, 0, 0.75, 0.5))
    assert np.allclose(boxes[8], (0, 0, 0.5, 0.5))
    assert marked_tiles(("<f>", "<global-img>", 4, "<f>"), (200, 100)).shape == (4, 4)  # pyright: ignore
    assert marked_tiles(("<row_1_col_1>", 4, 4, 4), (200, 100)) is None


@pytest.mark.parametrize(
    ("box", "want"),
    [
        (cropped((400, 200), 28, (28, 28)), (0.25, 0, 0.75, 1)),
        (cropped((200, 400), 56, (28, 28)), (0.25, 0.375, 0.75, 0.625)),
        (padded((400, 200)), (0, -0.5, 1, 1.5)),
    ],
)
def test_crops_and_pads(box: tuple[float, ...], want: tuple[float, ...]) -> None:
    assert np.allclose(box, want)


@given(rows=st.integers(1, 12), columns=st.integers(1, 12), wide=st.integers(20, 400), high=st.integers(20, 400))
def test_a_canvas_keeps_all_that_was_paid(rows: int, columns: int, wide: int, high: int) -> None:
    paid = np.arange(1.0, rows * columns + 1)
    drawn = canvas(paid, grid_boxes(rows, columns), (wide, high))
    assert max(drawn.shape) == 112
    assert np.isclose(drawn.sum(), paid.sum())


def test_a_canvas_puts_attention_where_the_box_is() -> None:
    drawn = canvas(np.array([1.0, 5.0]), np.array([[0.5, 0, 1, 0.5], [0, 0, 0, 0]]), (100, 100))
    assert np.isclose(drawn[:56, 56:].sum(), 1)
    assert np.isclose(drawn.sum(), 1), "a token without a box is left out"
    beyond = canvas(np.array([1.0]), np.array([[0, -1, 1, 1]]), (100, 100))
    assert np.isclose(beyond.sum(), 0.5), "half of it lies over the edge"
