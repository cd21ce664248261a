import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mergekit.merge_methods import merge_tensors

from fuse.methods import METHODS
from fuse.methods import nuslerp as module
from fuse.methods.nuslerp import nuslerp
from fuse.methods.slerp import slerp
from tests.methods.pieces import in_pieces

DTYPES = [torch.bfloat16, torch.float16, torch.float32]
MODES = [
    {"flatten": True},
    {"flatten": True, "row_wise": True},
    {"flatten": False},
    {"flatten": False, "row_wise": True},
]
seeds = st.integers(0, 10_000)


def arc(x, y, t):
    angle = np.arccos(x @ y / (np.linalg.norm(x) * np.linalg.norm(y)))
    return (np.sin((1 - t) * angle) * x + np.sin(t * angle) * y) / np.sin(angle)


def oracle(tensors, base, weights, flatten=True, row_wise=False):
    ground = 0 if base is None else base.double().numpy()
    x, y = (tensor.double().numpy() - ground for tensor in tensors)
    t, shape = weights[1] / sum(weights), x.shape
    if flatten:
        return ground + arc(x.ravel(), y.ravel(), t).reshape(shape)
    if row_wise:
        x, y = x.T, y.T
    rows = np.stack([arc(one, other, t) for one, other in zip(x, y, strict=True)])
    return ground + (rows.T if row_wise else rows)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mode", MODES, ids=str)
@pytest.mark.parametrize("weights", [[1, 3], [0.7, 0.1], [-1, 3], [0, 2]])
def test_oracle(draw, close, dtype, mode, weights):
    base, *pair = draw(1, 3, (12, 17), dtype)
    wide = [pair[0], base - pair[1] * 0.3]
    close(nuslerp(pair, base, weights=weights, **mode), oracle(pair, base, weights, **mode), atol=4e-6)
    close(nuslerp(wide, weights=weights, **mode), oracle(wide, None, weights, **mode), atol=1e-5)


@pytest.mark.parametrize("mode", MODES, ids=str)
@pytest.mark.parametrize("shape", [(33, 21), (40,)])
@pytest.mark.parametrize("with_base", [True, False])
def test_mergekit(draw, mode, shape, with_base):
    base, *pair = draw(2, 3, shape, torch.float64)
    parameters = {"weight": [0.6, 0.2], **{f"nuslerp_{name}": value for name, value in mode.items()}}
    given = [base, *pair] if with_base else pair
    theirs = merge_tensors(
        given, "nuslerp", parameters=parameters, base_index=0 if with_base else None, dtype=torch.float64
    )
    ours = nuslerp(pair, base if with_base else None, weights=[0.6, 0.2], **mode)
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def test_mergekit_with_more_dimensions(draw):
    pair = draw(3, 2, (4, 3, 5), torch.float64)
    for flatten in (True, False):
        parameters = {"weight": [1.0, 2.0], "nuslerp_flatten": flatten}
        theirs = merge_tensors(pair, "nuslerp", parameters=parameters, dtype=torch.float64)
        torch.testing.assert_close(nuslerp(pair, weights=[1, 2], flatten=flatten), theirs)
    for row_wise in (True, False):
        mode = {"weights": [1, 2], "flatten": False, "row_wise": row_wise}
        assert torch.equal(nuslerp(pair, **mode).view(12, 5), nuslerp([one.view(12, 5) for one in pair], **mode))
        kernels = [one.view(4, 3, 5, 1) for one in pair]
        assert torch.equal(nuslerp(kernels, **mode).view(4, 15), nuslerp([one.view(4, 15) for one in pair], **mode))


def test_a_stack_has_the_rows_of_its_matrices(draw):
    pair = draw(4, 2, (4, 3, 5))
    mode = {"weights": [1, 2], "flatten": False}
    alone = [nuslerp([pair[0][i], pair[1][i]], **mode) for i in range(4)]
    assert torch.equal(nuslerp(pair, **mode), torch.stack(alone))


@given(seeds, st.floats(0, 1))
def test_without_a_base_it_is_slerp(draw, close, seed, t):
    one, other = draw(seed, 2)
    other = other - 2 * one
    close(nuslerp([one, other], weights=[1 - t, t]), slerp([one, other], t=t).numpy())


@given(seeds, st.sampled_from(DTYPES), st.sampled_from(MODES))
def test_ends_are_the_members(draw, seed, dtype, mode):
    base, one, other = draw(seed, 3, dtype=dtype)
    assert torch.equal(nuslerp([one, other], weights=[2, 0], **mode), one.float())
    torch.testing.assert_close(nuslerp([one, other], base, weights=[0, 3], **mode), other.float(), rtol=0, atol=1e-6)


@given(seeds, st.floats(0.01, 100), st.sampled_from(MODES))
def test_scale_of_the_weights_does_not_matter(draw, close, seed, scale, mode):
    pair = draw(seed, 2)
    close(nuslerp(pair, weights=[scale, 3 * scale], **mode), nuslerp(pair, weights=[1, 3], **mode).numpy())


@given(seeds, st.integers(1, 8), st.sampled_from(MODES))
def test_blocks_have_the_same_bytes(draw, seed, step, mode):
    base, *pair = draw(seed, 3, (7, 9), torch.bfloat16)
    for ground in (None, base):
        whole = nuslerp(pair, ground, weights=[1, 2], **mode)
        assert torch.equal(in_pieces(module, pair, ground, step, True, weights=[1, 2], **mode), whole)


@pytest.mark.parametrize("mode", MODES, ids=str)
def test_parallel_opposite_and_zero_vectors_are_a_line(draw, mode):
    (one,) = draw(4, 1)
    for other in (one, -one, 2 * one, torch.zeros_like(one)):
        torch.testing.assert_close(nuslerp([one, other], weights=[1, 3], **mode), 0.25 * one + 0.75 * other)


def test_a_zero_row_beside_others():
    one, other = torch.eye(3), torch.eye(3).flip(1)
    one[1] = 0
    result = nuslerp([one, other], weights=[1, 1], flatten=False)
    half = 0.5**0.5
    torch.testing.assert_close(result, torch.tensor([[half, 0, half], [0, 0.5, 0], [half, 0, half]]))


def test_a_nearly_straight_arc(draw):
    one, near = draw(5, 2, dtype=torch.float64)
    for size in (1e-2, 1e-4, 1e-6, 1e-9):
        other = 3 * (one + size * (near - one))
        theirs = merge_tensors([one, other], "nuslerp", parameters={"weight": [1.0, 3.0]}, dtype=torch.float64)
        torch.testing.assert_close(nuslerp([one, other], weights=[1, 3]), theirs, rtol=1e-8, atol=1e-8)


def test_numbers_that_are_not_finite_stay_visible():
    for bad in (torch.nan, torch.inf):
        for mode in MODES:
            pair = [torch.ones(2, 2), torch.tensor([[bad, 1.0], [2.0, 1.0]])]
            assert not nuslerp(pair, weights=[1, 1], **mode)[0, 0].isfinite()


@pytest.mark.parametrize("shape", [(), (1,), (0,), (3, 0, 2)])
def test_small_shapes(draw, shape):
    one, other = draw(6, 2, shape)
    for mode in MODES:
        torch.testing.assert_close(nuslerp([one, other], weights=[1, 3], **mode), 0.25 * one + 0.75 * other)


def test_inputs_are_untouched(draw):
    base, *pair = draw(7, 3)
    before = [tensor.clone() for tensor in [base, *pair]]
    nuslerp(pair, base, weights=[1, 1], flatten=False).zero_()
    assert all(map(torch.equal, [base, *pair], before))


def test_wrong_inputs(draw):
    with pytest.raises(ValueError, match="nuslerp takes 2 tensors, not 3"):
        nuslerp(draw(8, 3), weights=[1, 1, 1])
    with pytest.raises(ValueError, match="weights has 1 values for 2 tensors"):
        nuslerp(draw(8, 2), weights=[1])
    with pytest.raises(ValueError, match="the weights sum to zero, so they give no place on the arc"):
        nuslerp(draw(8, 2), weights=[1, -1])
    with pytest.raises(ValueError, match="shapes differ"):
        nuslerp([torch.zeros(2), torch.zeros(3)], weights=[1, 1])
    told = "nuslerp: the weights sum to zero, so they give no place on the arc"
    assert METHODS["nuslerp"].problem({"weights": [1, -1]}, 2) == told
