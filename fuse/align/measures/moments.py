"""Sums about the mean that stay exact while samples come in batches and the mean moves.

Chan, Golub and LeVeque (1983), in the form of Welford: the old sums move to the new mean, and the new samples are
centred on it. Nothing large is ever subtracted from something large. The layers of a side stand beside each other as
blocks of columns, so that many pairs of layers are one product of matrices.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from fuse.align.measures.samples import varying


@dataclass(frozen=True)
class Step:
    """What a batch does to the means of L layers with P features in all.

    before: the samples before it. squares: ``(L,)``, their sums of squared distances to the old means. shift: ``(P,)``,
    the new means minus the old ones. shifts: ``(P, L)``, the same with a column for each layer and zeros elsewhere.
    centred: ``(rows, P)``, the batch about the new means; norms: ``(rows, L)``, its squared lengths.
    """

    before: int
    squares: Tensor
    shift: Tensor
    shifts: Tensor
    centred: Tensor
    norms: Tensor

    def apart(self, columns: Sequence[slice]) -> Iterator["Step"]:
        """A step of each layer alone."""
        for layer, part in enumerate(columns):
            one = slice(layer, layer + 1)
            shift, shifts = self.shift[part], self.shifts[part, one]
            yield Step(self.before, self.squares[one], shift, shifts, self.centred[:, part], self.norms[:, one])


class Means:
    """The mean of the samples so far of every layer, and the sum of squared distances to it. Memory: P numbers."""

    def __init__(self, widths: Sequence[int], device: torch.device | str = "cpu") -> None:
        ends = torch.tensor([0, *widths]).cumsum(0).tolist()
        self.columns = [slice(*edges) for edges in pairwise(ends)]
        self.n, self.mean = 0, torch.zeros(ends[-1], dtype=torch.float64, device=device)
        self.squares = torch.zeros(len(widths), dtype=torch.float64, device=device)

    def add(self, layers: Sequence[Tensor]) -> Step:
        """Take in a batch ``(rows, p)`` of each layer, any float dtype; returns what it changes, for other sums."""
        x = torch.cat([layer.detach().to(torch.float64) for layer in layers], 1)
        before, squares, shift = self.n, self.squares, torch.zeros_like(self.mean)
        self.n += len(x)
        if before == 0:
            self.mean = x.mean(0)
        else:
            shift = (x.sum(0) - len(x) * self.mean) / self.n
            self.mean = self.mean + shift
        x -= self.mean
        norms = torch.stack([x[:, columns].norm(dim=1).square() for columns in self.columns], 1)
        shifts = torch.zeros(len(shift), len(squares), dtype=torch.float64, device=x.device)
        for layer, columns in enumerate(self.columns):
            shifts[columns, layer] = shift[columns]
        self.squares = squares + before * shifts.square().sum(0) + norms.sum(0)
        return Step(before, squares, shift, shifts, x, norms)

    def apart(self) -> Iterator["Means"]:
        """Those of each layer alone."""
        for layer, part in enumerate(self.columns):
            one = Means([part.stop - part.start])
            one.n, one.mean, one.squares = self.n, self.mean[part], self.squares[layer : layer + 1]
            yield one

    def check(self, layer: int, whose: str) -> None:
        """Raise Unmeasurable where a layer does not vary, or is not finite."""
        mean = float(self.mean[self.columns[layer]].square().sum())
        varying(float(self.squares[layer]), mean, self.n, whose)


class Cross:
    """The centred cross-covariance sum ``(X - mean).T @ (Y - mean)``, unscaled. Memory: P x Q numbers."""

    def __init__(self, p: int, q: int, device: torch.device | str = "cpu") -> None:
        self.matrix = torch.zeros(p, q, dtype=torch.float64, device=device)

    def add(self, x: Step, y: Step) -> None:
        """Take in the same samples of both sides."""
        if x.before:
            self.matrix.addr_(x.shift, y.shift, alpha=x.before)
        self.matrix.addmm_(x.centred.T, y.centred)
