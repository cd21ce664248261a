"""Maps on a common grid and the measures between them, against plain loops, known answers and laws."""

from math import hypot, log2

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fuse.align.attention.maps import (
    MEASURES,
    centre,
    centre_distance,
    common_map,
    cosine,
    covered,
    from_flat,
    jensen_shannon,
    top_overlap,
)
from fuse.branches.places import cropped, grid_boxes, padded

RANDOM = np.random.default_rng(0)
A, B = RANDOM.random((6, 8)) ** 4, RANDOM.random((6, 8)) ** 4
maps = arrays(np.float64, (4, 5), elements=st.floats(0, 1e3, allow_subnormal=False)).filter(lambda x: x.sum() > 1e-3)


def spot(row: int, column: int, shape: tuple[int, int] = (10, 10)) -> np.ndarray:
    values = np.zeros(shape)
    values[row, column] = 1
    return values


# The measures


def test_jensen_shannon_against_a_loop() -> None:
    p, q = (A / A.sum()).ravel(), (B / B.sum()).ravel()
    wanted = 0.0
    for x, y in zip(p, q, strict=True):
        wanted += (x * log2(2 * x / (x + y)) + y * log2(2 * y / (x + y))) / 2
    assert jensen_shannon(A, B) == pytest.approx(wanted, abs=1e-14)


def test_jensen_shannon_is_what_entropies_say() -> None:
    def entropy(p: np.ndarray) -> float:
        return -sum(x * log2(x) for x in p.ravel() if x)

    p, q = np.array([[0.5, 0.5, 0, 0]]), np.array([[0, 0.5, 0.25, 0.25]])
    wanted = entropy((p + q) / 2) - (entropy(p) + entropy(q)) / 2
    assert jensen_shannon(p, q) == pytest.approx(wanted, abs=1e-15)


def test_cosine_against_a_loop() -> None:
    pairs = list(zip(A.ravel(), B.ravel(), strict=True))
    wanted = sum(x * y for x, y in pairs) / (sum(x * x for x, _ in pairs) * sum(y * y for _, y in pairs)) ** 0.5
    assert cosine(A, B) == pytest.approx(wanted, abs=1e-14)


@pytest.mark.parametrize("cells", [1, 5, 12, 48])
def test_top_overlap_of_different_values_is_that_of_sets(cells: int) -> None:
    first, second = (set(np.argsort(-values, axis=None)[:cells].tolist()) for values in (A, B))
    assert top_overlap(A, B, cells / A.size) == pytest.approx(len(first & second) / len(first | second), abs=1e-12)


def test_top_overlap_shares_equal_cells_out() -> None:
    flat, half = np.ones((10, 10)), np.kron([[1.0, 0.0]], np.ones((10, 5)))
    assert top_overlap(flat, flat) == pytest.approx(1)
    assert top_overlap(half, flat) == pytest.approx((50 * 0.1) / (50 * 0.2 + 50 * 0.1))  # 0.2 of each hot cell
    assert top_overlap(half, 1 - half) == 0
    # one cell alone is hot: the other 9 cells' worth is spread over 99 that are all 0, 1/11 of each
    assert top_overlap(spot(0, 0), flat) == pytest.approx((0.1 + 99 / 11) / (1 + 99 * 0.1))


def test_centre_against_a_loop() -> None:
    height, width = A.shape
    x = sum(A[i, j] * (j + 0.5) / width for i in range(height) for j in range(width)) / A.sum()
    y = sum(A[i, j] * (i + 0.5) / height for i in range(height) for j in range(width)) / A.sum()
    assert centre(A) == pytest.approx((x, y), abs=1e-14)


def test_known_answers() -> None:
    left, right = spot(4, 0), spot(4, 9)
    assert jensen_shannon(left, right) == 1
    assert cosine(left, right) == 0
    assert centre_distance(left, right) == pytest.approx(0.9)
    assert centre_distance(spot(0, 0), spot(9, 9)) == pytest.approx(hypot(0.9, 0.9))
    assert from_flat(np.ones((3, 4))) == 0
    assert from_flat(spot(0, 0, (64, 64))) > 0.99
    assert centre(np.ones((3, 5))) == pytest.approx((0.5, 0.5))


@given(maps)
def test_a_map_is_as_itself(values: np.ndarray) -> None:
    for other in (values, values * 7.5):
        assert jensen_shannon(values, other) == pytest.approx(0, abs=1e-12)
        assert cosine(values, other) == pytest.approx(1)
        assert top_overlap(values, other) == pytest.approx(1)
        assert centre_distance(values, other) == pytest.approx(0, abs=1e-12)


@given(maps, maps)
def test_both_sides_and_both_directions_are_alike(a: np.ndarray, b: np.ndarray) -> None:
    for name, measure in MEASURES.items():
        found = measure(a, b)
        assert measure(b, a) == pytest.approx(found, abs=1e-12)
        assert measure(a[:, ::-1], b[:, ::-1]) == pytest.approx(found, abs=1e-9), name
        assert measure(a.T, b.T) == pytest.approx(found, abs=1e-9), name
        assert 0 <= found <= (2**0.5 if name == "centre_distance" else 1)


@given(maps, maps, maps)
def test_the_root_of_jensen_shannon_is_a_metric(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> None:
    assert jensen_shannon(a, c) ** 0.5 <= jensen_shannon(a, b) ** 0.5 + jensen_shannon(b, c) ** 0.5 + 1e-6


@pytest.mark.parametrize("name", MEASURES)
def test_what_is_no_map(name: str) -> None:
    good, measure = np.ones((2, 2)), MEASURES[name]
    told = r"^a map is two-dimensional, finite, not negative and not all 0$"
    for bad in (np.zeros((2, 2)), np.full((2, 2), np.nan), np.array([[-1.0, 2], [0, 0]]), np.ones(4)):
        with pytest.raises(ValueError, match=told):
            measure(good, bad)
        with pytest.raises(ValueError, match=told):
            measure(bad, good)
    with pytest.raises(ValueError, match=r"^maps of \(2, 2\) and \(2, 3\) cells are not on one grid$"):
        measure(good, np.ones((2, 3)))


@pytest.mark.parametrize("part", [0, -0.1, 1.1])
def test_a_part_of_the_area(part: float) -> None:
    with pytest.raises(ValueError, match=r"^a part of the area is above 0 and at most 1, not "):
        top_overlap(A, B, part)


# The common grid


def test_shares_by_area_against_a_loop() -> None:
    boxes = np.sort(RANDOM.uniform(-0.3, 1.3, (7, 2, 2)), axis=1).reshape(7, 4)  # left, top, right, bottom
    paid = RANDOM.random(7)
    found = common_map(paid, boxes, (50, 30), longest=5)
    assert found.shape == (3, 5)
    for i in range(3):
        for j in range(5):
            wanted = 0.0
            for value, (left, top, right, bottom) in zip(paid, boxes, strict=True):
                wide = max(0.0, min(right, (j + 1) / 5) - max(left, j / 5))
                high = max(0.0, min(bottom, (i + 1) / 3) - max(top, i / 3))
                wanted += value * wide * high / ((right - left) * (bottom - top))
            assert found[i, j] == pytest.approx(wanted, abs=1e-14)


@pytest.mark.parametrize("side", [1, 3, 4, 6, 7, 24])
def test_nothing_is_lost_inside_and_flat_stays_flat(side: int) -> None:
    paid = RANDOM.random(side * side)
    found = common_map(paid, grid_boxes(side, side), (64, 48))
    assert found.shape == (24, 32) and found.sum() == pytest.approx(paid.sum())
    flat = common_map(np.full(side * side, 2.0), grid_boxes(side, side), (64, 48))
    np.testing.assert_allclose(flat, flat.mean())


def test_one_grid_in_tokens_of_two_sizes_is_one_map() -> None:
    coarse = RANDOM.random((3, 3))
    fine = np.kron(coarse, np.ones((5, 5))) / 25
    maps = [common_map(x.ravel(), grid_boxes(*x.shape), (70, 70)) for x in (coarse, fine)]
    np.testing.assert_allclose(*maps)
    assert jensen_shannon(*maps) == pytest.approx(0, abs=1e-12)


def test_padding_is_lost_and_a_crop_leaves_the_margin_empty() -> None:
    paid = np.full(16, 1 / 16)
    letterbox = common_map(paid, grid_boxes(4, 4, padded((200, 100))), (200, 100), longest=20)
    assert letterbox.shape == (10, 20) and letterbox.sum() == pytest.approx(0.5)  # half of the square is padding
    np.testing.assert_allclose(letterbox, letterbox.mean())
    crop = common_map(paid, grid_boxes(4, 4, cropped((200, 100), 50, (50, 50))), (200, 100), longest=20)
    assert crop.sum() == pytest.approx(1)
    assert not crop[:, :5].any() and not crop[:, 15:].any() and (crop[:, 5:15] > 0).all()


def test_what_tokens_cover() -> None:
    assert covered(grid_boxes(3, 3), (50, 70)) == pytest.approx(1)
    assert covered(grid_boxes(5, 5, padded((200, 100))), (200, 100)) == pytest.approx(1)
    assert covered(grid_boxes(4, 4, cropped((200, 100), 50, (50, 50))), (200, 100)) == pytest.approx(0.5)
    tiles = np.concatenate([grid_boxes(2, 2), grid_boxes(3, 3), np.zeros((2, 4))])
    assert covered(tiles, (64, 64)) == pytest.approx(1)
    assert covered(np.concatenate([grid_boxes(4, 4)[:4]] * 2), (64, 64)) == pytest.approx(0.25)


def test_line_breaks_have_no_place() -> None:
    boxes = np.concatenate([grid_boxes(1, 2), np.zeros((1, 4))])
    np.testing.assert_allclose(common_map(np.array([1.0, 2, 50]), boxes, (2, 1), longest=2), [[1, 2]])


def test_a_narrow_image_has_one_row_at_least() -> None:
    assert common_map(np.ones(4), grid_boxes(2, 2), (1000, 3)).shape == (1, 32)
