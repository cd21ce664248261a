import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fuse.methods import gram as module
from fuse.methods.gram import combined, cosines, gram, norms_of
from fuse.methods.row_blocks import as_rows, row_step
from tests.methods.pieces import OnlySlices

seeds = st.integers(0, 10_000)


def deltas(tensors, base=None):
    stacked = np.stack([tensor.double().numpy() for tensor in tensors])
    return stacked if base is None else stacked - base.double().numpy()


@pytest.mark.parametrize("with_base", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_oracle(draw, dtype, with_base):
    base, *tensors = draw(1, 4, (7, 9), dtype)
    base = base if with_base else None
    x = deltas(tensors, base)
    views, ground = [OnlySlices(tensor) for tensor in tensors], None if base is None else OnlySlices(base)
    np.testing.assert_allclose(gram(views, ground, "row").numpy(), np.einsum("nij,mij->nmi", x, x), rtol=1e-12)
    np.testing.assert_allclose(gram(views, ground, "column").numpy(), np.einsum("nij,mij->nmj", x, x), rtol=1e-12)
    whole = np.einsum("nij,mij->nm", x, x)[:, :, None]
    np.testing.assert_allclose(gram(views, ground).numpy(), whole, rtol=1e-12)
    flat = [OnlySlices(tensor.view(-1)) for tensor in tensors]
    on = None if base is None else OnlySlices(base.view(-1))
    np.testing.assert_allclose(gram(flat, on).numpy(), whole, rtol=1e-12)


@pytest.mark.parametrize("per", ["tensor", "row", "column"])
@pytest.mark.parametrize("shape", [(3, 100_000), (100_000, 3), (300, 301)])
def test_the_number_of_threads_does_not_change_a_bit(draw, per, shape):
    tensors = draw(2, 2, shape)
    one = gram(tensors, per=per)
    torch.set_num_threads(2)
    two = gram(tensors, per=per)
    torch.set_num_threads(1)
    assert torch.equal(one, two)


@given(seeds, st.integers(1, 80))
def test_blocks_of_another_size_have_nearly_the_same_sums(draw, seed, block):
    tensors = draw(seed, 3, (11, 13))
    for per in ("tensor", "row", "column"):
        whole = gram(tensors, per=per)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "BLOCK", block)
            torch.testing.assert_close(gram(tensors, per=per), whole, rtol=1e-13, atol=1e-13)


def test_the_sums_of_blocks_are_added_exactly():
    # 2**80 and -2**80 swallow the ones of the first and the last block, and nothing of the two between them
    x = torch.ones(4 * module.PIECE, dtype=torch.float64)
    x[0], x[-1] = 2.0**80, -(2.0**80)
    assert gram([x, torch.ones_like(x)])[0, 1].item() == 2 * module.PIECE


def test_cosines_and_norms():
    products = gram([torch.tensor([3.0, 4.0]), torch.tensor([0.0, 2.0]), torch.zeros(2)])
    assert norms_of(products)[:, 0].tolist() == [5, 2, 0]
    expected = [[1, 0.8, 0], [0.8, 1, 0], [0, 0, 0]]
    torch.testing.assert_close(cosines(products)[:, :, 0], torch.tensor(expected, dtype=torch.float64))


def test_what_is_not_finite_stays_so():
    for bad in (math.nan, math.inf):
        products = gram([torch.tensor([bad, 1.0]), torch.tensor([1.0, 1.0])])
        assert not products[0].isfinite().any() and products[1, 1] == 2


@given(seeds, st.integers(1, 7), st.sampled_from(["row", "column", "tensor"]))
def test_a_block_of_rows_is_that_of_the_whole(draw, seed, step, per):
    base, *tensors = draw(seed, 3, (7, 5), torch.bfloat16)
    factors = torch.rand(2, {"row": 7, "column": 5, "tensor": 1}[per], dtype=torch.float64)
    whole = combined(tensors, base, factors, 0, per)
    parts = [
        combined([t[at : at + step] for t in tensors], base[at : at + step], factors, at * 5, per)
        for at in range(0, 7, step)
    ]
    assert torch.equal(torch.cat(parts), whole)
    shares = {"row": factors[:, :, None], "column": factors[:, None], "tensor": factors[:, :, None]}[per]
    expected = base.double() + sum(f * (t.double() - base.double()) for f, t in zip(shares, tensors, strict=True))
    torch.testing.assert_close(whole.double(), expected, rtol=1e-6, atol=1e-6)


def test_rows_are_those_of_matrices_and_channels_of_convolutions():
    shapes = {(): (1, 1), (5,): (1, 5), (2, 3): (2, 3), (2, 3, 4): (6, 4), (2, 3, 4, 5): (2, 60), (0,): (1, 0)}
    shapes |= {(3, 0, 2): (0, 2), (3, 2, 0): (6, 0)}
    for shape, rows in shapes.items():
        assert as_rows(torch.zeros(shape)).shape == rows
    assert (row_step(10, 35), row_step(100, 35), row_step(0, 35)) == (3, 1, 35)
