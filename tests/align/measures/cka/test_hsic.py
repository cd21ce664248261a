import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fuse.align.measures.cka.hsic import from_features, from_rows
from tests.align import oracles
from tests.align.oracles import alike, few, hsic_0, hsic_1, hsic_1_of_quadruples, linear, normal, seeds


def of_features(x, y):
    x, y = x - x.mean(0), y - y.mean(0)
    a, b = x.square().sum(1), y.square().sum(1)
    return from_features(len(x), (x.T @ y).square().sum(), a @ b, a.sum(), b.sum())


@few
@given(seeds, st.integers(4, 20), st.integers(1, 9), st.integers(1, 9))
def test_linear_kernels_need_only_sums_over_samples(seed, n, p, q):
    x, y = alike(seed, n, p, q)
    biased, unbiased = of_features(x, y)
    np.testing.assert_allclose(biased, hsic_0(linear(x), linear(y)), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(unbiased, hsic_1(linear(x), linear(y)), rtol=1e-9, atol=1e-9 * float(biased))


def test_a_translation_leaves_the_unbiased_estimate_as_it_is():
    x, y = alike(0, 12, 3, 4)
    moved = hsic_1(linear(x + 7), linear(y - torch.linspace(0, 9, 4)))
    np.testing.assert_allclose(moved, hsic_1(linear(x), linear(y)), rtol=1e-10)


def test_the_unbiased_estimate_is_the_mean_over_four_different_samples():
    x, y = alike(3, 7, 2, 3)
    np.testing.assert_allclose(of_features(x, y).unbiased, hsic_1_of_quadruples(linear(x), linear(y)), rtol=1e-10)


@few
@given(seeds, st.integers(4, 20))
def test_kernels_with_a_diagonal_of_ones_need_the_sums_of_their_rows(seed, n):
    k, l = (oracles.rbf(normal(seed + side, n, 3), 0.7) for side in range(2))  # noqa: E741
    hollow = [torch.from_numpy(kernel - np.eye(n)) for kernel in (k, l)]
    found = from_rows((hollow[0] * hollow[1]).sum(), hollow[0].sum(1), hollow[1].sum(1))
    np.testing.assert_allclose(found, [hsic_0(k, l), hsic_1(k, l)], rtol=1e-9, atol=1e-14)


def test_the_mean_over_draws_is_zero_for_independent_features():
    draws = [of_features(normal(2 * seed, 6, 4), normal(2 * seed + 1, 6, 4)) for seed in range(2000)]
    unbiased = np.array([float(draw.unbiased) for draw in draws])
    assert abs(unbiased.mean()) < 3 * unbiased.std() / np.sqrt(len(unbiased))
    # E HSIC_0 = p^2 / (n - 1) for normal features of unit variance
    assert np.mean([float(draw.biased) for draw in draws]) == pytest.approx(16 / 5, rel=0.05)
