"""Features as rows of samples: the checks that every measure makes, and centring."""

import math

import torch
from torch import Tensor

from fuse.align import Unmeasurable

SIDES = ("the first features", "the second features")

# Features whose spread is below this share of their mean's length count as constant: float32 cannot tell them from
# rounding (our choice).
FLAT = 1e-6


def samples(x: Tensor, whose: str) -> Tensor:
    """The rows in float64, on their device.

    x: ``(n, p)``, any float dtype. whose: what the error calls them.
    Raises ValueError where x is no matrix, Unmeasurable where a number is not finite.
    """
    if x.ndim != 2:
        raise ValueError(f"{whose} should be a matrix of samples by features, not of shape {tuple(x.shape)}")
    x = x.detach().to(torch.float64)
    if not bool(x.isfinite().all()):
        raise Unmeasurable(f"{whose} hold numbers that are not finite")
    return x


def paired(x: Tensor, y: Tensor, least: int, measure: str) -> tuple[Tensor, Tensor]:
    """Both sides in float64, where row i of one and row i of the other are the same sample.

    Raises ValueError where the rows are not equally many, Unmeasurable where they are fewer than `least`.
    """
    first, second = (samples(side, whose) for side, whose in zip((x, y), SIDES, strict=True))
    if len(first) != len(second):
        raise ValueError(f"both sides should have the same samples, not {len(first)} and {len(second)}")
    enough(len(first), least, measure)
    return first, second


def enough(n: int, least: int, measure: str) -> None:
    """Raise Unmeasurable where there are fewer samples than the measure needs."""
    if n < least:
        raise Unmeasurable(f"{measure} needs at least {least} sample{'' if least == 1 else 's'}, not {n}")


def centred(x: Tensor, whose: str) -> Tensor:
    """x minus its mean row. Raises Unmeasurable where that leaves nothing but rounding."""
    mean = x.mean(0)
    x = x - mean
    varying(float(x.square().sum()), float(mean.square().sum()), len(x), whose)
    return x


def varying(square: float, mean_square: float, n: int, whose: str) -> None:
    """Raise Unmeasurable for features that do not vary.

    square: the sum of squared distances to the mean. mean_square: the squared length of the mean.
    """
    if not math.isfinite(square):
        raise Unmeasurable(f"{whose} hold numbers that are not finite")
    if square <= n * FLAT**2 * mean_square:
        raise Unmeasurable(f"{whose} do not vary over {n} samples")


def same_width(x: Tensor, y: Tensor, measure: str) -> None:
    """Raise Unmeasurable where the sides do not share a space."""
    if x.shape[-1] != y.shape[-1]:
        raise Unmeasurable(f"{measure} needs a common space, not {x.shape[-1]} and {y.shape[-1]} features")
