import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mergekit.merge_methods import merge_tensors

from fuse.methods import karcher as module
from fuse.methods.karcher import karcher
from fuse.methods.slerp import slerp
from tests.methods.pieces import in_pieces

DTYPES = [torch.bfloat16, torch.float16, torch.float32]
seeds = st.integers(0, 10_000)


def towards(point, unit):
    """The vector from a point of the sphere to another, as long as their angle."""
    cosine = (point * unit).sum()
    flat = unit - cosine * point
    return np.arccos(np.clip(cosine, -1, 1)) * flat / np.linalg.norm(flat)


def oracle(tensors, max_iter=10, tol=1e-5):
    """The iteration on whole tensors in float64."""
    x = [tensor.double().numpy() for tensor in tensors]
    units = [one / np.linalg.norm(one) for one in x]
    point = sum(units) / np.linalg.norm(sum(units))
    for _ in range(max_iter):
        step = sum(towards(point, unit) for unit in units) / len(units)
        if (length := np.linalg.norm(step)) < tol:
            break
        point = np.cos(length) * point + np.sin(length) * step / length
    return point * np.mean([np.linalg.norm(one) for one in x])


def wide(draw, seed, count, shape=(7, 9), dtype=torch.float32):
    """Tensors at wide angles, of unequal lengths."""
    base, *near = draw(seed, count + 1, shape)
    scales = torch.linspace(1, 2, count)
    return [(scale * (0.3 * base + 10 * (x - base))).to(dtype) for scale, x in zip(scales, near, strict=True)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("max_iter", [0, 1, 2, 10, 100])
@pytest.mark.parametrize("tol", [1e-1, 1e-5, 1e-9])
def test_oracle(draw, close, dtype, max_iter, tol):
    for tensors in (draw(1, 4, dtype=dtype), wide(draw, 1, 4, dtype=dtype)):
        close(karcher(tensors, max_iter=max_iter, tol=tol), oracle(tensors, max_iter, tol), atol=5e-6)


@pytest.mark.parametrize("max_iter", [1, 3, 10])
@pytest.mark.parametrize("tol", [1e-2, 1e-5])
def test_mergekit(draw, max_iter, tol):
    for tensors in (draw(2, 3, (33, 21), torch.float64), wide(draw, 2, 5, (33, 21), torch.float64)):
        parameters = {"max_iter": max_iter, "tol": tol}
        theirs = merge_tensors(tensors, "karcher", parameters=parameters, dtype=torch.float64)
        torch.testing.assert_close(karcher(tensors, **parameters), theirs, rtol=1e-9, atol=1e-9)


@given(seeds, st.integers(2, 5))
def test_no_direction_is_better(draw, seed, count):
    """The sum of squared angles is least: every step to a side makes it larger."""
    tensors = [tensor.double() for tensor in wide(draw, seed, count)]
    units = [tensor / tensor.norm() for tensor in tensors]
    mean = karcher(tensors, max_iter=500, tol=1e-12)

    def cost(point):
        return sum(((point / point.norm()) * unit).sum().clamp(-1, 1).acos() ** 2 for unit in units)

    for side in [*units, *draw(seed + 1, 3)]:
        assert cost(mean + 0.01 * mean.norm() * side) >= cost(mean)


@given(seeds)
def test_of_two_it_is_the_middle_of_the_arc(draw, close, seed):
    one, other = (tensor / tensor.norm() for tensor in wide(draw, seed, 2))
    close(karcher([one, other]), slerp([one, other], t=0.5).double().numpy())


@given(seeds, st.sampled_from(DTYPES))
def test_one_member_is_that_member(draw, close, seed, dtype):
    (tensor,) = draw(seed, 1, dtype=dtype)
    close(karcher([tensor]), tensor.double().numpy())
    close(karcher([tensor, tensor, tensor]), tensor.double().numpy())


@given(seeds, st.randoms())
def test_order_of_members_does_not_matter(draw, close, seed, random):
    tensors = wide(draw, seed, 4)
    one = karcher(tensors)
    random.shuffle(tensors)
    close(karcher(tensors), one.double().numpy())


@given(seeds, st.integers(1, 70))
def test_blocks_have_the_same_bytes(draw, seed, step):
    tensors = draw(seed, 4, dtype=torch.bfloat16)
    assert torch.equal(in_pieces(module, tensors, None, step, False), karcher(tensors))


def test_zero_and_opposite_tensors_as_in_mergekit(draw):
    one, other, third = wide(draw, 3, 3, dtype=torch.float64)
    zero = torch.zeros_like(one)
    for tensors in ([one, zero], [zero, zero], [one, other, zero], [one, -one], [one, -one, third]):
        theirs = merge_tensors(tensors, "karcher", dtype=torch.float64)
        torch.testing.assert_close(karcher(tensors), theirs, rtol=1e-9, atol=1e-9)


def test_numbers_that_are_not_finite_stay_visible():
    for bad in (torch.nan, torch.inf):
        assert not karcher([torch.tensor([bad, 1.0]), torch.ones(2)])[0].isfinite()


@pytest.mark.parametrize("shape", [(), (1,), (0,), (3, 0, 2)])
def test_small_shapes(draw, shape):
    (one,) = draw(4, 1, shape)
    torch.testing.assert_close(karcher([one, 3 * one]), 2 * one)


def test_inputs_are_untouched(draw):
    tensors = draw(5, 3)
    before = [tensor.clone() for tensor in tensors]
    karcher(tensors).zero_()
    assert all(map(torch.equal, tensors, before))


def test_wrong_inputs(draw):
    with pytest.raises(ValueError, match="at least one tensor"):
        karcher([])
    with pytest.raises(ValueError, match="max_iter and tol should be at least 0, not -1 and 1e-05"):
        karcher(draw(6, 2), max_iter=-1)
    with pytest.raises(ValueError, match="shapes differ"):
        karcher([torch.zeros(2), torch.zeros(3)])
