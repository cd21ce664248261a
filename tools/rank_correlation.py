"""Spearman's rank correlation, with the share of permutations that are as far from zero."""

from collections.abc import Sequence
from itertools import permutations
from math import factorial
from typing import Any

import numpy as np

EXACT = 7  # pairs up to which all permutations are taken
DRAWS = 20_000


def ranks(values: Sequence[float]) -> np.ndarray:
    """float64 [n], from 1; equal values share the mean of their ranks."""
    given = np.asarray(values, dtype=np.float64)
    return ((given[:, None] > given).sum(1) + (given[:, None] >= given).sum(1) + 1) / 2


def correlation(x: Sequence[float], y: Sequence[float]) -> dict[str, Any]:
    """{"rho", "p", "n"}: the correlation of ranks, and the two-sided p of a permutation test.

    All permutations up to EXACT pairs, else DRAWS of them from a fixed seed, counting the one that was found. rho and p
    are None for fewer than three pairs, and where one side does not vary.
    """
    n = len(x)
    if n < 3 or len(set(x)) == 1 or len(set(y)) == 1:
        return {"rho": None, "p": None, "n": n}
    first, second = (row - row.mean() for row in (ranks(x), ranks(y)))
    scale = float(np.sqrt((first @ first) * (second @ second)))
    rho = float(first @ second) / scale
    if n <= EXACT:
        orders = np.array(list(permutations(range(n))))
        count, least = factorial(n), 0
    else:
        random = np.random.default_rng(0)
        orders = random.permuted(np.tile(np.arange(n), (DRAWS, 1)), axis=1)
        count, least = DRAWS + 1, 1
    found = second[orders] @ first / scale
    return {"rho": rho, "p": float((np.sum(np.abs(found) >= abs(rho) - 1e-9) + least) / count), "n": n}
