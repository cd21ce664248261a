import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fuse.align import Unmeasurable
from fuse.align.measures import knn as module
from fuse.align.measures.knn import mutual_knn
from tests.align.oracles import alike, few, normal, rotation, seeds, shared_neighbours


@few
@given(seeds, st.integers(7, 40), st.integers(1, 5), st.integers(1, 20))
def test_oracle_in_blocks_of_any_size(seed, n, k, block):
    x, y = alike(seed, n, 4, 6)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "BLOCK", block)
        found = mutual_knn(x, y, k=k)
    assert found.value == pytest.approx(shared_neighbours(x, y, k), abs=1e-12)
    assert found.chance == k / (n - 1)


@few
@given(seeds, st.floats(1e-3, 1e3))
def test_a_copy_rotated_and_scaled_has_one(seed, scale):
    x = normal(seed, 40, 6)
    for other in (x, scale * x @ rotation(seed, 6), torch.linspace(1, 9, 40)[:, None] * x):
        assert mutual_knn(x, other).value == 1


def test_symmetric():
    x, y = alike(1, 60, 5, 9)
    assert mutual_knn(x, y) == mutual_knn(y, x)


def test_noise_has_the_chance_level():
    found = mutual_knn(normal(0, 1500, 16), normal(1, 1500, 16))
    assert found.chance == 10 / 1499 and found.value == pytest.approx(found.chance, rel=0.15)


def test_a_shift_changes_cosines_and_so_neighbours():
    x = normal(0, 60, 6)
    assert mutual_knn(x, x + 3).value < 0.9


def test_bad_input():
    x = normal(0, 20, 3)
    assert mutual_knn(x[:12], x[:12]).value == 1
    with pytest.raises(Unmeasurable, match=r"^agreement of 10 nearest neighbours needs at least 12 samples, not 11$"):
        mutual_knn(x[:11], x[:11])
    with pytest.raises(Unmeasurable, match=r"^the first features do not vary over 20 samples$"):
        mutual_knn(torch.ones(20, 2), x)
    zero = x.clone()
    zero[7] = 0
    with pytest.raises(Unmeasurable, match=r"^sample 7 of the second features is zero, which has no direction$"):
        mutual_knn(x, zero)
    with pytest.raises(ValueError, match=r"^k should be at least 1, not 0$"):
        mutual_knn(x, x, k=0)


def test_the_least_number_is_where_the_value_starts_to_mean_something():
    x, y = normal(0, 12, 8), normal(1, 12, 8)
    assert np.isclose(module.least(10), 12) and mutual_knn(x, y).value < 1
