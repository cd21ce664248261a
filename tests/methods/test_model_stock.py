from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mergekit.merge_methods import merge_tensors

from fuse.methods import model_stock as module
from fuse.methods.model_stock import model_stock
from tests.methods.pieces import in_pieces

DTYPES = [torch.bfloat16, torch.float16, torch.float32]
seeds = st.integers(0, 10_000)


def oracle(tensors, base, filter_wise=False):
    ground = base.double().numpy()
    x = np.stack([tensor.double().numpy() for tensor in tensors]) - ground
    flat = x if filter_wise else x.reshape(len(x), 1, -1)
    units = flat / np.linalg.norm(flat, axis=-1, keepdims=True)
    c = np.mean([(u * v).sum(-1) for u, v in combinations(units, 2)], axis=0)
    t = len(x) * c / (1 + (len(x) - 1) * c)
    return ground + (t[:, None] if filter_wise else t) * x.mean(0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("filter_wise", [True, False])
@pytest.mark.parametrize("count", [2, 3, 5])
def test_oracle(draw, close, dtype, filter_wise, count):
    base, *tensors = draw(1, count + 1, (12, 17), dtype)
    shared = [tensor + 0.05 for tensor in tensors]
    for members in (tensors, shared):
        close(model_stock(members, base, filter_wise=filter_wise), oracle(members, base, filter_wise), atol=5e-6)


@pytest.mark.parametrize("filter_wise", [True, False])
@pytest.mark.parametrize("shape", [(33, 21), (40,)])
def test_mergekit(draw, filter_wise, shape):
    base, *tensors = draw(2, 4, shape, torch.float64)
    parameters = {"filter_wise": filter_wise}
    theirs = merge_tensors([base, *tensors], "model_stock", parameters=parameters, base_index=0, dtype=torch.float64)
    torch.testing.assert_close(model_stock(tensors, base, filter_wise=filter_wise), theirs)


@given(seeds, st.integers(2, 5), st.floats(0.1, 3))
def test_it_is_the_nearest_point_to_what_the_members_share(draw, seed, count, apart):
    """Of task vectors ``shared + apart * own``, all square to each other: the nearest one between base and mean."""
    (x,) = draw(seed, 1, (30, count + 1), torch.float64)
    shared, *own = torch.linalg.qr(x.double()).Q.T
    point = model_stock([shared + apart * one for one in own], torch.zeros(30, dtype=torch.float64))
    assert abs(point @ (shared - point)) < 1e-12


@given(seeds, st.booleans())
def test_members_that_agree_are_taken(draw, seed, filter_wise):
    base, one = draw(seed, 2)
    result = model_stock([one, one, one], base, filter_wise=filter_wise)
    torch.testing.assert_close(result, one, rtol=0, atol=1e-6)


@given(seeds, st.randoms(), st.booleans())
def test_order_of_members_does_not_matter(draw, close, seed, random, filter_wise):
    base, *tensors = draw(seed, 5)
    one = model_stock(tensors, base, filter_wise=filter_wise)
    random.shuffle(tensors)
    close(model_stock(tensors, base, filter_wise=filter_wise), one.double().numpy(), atol=5e-6)


@given(seeds, st.integers(1, 8), st.booleans())
def test_blocks_have_the_same_bytes(draw, seed, step, filter_wise):
    base, *tensors = draw(seed, 4, dtype=torch.bfloat16)
    whole = model_stock(tensors, base, filter_wise=filter_wise)
    assert torch.equal(in_pieces(module, tensors, base, step, True, filter_wise=filter_wise), whole)


def test_square_and_zero_task_vectors_leave_the_base(draw):
    base, one, other = draw(3, 3)
    square = [base + torch.eye(7, 9), base + torch.eye(7, 9).roll(1, 1)]
    for filter_wise in (True, False):
        torch.testing.assert_close(model_stock(square, base, filter_wise=filter_wise), base)
        assert torch.equal(model_stock([base, base], base, filter_wise=filter_wise), base)
        tensors = [base, one, other]
        theirs = merge_tensors(
            [base, *tensors], "model_stock", parameters={"filter_wise": filter_wise}, base_index=0,
            dtype=torch.float64,
        )  # fmt: skip
        ours = model_stock(tensors, base, filter_wise=filter_wise)
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-5, atol=1e-5)


def test_where_directions_cancel_it_is_the_base(draw):
    (one,) = draw(4, 1)
    zero = torch.zeros_like(one)
    for filter_wise in (True, False):
        assert not model_stock([one, -2 * one], zero, filter_wise=filter_wise).any()


def test_numbers_that_are_not_finite_stay_visible():
    for bad in (torch.nan, torch.inf):
        for filter_wise in (True, False):
            tensors = [torch.tensor([[bad, 1.0], [1.0, 3.0]]), torch.ones(2, 2)]
            assert not model_stock(tensors, torch.zeros(2, 2), filter_wise=filter_wise)[0, 0].isfinite()


@pytest.mark.parametrize("shape", [(), (1,), (0,), (3, 0, 2), (2, 3, 4)])
def test_other_shapes(draw, shape):
    base, one = draw(5, 2, shape)
    for filter_wise in (True, False):
        torch.testing.assert_close(model_stock([one, one], base, filter_wise=filter_wise), one)


def test_wrong_inputs(draw):
    with pytest.raises(ValueError, match="model_stock takes 2 or more tensors, not 1"):
        model_stock(draw(6, 1), *draw(6, 1))
    with pytest.raises(ValueError, match="shapes differ"):
        model_stock([torch.zeros(2), torch.zeros(2)], torch.zeros(3))
