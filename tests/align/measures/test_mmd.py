import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fuse.align import Unmeasurable
from fuse.align.measures import mmd as module
from fuse.align.measures.mmd import mmd
from tests.align import oracles
from tests.align.oracles import few, normal, rotation, seeds


@few
@given(seeds, st.integers(4, 30), st.integers(1, 20))
def test_oracle_in_blocks_of_any_size(seed, n, block):
    x, y = normal(seed, n, 3), normal(seed + 1, n, 3) * 1.5 + 0.5
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "BLOCK", block)
        found = mmd(x, y)
    np.testing.assert_allclose(found[:2], oracles.mmd(x, y), rtol=1e-9, atol=1e-13)


def test_the_bandwidth_is_the_median_distance_over_both_sides():
    x, y = normal(0, 20, 3), normal(1, 20, 3) + 4
    among = np.sort(oracles.distances(torch.cat([x, y]))[np.triu_indices(40, 1)])
    assert mmd(x, y).bandwidth == pytest.approx(np.sqrt(among[(len(among) - 1) // 2]), rel=1e-12)


@few
@given(seeds, st.floats(1e-2, 1e2), st.floats(-100, 100))
def test_moving_rotating_and_scaling_both_sides_changes_nothing(seed, scale, offset):
    x, y = normal(seed, 30, 4), normal(seed + 1, 30, 4) + 0.7
    turned = rotation(seed, 4)
    first, second = (scale * side @ turned + offset for side in (x, y))
    np.testing.assert_allclose(mmd(first, second)[:2], mmd(x, y)[:2], rtol=1e-6, atol=1e-9)


def test_symmetric():
    x, y = normal(0, 50, 4), normal(1, 50, 4) * 2
    np.testing.assert_allclose(mmd(x, y), mmd(y, x), rtol=1e-12)


@pytest.mark.parametrize("paired", [False, True])
def test_equal_distributions_are_about_zero_on_the_stated_scale(paired):
    found = []
    for seed in range(300):
        x, y = normal(2 * seed, 60, 3), normal(2 * seed + 1, 60, 3)
        # the same image on both sides: samples of one distribution that depend on each other
        found.append(mmd(x, (x + y) / 2**0.5 if paired else y))
    values, nulls = np.array([each.value for each in found]), np.array([each.null for each in found])
    assert abs(values.mean()) < 3 * values.std() / 300**0.5
    assert values.std() == pytest.approx(nulls.mean(), rel=0.15)
    assert np.mean(np.abs(values) > 3 * nulls) < 0.03


def test_distributions_far_apart_come_near_the_end_of_the_range():
    x, y = normal(0, 60, 3), normal(1, 60, 3)
    near, far = mmd(x, y + 0.5), mmd(x, y + 1000)
    assert 3 * near.null < near.value < far.value < 2
    # two points a bandwidth apart: 2 - 2 exp(-1 / 2)
    assert far.value == pytest.approx(2 - 2 * np.exp(-0.5), abs=0.01)


def test_bad_input():
    x = normal(0, 20, 3)
    with pytest.raises(Unmeasurable, match=r"^MMD needs a common space, not 3 and 2 features$"):
        mmd(x, x[:, :2])
    with pytest.raises(Unmeasurable, match=r"^MMD needs at least 4 samples, not 3$"):
        mmd(x[:3], x[:3])
    with pytest.raises(Unmeasurable, match=r"^both sides together do not vary over 40 samples$"):
        mmd(torch.ones(20, 3), torch.ones(20, 3))
    with pytest.raises(Unmeasurable, match=r"^the second features hold numbers that are not finite$"):
        mmd(x, torch.full((20, 3), torch.nan))
    equal = torch.full((20, 3), 0.1)
    with pytest.raises(
        Unmeasurable, match=r"^the median distance between samples of both sides together is zero, as most"
    ):
        mmd(equal, torch.cat([equal[:15], x[:5]]))
