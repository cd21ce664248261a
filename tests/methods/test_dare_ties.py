from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mergekit.merge_methods import merge_tensors

from fuse.methods.dare_linear import dare_linear
from fuse.methods.dare_ties import dare_ties
from fuse.methods.random import key, uniform
from fuse.methods.ties import ties

DTYPES = [torch.bfloat16, torch.float16, torch.float32]
KEYS = [key(0, "w", member) for member in "abc"]
seeds = st.integers(0, 10_000)


def oracle(tensors, base, *, weights, density, keys, lambda_=1.0, normalize=False, rescale=True):
    """The merge, and where the elected sign is too close to call in float32."""
    start, columns = base.double().numpy(), []
    for tensor, share, one in zip(tensors, density, keys, strict=True):
        kept = uniform(one, base.numel()).view(base.shape).numpy() < np.float32(share)
        columns.append(np.where(kept, tensor.double().numpy() - start, 0) / (share if rescale else 1))
    shares = np.reshape(weights, (-1, *[1] * base.ndim)).astype(np.float64)
    weighted = shares * np.stack(columns)
    total = weighted.sum(0)
    agrees = np.sign(weighted) == np.where(total >= 0, 1, -1)
    share = (shares * agrees).sum(0)
    merged = (weighted * agrees).sum(0) / (np.where(share == 0, 1, share) if normalize else 1)
    return start + lambda_ * merged, (np.abs(total) < 1e-6 * np.abs(weighted).sum(0)) & weighted.any(0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("rescale", [True, False])
def test_oracle(draw, close, dtype, normalize, rescale):
    base, *tensors = draw(1, 4, (40, 50), dtype=dtype)
    numbers: dict[str, Any] = {
        "weights": [0.5, 1.25, -0.3],
        "density": [0.2, 0.5, 1],
        "keys": KEYS,
        "lambda_": 0.7,
    }
    result = dare_ties(tensors, base, normalize=normalize, rescale=rescale, **numbers)
    expected, unsure = oracle(tensors, base, normalize=normalize, rescale=rescale, **numbers)
    assert unsure.sum() <= 0.005 * unsure.size
    close(result[~torch.from_numpy(unsure)], expected[~unsure])


def test_float64_stays_float64(draw):
    base, *tensors = draw(2, 3, dtype=torch.float64)
    numbers: dict[str, Any] = {"weights": [0.1, 0.2], "density": [0.5, 0.3], "keys": KEYS[:2]}
    result = dare_ties(tensors, base, **numbers)
    assert result.dtype == torch.float64
    np.testing.assert_allclose(result.numpy(), oracle(tensors, base, **numbers)[0], rtol=1e-13, atol=1e-15)


@given(seeds, st.sampled_from(DTYPES), st.booleans())
def test_full_density_is_ties(draw, seed, dtype, normalize):
    base, *tensors = draw(seed, 4, dtype=dtype)
    numbers: dict[str, Any] = {
        "weights": [0.3, 1, -0.2],
        "density": [1] * 3,
        "lambda_": 0.8,
        "normalize": normalize,
    }
    assert torch.equal(dare_ties(tensors, base, keys=KEYS, **numbers), ties(tensors, base, **numbers))


@given(seeds, st.floats(0.05, 1), st.booleans())
def test_one_member_is_dare_linear(draw, close, seed, density, rescale):
    base, tensor = draw(seed, 2)
    numbers: dict[str, Any] = {"weights": [0.7], "density": [density], "keys": KEYS[:1], "rescale": rescale}
    close(dare_ties([tensor], base, **numbers), dare_linear([tensor], base, **numbers).numpy(), atol=1e-5)


@pytest.mark.parametrize("density", [0.1, 0.5])
def test_the_mean_over_keys_of_one_member_is_the_member(draw, density):
    base, tensor = draw(3, 2)
    runs = 1000
    merged = [
        dare_ties([tensor], base, weights=[1], density=[density], keys=[key(seed, "w", "a")]) for seed in range(runs)
    ]
    spread = (tensor - base).abs() * ((1 - density) / density / runs) ** 0.5
    assert ((torch.stack(merged).mean(0) - tensor) / spread).abs().max() < 5


@given(seeds, st.randoms())
def test_order_of_members_does_not_matter(draw, close, seed, random):
    base, *tensors = draw(seed, 4)
    numbers: dict[str, Any] = {"weights": [0.3, 1, 0.7], "density": [0.3, 0.8, 1], "keys": KEYS}
    members = list(zip(tensors, *numbers.values(), strict=True))
    one, (_, unsure) = dare_ties(tensors, base, **numbers), oracle(tensors, base, **numbers)
    random.shuffle(members)
    tensors, weights, density, keys = zip(*members, strict=True)
    other = dare_ties(tensors, base, weights=weights, density=density, keys=keys)
    close(other[~torch.from_numpy(unsure)], one.numpy()[~unsure])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("weights", [[0.7, 0.25, 0.41], [1, -0.5, -0.6]])
def test_mergekit_at_full_density(draw, close, dtype, normalize, weights):
    base, *tensors = draw(5, 4, (33, 17), dtype)
    parameters = {"weight": weights, "density": 1.0, "normalize": normalize, "lambda": 0.6}
    theirs = merge_tensors([base, *tensors], "dare_ties", parameters=parameters, base_index=0, dtype=torch.float32)
    numbers: dict[str, Any] = {
        "weights": weights,
        "density": [1] * 3,
        "keys": KEYS,
        "normalize": normalize,
        "lambda_": 0.6,
    }
    unsure = oracle(tensors, base, **numbers)[1]
    assert unsure.sum() <= 0.005 * unsure.size
    close(dare_ties(tensors, base, **numbers)[~torch.from_numpy(unsure)], theirs.numpy()[~unsure])


@pytest.mark.parametrize("block", [1, 5, 16, 63])
def test_blocks_have_the_same_bytes(draw, block):
    def merge(base, *tensors, offset=0):
        numbers: dict[str, Any] = {"weights": [0.3, 0.7], "density": [0.4, 0.9], "keys": KEYS[:2]}
        return dare_ties(tensors, base, lambda_=0.9, offset=offset, normalize=True, **numbers)

    tensors = draw(6, 3, (63,), torch.bfloat16)
    parts = enumerate(zip(*(tensor.split(block) for tensor in tensors), strict=True))
    merged = [merge(*part, offset=n * block) for n, part in parts]
    assert torch.equal(torch.cat(merged), merge(*tensors))


@pytest.mark.parametrize("dtype", DTYPES)
def test_inputs_are_untouched(draw, dtype):
    tensors = draw(7, 3, dtype=dtype)
    before = [tensor.clone() for tensor in tensors]
    dare_ties(tensors[1:], tensors[0], weights=[1, 1], density=[0.5, 1], keys=KEYS[:2]).zero_()
    assert all(map(torch.equal, tensors, before))


@pytest.mark.parametrize("shape", [(), (1,), (0,), (3, 0, 2)])
def test_small_shapes(draw, close, shape):
    base, *tensors = draw(8, 3, shape)
    numbers: dict[str, Any] = {"weights": [1, 3], "density": [0.3, 0.5], "keys": KEYS[:2]}
    close(dare_ties(tensors, base, **numbers), oracle(tensors, base, **numbers)[0])


def test_zero_identical_opposite_and_nan(draw):
    (base,) = draw(9, 1)
    zero = torch.zeros_like(base)
    numbers: dict[str, Any] = {"weights": [1, 1], "keys": [KEYS[0]] * 2}
    assert torch.equal(dare_ties([base, base], base, density=[0.5] * 2, **numbers), base)
    # one key for both, so that the same elements fall out; a sum of exactly zero elects plus
    result = dare_ties([base, -base], zero, density=[0.5] * 2, **numbers)
    assert torch.equal(result[result != 0], 2 * base.abs()[result != 0])
    bad = torch.where(base > 1, torch.nan, base)
    result = dare_ties([bad, base], zero, density=[0.5] * 2, **numbers)
    assert torch.equal(result.isnan(), base > 1)


def test_wrong_inputs(draw):
    base, *tensors = draw(10, 3)
    with pytest.raises(ValueError, match="density should be greater than 0 and at most 1"):
        dare_ties(tensors, base, weights=[1, 1], density=[1, 0], keys=KEYS[:2])
    with pytest.raises(ValueError, match="keys has 3 values for 2 tensors"):
        dare_ties(tensors, base, weights=[1, 1], density=[1, 1], keys=KEYS)
    with pytest.raises(ValueError, match="at least one tensor"):
        dare_ties([], base, weights=[], density=[], keys=[])
