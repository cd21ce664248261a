"""Where the tokens of two encoders lie in a plane, by principal components."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]
MOST = 250  # points of each side


@dataclass(frozen=True)
class Plane:
    """a, b: float64 ``(n, 2)``. shares: of the variance that both directions hold, for all points, or of a and b."""

    a: Matrix
    b: Matrix
    shares: tuple[float, ...]


def common_plane(a: Matrix, b: Matrix) -> Plane:
    """Both sides on the two main directions of all their points together, which have one space.

    a ``(n, D)``, b ``(m, D)``: float64, at least one row each. Principal components are those of the centred rows
    (Pearson 1901), by their singular vectors, each of the sign that makes its largest part positive (our choice).
    """
    points, share = _main(np.concatenate([a, b]))
    return Plane(points[: len(a)], points[len(a) :], (share,))


def turned_plane(a: Matrix, b: Matrix) -> Plane:
    """Each side on its own two main directions, brought to one size, the second turned to lie on the first.

    a ``(n, D)``, b ``(n, E)``: float64, the same samples row by row; for sides without a common space. The turn (or
    mirroring) leaves the least sum of squared distances (Schoenemann 1966); that both are drawn so is our choice.
    """
    (first, share_a), (second, share_b) = _main(a), _main(b)
    first, second = (side / (np.linalg.norm(side) or 1.0) for side in (first, second))
    left, _, right = np.linalg.svd(second.T @ first)
    return Plane(first, second @ (left @ right), (share_a, share_b))


def some(rows: Matrix) -> Matrix:
    """At most 250 rows, evenly spaced."""
    return rows[np.linspace(0, len(rows) - 1, min(len(rows), MOST)).round().astype(int)]


def _main(rows: Matrix) -> tuple[Matrix, float]:
    """Coordinates ``(n, 2)`` on the two main directions, and the share of the variance that they hold."""
    rows = rows - rows.mean(0)
    _, sizes, directions = np.linalg.svd(rows, full_matrices=False)
    two = directions[:2]
    largest = np.abs(two).argmax(1)
    two = two * np.where(two[np.arange(len(two)), largest] < 0, -1.0, 1.0)[:, None]
    points = np.zeros((len(rows), 2))
    points[:, : len(two)] = rows @ two.T
    total = float((sizes**2).sum())
    return points, float((sizes[:2] ** 2).sum()) / total if total else 0.0
