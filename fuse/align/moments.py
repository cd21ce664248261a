"""Sums about the mean that stay exact while samples come in batches and the mean moves.

Chan, Golub and LeVeque (1983), in the form of Welford: the old sums move to the new mean, and the new samples are
centred on it. Nothing large is ever subtracted from something large.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from fuse.align.samples import varying


@dataclass(frozen=True)
class Step:
    """What a batch does to the mean.

    before: the samples before it; square: their sum of squared distances to the old mean. shift: the new mean minus
    the old one, ``(p,)``. centred: the batch about the new mean, ``(rows, p)``; norms: its squared lengths,
    ``(rows,)``.
    """

    before: int
    square: float
    shift: Tensor
    centred: Tensor
    norms: Tensor


class Mean:
    """The mean of the samples so far, and the sum of their squared distances to it. Memory: p numbers."""

    def __init__(self) -> None:
        self.n, self.square = 0, 0.0
        self.mean: Tensor | None = None

    def add(self, x: Tensor) -> Step:
        """Take in a batch ``(rows, p)`` in float64; returns what it changes, for the sums that depend on it."""
        old = x.new_zeros(x.shape[1]) if self.mean is None else self.mean
        total = self.n + len(x)
        shift = (x - old).sum(0) / max(total, 1)
        if self.n == 0:
            old, shift = shift, torch.zeros_like(shift)
        new = old + shift
        centred = x - new
        norms = centred.square().sum(1)
        step = Step(self.n, self.square, shift, centred, norms)
        self.square += self.n * float(shift @ shift) + float(norms.sum())
        self.n, self.mean = total, new
        return step

    def check(self, whose: str) -> None:
        """Raise Unmeasurable where the samples do not vary, or are not finite."""
        mean = 0.0 if self.mean is None else float(self.mean.square().sum())
        varying(self.square, mean, self.n, whose)


class Cross:
    """The centred cross-covariance sum ``(X - mean).T @ (Y - mean)``, unscaled. Memory: p x q numbers."""

    def __init__(self, p: int, q: int, device: torch.device | str = "cpu") -> None:
        self.matrix = torch.zeros(p, q, dtype=torch.float64, device=device)

    def add(self, x: Step, y: Step) -> None:
        """Take in the same samples of both sides."""
        if x.before:
            self.matrix.addr_(x.shift, y.shift, alpha=x.before)
        self.matrix.addmm_(x.centred.T, y.centred)
