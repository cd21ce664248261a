import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mergekit.merge_methods import merge_tensors

from fuse.methods.linear import linear

DTYPES = [torch.bfloat16, torch.float16, torch.float32]
seeds = st.integers(0, 10_000)
shares = st.lists(st.floats(0.01, 2), min_size=1, max_size=5)


def oracle(tensors, weights, normalize=True):
    total = np.zeros(tensors[0].shape)
    for tensor, weight in zip(tensors, weights, strict=True):
        total += tensor.double().numpy() * weight
    return total / np.sum(weights) if normalize else total


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("normalize", [True, False])
def test_oracle(draw, close, dtype, normalize):
    tensors, weights = draw(1, 3, dtype=dtype), [0.5, 1.25, -0.3]
    close(linear(tensors, weights=weights, normalize=normalize), oracle(tensors, weights, normalize))


def test_float64_stays_float64(draw):
    tensors, weights = draw(2, 3, dtype=torch.float64), [0.1, 0.2, 0.3]
    result = linear([tensors[0].float(), *tensors[1:]], weights=weights)
    assert result.dtype == torch.float64
    expected = oracle([tensors[0].float(), *tensors[1:]], weights)
    np.testing.assert_allclose(result.numpy(), expected, rtol=1e-14)


@given(seeds, st.floats(0.01, 10), st.sampled_from(DTYPES))
def test_one_model_is_the_identity(draw, seed, weight, dtype):
    (tensor,) = draw(seed, 1, dtype=dtype)
    assert torch.equal(linear([tensor], weights=[weight]), tensor.float())


@given(seeds, shares, st.randoms())
def test_order_of_members_does_not_matter(draw, close, seed, weights, random):
    pairs = list(zip(draw(seed, len(weights)), weights, strict=True))
    one = linear([tensor for tensor, _ in pairs], weights=weights)
    random.shuffle(pairs)
    close(linear([tensor for tensor, _ in pairs], weights=[weight for _, weight in pairs]), one.numpy())


@given(seeds, shares, st.floats(0.01, 100))
def test_scale_of_weights_does_not_matter(draw, close, seed, weights, scale):
    tensors = draw(seed, len(weights))
    one = linear(tensors, weights=weights)
    close(linear(tensors, weights=[weight * scale for weight in weights]), one.numpy())


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
def test_mergekit(draw, close, dtype, normalize):
    tensors, weights = draw(3, 3, (33, 17), dtype), [0.7, 0.2, 0.4]
    theirs = merge_tensors(
        tensors, "linear", parameters={"weight": weights, "normalize": normalize}, dtype=torch.float32
    )
    close(linear(tensors, weights=weights, normalize=normalize), theirs.numpy())


@pytest.mark.parametrize("part", ["weight", "bias"])
def test_golden(golden, part):
    tensors, about = golden("merge_weight_average")
    members = [tensors[f"input.finetuned_{part}_{i}"] for i in range(3)]
    result = linear(members, weights=[1, 1, 1])
    assert (result - tensors[f"output.merged_{part}"]).abs().max() <= float(about["tolerance"])


@pytest.mark.parametrize("block", [1, 5, 16, 63])
def test_blocks_have_the_same_bytes(draw, block):
    tensors, weights = draw(4, 3, (63,), torch.bfloat16), [0.3, 0.3, 0.4]
    parts = zip(*(tensor.split(block) for tensor in tensors), strict=True)
    whole = linear(tensors, weights=weights)
    assert torch.equal(torch.cat([linear(part, weights=weights) for part in parts]), whole)


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64])
def test_inputs_are_untouched(draw, dtype):
    tensors = draw(5, 2, dtype=dtype)
    before = [tensor.clone() for tensor in tensors]
    result = linear(tensors, weights=[1, 1])
    linear(tensors[:1], weights=[1]).zero_()
    assert all(map(torch.equal, tensors, before))
    assert result.is_contiguous()


def test_transposed_input(draw):
    one, other = draw(6, 2, (4, 6))
    expected = linear([one, other], weights=[1, 2])
    result = linear([one.T.contiguous().T, other], weights=[1, 2])
    assert torch.equal(result, expected)
    assert result.is_contiguous()


@pytest.mark.parametrize("shape", [(), (1,), (0,), (3, 0, 2)])
def test_small_shapes(draw, close, shape):
    tensors = draw(7, 2, shape)
    close(linear(tensors, weights=[1, 3]), oracle(tensors, [1, 3]))


def test_denormals_zeros_and_opposites(draw):
    tiny = torch.tensor([2.0**-149, -(2.0**-140), 0.0])
    assert torch.equal(linear([tiny, tiny], weights=[1, 1], normalize=False), tiny * 2)
    assert torch.equal(linear([tiny, -tiny], weights=[1, 1]), torch.zeros(3))


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=9))
def test_any_finite_number_survives_alone(numbers):
    tensor = torch.tensor(numbers, dtype=torch.float32)
    assert torch.equal(linear([tensor], weights=[3]), tensor)


@pytest.mark.parametrize("weights", [[1, -1], [0, 0], [0.1 + 0.2, -0.3]])
def test_weights_that_sum_to_zero(draw, weights):
    with pytest.raises(ValueError, match="sum to zero"):
        linear(draw(8, 2), weights=weights)
    linear(draw(8, 2), weights=weights, normalize=False)


def test_wrong_inputs(draw):
    with pytest.raises(ValueError, match="at least one tensor"):
        linear([], weights=[])
    with pytest.raises(ValueError, match=r"shapes differ: \(7, 9\) and \(2,\)"):
        linear([*draw(9, 1), torch.zeros(2)], weights=[1, 1])
    with pytest.raises(ValueError, match="weights has 1 values for 2 tensors"):
        linear(draw(9, 2), weights=[1])
    with pytest.raises(TypeError, match=r"not torch\.int64"):
        linear([torch.zeros(2, dtype=torch.int64)], weights=[1])
