import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fuse.methods.passthrough import passthrough

DTYPES = [torch.bfloat16, torch.float16, torch.float32, torch.float64]


@pytest.mark.parametrize("dtype", DTYPES)
def test_oracle(draw, close, dtype):
    (tensor,) = draw(1, 1, dtype=dtype)
    result = passthrough([tensor], scale=-0.75)
    assert result.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    np.testing.assert_allclose(result.double().numpy(), tensor.double().numpy() * -0.75, rtol=2e-7)


@given(st.integers(0, 10_000), st.sampled_from(DTYPES))
def test_alone_it_is_the_identity(draw, seed, dtype):
    (tensor,) = draw(seed, 1, dtype=dtype)
    assert torch.equal(passthrough([tensor]).to(dtype), tensor)


def test_scale_0_is_zero_and_keeps_what_is_not_finite():
    result = passthrough([torch.tensor([1.0, -2.0, torch.nan, torch.inf])], scale=0.0)
    assert result[:2].tolist() == [0, 0] and result[2:].isnan().all()


def test_inputs_stay(draw):
    (tensor,) = draw(3, 1)
    before = tensor.clone()
    passthrough([tensor], scale=3.0)
    assert torch.equal(tensor, before)


def test_takes_one_tensor(draw):
    with pytest.raises(ValueError, match=r"^passthrough takes 1 tensor, not 2$"):
        passthrough(draw(1, 2))
