from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fuse.methods.dare_linear import dare_linear
from fuse.methods.della_linear import della_linear
from fuse.methods.random import key
from fuse.methods.task_arithmetic import task_arithmetic
from tests.methods.test_della import DTYPES, KEYS, thinned

seeds = st.integers(0, 10_000)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("rescale", [True, False])
def test_oracle(draw, close, dtype, normalize, rescale):
    base, *tensors = draw(1, 4, (40, 50), dtype)
    weights, density, epsilon = [0.5, 1.25, -0.3], [0.3, 0.5, 1], [0.2, 0.499, 0]
    given = zip(tensors, density, epsilon, KEYS, strict=True)
    deltas = [thinned(tensor, base, share, half, one, rescale) for tensor, share, half, one in given]
    total = sum(weight * delta for weight, delta in zip(weights, deltas, strict=True))
    expected = base.double().numpy() + 0.7 * total / (sum(weights) if normalize else 1)
    result = della_linear(
        tensors, base, weights=weights, density=density, epsilon=epsilon, keys=KEYS, lambda_=0.7,
        normalize=normalize, rescale=rescale,
    )  # fmt: skip
    close(result, expected, atol=2e-5)


@given(seeds, st.sampled_from(DTYPES), st.booleans())
def test_full_density_is_task_arithmetic(draw, seed, dtype, normalize):
    base, *tensors = draw(seed, 3, dtype=dtype)
    result = della_linear(
        tensors, base, weights=[1, 2], density=[1, 1], epsilon=[0, 0], keys=KEYS[:2], normalize=normalize
    )
    assert torch.equal(result, task_arithmetic(tensors, base, weights=[1, 2], normalize=normalize))


@given(seeds, st.floats(0.1, 0.9))
def test_without_epsilon_it_is_dare_linear(draw, close, seed, density):
    base, *tensors = draw(seed, 3)
    numbers: dict[str, Any] = {"weights": [1, 2], "density": [density] * 2, "keys": KEYS[:2]}
    close(
        della_linear(tensors, base, epsilon=[0, 0], **numbers), dare_linear(tensors, base, **numbers).numpy(), atol=1e-5
    )


def test_the_mean_over_keys_is_task_arithmetic(draw):
    base, *tensors = draw(2, 3)
    numbers: dict[str, Any] = {"weights": [1, 0.5], "density": [0.6, 0.5], "epsilon": [0.2, 0.3]}
    runs = [
        della_linear(tensors, base, keys=[key(seed, "w", member) for member in "ab"], **numbers) for seed in range(2000)
    ]
    expected = task_arithmetic(tensors, base, weights=[1, 0.5])
    assert (torch.stack(runs).mean(0) - expected).abs().max() < 0.03


@given(seeds, st.integers(1, 8))
def test_blocks_of_rows_have_the_same_bytes(draw, seed, step):
    base, *tensors = draw(seed, 3, (7, 9), torch.bfloat16)
    numbers: dict[str, Any] = {"weights": [1, 2], "density": [0.5] * 2, "epsilon": [0.3] * 2, "keys": KEYS[:2]}
    whole = della_linear(tensors, base, **numbers)
    parts = [
        della_linear([t[at : at + step] for t in tensors], base[at : at + step], offset=at * 9, **numbers)
        for at in range(0, 7, step)
    ]
    assert torch.equal(torch.cat(parts), whole)


def test_nan_stays_visible():
    bad = torch.tensor([torch.nan, 1, 2, 3])
    result = della_linear([bad], torch.zeros(4), weights=[1], density=[0.5], epsilon=[0.3], keys=[1])
    assert result[0].isnan()
