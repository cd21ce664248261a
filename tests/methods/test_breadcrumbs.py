import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mergekit.merge_methods import merge_tensors

from fuse.methods import METHODS
from fuse.methods import breadcrumbs as module
from fuse.methods.breadcrumbs import breadcrumbs
from fuse.methods.task_arithmetic import task_arithmetic
from tests.methods.pieces import in_pieces

DTYPES = [torch.bfloat16, torch.float16, torch.float32]
seeds = st.integers(0, 10_000)


def middle(delta, density, gamma):
    """numpy: the largest dropped, then the next kept; lowest index first among equals."""
    order = np.argsort(-np.abs(delta.ravel()), kind="stable")
    kept = max(1, int(density * delta.size))
    dropped = min(int(gamma * delta.size), delta.size - kept)
    result = np.zeros_like(delta)
    places = order[dropped : dropped + kept]
    result.ravel()[places] = delta.ravel()[places]
    return result


def oracle(tensors, base, *, weights, density, gamma, lambda_=1.0, normalize=False):
    start = base.float().numpy()
    given = zip(tensors, weights, density, gamma, strict=True)
    total = sum(w * middle(t.float().numpy() - start, d, g).astype(np.float64) for t, w, d, g in given)
    return start + lambda_ * total / (sum(weights) if normalize else 1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize(
    ("density", "gamma"),
    [([0.9, 0.5, 0.2], [0.01, 0.2, 0]), ([1, 0.5, 0.001], [0, 0.5, 0.999]), ([0.3] * 3, [0.7] * 3)],
)
def test_oracle(draw, close, dtype, normalize, density, gamma):
    base, *tensors = draw(1, 4, (40, 50), dtype)
    given = {"weights": [0.5, 1.25, -0.3], "density": density, "gamma": gamma, "lambda_": 0.7, "normalize": normalize}
    close(breadcrumbs(tensors, base, **given), oracle(tensors, base, **given))


def test_float64_stays_float64(draw):
    base, *tensors = draw(2, 3, dtype=torch.float64)
    result = breadcrumbs(tensors, base, weights=[1, 2], density=[0.5, 0.5], gamma=[0.1, 0])
    assert result.dtype == torch.float64


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize(("density", "gamma"), [(0.9, 0.01), (0.5, 0.2), (0.3, 0.7), (1.0, 0.0), (0.333, 0.127)])
def test_mergekit(draw, normalize, density, gamma):
    base, *tensors = draw(3, 4, (65, 33))
    parameters = {"weight": [0.7, 0.2, 0.4], "density": density, "gamma": gamma, "lambda": 0.6, "normalize": normalize}
    theirs = merge_tensors([base, *tensors], "breadcrumbs", parameters=parameters, base_index=0, dtype=torch.float32)
    ours = breadcrumbs(
        tensors, base, weights=[0.7, 0.2, 0.4], density=[density] * 3, gamma=[gamma] * 3, lambda_=0.6,
        normalize=normalize,
    )  # fmt: skip
    # float32 task vectors of a base near 1 share a few magnitudes, and mergekit leaves open which of them is cut
    unequal = ~torch.isclose(ours, theirs, rtol=1e-5, atol=1e-6)
    assert unequal.sum() <= 4


@given(seeds, st.floats(0.05, 1), st.floats(0, 1), st.integers(1, 60))
def test_the_counts_and_the_order(seed, density, gamma, size):
    gamma = min(gamma, 1 - density)
    delta = torch.randint(-4, 5, (size,), generator=torch.Generator().manual_seed(seed)).float()
    result = breadcrumbs([delta], torch.zeros(size), weights=[1], density=[density], gamma=[gamma])
    assert np.array_equal(result.numpy(), middle(delta.numpy(), density, gamma))


@given(seeds, st.sampled_from(DTYPES), st.booleans())
def test_the_whole_is_task_arithmetic(draw, seed, dtype, normalize):
    base, *tensors = draw(seed, 3, dtype=dtype)
    result = breadcrumbs(tensors, base, weights=[1, 2], density=[1, 1], gamma=[0, 0], normalize=normalize)
    assert torch.equal(result, task_arithmetic(tensors, base, weights=[1, 2], normalize=normalize))


@given(seeds, st.integers(1, 70))
def test_blocks_have_the_same_bytes(draw, seed, step):
    base, *tensors = draw(seed, 3, dtype=torch.bfloat16)
    given = {"weights": [1, 2], "density": [0.3, 0.8], "gamma": [0.5, 0.1]}
    whole = breadcrumbs(tensors, base, **given)
    assert torch.equal(in_pieces(module, tensors, base, step, False, **given), whole)


def test_what_is_not_finite_stays_visible():
    for bad in (torch.nan, torch.inf):
        for gamma in (0, 0.25):
            tensors = [torch.tensor([bad, 1.0, 2.0, 3.0])]
            result = breadcrumbs(tensors, torch.zeros(4), weights=[1], density=[0.5], gamma=[gamma])
            assert result.isfinite().tolist() == [False, True, True, True]


@pytest.mark.parametrize("shape", [(), (1,), (0,), (3, 0, 2)])
def test_small_shapes(draw, close, shape):
    base, tensor = draw(4, 2, shape)
    result = breadcrumbs([tensor], base, weights=[1], density=[0.5], gamma=[0.5])
    close(result, tensor.numpy())


def test_wrong_inputs(draw):
    base, *tensors = draw(5, 2)
    for density, gamma, told in ((1, 0.01, "1 and 0.01"), (0, 0.1, "0 and 0.1"), (0.5, -0.1, "0.5 and -0.1")):
        with pytest.raises(
            ValueError, match=f"^density should be greater than 0 and density .* at most 1, not {told}$"
        ):
            breadcrumbs(tensors, base, weights=[1], density=[density], gamma=[gamma])
    with pytest.raises(ValueError, match="gamma has 1 values for 2 tensors"):
        breadcrumbs([base, base], base, weights=[1, 1], density=[0.5, 0.5], gamma=[0.1])
    row = METHODS["breadcrumbs"]
    assert row.problem({"weights": 1, "density": [0.9, 0.6], "gamma": [0.1, 0.5]}, 2) == (
        "breadcrumbs: density should be greater than 0 and density + gamma at most 1, not 0.6 and 0.5"
    )
    assert row.problem({"weights": 1, "density": 0.9, "gamma": 0.1}, 2) is None
    assert row.problem({"weights": 1}, 2) == "breadcrumbs: density is missing"
