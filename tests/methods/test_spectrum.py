import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fuse.methods.spectrum import polar, spectrum, truncated

SHAPES = [(7, 9), (9, 7), (5, 5), (1, 4), (4, 1)]


@pytest.mark.parametrize("shape", SHAPES)
def test_triplets_are_those_of_the_decomposition(draw, shape):
    (matrix,) = draw(1, 1, shape)
    left, values, right = np.linalg.svd(matrix.double().numpy(), full_matrices=False)
    for rank in range(1, min(shape) + 1):
        found = spectrum(matrix, rank)
        assert found.left.shape == (shape[0], rank) and found.right.shape == (shape[1], rank)
        np.testing.assert_allclose(found.values, values[:rank], rtol=1e-10)
        cut = (left[:, :rank] * values[:rank]) @ right[:rank]
        np.testing.assert_allclose(truncated(matrix, rank), cut, atol=1e-10)


@given(st.integers(0, 10_000), st.sampled_from(SHAPES))
def test_polar_factor(draw, seed, shape):
    (matrix,) = draw(seed, 1, shape)
    left, values, right = np.linalg.svd(matrix.double().numpy(), full_matrices=False)
    if values[-1] < 1e-3 * values[0]:
        return
    found, singular = polar(matrix)
    np.testing.assert_allclose(found, left @ right, atol=1e-7)
    np.testing.assert_allclose(singular.flip(0), values, rtol=1e-7)


@pytest.mark.parametrize("shape", [(8, 6), (6, 8)])
def test_directions_that_are_nothing_stay_nothing(draw, shape):
    """A matrix of rank 2: its polar factor has two singular values of 1, and the others are 0."""
    one, other = draw(2, 2, (8, 2))
    matrix = (one @ other[:6].T).reshape(8, 6) if shape == (8, 6) else (one @ other[:6].T).T
    found, values = polar(matrix)
    np.testing.assert_allclose(np.linalg.svd(found.numpy())[1], [1, 1, 0, 0, 0, 0], atol=1e-6)
    assert (values[:4] == 0).all() and (values[4:] > 0).all()
    triplets = spectrum(matrix, 4)
    assert (triplets.values[2:] == 0).all() and not triplets.left[:, 2:].any() and not triplets.right[:, 2:].any()
    torch.testing.assert_close(truncated(matrix, 4), matrix.double(), rtol=1e-6, atol=1e-6)


def test_zero():
    found, values = polar(torch.zeros(3, 4))
    assert not found.any() and not values.any() and found.shape == (3, 4)
    assert not truncated(torch.zeros(4, 3), 2).any()
