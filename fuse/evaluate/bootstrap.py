"""Bootstrap intervals of means, by percentiles: Efron and Tibshirani, An Introduction to the Bootstrap (1993), 13.3.

A resample draws as many questions as there are, with replacement. The mean of a resample depends only on how often
each distinct score was drawn, and these counts follow a multinomial distribution; drawing them is the same as drawing
questions, takes the time of a few distinct scores instead of that of all questions, and does not depend on the order
of the questions.
"""

import numpy as np

LEVEL = 0.95
RESAMPLES = 10_000
_AT_ONCE = 1 << 22  # counts held in memory: 32 MB


def interval(
    values: np.ndarray, *, groups: np.ndarray | None = None, level: float = LEVEL, seed: int = 0,
    resamples: int = RESAMPLES,
) -> tuple[float, float]:  # fmt: skip
    """The interval of the mean of `values`, low and high.

    values: float64 [n], n at least 1. groups: a whole number for each of them, [n]; then it is the interval of the
    mean of the groups' means, and each group is resampled within itself. The same seed gives the same interval.
    """
    labels = np.zeros(len(values), dtype=int) if groups is None else groups
    rng = np.random.default_rng(seed)
    parts = [values[labels == label] for label in np.unique(labels)]
    means = sum(_resampled_means(part, rng, resamples) for part in parts) / len(parts)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def paired(
    first: np.ndarray, second: np.ndarray, *, groups: np.ndarray | None = None, level: float = LEVEL, seed: int = 0,
    resamples: int = RESAMPLES,
) -> tuple[float, float, float]:  # fmt: skip
    """The mean of `second` minus that of `first` (of the groups' means with `groups`), with its interval, low and high.

    first, second: float64 [n], scores of the same questions in the same order. A resample draws the same questions
    for both, so what is resampled is the difference at each question.
    """
    difference = second - first
    low, high = interval(difference, groups=groups, level=level, seed=seed, resamples=resamples)
    return mean(difference, groups), low, high


def mean(values: np.ndarray, groups: np.ndarray | None = None) -> float:
    """The mean of float64 [n]; with groups, [n], the mean of the groups' means."""
    if groups is None:
        return float(values.mean())
    return float(np.mean([values[groups == label].mean() for label in np.unique(groups)]))


def _resampled_means(values: np.ndarray, rng: np.random.Generator, resamples: int) -> np.ndarray:
    """Means of resamples, float64 [resamples]."""
    distinct, counts = np.unique(values, return_counts=True)
    if len(distinct) == 1:
        return np.full(resamples, distinct[0])
    rows = max(1, _AT_ONCE // len(distinct))
    drawn = [
        rng.multinomial(len(values), counts / len(values), size=min(rows, resamples - start)) @ distinct
        for start in range(0, resamples, rows)
    ]
    return np.concatenate(drawn) / len(values)
