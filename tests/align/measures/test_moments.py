import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fuse.align import Unmeasurable
from fuse.align.measures.moments import Cross, Means
from tests.align.oracles import about_mean, few, normal, seeds


def in_batches(layers, other, size):
    means, others = Means([x.shape[1] for x in layers]), Means([other.shape[1]])
    cross = Cross(len(means.mean), other.shape[1])
    for start in range(0, len(other), size):
        cross.add(means.add([x[start : start + size] for x in layers]), others.add([other[start : start + size]]))
    return means, cross


@few
@given(seeds, st.integers(1, 40), st.integers(1, 17))
def test_oracle(seed, n, size):
    layers, other = [normal(seed, n, 3) + 5, normal(seed + 1, n, 4) * 3], normal(seed + 2, n, 2) - 1
    means, cross = in_batches(layers, other, size)
    assert means.n == n
    np.testing.assert_allclose(means.mean, torch.cat(layers, 1).mean(0), atol=1e-12)
    np.testing.assert_allclose(means.squares, [np.sum(about_mean(x) ** 2) for x in layers], rtol=1e-10, atol=1e-12)
    expected = np.concatenate([about_mean(x) for x in layers], 1).T @ about_mean(other)
    np.testing.assert_allclose(cross.matrix, expected, atol=1e-10)


def test_a_layer_alone_is_the_same_layer():
    layers = [normal(0, 20, 3), normal(1, 20, 4) * 3]
    means = Means([3, 4])
    means.add([x[:8] for x in layers])
    step = means.add([x[8:] for x in layers])
    for index, (x, alone, part) in enumerate(zip(layers, means.apart(), step.apart(means.columns), strict=True)):
        single = Means([x.shape[1]])
        single.add([x[:8]])
        expected = single.add([x[8:]])
        assert (alone.n, part.before) == (20, 8)
        torch.testing.assert_close(alone.mean, single.mean)
        torch.testing.assert_close(alone.squares, single.squares)
        torch.testing.assert_close(part.shifts, expected.shifts)
        torch.testing.assert_close(part.norms, step.norms[:, index : index + 1])
        torch.testing.assert_close(part.centred, expected.centred)


def test_the_input_is_not_changed():
    x = normal(0, 9, 3)
    before = x.clone()
    Means([3]).add([x])
    assert torch.equal(x, before)


def test_a_spread_of_rounding_is_none():
    for spread, varies in [(1e-3, True), (1e-5, True), (1e-7, False), (0.0, False)]:
        means = Means([3])
        means.add([1 + spread * normal(0, 50, 3)])
        if varies:
            means.check(0, "it")
        else:
            with pytest.raises(Unmeasurable, match=r"^it do not vary over 50 samples$"):
                means.check(0, "it")
    means = Means([2])
    means.add([torch.tensor([[1.0, torch.nan], [0.0, 1.0]])])
    with pytest.raises(Unmeasurable, match=r"^it hold numbers that are not finite$"):
        means.check(0, "it")
