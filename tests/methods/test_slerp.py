import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mergekit.merge_methods import merge_tensors

from fuse.methods.arithmetic import Unmergeable, weighted_sum
from fuse.methods.slerp import arc_weights, cosine, slerp

DTYPES = [torch.bfloat16, torch.float16, torch.float32]
seeds = st.integers(0, 10_000)
fractions = st.floats(0, 1)


def oracle(one, other, t):
    x, y = one.double().numpy().ravel(), other.double().numpy().ravel()
    cos = x @ y / (np.linalg.norm(x) * np.linalg.norm(y))
    if abs(cos) > 0.9995:
        return ((1 - t) * x + t * y).reshape(one.shape)
    angle = np.arccos(cos)
    return ((np.sin((1 - t) * angle) * x + np.sin(t * angle) * y) / np.sin(angle)).reshape(one.shape)


def apart(draw, seed, shape=(7, 9), dtype=torch.float32):
    """Two tensors at a wide angle."""
    one, other = draw(seed, 2, shape)
    return one.to(dtype), ((other - one) * 10 + 0.5 * one).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("t", [0.0, 0.3, 0.5, 1.0])
def test_oracle(draw, close, dtype, t):
    for one, other in (apart(draw, 1, dtype=dtype), draw(1, 2, dtype=dtype)):
        close(slerp([one, other], t=t), oracle(one, other, t))


def test_float64_stays_float64(draw):
    pair = apart(draw, 2, dtype=torch.float64)
    result = slerp(pair, t=0.25)
    assert result.dtype == torch.float64
    np.testing.assert_allclose(result.numpy(), oracle(*pair, 0.25), rtol=1e-12, atol=1e-14)


@given(seeds, st.sampled_from(DTYPES), st.booleans())
def test_ends_are_the_members(draw, seed, dtype, wide):
    one, other = apart(draw, seed, dtype=dtype) if wide else draw(seed, 2, dtype=dtype)
    assert torch.equal(slerp([one, other], t=0), one.float())
    assert torch.equal(slerp([one, other], t=1), other.float())


@given(seeds, fractions)
def test_swapping_the_members_mirrors_t(draw, close, seed, t):
    one, other = apart(draw, seed)
    close(slerp([one, other], t=t), slerp([other, one], t=1 - t).numpy())


@given(seeds, fractions)
def test_norm_stays_on_the_sphere(draw, seed, t):
    one, other = (tensor / tensor.norm() for tensor in apart(draw, seed))
    assert abs(slerp([one, other], t=t).norm().item() - 1) < 1e-5


@pytest.mark.parametrize("t", [0.0, 0.2, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("dtype", DTYPES)
def test_mergekit(draw, close, dtype, t):
    one, near = draw(3, 2, (65, 33), dtype)
    for other in (apart(draw, 3, (65, 33), dtype)[1], near):
        theirs = merge_tensors([one, other], "slerp", parameters={"t": t}, base_index=0, dtype=torch.float32)
        close(slerp([one, other], t=t), theirs.numpy())
    # between nearly opposite tensors the angle is ill-conditioned, so mergekit is asked in float64
    theirs = merge_tensors([one, -near], "slerp", parameters={"t": t}, base_index=0, dtype=torch.float64)
    close(slerp([one, -near], t=t), theirs.numpy(), atol=5e-6)


def test_the_line_begins_above_a_cosine_of_0_9995():
    for cos, line in ((0.9994, False), (0.9996, True), (-0.9994, False), (-0.9996, True)):
        one, other = torch.tensor([1.0, 0.0]), torch.tensor([cos, (1 - cos * cos) ** 0.5])
        assert (arc_weights(cosine(one, other), 0.25) == (0.75, 0.25)) == line


def test_identical_is_the_identity(draw):
    (one,) = draw(4, 1)
    torch.testing.assert_close(slerp([one, one], t=0.4), one)


def test_opposite_tensors_are_joined_by_any_arc(draw):
    one, _ = draw(3, 2)
    told = r"^it points in opposite directions in \{0\} and \{1\} \(cosine -1.000000\), so any arc fits$"
    with pytest.raises(Unmergeable, match=told):
        slerp([one, -2 * one], t=0.5)
    assert torch.equal(slerp([one, -2 * one], t=1), -2 * one) and torch.equal(slerp([one, -one], t=0), one)


def test_no_arc_leads_to_a_zero_tensor_for_which_mergekit_takes_a_right_angle(draw):
    one, _ = draw(3, 2)
    zero = torch.zeros_like(one)
    for pair, told in (([one, zero], r"\{1\} and not in \{0\}"), ([zero, one], r"\{0\} and not in \{1\}")):
        with pytest.raises(Unmergeable, match=f"^it is all zeros in {told}, so no arc joins the two$"):
            slerp(pair, t=0.5)
    assert torch.equal(slerp([one, zero], t=0), one) and not slerp([one, zero], t=1).any()
    assert not slerp([zero, zero], t=0.5).any()
    theirs = merge_tensors([one, zero], "slerp", parameters={"t": 0.5}, base_index=0)
    assert not torch.allclose(theirs, one / 2)


def test_tiny_and_huge_numbers_keep_their_angle():
    one, other = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    half = torch.tensor([0.5**0.5, 0.5**0.5])
    for scale in (2.0**-120, 2.0**120):
        torch.testing.assert_close(slerp([one * scale, other * scale], t=0.5), half * scale)
    tiny = slerp([one * 2.0**-149, other * 2.0**-149], t=0.5)
    assert torch.equal(tiny, torch.full((2,), 2.0**-149))  # 0.707 of the least denormal rounds to it


def test_numbers_that_are_not_finite_stay_visible():
    one = torch.tensor([1.0, 2.0])
    for bad in (torch.nan, torch.inf):
        result = slerp([one, torch.tensor([bad, 1.0])], t=0.5)
        assert not result[0].isfinite() and result[1] == 1.5


@pytest.mark.parametrize("shape", [(), (1,), (0,), (3, 0, 2)])
def test_small_shapes(draw, shape):
    one, other = draw(5, 2, shape)
    torch.testing.assert_close(slerp([one, other], t=0.25), 0.75 * one + 0.25 * other)


@pytest.mark.parametrize("block", [1, 5, 63])
def test_given_the_cosine_blocks_have_the_same_bytes(draw, block):
    pair = apart(draw, 6, (63,), torch.bfloat16)
    whole, angle = slerp(pair, t=0.3), cosine(*pair)
    weights = arc_weights(angle, 0.3)
    parts = zip(*(tensor.float().split(block) for tensor in pair), strict=True)
    assert torch.equal(torch.cat([weighted_sum(map(torch.clone, part), weights) for part in parts]), whole)


@pytest.mark.parametrize("dtype", DTYPES)
def test_inputs_are_untouched(draw, dtype):
    pair = apart(draw, 7, dtype=dtype)
    before = [tensor.clone() for tensor in pair]
    slerp(pair, t=0.5).zero_()
    assert all(map(torch.equal, pair, before))


def test_wrong_inputs(draw):
    with pytest.raises(ValueError, match="slerp takes 2 tensors, not 3"):
        slerp(draw(8, 3), t=0.5)
    for t in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="t should be from 0 to 1"):
            slerp(draw(8, 2), t=t)
    with pytest.raises(ValueError, match="shapes differ"):
        slerp([torch.zeros(2), torch.zeros(3)], t=0.5)
