import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mergekit.merge_methods import merge_tensors

from fuse.methods import arcee_fusion as module
from fuse.methods.arcee_fusion import arcee_fusion, divergence
from tests.methods.pieces import in_pieces

DTYPES = [torch.bfloat16, torch.float16, torch.float32]
seeds = st.integers(0, 10_000)


def softmax(x):
    powers = np.exp(x - x.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def oracle(tensor, base):
    """The merge, and how near each element is to the threshold."""
    x, y = tensor.double().numpy(), base.double().numpy()
    p, q = softmax(x), softmax(y)
    importance = np.abs(x - y) * (p * np.log(p / q)).sum(-1, keepdims=True)
    first, median, third = np.quantile(importance, [0.25, 0.5, 0.75], method="lower")
    threshold = median + 1.5 * (third - first)
    return np.where(importance >= threshold, x, y), np.abs(importance / threshold - 1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(40, 50), (300,), (3, 90), (7, 1000)])
def test_oracle(draw, dtype, shape):
    base, tensor = draw(1, 2, shape, dtype)
    expected, distance = oracle(tensor, base)
    sure = torch.from_numpy(distance > 1e-5)
    assert (~sure).sum() <= 0.002 * sure.numel()
    result = arcee_fusion([tensor], base)
    assert result.dtype == torch.float32 and torch.equal(result[sure].double(), torch.from_numpy(expected)[sure])
    assert (result != base.float()).any() and (result == base.float()).any()


@pytest.mark.parametrize("shape", [(40, 50), (64,), (3, 90)])
def test_mergekit(draw, shape):
    """On tensors that are small enough for it to look at every element."""
    for seed in range(8):
        base, tensor = draw(seed, 2, shape, torch.float64)
        theirs = merge_tensors([base, tensor], "arcee_fusion", base_index=0, dtype=torch.float64)
        assert torch.equal(arcee_fusion([tensor], base), theirs)


def test_equal_importance_is_taken_as_in_mergekit():
    base, tensor = torch.zeros(6, 2, dtype=torch.float64), torch.tensor([[1.0, -1]] * 6, dtype=torch.float64)
    assert torch.equal(arcee_fusion([tensor], base), tensor)
    theirs = merge_tensors([base, tensor], "arcee_fusion", base_index=0, dtype=torch.float64)
    assert torch.equal(theirs, tensor)


@given(seeds)
def test_what_is_taken_outweighs_what_is_not(draw, seed):
    base, tensor = draw(seed, 2, (12, 30))
    taken = arcee_fusion([tensor], base) != base
    weight = (tensor - base).abs() * divergence(tensor, base)[:, None]
    assert weight[taken].min() > weight[~taken].max()
    assert 0 < taken.sum() < 90  # an outlier is in the last quarter


@given(seeds, st.integers(1, 8), st.sampled_from(DTYPES))
def test_blocks_have_the_same_bytes(draw, seed, step, dtype):
    base, tensor = draw(seed, 2, (7, 9), dtype)
    whole = arcee_fusion([tensor], base)
    assert torch.equal(in_pieces(module, [tensor], base, step, True), whole)


@pytest.mark.parametrize("shape", [(3, 40_000), (40_000, 3)])
def test_the_number_of_threads_does_not_change_a_bit(draw, shape):
    base, tensor = draw(2, 2, shape)
    one = arcee_fusion([tensor], base)
    torch.set_num_threads(2)
    two = arcee_fusion([tensor], base)
    torch.set_num_threads(1)
    assert torch.equal(one, two)


def test_divergences_of_small_changes_are_exact(draw):
    base, other = (tensor.double() for tensor in draw(3, 2, (5, 1000)))
    step = other - base
    # to second order it is half the variance of the change under the softmax
    q = base.softmax(-1)
    mean = (q * step).sum(-1, keepdim=True)
    variance = (q * (step - mean) ** 2).sum(-1)
    for size in (1e-3, 1e-4):
        torch.testing.assert_close(divergence(base + size * step, base), size**2 * variance / 2, rtol=1e-3, atol=0)
    assert not divergence(base + 3, base).gt(1e-14).any()


def test_the_base_stays_where_nothing_changed(draw):
    (base,) = draw(4, 1)
    assert torch.equal(arcee_fusion([base], base), base)


def test_inputs_are_untouched(draw):
    base, tensor = draw(5, 2, dtype=torch.float64)
    before = [base.clone(), tensor.clone()]
    arcee_fusion([tensor], base).zero_()
    assert torch.equal(base, before[0]) and torch.equal(tensor, before[1])


def test_what_is_not_finite_stays_visible():
    for bad in (torch.nan, torch.inf):
        tensor = torch.tensor([[bad, 1.0], [1.0, 3.0]])
        assert not arcee_fusion([tensor], torch.ones(2, 2))[0, 0].isfinite()
        assert not arcee_fusion([torch.ones(2, 2)], tensor)[0, 0].isfinite()


@pytest.mark.parametrize("shape", [(), (1,), (0,), (3, 0, 2)])
def test_small_shapes(draw, shape):
    base, tensor = draw(6, 2, shape)
    result = arcee_fusion([tensor], base)
    assert torch.equal(result, tensor)  # a row of one has no divergence, so that all are equally important


def test_wrong_inputs(draw):
    with pytest.raises(ValueError, match="arcee_fusion takes 1 tensor beside the base, not 2"):
        arcee_fusion(draw(7, 2), *draw(7, 1))
    with pytest.raises(ValueError, match="shapes differ"):
        arcee_fusion([torch.zeros(2)], torch.zeros(3))
