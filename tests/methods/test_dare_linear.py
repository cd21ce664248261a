from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mergekit.merge_methods import merge_tensors

from fuse.methods.arithmetic import task_vector
from fuse.methods.dare_linear import dare_linear
from fuse.methods.drop import drop
from fuse.methods.random import key, uniform
from fuse.methods.task_arithmetic import task_arithmetic

DTYPES = [torch.bfloat16, torch.float16, torch.float32]
KEYS = [key(0, "w", member) for member in "abc"]
seeds = st.integers(0, 10_000)


def oracle(tensors, base, *, weights, density, keys, lambda_=1.0, normalize=False, rescale=True, offset=0):
    start, total = base.double().numpy(), np.zeros(base.shape)
    for tensor, weight, share, one in zip(tensors, weights, density, keys, strict=True):
        kept = uniform(one, base.numel(), offset).view(base.shape).numpy() < np.float32(share)
        delta = np.where(kept, tensor.double().numpy() - start, 0)
        total += weight * delta / (share if rescale else 1)
    return start + lambda_ * total / (np.sum(weights) if normalize else 1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("rescale", [True, False])
def test_oracle(draw, close, dtype, normalize, rescale):
    base, *tensors = draw(1, 4, dtype=dtype)
    numbers: dict[str, Any] = {
        "weights": [0.5, 1.25, -0.3],
        "density": [0.2, 0.5, 1],
        "keys": KEYS,
        "lambda_": 0.7,
    }
    result = dare_linear(tensors, base, normalize=normalize, rescale=rescale, **numbers)
    close(result, oracle(tensors, base, normalize=normalize, rescale=rescale, **numbers))


def test_float64_stays_float64(draw):
    base, *tensors = draw(2, 3, dtype=torch.float64)
    numbers: dict[str, Any] = {"weights": [0.1, 0.2], "density": [0.5, 0.3], "keys": KEYS[:2]}
    result = dare_linear(tensors, base, **numbers)
    assert result.dtype == torch.float64
    np.testing.assert_allclose(result.numpy(), oracle(tensors, base, **numbers), rtol=1e-13, atol=1e-15)


@given(seeds, st.sampled_from(DTYPES), st.booleans(), st.booleans())
def test_full_density_is_task_arithmetic(draw, seed, dtype, normalize, rescale):
    base, *tensors = draw(seed, 4, dtype=dtype)
    numbers: dict[str, Any] = {"weights": [0.3, 1, -0.2], "lambda_": 0.8, "normalize": normalize}
    result = dare_linear(tensors, base, density=[1] * 3, keys=KEYS, rescale=rescale, **numbers)
    assert torch.equal(result, task_arithmetic(tensors, base, **numbers))


@pytest.mark.parametrize("density", [0.1, 0.5, 0.9])
def test_the_mean_over_keys_is_task_arithmetic(draw, density):
    base, *tensors = draw(3, 3)
    runs = 1000
    merged = [
        dare_linear(tensors, base, weights=[1, 0.5], density=[density] * 2, keys=[key(seed, "w", m) for m in "ab"])
        for seed in range(runs)
    ]
    expected = task_arithmetic(tensors, base, weights=[1, 0.5])
    variance = (tensors[0] - base) ** 2 + (0.5 * (tensors[1] - base)) ** 2
    spread = (variance * (1 - density) / density / runs).sqrt()
    distance = (torch.stack(merged).mean(0) - expected) / spread
    assert distance.abs().max() < 5
    assert 0.7 < distance.std() < 1.3


@given(seeds, st.randoms())
def test_order_of_members_does_not_matter(draw, close, seed, random):
    base, *tensors = draw(seed, 4)
    members = list(zip(tensors, [0.3, 1, 0.7], [0.3, 0.8, 1], KEYS, strict=True))
    one = dare_linear(tensors, base, weights=[0.3, 1, 0.7], density=[0.3, 0.8, 1], keys=KEYS)
    random.shuffle(members)
    tensors, weights, density, keys = zip(*members, strict=True)
    close(dare_linear(tensors, base, weights=weights, density=density, keys=keys), one.numpy())


def test_seed_and_member_change_what_is_dropped(draw):
    base, tensor = draw(4, 2)
    numbers: dict[str, Any] = {"weights": [1], "density": [0.5]}
    results = [
        dare_linear([tensor], base, keys=[key(seed, name, member)], **numbers)
        for seed, name, member in [(0, "w", "a"), (1, "w", "a"), (0, "v", "a"), (0, "w", "b"), (0, "w", "a")]
    ]
    assert torch.equal(results[0], results[4])
    assert not any(torch.equal(results[0], other) for other in results[1:4])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("weights", [[0.7, 0.2, 0.4], [1, -0.5, -0.5]])
def test_mergekit_at_full_density(draw, close, dtype, normalize, weights):
    base, *tensors = draw(5, 4, (33, 17), dtype)
    parameters = {"weight": weights, "density": 1.0, "normalize": normalize, "lambda": 0.6}
    theirs = merge_tensors([base, *tensors], "dare_linear", parameters=parameters, base_index=0, dtype=torch.float32)
    ours = dare_linear(tensors, base, weights=weights, density=[1] * 3, keys=KEYS, normalize=normalize, lambda_=0.6)
    close(ours, theirs.numpy())


@pytest.mark.parametrize("rate", [0.2, 0.7])
def test_golden(golden, rate):
    tensors, about = golden(f"merge_dare_{rate}")
    assert about["constructor"]["mask_rate"] == rate
    base, total = tensors["input.base_weight"], 0
    for i in range(3):
        keep = tensors[f"input.drop_mask_{i}"] == 0
        for rescale, name in ((True, "dare"), (False, "dare_norescale")):
            delta = task_vector(tensors[f"input.finetuned_weight_{i}"], base)
            dropped = drop(delta, keep, 1 - rate, rescale)
            assert (dropped - tensors[f"output.{name}_{i}"]).abs().max() <= float(about["tolerance"])
            total = total + dropped if rescale else total
    assert (total - tensors["output.dare_task_arithmetic_delta"]).abs().max() <= float(about["tolerance"])


@pytest.mark.parametrize("block", [1, 5, 16, 63])
def test_blocks_have_the_same_bytes(draw, block):
    def merge(base, *tensors, offset=0):
        numbers: dict[str, Any] = {"weights": [0.3, 0.7], "density": [0.4, 0.9], "keys": KEYS[:2]}
        return dare_linear(tensors, base, lambda_=0.9, offset=offset, **numbers)

    tensors = draw(6, 3, (63,), torch.bfloat16)
    parts = enumerate(zip(*(tensor.split(block) for tensor in tensors), strict=True))
    merged = [merge(*part, offset=n * block) for n, part in parts]
    assert torch.equal(torch.cat(merged), merge(*tensors))


@pytest.mark.parametrize("dtype", DTYPES)
def test_inputs_are_untouched(draw, dtype):
    tensors = draw(7, 3, dtype=dtype)
    before = [tensor.clone() for tensor in tensors]
    dare_linear(tensors[1:], tensors[0], weights=[1, 1], density=[0.5, 1], keys=KEYS[:2]).zero_()
    assert all(map(torch.equal, tensors, before))


@pytest.mark.parametrize("shape", [(), (1,), (0,), (3, 0, 2)])
def test_small_shapes(draw, close, shape):
    base, *tensors = draw(8, 3, shape)
    numbers: dict[str, Any] = {"weights": [1, 3], "density": [0.3, 0.5], "keys": KEYS[:2]}
    close(dare_linear(tensors, base, **numbers), oracle(tensors, base, **numbers))


def test_identical_opposite_and_denormal(draw):
    (base,) = draw(9, 1)
    numbers: dict[str, Any] = {"weights": [1, 1], "density": [0.5, 0.5]}
    zero, tiny = torch.zeros_like(base), torch.full_like(base, 2.0**-149)
    assert torch.equal(dare_linear([base, base], base, keys=KEYS[:2], **numbers), base)
    assert not dare_linear([base, -base], zero, keys=[KEYS[0]] * 2, **numbers).any()
    thinned = dare_linear([tiny], zero, weights=[1], density=[0.5], keys=KEYS[:1])
    assert set(thinned.unique().tolist()) == {0, 2.0**-148}


def test_nan_stays_visible_though_dropped():
    bad = torch.tensor([torch.nan] * 9 + [1.0])
    result = dare_linear([bad], torch.zeros(10), weights=[1], density=[0.01], keys=KEYS[:1])
    assert result.isnan().tolist() == [True] * 9 + [False]


def test_wrong_inputs(draw):
    base, *tensors = draw(10, 3)
    for density in (0, -0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="density should be greater than 0 and at most 1"):
            dare_linear(tensors, base, weights=[1, 1], density=[1, density], keys=KEYS[:2])
    with pytest.raises(ValueError, match="keys has 3 values for 2 tensors"):
        dare_linear(tensors, base, weights=[1, 1], density=[1, 1], keys=KEYS)
