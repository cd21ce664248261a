import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fuse.align.measures.reservoir import Reservoir
from tests.align.oracles import few, seeds


def drawn(n, limit, size, seed=0):
    reservoir = Reservoir(limit, seed)
    for start in range(0, n, size):
        rows = torch.arange(start, min(n, start + size))
        reservoir.add(rows[:, None], -rows)
    return reservoir


@few
@given(seeds, st.integers(1, 60), st.integers(1, 20), st.integers(1, 30))
def test_rows_stay_together_and_batches_do_not_matter(seed, n, limit, size):
    x, y = drawn(n, limit, size, seed).value()
    assert len(x) == min(n, limit) and torch.equal(x[:, 0], -y)
    assert x[:, 0].tolist() == sorted(set(x[:, 0].tolist()))
    assert torch.equal(drawn(n, limit, n, seed).value()[0], x)


def test_every_row_is_as_likely():
    counts = np.bincount(np.concatenate([drawn(20, 5, 3, seed).value()[1].neg().numpy() for seed in range(2000)]))
    assert len(counts) == 20 and counts.sum() == 10_000
    # the variance of a count is 2000 * 1/4 * 3/4
    assert np.abs(counts - 500).max() < 4 * 375**0.5


def test_what_is_kept_does_not_hold_the_batch():
    batch = torch.zeros(1000, 10)
    reservoir = Reservoir(5)
    reservoir.add(batch)
    assert reservoir.value()[0].untyped_storage().nbytes() == 5 * 10 * 4
    assert reservoir.seen == 1000


def test_bad_input():
    with pytest.raises(ValueError, match=r"^limit should be at least 1, not 0$"):
        Reservoir(0)
    with pytest.raises(ValueError, match=r"^all sides should have the same samples$"):
        Reservoir(3).add(torch.ones(3, 1), torch.ones(2, 1))
