"""Attention maps of several models on one image, brought to one grid and compared.

The figure that VisionFuse opens with (arXiv 2412.01289, Figure 1): members of one family look at different regions.
The paper shows maps and gives no number for how far apart they are; these measures are our choice of numbers. A map is
float64 [h, w] over the whole image, values >= 0 that are not all 0; it is scaled to sum 1 first, so that where a model
looks is compared and not how much. Every measure raises ValueError for maps that are not that, or differ in shape.
"""

import numpy as np
from numpy.typing import NDArray

from fuse.branches.places import Boxes, Size

Map = NDArray[np.float64]
TOP = 0.1  # the part of the area that counts as where a model looks most


def common_map(paid: NDArray[np.float64], boxes: Boxes, size: Size, longest: int = 32) -> Map:
    """Attention on a grid over the image: float64 [h, w] of about square cells, `longest` of them on the longer side.

    paid: [n], one number for each visual token. boxes: [n, 4], (left, top, right, bottom) in parts of the image's width
    and height (`fuse.branches.places`). size: (width, height) of the image. Each token's number is shared out over the
    cells by the area of its box in each, so that nothing depends on how a model's grid falls on the common one. What
    lies over the image's edges (padding) is lost, and so are tokens with an empty box (line breaks). Our choice.
    """
    width, height = (max(1, round(side * longest / max(size))) for side in size)
    left, top, right, bottom = boxes.T
    real = (right > left) & (bottom > top)
    across = _parts(left[real], right[real], width)
    down = _parts(top[real], bottom[real], height)
    return (down * paid[real, None]).T @ across


def covered(boxes: Boxes, size: Size, longest: int = 32) -> float:
    """The part of the image's area that tokens have, 0 to 1: less where it is cropped, or tokens are left out.

    boxes, size, longest: as `common_map` takes them. In a cell where boxes lie over each other (the tiles and the whole
    image), their areas count up to the whole cell.
    """
    areas = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    found = common_map(areas, boxes, size, longest)
    return float(np.minimum(found * found.size, 1).mean())


def _parts(low: NDArray[np.float64], high: NDArray[np.float64], cells: int) -> Map:
    """[n, cells]: which part of each stretch from low to high lies in each of the equal cells from 0 to 1."""
    edges = np.arange(cells + 1) / cells
    inside = np.minimum(high[:, None], edges[1:]) - np.maximum(low[:, None], edges[:-1])
    return np.maximum(inside, 0) / (high - low)[:, None]


def jensen_shannon(a: Map, b: Map) -> float:
    """The Jensen-Shannon divergence of two maps: 0 for the same map, 1 for maps that nowhere overlap.

    KL(a || m) / 2 + KL(b || m) / 2 with m = (a + b) / 2 and logarithms to base 2 (Lin 1991, Divergence measures based
    on the Shannon entropy, IEEE Trans. Inf. Theory 37, section IV, with equal weights). Its root is a metric; it knows
    nothing of how far apart two places are, which `centre_distance` does.
    """
    p, q = _parts_of_one(a, b)
    middle = (p + q) / 2
    return float(min(max((_kl(p, middle) + _kl(q, middle)) / 2, 0.0), 1.0))


def _kl(p: Map, q: Map) -> float:
    there = p > 0
    return float((p[there] * np.log2(p[there] / q[there])).sum())


def cosine(a: Map, b: Map) -> float:
    """The cosine of two maps as vectors of cells, from 0 to 1; peaks weigh most. Maps are not centred."""
    p, q = _parts_of_one(a, b)
    return float(min((p * q).sum() / np.sqrt((p * p).sum() * (q * q).sum()), 1.0))


def top_overlap(a: Map, b: Map, part: float = TOP) -> float:
    """How much of where both look most is one place: intersection over union of the hottest `part` of the area.

    The hottest part of a map is the `part` of its cells with the highest values. Where the limit falls among equal
    values (a model with few tokens has many equal cells), those cells belong to it in equal fractions, and intersection
    and union are sums of the smaller and the larger fractions (Jaccard index of fuzzy sets). So two flat maps have an
    overlap of 1, and no order of cells decides. Of a nearly flat map the hottest part is an accident (`from_flat`
    tells), and where tokens are larger than `part` it is a part of one token. 0 to 1; our choice.

    Raises ValueError for a part that is not above 0 and at most 1.
    """
    if not 0 < part <= 1:
        raise ValueError(f"a part of the area is above 0 and at most 1, not {part}")
    p, q = _parts_of_one(a, b)
    first, second = _hottest(p, part), _hottest(q, part)
    return float(np.minimum(first, second).sum() / np.maximum(first, second).sum())


def _hottest(values: Map, part: float) -> Map:
    """[h, w]: which fraction of each cell belongs to the hottest part; they sum to `part` of the cells."""
    wanted = part * values.size
    order = np.sort(values, axis=None)[::-1]
    limit = order[min(int(np.ceil(wanted)), values.size) - 1]
    equal = np.isclose(values, limit, rtol=1e-9, atol=0)
    above = (values > limit) & ~equal
    return above + equal * ((wanted - above.sum()) / equal.sum())


def centre(values: Map) -> tuple[float, float]:
    """The centre of mass of a map: (x, y) in parts of the image's width and height, (0, 0) at the upper left."""
    _check(values)
    height, width = values.shape
    total = values.sum()
    x = (values.sum(0) * (np.arange(width) + 0.5)).sum() / (width * total)
    y = (values.sum(1) * (np.arange(height) + 0.5)).sum() / (height * total)
    return float(x), float(y)


def centre_distance(a: Map, b: Map) -> float:
    """How far apart the centres of mass of two maps are, in parts of the image: 0 to the square root of 2.

    Along x a part of the width, along y a part of the height. Two maps with one centre may look quite different.
    """
    _parts_of_one(a, b)
    (x, y), (u, v) = centre(a), centre(b)
    return float(np.hypot(x - u, y - v))


def from_flat(values: Map) -> float:
    """The Jensen-Shannon divergence of a map from attention that is spread evenly over the image: how picky it is."""
    return jensen_shannon(values, np.ones_like(values))


def _parts_of_one(a: Map, b: Map) -> tuple[Map, Map]:
    _check(a)
    _check(b)
    if a.shape != b.shape:
        raise ValueError(f"maps of {a.shape} and {b.shape} cells are not on one grid")
    return a / a.sum(), b / b.sum()


def _check(values: Map) -> None:
    if values.ndim != 2 or not np.isfinite(values).all() or (values < 0).any() or not values.any():
        raise ValueError("a map is two-dimensional, finite, not negative and not all 0")


MEASURES = {
    "jensen_shannon": jensen_shannon, "cosine": cosine, "top_overlap": top_overlap, "centre_distance": centre_distance,
}  # fmt: skip
