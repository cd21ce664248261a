"""Bootstrap intervals against scipy, a resampling by hand, and what must hold of any of them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from fuse.evaluate import bootstrap
from fuse.evaluate.bootstrap import interval, mean, paired

SCORES = st.lists(st.sampled_from([0.0, 0.3, 0.6, 0.9, 1.0]), min_size=2, max_size=40).map(np.array)


def sample(kind: str, n: int = 60) -> np.ndarray:
    rng = np.random.default_rng(3)
    return (rng.random(n) < 0.3).astype(float) if kind == "exact" else rng.gamma(2.0, size=n)


@pytest.mark.parametrize("kind", ["exact", "cider"])
@pytest.mark.parametrize("level", [0.5, 0.95])
def test_scipy_finds_the_same(kind: str, level: float) -> None:
    values = sample(kind)
    theirs = stats.bootstrap((values,), np.mean, n_resamples=40_000, confidence_level=level, method="percentile",
                             rng=np.random.default_rng(1)).confidence_interval  # fmt: skip
    spread = values.std() / np.sqrt(len(values))
    assert interval(values, level=level, resamples=40_000) == pytest.approx(tuple(theirs), abs=0.06 * spread)


def test_groups_are_resampled_within_themselves() -> None:
    """Against a resampling of questions, drawn one by one."""
    rng = np.random.default_rng(0)
    values, groups = sample("cider"), np.repeat([4, 0, 9], [10, 20, 30])
    parts = [values[groups == group] for group in (0, 4, 9)]
    means = np.mean([part[rng.integers(len(part), size=(40_000, len(part)))].mean(axis=1) for part in parts], axis=0)
    expected = np.quantile(means, [0.025, 0.975])
    assert interval(values, groups=groups, resamples=40_000) == pytest.approx(tuple(expected), abs=0.05 * means.std())
    assert mean(values, groups) == pytest.approx(np.mean([part.mean() for part in parts]))


def test_a_pair_is_narrower_than_its_two_sides() -> None:
    """Folders that differ at two questions of 200: the pair knows, two intervals do not."""
    first = sample("exact", 200)
    second = first.copy()
    second[np.flatnonzero(first == 0)[:2]] = 1
    difference, low, high = paired(first, second)
    assert difference == pytest.approx(0.01)
    assert (low, high) == (0.0, 0.025)  # Poisson of mean 2: 0 to 5 of 200
    ours, theirs = interval(first), interval(second)
    assert high - low < 0.2 * (ours[1] - ours[0]) and theirs[0] < ours[1]


def test_a_pair_is_the_interval_of_its_differences() -> None:
    first, second = sample("exact"), sample("cider")
    groups = np.arange(60) % 4
    for grouping in (None, groups):
        low, high = interval(second - first, groups=grouping, seed=7)
        assert paired(first, second, groups=grouping, seed=7) == (mean(second - first, grouping), low, high)


@settings(deadline=None, max_examples=40)
@given(values=SCORES, seed=st.integers(0, 2**32))
def test_laws(values: np.ndarray, seed: int) -> None:
    low, high = interval(values, seed=seed, resamples=500)
    assert values.min() <= low <= high <= values.max() + 1e-12
    assert interval(values, seed=seed, resamples=500) == (low, high)
    assert interval(np.sort(values), seed=seed, resamples=500) == (low, high)  # the order of questions is nothing
    wider = interval(values, seed=seed, resamples=500, level=0.99)
    assert wider[0] <= low and high <= wider[1]
    scaled = interval(2 * values + 1, seed=seed, resamples=500)
    assert scaled == pytest.approx((2 * low + 1, 2 * high + 1))
    one_group = interval(values, groups=np.zeros(len(values), dtype=int), seed=seed, resamples=500)
    assert one_group == (low, high)


def test_seeds_differ() -> None:
    assert interval(sample("cider"), seed=1) != interval(sample("cider"), seed=2)


def test_equal_scores_have_no_spread() -> None:
    assert interval(np.full(7, 0.1)) == (0.1, 0.1)
    assert paired(np.full(3, 0.5), np.full(3, 0.5)) == (0, 0, 0)


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    values = sample("cider")
    whole = interval(values, resamples=1001)
    monkeypatch.setattr(bootstrap, "_AT_ONCE", 60 * 7)  # 7 resamples at a time
    assert interval(values, resamples=1001) == whole


@pytest.mark.parametrize("rate", [0.2, 0.5])
def test_the_interval_covers_the_truth(rate: float) -> None:
    """95 of 100 intervals of 300 answers hold the rate they were drawn with (90 to 99 here, by the seed)."""
    rng = np.random.default_rng(5)
    draws = [(rng.random(300) < rate).astype(float) for _ in range(200)]
    held = [low <= rate <= high for low, high in (interval(values, resamples=2000) for values in draws)]
    assert 0.90 <= np.mean(held) <= 0.99
