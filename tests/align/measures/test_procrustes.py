import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial import procrustes as scipy_procrustes

from fuse.align import Unmeasurable
from fuse.align.measures.procrustes import Procrustes, procrustes
from tests.align.oracles import alike, best_rotation, few, normal, rotation, seeds


def streamed(x, y, size):
    distance = Procrustes()
    for start in range(0, len(x), size):
        distance.add(x[start : start + size], y[start : start + size])
    return distance.value()


@few
@given(seeds, st.integers(3, 40), st.integers(1, 12), st.integers(1, 12), st.integers(1, 17))
def test_oracle_at_once_and_in_batches(seed, n, p, q, size):
    x, y = alike(seed, n, p, q)
    expected = best_rotation(x, y)
    np.testing.assert_allclose(procrustes(x, y), expected, atol=1e-10)
    np.testing.assert_allclose(streamed(x, y, size), expected, atol=1e-10)


def test_scipy_scales_one_side_too():
    x, y = alike(2, 30, 4, 4)
    # min over scales c of |x - c y R|^2 is 1 - |x'y|_*^2
    left = 1 - (1 - procrustes(x, y) / 2) ** 2
    assert left == pytest.approx(scipy_procrustes(x.numpy(), y.numpy())[2], abs=1e-12)


@few
@given(seeds, st.floats(1e-3, 1e3), st.floats(-100, 100))
def test_a_copy_rotated_scaled_moved_and_padded_has_zero(seed, scale, offset):
    x = normal(seed, 30, 5)
    other = scale * x @ rotation(seed, 5) + offset
    assert procrustes(x, other) < 1e-9
    assert procrustes(x, torch.cat([other, torch.ones(30, 3)], 1)) < 1e-9


@few
@given(seeds, st.integers(1, 9), st.integers(1, 9))
def test_symmetric_and_within_its_range(seed, p, q):
    x, y = alike(seed, 20, p, q)
    assert procrustes(x, y) == pytest.approx(procrustes(y, x), abs=1e-12)
    assert 0 <= procrustes(x, y) <= 2


def test_many_independent_samples_come_near_two():
    assert procrustes(normal(0, 50_000, 4), normal(1, 50_000, 4)) > 1.95


def test_batches_whose_means_are_far_apart_lose_no_digits():
    x, y = alike(5, 64, 6, 4)
    x = x + torch.arange(64)[:, None] // 8 * 1000.0 + 1e6
    assert streamed(x, y, 8) == pytest.approx(best_rotation(x - x.mean(0), y), abs=1e-9)


def test_bad_input():
    x = normal(0, 20, 3)
    for measure in (procrustes, lambda a, b: streamed(a, b, 7)):
        with pytest.raises(Unmeasurable, match=r"^Procrustes distance needs at least 2 samples, not 1$"):
            measure(x[:1], x[:1])
        with pytest.raises(Unmeasurable, match=r"^the second features do not vary over 20 samples$"):
            measure(x, torch.ones(20, 2))
        with pytest.raises(Unmeasurable, match=r"^the first features hold numbers that are not finite$"):
            measure(torch.full((20, 3), torch.inf), x)
        with pytest.raises(ValueError, match=r"^both sides should have the same samples, not"):
            measure(x, x[:19])
    with pytest.raises(Unmeasurable, match=r"^Procrustes distance needs at least 2 samples, not 0$"):
        Procrustes().value()
