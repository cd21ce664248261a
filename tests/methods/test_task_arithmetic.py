import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mergekit.merge_methods import merge_tensors

from fuse.methods.task_arithmetic import task_arithmetic

DTYPES = [torch.bfloat16, torch.float16, torch.float32]
seeds = st.integers(0, 10_000)
shares = st.lists(st.floats(-2, 2), min_size=1, max_size=5)


def oracle(tensors, base, weights, lambda_=1.0, normalize=False):
    start, total = base.double().numpy(), np.zeros(base.shape)
    for tensor, weight in zip(tensors, weights, strict=True):
        total += weight * (tensor.double().numpy() - start)
    return start + lambda_ * total / (np.sum(weights) if normalize else 1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("normalize", [True, False])
def test_oracle(draw, close, dtype, normalize):
    base, *tensors = draw(1, 4, dtype=dtype)
    weights = [0.5, 1.25, -0.3]
    result = task_arithmetic(tensors, base, weights=weights, lambda_=0.7, normalize=normalize)
    close(result, oracle(tensors, base, weights, 0.7, normalize))


def test_float64_stays_float64(draw):
    base, *tensors = draw(2, 3, dtype=torch.float64)
    result = task_arithmetic(tensors, base.float(), weights=[0.1, 0.2])
    assert result.dtype == torch.float64
    np.testing.assert_allclose(result.numpy(), oracle(tensors, base.float(), [0.1, 0.2]), rtol=1e-13)


@given(seeds, st.integers(1, 4), st.sampled_from(DTYPES))
def test_weights_of_zero_give_the_base(draw, seed, count, dtype):
    base, *tensors = draw(seed, count + 1, dtype=dtype)
    for normalize in (False, True):
        result = task_arithmetic(tensors, base, weights=[0] * count, normalize=normalize)
        assert torch.equal(result, base.float())


@given(seeds, shares, st.randoms())
def test_order_of_members_does_not_matter(draw, close, seed, weights, random):
    base, *tensors = draw(seed, len(weights) + 1)
    pairs = list(zip(tensors, weights, strict=True))
    one = task_arithmetic(tensors, base, weights=weights)
    random.shuffle(pairs)
    other = task_arithmetic([tensor for tensor, _ in pairs], base, weights=[weight for _, weight in pairs])
    close(other, one.numpy())


@given(seeds, shares, st.floats(-2, 2))
def test_lambda_scales_all_weights(draw, close, seed, weights, lambda_):
    base, *tensors = draw(seed, len(weights) + 1)
    one = task_arithmetic(tensors, base, weights=weights, lambda_=lambda_)
    close(task_arithmetic(tensors, base, weights=[lambda_ * weight for weight in weights]), one.numpy())


@given(seeds, st.floats(0.01, 100))
def test_scale_of_normalized_weights_does_not_matter(draw, close, seed, scale):
    base, *tensors = draw(seed, 4)
    one = task_arithmetic(tensors, base, weights=[1, 2, 3], normalize=True)
    two = task_arithmetic(tensors, base, weights=[scale, 2 * scale, 3 * scale], normalize=True)
    close(two, one.numpy())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("weights", [[0.7, 0.2, 0.4], [1, -0.5, -0.5]])
def test_mergekit(draw, close, dtype, normalize, weights):
    base, *tensors = draw(3, 4, (33, 17), dtype)
    theirs = merge_tensors(
        [base, *tensors],
        "task_arithmetic",
        parameters={"weight": weights, "normalize": normalize, "lambda": 0.6},
        base_index=0,
        dtype=torch.float32,
    )
    ours = task_arithmetic(tensors, base, weights=weights, normalize=normalize, lambda_=0.6)
    close(ours, theirs.numpy())


@pytest.mark.parametrize("part", ["weight", "bias"])
def test_golden(golden, part):
    tensors, about = golden("merge_task_arithmetic")
    base = tensors[f"input.base_{part}"]
    members = [tensors[f"input.finetuned_{part}_{i}"] for i in range(3)]
    scale = about["constructor"]["scaling_coefficient"]
    result = task_arithmetic(members, base, weights=[1, 1, 1], lambda_=scale)
    assert (result - tensors[f"output.merged_{part}"]).abs().max() <= float(about["tolerance"])
    if part == "weight":
        vectors = [tensors[f"input.task_vector_{i}"] for i in range(3)]
        delta = task_arithmetic(vectors, torch.zeros_like(base), weights=[1, 1, 1])
        assert (delta - tensors["output.merged_delta"]).abs().max() <= float(about["tolerance"])


@pytest.mark.parametrize("block", [1, 5, 16, 63])
def test_blocks_have_the_same_bytes(draw, block):
    def merge(base, *tensors):
        return task_arithmetic(tensors, base, weights=[0.3, 0.7], lambda_=0.9)

    tensors = draw(4, 3, (63,), torch.bfloat16)
    parts = [merge(*part) for part in zip(*(tensor.split(block) for tensor in tensors), strict=True)]
    assert torch.equal(torch.cat(parts), merge(*tensors))


@pytest.mark.parametrize("dtype", DTYPES)
def test_inputs_are_untouched(draw, dtype):
    tensors = draw(5, 3, dtype=dtype)
    before = [tensor.clone() for tensor in tensors]
    task_arithmetic(tensors[1:], tensors[0], weights=[1, 1]).zero_()
    assert all(map(torch.equal, tensors, before))


@pytest.mark.parametrize("shape", [(), (1,), (0,), (3, 0, 2)])
def test_small_shapes(draw, close, shape):
    base, *tensors = draw(6, 3, shape)
    close(task_arithmetic(tensors, base, weights=[1, 3]), oracle(tensors, base, [1, 3]))


def test_denormals_and_opposites(draw):
    (base,) = draw(7, 1)
    zero, tiny = torch.zeros(2), torch.tensor([2.0**-149, -(2.0**-140)])
    assert torch.equal(task_arithmetic([tiny], zero, weights=[1]), tiny)
    assert torch.equal(task_arithmetic([base, -base], torch.zeros_like(base), weights=[1, 1]), base * 0)
    assert torch.equal(task_arithmetic([base, base], base, weights=[1, 1]), base)


def test_wrong_inputs(draw):
    base, *tensors = draw(8, 3)
    with pytest.raises(ValueError, match="weights has 3 values for 2 tensors"):
        task_arithmetic(tensors, base, weights=[1, 1, 1])
    with pytest.raises(ValueError, match="shapes differ"):
        task_arithmetic(tensors, torch.zeros(3), weights=[1, 1])
    with pytest.raises(ValueError, match="at least one tensor"):
        task_arithmetic([], base, weights=[])
