"""Linear CKA of many pairs of layers as an average over batches, where the exact sums would not fit.

Nguyen, Raghu and Kornblith (arXiv 2010.15327), section 3: HSIC is averaged over batches before the ratio is taken,

    CKA = mean_b HSIC(K_b, L_b) / sqrt(mean_b HSIC(K_b, K_b) mean_b HSIC(L_b, L_b)).

With HSIC_1, which is unbiased, each of the three means has the value that all samples would have, whatever the size of
a batch. This holds where a batch is a random draw of the samples. Rows that come image after image make a batch of few
images, and the value then tells of the likeness within these.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from fuse.align.measures.cka.hsic import Hsic, from_features
from fuse.align.measures.moments import Means

BATCH = 512


def memory(widths_a: Sequence[int], widths_b: Sequence[int], samples: int) -> int:
    """Bytes of two batches of all layers in float64 and of their kernels."""
    del samples
    return 8 * BATCH * (2 * (sum(widths_a) + sum(widths_b)) + BATCH * (len(widths_a) + len(widths_b)))


class Batches:
    """Averages over batches of `BATCH` rows, in the order in which rows come; the rest that fills no batch is left out.

    With fewer rows than one batch there is one batch of all of them, and the value is the exact one.
    """

    def __init__(self, widths_a: Sequence[int], widths_b: Sequence[int], device: torch.device) -> None:
        self._means = [Means(widths, device) for widths in (widths_a, widths_b)]
        self._waiting: list[list[Tensor]] = []  # pieces of all layers, of the first side and then of the second
        self._split, self._rows, self.batches = len(widths_a), 0, 0
        self._sums: list[Hsic] = []

    def add(self, a: Sequence[Tensor], b: Sequence[Tensor]) -> None:
        """Take in the same samples of all layers, ``(rows, p)`` each."""
        for means, layers in zip(self._means, (a, b), strict=True):
            means.add(layers)
        self._waiting.append([x.detach() for x in (*a, *b)])
        self._rows += len(a[0])
        if self._rows < BATCH:
            self._waiting[-1] = [x.clone() for x in self._waiting[-1]]
            return
        joined = [torch.cat(pieces) for pieces in zip(*self._waiting, strict=True)]
        whole = self._rows - self._rows % BATCH
        for start in range(0, whole, BATCH):
            found = self._batch([x[start : start + BATCH] for x in joined])
            self._sums = [_added(*pair) for pair in zip(self._sums, found, strict=True)] if self.batches else found
            self.batches += 1
        self._waiting, self._rows = [[x[whole:].clone() for x in joined]], self._rows - whole

    def check(self, side: int, layer: int, whose: str) -> None:
        """Raise Unmeasurable where a layer does not vary."""
        self._means[side].check(layer, whose)

    def own(self, side: int) -> Hsic:
        """HSIC of each layer of a side with itself, ``(layers,)``, summed over batches."""
        return self._found()[1 + side]

    def cross(self) -> Hsic:
        """HSIC of each layer of the first side with each of the second, ``(L, M)``, summed over batches."""
        return self._found()[0]

    def how(self) -> str:
        """One clause on what the values are taken over."""
        if not self.batches:
            return f"exact, over {self._rows:,} samples, in one batch"
        plural = "batch" if self.batches == 1 else "batches"
        left = f"; {self._rows:,} samples that fill no batch are left out" if self._rows else ""
        return f"averaged over {self.batches:,} {plural} of {BATCH:,} samples{left}"

    def _found(self) -> list[Hsic]:
        return self._sums or self._batch([torch.cat(pieces) for pieces in zip(*self._waiting, strict=True)])

    def _batch(self, layers: Sequence[Tensor]) -> list[Hsic]:
        kernels = [_kernel(x) for x in layers]
        first, second = (torch.stack(side) for side in (kernels[: self._split], kernels[self._split :]))
        del kernels
        return [_cross(first, second), _own(first), _own(second)]


def _added(x: Hsic, y: Hsic) -> Hsic:
    return Hsic(x.biased + y.biased, x.unbiased + y.unbiased)


def _kernel(x: Tensor) -> Tensor:
    x = x.double()
    x = x - x.mean(0)
    return x @ x.T


def _cross(first: Tensor, second: Tensor) -> Hsic:
    diagonals = [side.diagonal(dim1=1, dim2=2) for side in (first, second)]
    product = first.flatten(1) @ second.flatten(1).T
    squares_x, squares_y = diagonals[0].sum(1)[:, None], diagonals[1].sum(1)[None]
    return from_features(first.shape[1], product, diagonals[0] @ diagonals[1].T, squares_x, squares_y)


def _own(kernels: Tensor) -> Hsic:
    diagonals = kernels.diagonal(dim1=1, dim2=2)
    squares = diagonals.sum(1)
    norms = diagonals.square().sum(1)
    return from_features(kernels.shape[1], kernels.square().sum((1, 2)), norms, squares, squares)
