from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fuse.methods import METHODS
from fuse.methods.dare_ties import dare_ties
from fuse.methods.della import della
from fuse.methods.della_linear import della_linear
from fuse.methods.random import key, uniform
from fuse.methods.ties import ties
from tests.methods.test_ranks import chances

DTYPES = [torch.bfloat16, torch.float16, torch.float32]
KEYS = [key(0, "w", member) for member in "abc"]
seeds = st.integers(0, 10_000)


def thinned(tensor, base, density, epsilon, one, rescale):
    """The task vector of one member of two dimensions, thinned, in float64."""
    delta = tensor.float().numpy() - base.float().numpy()
    chance = chances(delta, density, epsilon)
    stays = uniform(one, base.numel()).numpy().reshape(delta.shape) < chance.astype(np.float32)
    return np.where(stays, delta / (chance if rescale else 1), 0)


def oracle(tensors, base, *, weights, density, epsilon, keys, lambda_=1.0, normalize=True, rescale=True):
    """The merge, and where the elected sign is too close to call in float32."""
    given = zip(tensors, density, epsilon, keys, strict=True)
    deltas = [thinned(tensor, base, share, half, one, rescale) for tensor, share, half, one in given]
    shares = np.reshape(weights, (-1, 1, 1)).astype(np.float64)
    weighted = shares * np.stack(deltas)
    total = weighted.sum(0)
    agrees = np.sign(weighted) == np.where(total >= 0, 1, -1)
    share = (shares * agrees).sum(0)
    merged = (weighted * agrees).sum(0) / (np.where(share == 0, 1, share) if normalize else 1)
    unsure = (np.abs(total) < 1e-6 * np.abs(weighted).sum(0)) & weighted.any(0)
    return base.double().numpy() + lambda_ * merged, unsure


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("rescale", [True, False])
def test_oracle(draw, close, dtype, normalize, rescale):
    base, *tensors = draw(1, 4, (40, 50), dtype)
    numbers: dict[str, Any] = {
        "weights": [0.5, 1.25, -0.3],
        "density": [0.3, 0.5, 1],
        "epsilon": [0.2, 0.5 - 1e-6, 0],
        "keys": KEYS,
        "lambda_": 0.7,
    }
    result = della(tensors, base, normalize=normalize, rescale=rescale, **numbers)
    expected, unsure = oracle(tensors, base, normalize=normalize, rescale=rescale, **numbers)
    assert unsure.sum() <= 0.005 * unsure.size
    close(result[~torch.from_numpy(unsure)], expected[~unsure], atol=1e-5)


def test_float64_stays_float64(draw):
    base, *tensors = draw(2, 3, dtype=torch.float64)
    numbers: dict[str, Any] = {"weights": [1, 1], "density": [0.5, 0.3], "epsilon": [0.1, 0.1], "keys": KEYS[:2]}
    assert della(tensors, base, **numbers).dtype == torch.float64


@given(seeds, st.sampled_from(DTYPES), st.booleans())
def test_full_density_is_ties(draw, seed, dtype, normalize):
    base, *tensors = draw(seed, 4, dtype=dtype)
    numbers: dict[str, Any] = {"weights": [0.3, 1, -0.2], "density": [1] * 3, "lambda_": 0.8, "normalize": normalize}
    result = della(tensors, base, epsilon=[0] * 3, keys=KEYS, **numbers)
    assert torch.equal(result, ties(tensors, base, **numbers))


@given(seeds, st.floats(0.1, 0.9))
def test_without_epsilon_it_is_dare_ties(draw, close, seed, density):
    base, *tensors = draw(seed, 3)
    numbers: dict[str, Any] = {"weights": [1, 2], "density": [density] * 2, "keys": KEYS[:2], "normalize": True}
    close(della(tensors, base, epsilon=[0, 0], **numbers), dare_ties(tensors, base, **numbers).numpy(), atol=1e-5)


@given(seeds, st.floats(0.2, 0.8), st.booleans())
def test_one_member_is_della_linear(draw, close, seed, density, rescale):
    base, tensor = draw(seed, 2)
    numbers: dict[str, Any] = {
        "weights": [0.7],
        "density": [density],
        "epsilon": [0.1],
        "keys": KEYS[:1],
        "normalize": False,
        "rescale": rescale,
    }
    close(della([tensor], base, **numbers), della_linear([tensor], base, **numbers).numpy(), atol=1e-5)


@given(seeds, st.integers(1, 8))
def test_blocks_of_rows_have_the_same_bytes(draw, seed, step):
    base, *tensors = draw(seed, 3, (7, 9), torch.bfloat16)
    numbers: dict[str, Any] = {"weights": [1, 2], "density": [0.5] * 2, "epsilon": [0.3] * 2, "keys": KEYS[:2]}
    whole = della(tensors, base, **numbers)
    parts = [
        della([t[at : at + step] for t in tensors], base[at : at + step], offset=at * 9, **numbers)
        for at in range(0, 7, step)
    ]
    assert torch.equal(torch.cat(parts), whole)


def test_inputs_are_untouched(draw):
    for dtype in (torch.bfloat16, torch.float32, torch.float64):
        base, *tensors = draw(4, 3, dtype=dtype)
        before = [tensor.clone() for tensor in [base, *tensors]]
        della(tensors, base, weights=[1, 1], density=[0.5] * 2, epsilon=[0.1] * 2, keys=KEYS[:2]).zero_()
        assert all(map(torch.equal, [base, *tensors], before))


def test_nan_stays_visible():
    bad = torch.tensor([torch.nan, 1, 2, 3])
    numbers: dict[str, Any] = {"weights": [1, 1], "density": [0.5] * 2, "epsilon": [0.3] * 2, "keys": KEYS[:2]}
    assert della([bad, torch.ones(4)], torch.zeros(4), **numbers)[0].isnan()


@pytest.mark.parametrize("shape", [(), (1,), (0,), (3, 0, 2), (2, 3, 4)])
def test_other_shapes(draw, shape):
    base, tensor = draw(5, 2, shape)
    result = della([tensor], base, weights=[1], density=[1], epsilon=[0], keys=KEYS[:1])
    torch.testing.assert_close(result, tensor, rtol=0, atol=1e-6)
    assert della([tensor], base, weights=[1], density=[0.5], epsilon=[0.2], keys=KEYS[:1]).shape == shape


def test_wrong_inputs(draw):
    base, *tensors = draw(6, 2)
    for density, epsilon, told in (
        (1, 0.15, "1 - 0.15 and 1 [+] 0.15"),
        (0.1, 0.1, "0.1 - 0.1 and 0.1 [+] 0.1"),
        (0.5, -0.1, "0.5 - -0.1 and 0.5 [+] -0.1"),
        (0, 0, "0 - 0 and 0 [+] 0"),
    ):
        text = f"^density - epsilon should be greater than 0 and density [+] epsilon at most 1, not {told}$"
        for method in (della, della_linear):
            with pytest.raises(ValueError, match=text):
                method(tensors, base, weights=[1], density=[density], epsilon=[epsilon], keys=[1])
    row = METHODS["della"]
    assert row.problem({"weights": 1, "density": [0.9, 0.8]}, 2) == (
        "della: density - epsilon should be greater than 0 and density + epsilon at most 1, "
        "not 0.9 - 0.15 and 0.9 + 0.15"
    )
    assert row.problem({"weights": 1, "density": 0.9, "epsilon": 0.1}, 2) is None
    assert row.problem({"weights": 1}, 2) == "della: density is missing"
