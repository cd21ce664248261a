"""Exact linear CKA of many pairs of layers from sums over samples: memory that does not grow with them."""

from collections.abc import Sequence

import torch
from torch import Tensor

from fuse.align.hsic import Hsic, from_features, stacked
from fuse.align.moments import Cross, Mean, Step


def memory(widths_a: Sequence[int], widths_b: Sequence[int], samples: int) -> int:
    """Bytes of the sums: a matrix of features by features for each pair of layers, and for each layer."""
    del samples
    return 8 * (sum(widths_a) * sum(widths_b) + sum(p * p for p in (*widths_a, *widths_b)))


class Pair:
    """What HSIC of one layer's features x with another's y needs, about their means.

    With ``a_i = |x_i|^2`` and ``b_i = |y_i|^2``: the cross-covariance ``(p, q)``, ``sum a b``, ``sum b x`` and
    ``sum a y``. The last two only serve to move the others to a new mean.
    """

    def __init__(self, p: int, q: int, device: torch.device) -> None:
        self.cross = Cross(p, q, device)
        self.norms = torch.zeros((), dtype=torch.float64, device=device)
        self.by_y = torch.zeros(p, dtype=torch.float64, device=device)
        self.by_x = torch.zeros(q, dtype=torch.float64, device=device)

    def add(self, x: Step, y: Step) -> None:
        """Take in the same samples of both layers."""
        if x.before:
            self._move(x, y)
        self.cross.add(x, y)
        self.norms += x.norms @ y.norms
        self.by_y += y.norms @ x.centred
        self.by_x += x.norms @ y.centred

    def _move(self, x: Step, y: Step) -> None:
        # the old samples about the new mean are x - d and y - e, whose products multiply out to these terms
        d, e, n = x.shift, y.shift, x.before
        dd, ee = d @ d, e @ e
        along_y, along_x = self.cross.matrix @ e, d @ self.cross.matrix
        self.norms += -2 * (e @ self.by_x) - 2 * (d @ self.by_y) + 4 * (d @ along_y)
        self.norms += ee * x.square + dd * y.square + n * dd * ee
        self.by_y -= 2 * along_y + (y.square + n * ee) * d
        self.by_x -= 2 * along_x + (x.square + n * dd) * e

    def hsic(self, x: Mean, y: Mean) -> Hsic:
        squares = (self.norms.new_tensor(side.square) for side in (x, y))
        return from_features(x.n, self.cross.matrix.square().sum(), self.norms, *squares)


class Covariances:
    """HSIC of every layer of one side with every layer of the other, and of each with itself."""

    def __init__(self, widths_a: Sequence[int], widths_b: Sequence[int], device: torch.device) -> None:
        self.means = [[Mean() for _ in widths] for widths in (widths_a, widths_b)]
        self._own = [[Pair(p, p, device) for p in widths] for widths in (widths_a, widths_b)]
        self._pairs = [[Pair(p, q, device) for q in widths_b] for p in widths_a]

    def add(self, a: Sequence[Tensor], b: Sequence[Tensor]) -> None:
        """Take in the same samples of all layers, ``(rows, p)`` each."""
        steps = [
            [mean.add(x.double()) for mean, x in zip(means, layers, strict=True)]
            for means, layers in zip(self.means, (a, b), strict=True)
        ]
        for own, layers in zip(self._own, steps, strict=True):
            for pair, step in zip(own, layers, strict=True):
                pair.add(step, step)
        for row, x in zip(self._pairs, steps[0], strict=True):
            for pair, y in zip(row, steps[1], strict=True):
                pair.add(x, y)

    def check(self, side: int, layer: int, whose: str) -> None:
        """Raise Unmeasurable where a layer does not vary."""
        self.means[side][layer].check(whose)

    def own(self, side: int) -> Hsic:
        """HSIC of each layer of a side with itself, ``(layers,)``."""
        return stacked(pair.hsic(mean, mean) for pair, mean in zip(self._own[side], self.means[side], strict=True))

    def cross(self) -> Hsic:
        """HSIC of each layer of the first side with each of the second, ``(L, M)``."""
        first, second = self.means
        rows = (
            stacked(pair.hsic(x, y) for pair, y in zip(row, second, strict=True))
            for row, x in zip(self._pairs, first, strict=True)
        )
        return stacked(rows)

    def how(self) -> str:
        """One clause on what the values are taken over."""
        return f"exact, over {self.means[0][0].n:,} samples, from sums of features by features"
