"""How features spread: in how many directions, about which mean, and how long they are beside others."""

from typing import NamedTuple

import torch
from torch import Tensor

from fuse.align import Unmeasurable
from fuse.align.measures.moments import Cross, Means
from fuse.align.measures.samples import SIDES, enough, same_width, samples, varying

LEAST = 2
ROWS = 4096


class SpreadOf(NamedTuple):
    """effective_rank, participation: between 1 and min(n - 1, p). norm: the mean length of a sample, not centred.

    mean: float64 ``(p,)`` on the CPU.
    """

    effective_rank: float
    participation: float
    norm: float
    mean: Tensor
    samples: int


class Spread:
    """Adds up batches of samples; memory is p x p numbers and `ROWS` samples in float64.

    effective rank: ``exp(-sum p_i ln p_i)`` with ``p_i = s_i / sum s``, s the singular values of the centred features
    (Roy and Vetterli, EUSIPCO 2007, section 2, who do not centre: our choice).
    participation ratio: ``(sum s_i^2)^2 / sum s_i^4`` (Gao et al. 2017). It is smaller, as it weighs the
    large directions more.
    """

    def __init__(self) -> None:
        self._means: Means | None = None
        self._lengths = 0.0

    def add(self, x: Tensor) -> None:
        """Take in samples ``(rows, p)``, any float dtype."""
        if self._means is None:
            self._means = Means([x.shape[1]], x.device)
            self._cross = Cross(x.shape[1], x.shape[1], x.device)
        for piece in x.detach().split(ROWS):
            self._lengths += float(piece.double().norm(dim=1).sum())
            step = self._means.add([piece])
            self._cross.add(step, step)

    def value(self, whose: str = "the features") -> SpreadOf:
        """Of the samples so far. Raises Unmeasurable for fewer than 2, features that do not vary or are not finite."""
        means = self._means or Means([0])
        enough(means.n, LEAST, "spread")
        means.check(0, whose)
        squares = torch.linalg.eigvalsh(self._cross.matrix)
        return _of(squares, self._lengths / means.n, means.mean, means.n)


def spread(x: Tensor, whose: str = "the features") -> SpreadOf:
    """The same of one matrix ``(n, p)``, with a matrix of samples by samples where these are fewer than features."""
    x = samples(x, whose)
    enough(len(x), LEAST, "spread")
    mean = x.mean(0)
    about = x - mean
    varying(float(about.square().sum()), float(mean.square().sum()), len(x), whose)
    squares = torch.linalg.eigvalsh(about @ about.T if len(x) < x.shape[1] else about.T @ about)
    return _of(squares, float(x.norm(dim=1).mean()), mean, len(x))


def _of(squares: Tensor, norm: float, mean: Tensor, n: int) -> SpreadOf:
    largest = squares.max()
    # below this an eigenvalue is rounding, and its root is not small beside those of true ones
    squares = squares[squares > len(squares) * torch.finfo(torch.float64).eps * largest] / largest
    roots = squares.sqrt()
    shares = roots / roots.sum()
    rank = float(-(shares * shares.log()).sum())
    participation = float(squares.sum() ** 2 / squares.square().sum())
    return SpreadOf(float(torch.tensor(rank, dtype=torch.float64).exp()), participation, norm, mean.cpu(), n)


def cosine_of_means(x: Tensor, y: Tensor) -> float:
    """The cosine between the mean samples of both sides, -1 to 1, which tells whether they lie on one side of zero.

    x, y: the means ``(p,)``, as `SpreadOf` has them, or samples ``(n, p)`` and ``(m, p)``; any float dtype.
    Raises Unmeasurable where the widths differ, a side is empty, or a mean is zero or not finite. (Our choice.)
    """
    same_width(x, y, "the cosine of means")
    units = []
    for side, whose in zip((x, y), SIDES, strict=True):
        rows = samples(torch.atleast_2d(side), whose)
        enough(len(rows), 1, "the cosine of means")
        mean = rows.mean(0)
        length = mean.norm()
        if not length:
            raise Unmeasurable(f"the mean of {whose} is zero, which has no direction")
        units.append(mean / length)
    return float((units[0] @ units[1]).clamp(-1, 1))


def norm_ratio(x: Tensor, reference: Tensor) -> float:
    """The mean length of the rows of x over that of the reference's: of visual tokens and of text embeddings.

    x: ``(n, p)``; reference: ``(m, p)``, any float dtype, the rows that count (no padding of the table).
    Raises Unmeasurable where the widths differ, a side is empty or not finite, or the reference is zero. (Our choice.)
    """
    same_width(x, reference, "the norm ratio")
    mine, other = (samples(side, whose).norm(dim=1) for side, whose in zip((x, reference), SIDES, strict=True))
    enough(min(len(mine), len(other)), 1, "the norm ratio")
    if not other.any():
        raise Unmeasurable("the reference of the norm ratio is zero")
    return float(mine.mean() / other.mean())
