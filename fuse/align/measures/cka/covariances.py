"""Exact linear CKA of many pairs of layers from sums over samples: memory that does not grow with them."""

from collections.abc import Sequence

import torch
from torch import Tensor

from fuse.align.measures.cka.hsic import Hsic, from_features
from fuse.align.measures.moments import Cross, Means, Step


def memory(widths_a: Sequence[int], widths_b: Sequence[int], samples: int) -> int:
    """Bytes of the sums: a matrix of features by features for each pair of layers, and for each layer."""
    del samples
    return 8 * (sum(widths_a) * sum(widths_b) + sum(p * p for p in (*widths_a, *widths_b)))


class Products:
    """What HSIC of L layers of features x with M layers of y needs, about their means.

    With ``a_i = |x_i|^2`` and ``b_j = |y_j|^2`` of a sample's features in layers i and j: the cross-covariance
    ``(P, Q)``, ``sum a b`` ``(L, M)``, ``sum x b`` ``(P, M)`` and ``sum a y`` ``(L, Q)``. The last two only serve to
    move the others to new means.
    """

    def __init__(self, x: Means, y: Means) -> None:
        self.cross = Cross(len(x.mean), len(y.mean), x.mean.device)
        self._norms = x.mean.new_zeros(len(x.squares), len(y.squares))
        self._by_y = x.mean.new_zeros(len(x.mean), len(y.squares))
        self._by_x = x.mean.new_zeros(len(x.squares), len(y.mean))

    def add(self, x: Step, y: Step) -> None:
        """Take in the same samples of both sides."""
        if x.before:
            self._move(x, y)
        self.cross.add(x, y)
        self._norms += x.norms.T @ y.norms
        self._by_y += x.centred.T @ y.norms
        self._by_x += x.norms.T @ y.centred

    def _move(self, x: Step, y: Step) -> None:
        # the old samples about the new means are x - d and y - e, whose products multiply out to these terms
        d, e, n = x.shifts, y.shifts, x.before
        dd, ee = d.square().sum(0)[:, None], e.square().sum(0)[None]
        a, b = x.squares[:, None], y.squares[None]
        along_y, along_x = self.cross.matrix @ e, d.T @ self.cross.matrix
        self._norms += 4 * (d.T @ along_y) - 2 * (self._by_x @ e) - 2 * (d.T @ self._by_y)
        self._norms += a * ee + dd * b + n * dd * ee
        self._by_y -= 2 * along_y + x.shift[:, None] * (b + n * ee)
        self._by_x -= 2 * along_x + (a + n * dd) * y.shift[None]

    def hsic(self, x: Means, y: Means) -> Hsic:
        """Of every layer of one side with every layer of the other, ``(L, M)``."""
        products = [[self.cross.matrix[i, j].square().sum() for j in y.columns] for i in x.columns]
        product = torch.stack([torch.stack(row) for row in products])
        return from_features(x.n, product, self._norms, x.squares[:, None], y.squares[None])


class Covariances:
    """HSIC of every layer of one side with every layer of the other, and of each with itself."""

    def __init__(self, widths_a: Sequence[int], widths_b: Sequence[int], device: torch.device) -> None:
        self._means = [Means(widths, device) for widths in (widths_a, widths_b)]
        self._cross = Products(*self._means)
        self._own = [[Products(layer, layer) for layer in means.apart()] for means in self._means]

    def add(self, a: Sequence[Tensor], b: Sequence[Tensor]) -> None:
        """Take in the same samples of all layers, ``(rows, p)`` each."""
        steps = [means.add(layers) for means, layers in zip(self._means, (a, b), strict=True)]
        self._cross.add(*steps)
        for own, means, step in zip(self._own, self._means, steps, strict=True):
            for products, layer in zip(own, step.apart(means.columns), strict=True):
                products.add(layer, layer)

    def check(self, side: int, layer: int, whose: str) -> None:
        """Raise Unmeasurable where a layer does not vary."""
        self._means[side].check(layer, whose)

    def own(self, side: int) -> Hsic:
        """HSIC of each layer of a side with itself, ``(layers,)``."""
        pairs = zip(self._own[side], self._means[side].apart(), strict=True)
        found = [products.hsic(layer, layer) for products, layer in pairs]
        return Hsic(*(torch.cat(values).view(-1) for values in zip(*found, strict=True)))

    def cross(self) -> Hsic:
        """HSIC of each layer of the first side with each of the second, ``(L, M)``."""
        return self._cross.hsic(*self._means)

    def how(self) -> str:
        """One clause on what the values are taken over."""
        return f"exact, over {self._means[0].n:,} samples, from sums of features by features"
