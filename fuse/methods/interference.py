"""The loss of WUDI and its kin, and the ways down it (arXiv 2503.08099; arXiv 2505.19892).

``L(M) = sum_k |(M - T_k) A_k.T|^2 / |tau_k|^2``: on the directions A_k that task matrix tau_k reacts to, the merged
matrix M should do what the target T_k does. The loss is quadratic, with the gradient ``2 (M C - D)`` for
``C = sum_k A_k.T A_k / |tau_k|^2`` and ``D = sum_k T_k A_k.T A_k / |tau_k|^2``.

So gradient descent needs no steps: along each eigenvector of C it goes its own way, which depends on the eigenvalue
only. Whatever the number of steps, with momentum or in the limit of small steps, it ends in
``M_0 + (D - M_0 C) V diag(q(l)) V.T``, where V holds the eigenvectors and q(l) is one number for each eigenvalue.
Adam rescales every element, so it has to take its steps.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from fuse import interruption
from fuse.methods.eigen import eigh
from fuse.methods.matrices import row_blocks, times

# Rows that Adam moves at a time: they do not depend on each other.
ROWS = 512
MOMENTUM = 0.9
BETA_1, BETA_2, EPSILON = 0.9, 0.999, 1e-8


@dataclass(frozen=True, slots=True)
class Quadratic:
    """The loss in float64. c: ``(width, width)``, symmetric, no negative eigenvalue. d: ``(rows, width)``."""

    c: Tensor
    d: Tensor


def quadratic(tasks: Iterable[tuple[Tensor, Tensor, Tensor]]) -> Quadratic:
    """The loss of some tasks, each given as tau_k, T_k and ``A_k.T A_k`` (float64, which is overwritten).

    A task matrix of zeros has no direction to protect; it is left out of the sums, so that nothing is divided by zero.
    """
    c = d = None
    for delta, target, products in tasks:
        square = float(torch.linalg.vector_norm(delta, dtype=torch.float64)) ** 2
        share = products.div_(square) if square > 0 else products.zero_()
        if c is None or d is None:
            c, d = torch.zeros_like(share), times(target, share)
        else:
            for block, out in row_blocks(target, d):
                out.addmm_(block.double(), share)
        c.add_(share)
    assert c is not None and d is not None
    return Quadratic(c, d)


def descend(start: Tensor, loss: Quadratic, progress: Callable[[Tensor], Tensor]) -> Tensor:
    """Where gradient descent from `start` ends, ``(rows, width)`` in start's dtype.

    progress: q, from the eigenvalues of C in ascending order, ``(width,)``; ``1 / l`` is the way to the minimum.
    """
    values, vectors = eigh(loss.c)
    covered, merged = progress(values), torch.empty_like(start)
    for out, block, pull in row_blocks(merged, start, loss.d):
        here = block.double()
        out.copy_((((pull - here @ loss.c) @ vectors) * covered) @ vectors.T + here)
    return merged


def momentum(values: Tensor, *, rate: float, steps: int) -> Tensor:
    """The progress of gradient descent with a momentum of 0.9, for `descend`."""
    moved, speed = torch.zeros_like(values), torch.zeros_like(values)
    for _ in range(steps):
        speed = MOMENTUM * speed + 2 * (values * moved - 1)
        moved = moved - rate * speed
    return moved


def adam(start: Tensor, loss: Quadratic, *, rate: float, steps: int) -> Tensor:
    """Where Adam (arXiv 1412.6980, with its usual constants) is after some steps, in start's dtype.

    One product ``(ROWS, width) @ (width, width)`` a step. The gradient is written around `start`, which keeps what the
    steps add from drowning in the rounding of what was there.
    """
    curvature, merged = (2 * loss.c).to(start.dtype), torch.empty_like(start)
    for out, block, pull in zip(merged.split(ROWS), start.split(ROWS), loss.d.split(ROWS), strict=True):
        slope = (block.double() @ loss.c - pull).mul_(2).to(start.dtype)
        out.copy_(_adam(slope, curvature, rate, steps).add_(block))
    return merged


def _adam(slope: Tensor, curvature: Tensor, rate: float, steps: int) -> Tensor:
    moved, first, second = (torch.zeros_like(slope) for _ in range(3))
    for step in range(1, steps + 1):
        interruption.check()
        gradient = (moved @ curvature).add_(slope)
        first.mul_(BETA_1).add_(gradient * (1 - BETA_1))
        second.mul_(BETA_2).add_(gradient.square_().mul_(1 - BETA_2))
        size = (second / (1 - BETA_2**step)).sqrt_().add_(EPSILON)
        moved.sub_((first * (rate / (1 - BETA_1**step))).div_(size))
    return moved
