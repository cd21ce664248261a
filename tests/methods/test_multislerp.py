import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mergekit.merge_methods import merge_tensors

from fuse.methods import multislerp as module
from fuse.methods.multislerp import multislerp
from tests.methods.pieces import in_pieces

DTYPES = [torch.bfloat16, torch.float16, torch.float32]
seeds = st.integers(0, 10_000)


def oracle(tensors, base, weights, normalize=True):
    ground = 0 if base is None else base.double().numpy()
    x = np.stack([tensor.double().numpy() - ground for tensor in tensors])
    shares = np.array(weights, dtype=float) / (sum(weights) if normalize else 1)
    lengths = np.sqrt((x**2).reshape(len(x), -1).sum(1))
    units = x / lengths.reshape(-1, *[1] * (x.ndim - 1))
    mean = np.tensordot(shares, units, 1)
    mean /= np.linalg.norm(mean)
    tangent = sum(share * (unit - (unit * mean).sum() * mean) for share, unit in zip(shares, units, strict=True))
    slope = np.linalg.norm(tangent)
    point = np.cos(slope) * mean + (np.sin(slope) / slope * tangent if slope > 0 else 0)
    return ground + (shares * lengths).sum() * point


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("with_base", [True, False])
@pytest.mark.parametrize("weights", [[1, 2, 0.5], [1, -0.2, 0]])
def test_oracle(draw, close, dtype, normalize, with_base, weights):
    base, *tensors = draw(1, 4, (12, 17), dtype)
    base = base if with_base else None
    result = multislerp(tensors, base, weights=weights, normalize=normalize)
    close(result, oracle(tensors, base, weights, normalize), atol=2e-5)


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("with_base", [True, False])
def test_mergekit(draw, normalize, with_base):
    base, *tensors = draw(2, 4, (33, 21), torch.float64)
    given, index = ([base, *tensors], 0) if with_base else (tensors, None)
    weights = [0.5, 1.5, 0.7]
    parameters = {"weight": weights, "normalize_weights": normalize}
    theirs = merge_tensors(given, "multislerp", parameters=parameters, base_index=index, dtype=torch.float64)
    ours = multislerp(tensors, base if with_base else None, weights=weights, normalize=normalize)
    torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=1e-7)  # their eps, 1e-8


@given(seeds, st.floats(0.01, 10))
def test_one_member_is_that_member(draw, close, seed, weight):
    base, tensor = draw(seed, 2)
    close(multislerp([tensor], weights=[weight]), tensor.double().numpy())
    close(multislerp([tensor], base, weights=[weight]), tensor.double().numpy())


@given(seeds, st.randoms())
def test_order_of_members_does_not_matter(draw, close, seed, random):
    members = list(zip(draw(seed, 4), [0.3, 1, 0.7, 0.2], strict=True))
    one = multislerp([tensor for tensor, _ in members], weights=[weight for _, weight in members])
    random.shuffle(members)
    other = multislerp([tensor for tensor, _ in members], weights=[weight for _, weight in members])
    close(other, one.double().numpy())


@given(seeds)
def test_norm_is_the_mean_of_the_norms(draw, seed):
    tensors = [tensor * scale for tensor, scale in zip(draw(seed, 3), (1, 2, 5), strict=True)]
    result = multislerp(tensors, weights=[1, 2, 1])
    expected = (tensors[0].norm() + 2 * tensors[1].norm() + tensors[2].norm()) / 4
    torch.testing.assert_close(result.norm(), expected, rtol=1e-5, atol=0)


@given(seeds, st.integers(1, 70))
def test_blocks_have_the_same_bytes(draw, seed, step):
    base, *tensors = draw(seed, 4, dtype=torch.bfloat16)
    for ground in (None, base):
        whole = multislerp(tensors, ground, weights=[1, 2, 3])
        assert torch.equal(in_pieces(module, tensors, ground, step, False, weights=[1, 2, 3]), whole)


def test_where_directions_cancel_it_is_the_weighted_sum(draw):
    (one,) = draw(3, 1)
    assert not multislerp([one, -one], weights=[1, 1]).any()
    torch.testing.assert_close(multislerp([2 * one, -one], weights=[1, 1]), one / 2)


def test_zero_tensors(draw):
    one, other = draw(4, 2)
    zero = torch.zeros_like(one)
    assert not multislerp([zero, zero], weights=[1, 1]).any()
    torch.testing.assert_close(multislerp([one, zero], weights=[1, 1]), one / 2)
    for tensors in ([one, zero], [one, other, zero]):
        weights = [1.0, 2.0, 0.5][: len(tensors)]
        theirs = merge_tensors(tensors, "multislerp", parameters={"weight": weights}, dtype=torch.float64)
        torch.testing.assert_close(multislerp(tensors, weights=weights).double(), theirs, rtol=1e-5, atol=1e-6)
    assert torch.equal(multislerp([one, one], one, weights=[1, 2]), one)


def test_eps_is_the_length_of_a_vector_without_direction():
    one, tiny = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1e-3])
    assert multislerp([one, tiny], weights=[1, 1])[1] > 0.3
    assert multislerp([one, tiny], weights=[1, 1], eps=1e-2)[1] == 0


def test_numbers_that_are_not_finite_stay_visible():
    for bad in (torch.nan, torch.inf):
        result = multislerp([torch.tensor([bad, 1.0]), torch.ones(2)], weights=[1, 1])
        assert not result[0].isfinite()


@pytest.mark.parametrize("shape", [(), (1,), (0,), (3, 0, 2)])
def test_small_shapes(draw, shape):
    (one,) = draw(5, 1, shape)
    torch.testing.assert_close(multislerp([one, 3 * one], weights=[1, 1]), 2 * one)


def test_wrong_inputs(draw):
    with pytest.raises(ValueError, match=r"the weights \[1, -1\] sum to zero, so they cannot be normalized"):
        multislerp(draw(6, 2), weights=[1, -1])
    with pytest.raises(ValueError, match="weights has 1 values for 2 tensors"):
        multislerp(draw(6, 2), weights=[1])
    with pytest.raises(ValueError, match="at least one tensor"):
        multislerp([], weights=[])
