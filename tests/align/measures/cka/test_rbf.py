import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fuse.align import Unmeasurable
from fuse.align.measures import distances
from fuse.align.measures.cka import rbf as module
from fuse.align.measures.cka.rbf import rbf_cka
from tests.align import oracles
from tests.align.oracles import alike, few, normal, rotation, seeds


@few
@given(seeds, st.integers(4, 40), st.sampled_from([0.2, 0.8, 1.5]), st.integers(1, 20))
def test_oracle_in_blocks_of_any_size(seed, n, fraction, block):
    x, y = alike(seed, n, 4, 6)
    expected = oracles.cka(oracles.rbf(x, fraction), oracles.rbf(y, fraction))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "BLOCK", block)
        np.testing.assert_allclose(rbf_cka(x, y, fraction=fraction), expected, rtol=1e-8, atol=1e-10)


@few
@given(seeds, st.floats(1e-3, 1e3), st.floats(-100, 100))
def test_a_copy_rotated_scaled_and_moved_has_one(seed, scale, offset):
    x = normal(seed, 30, 5)
    for other in (x, scale * x @ rotation(seed, 5) + offset):
        np.testing.assert_allclose(rbf_cka(x, other), [1, 1], atol=1e-8)


def test_symmetric():
    x, y = alike(4, 50, 3, 8)
    np.testing.assert_allclose(rbf_cka(x, y), rbf_cka(y, x), atol=1e-12)


def test_independent_noise_is_near_zero_where_it_is_not_biased():
    biased, unbiased = rbf_cka(normal(0, 600, 100), normal(1, 600, 100))
    assert abs(unbiased) < 0.01 and biased > 0.1


def test_a_wide_kernel_comes_near_the_linear_one():
    x, y = alike(7, 60, 4, 5)
    np.testing.assert_allclose(
        rbf_cka(x, y, fraction=100), oracles.cka(oracles.linear(x), oracles.linear(y)), atol=1e-3
    )


def test_nearness_that_no_linear_map_shows():
    # a circle run through twice: the second side only knows where on its own circle a sample is, modulo half a turn
    turn = torch.linspace(0, 2 * torch.pi, 200, dtype=torch.float64)[:-1]
    x, y = torch.stack([turn.cos(), turn.sin()], 1), torch.stack([(2 * turn).cos(), (2 * turn).sin()], 1)
    linear = oracles.cka(oracles.linear(x), oracles.linear(y))
    assert abs(linear[1]) < 0.02 and rbf_cka(x, y, fraction=0.3)[1] > 0.3


def test_the_median_of_many_samples_is_that_of_a_draw(monkeypatch):
    x = normal(0, 500, 4)
    whole = distances.median_squared(x, "x")
    monkeypatch.setattr(distances, "MOST", 250)
    assert distances.median_squared(x, "x") == pytest.approx(whole, rel=0.1)
    assert distances.median_squared(x, "x") != whole
    assert distances.median_squared(x, "x") == distances.median_squared(x, "x")


def test_bad_input():
    x = normal(0, 20, 3)
    with pytest.raises(Unmeasurable, match=r"^RBF CKA needs at least 4 samples, not 3$"):
        rbf_cka(x[:3], x[:3])
    with pytest.raises(Unmeasurable, match=r"^the second features do not vary over 20 samples$"):
        rbf_cka(x, torch.ones(20, 2))
    with pytest.raises(Unmeasurable, match=r"^the first features hold numbers that are not finite$"):
        rbf_cka(torch.full((20, 3), torch.nan), x)
    with pytest.raises(ValueError, match=r"^both sides should have the same samples, not 20 and 19$"):
        rbf_cka(x, x[:19])
    with pytest.raises(
        ValueError, match=r"^the first features should be a matrix of samples by features, not of shape \(20,\)$"
    ):
        rbf_cka(x[:, 0], x)
    with pytest.raises(ValueError, match=r"^fraction should be above 0, not 0$"):
        rbf_cka(x, x, fraction=0)
    equal = torch.full((20, 3), 0.1)
    equal[:2] = x[:2]
    with pytest.raises(Unmeasurable) as caught:
        rbf_cka(x, equal)
    assert (
        str(caught.value)
        == "the median distance between samples of the second features is zero, as most of them are equal"
    )
