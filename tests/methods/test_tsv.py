import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fuse.methods.tsv import tsv


def oracle(tensors, base):
    deltas = [tensor.double().numpy() - base.double().numpy() for tensor in tensors]
    rank = max(1, min(base.shape) // len(deltas))
    found = [np.linalg.svd(delta, full_matrices=False) for delta in deltas]
    left = np.concatenate([u[:, :rank] for u, _, _ in found], 1)
    right = np.concatenate([v[:rank] for _, _, v in found])
    values = np.concatenate([s[:rank] for _, s, _ in found])
    p, _, q = np.linalg.svd(left, full_matrices=False)
    x, _, y = np.linalg.svd(right, full_matrices=False)
    return base.double().numpy() + (p @ q * values) @ (x @ y)


@pytest.mark.parametrize("shape", [(12, 15), (15, 12), (6, 6)])
@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_oracle(draw, close, shape, count, dtype):
    base, *tensors = draw(1, count + 1, shape, dtype)
    close(tsv(tensors, base), oracle(tensors, base))


@given(st.integers(0, 10_000))
def test_one_member_is_the_member(draw, close, seed):
    base, one = draw(seed, 2)
    close(tsv([one], base), one.double().numpy())


@given(st.integers(0, 10_000), st.integers(2, 4))
def test_a_member_given_many_times_is_the_member_cut_to_a_rank(draw, close, seed, times):
    base, one = draw(seed, 2, (8, 11))
    left, values, right = np.linalg.svd((one.double() - base.double()).numpy(), full_matrices=False)
    rank = 8 // times
    close(tsv([one] * times, base), base.double().numpy() + (left[:, :rank] * values[:rank]) @ right[:rank])


def test_members_that_do_not_meet_are_added_up(draw, close):
    base = torch.zeros(6, 8)
    one, other = base.clone(), base.clone()
    one[:2, :2], other[3, 5] = torch.tensor([[3.0, 1.0], [0.0, 2.0]]), 7.0
    close(tsv([one, other], base), (one + other).double().numpy())


def test_more_members_than_directions(draw):
    base, *tensors = draw(3, 6, (3, 7))
    result = tsv(tensors, base)
    assert result.isfinite().all() and (result - base).norm() > 0.1
