"""Exact linear CKA of many pairs of layers from matrices of samples by samples: for fewer samples than features."""

from collections.abc import Sequence

import torch
from torch import Tensor

from fuse.align.measures.cka.hsic import Hsic, from_features, stacked
from fuse.align.measures.samples import varying


def memory(widths_a: Sequence[int], widths_b: Sequence[int], samples: int) -> int:
    """Bytes of the features of all samples, in float64, and of the kernels of one side and one more layer."""
    return 8 * samples * (sum(widths_a) + sum(widths_b)) + 8 * samples**2 * (len(widths_a) + 1)


class Kernels:
    """Keeps the features, in their own dtype, until a value is asked for; then ``X X'`` of each layer."""

    def __init__(self, widths_a: Sequence[int], widths_b: Sequence[int], device: torch.device) -> None:
        del device
        self._kept: list[list[list[Tensor]]] = [[[] for _ in widths] for widths in (widths_a, widths_b)]

    def add(self, a: Sequence[Tensor], b: Sequence[Tensor]) -> None:
        """Take in the same samples of all layers, ``(rows, p)`` each."""
        for side, layers in zip(self._kept, (a, b), strict=True):
            for kept, x in zip(side, layers, strict=True):
                kept.append(x.detach().clone())

    def check(self, side: int, layer: int, whose: str) -> None:
        """Raise Unmeasurable where a layer does not vary."""
        x = torch.cat(self._kept[side][layer]).double()
        mean = x.mean(0)
        varying(float((x - mean).square().sum()), float(mean.square().sum()), len(x), whose)

    def own(self, side: int) -> Hsic:
        """HSIC of each layer of a side with itself, ``(layers,)``."""
        kernels = (self._kernel(side, layer) for layer in range(len(self._kept[side])))
        return stacked(_hsic(kernel, kernel) for kernel in kernels)

    def cross(self) -> Hsic:
        """HSIC of each layer of the first side with each of the second, ``(L, M)``."""
        first = [self._kernel(0, layer) for layer in range(len(self._kept[0]))]
        columns = []
        for layer in range(len(self._kept[1])):
            second = self._kernel(1, layer)
            columns.append(stacked(_hsic(kernel, second) for kernel in first))
        return Hsic(*(values.T for values in stacked(columns)))

    def how(self) -> str:
        """One clause on what the values are taken over."""
        return f"exact, over {sum(map(len, self._kept[0][0])):,} samples, from matrices of samples by samples"

    def _kernel(self, side: int, layer: int) -> Tensor:
        x = torch.cat(self._kept[side][layer]).double()
        x = x - x.mean(0)
        return x @ x.T


def _hsic(k: Tensor, l: Tensor) -> Hsic:  # noqa: E741 - the letter of the paper
    squares_x, squares_y = k.diagonal(), l.diagonal()
    product = torch.dot(k.view(-1), l.view(-1))
    return from_features(len(k), product, squares_x @ squares_y, squares_x.sum(), squares_y.sum())
