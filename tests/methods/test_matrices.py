"""What the matrix methods share: which tensors are matrices, and what is no number."""

import numpy as np
import pytest
import torch

from fuse.methods import load, matrices
from fuse.methods.matrices import as_matrices, gram, times, total

NAMES = ["tsv", "iso_c", "wudi", "optmerge", "swudi", "aswudi"]
MEANS = [name for name in NAMES if name != "iso_c"]


def double(deltas):
    assert all(delta.ndim == 2 for delta in deltas)
    return 2 * total(deltas).double()


def test_task_matrices_are_flattened_merged_and_added(draw, close):
    for shape in [(4, 6), (4, 3, 2), (4, 1, 2, 3)]:
        base, a, b = draw(1, 3, shape, torch.bfloat16)
        wanted = base.double() + 0.5 * 2 * (a.double() + b.double() - 2 * base.double())
        close(as_matrices([a, b], base, double, 0.5), wanted.numpy())


@pytest.mark.parametrize("name", NAMES)
def test_one_dimension_is_the_mean_or_the_sum(draw, close, name):
    base, a, b, c = draw(2, 4, (11,))
    share = 1 / 3 if name in MEANS else 1
    wanted = base.double() + 0.5 * share * (a.double() + b.double() + c.double() - 3 * base.double())
    close(load(name)([a, b, c], base, lambda_=0.5), wanted.numpy())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [(), (0,), (0, 3), (3, 0, 2), (1, 1), (1, 5), (5, 1), (2, 3), (1, 1, 6)])
def test_small_shapes(draw, name, shape):
    result = load(name)(draw(3, 4, shape)[1:], draw(3, 1, shape)[0])
    assert result.shape == shape and result.isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_members_equal_to_the_base_change_nothing(draw, name):
    base, a = draw(4, 2)
    assert torch.equal(load(name)([base, base], base), base)
    assert load(name)([a, base], base).isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_a_number_that_is_not_finite_stays_where_it_is(draw, name):
    for bad in (torch.nan, torch.inf):
        base, a, b = draw(5, 3)
        b[2, 4] = bad
        result = load(name)([a, b], base)
        assert not result[2, 4].isfinite() and result.isfinite().sum() == result.numel() - 1


@pytest.mark.parametrize("name", NAMES)
def test_dtypes(draw, name):
    for dtype, wanted in [
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
        (torch.float64, torch.float64),
    ]:
        base, a, b = draw(6, 3, dtype=dtype)
        before = [tensor.clone() for tensor in (base, a, b)]
        result = load(name)([a, b], base)
        assert result.dtype == wanted and result.shape == base.shape
        result.zero_()
        assert all(map(torch.equal, (base, a, b), before))


@pytest.mark.parametrize("name", NAMES)
def test_the_order_of_members_does_not_matter(draw, close, name):
    base, a, b, c = draw(7, 4, (9, 12), torch.float64)
    one, other = load(name)([a, b, c], base), load(name)([c, a, b], base)
    np.testing.assert_allclose(one.numpy(), other.numpy(), atol=1e-7)


@pytest.mark.parametrize("name", NAMES)
def test_lambda_multiplies_what_is_added(draw, close, name):
    base, a, b = draw(8, 3)
    whole, half = load(name)([a, b], base), load(name)([a, b], base, lambda_=0.5)
    close(half, ((whole.double() + base.double()) / 2).numpy())


@pytest.mark.parametrize("name", NAMES)
def test_wrong_inputs(name):
    with pytest.raises(ValueError, match="shapes differ"):
        load(name)([torch.zeros(2, 2)], torch.zeros(2, 3))
    with pytest.raises(ValueError, match="at least one tensor"):
        load(name)([], torch.zeros(2, 3))


@pytest.mark.parametrize("block", [1, 20, 1 << 22])
def test_products_over_blocks_of_rows(draw, monkeypatch, block):
    monkeypatch.setattr(matrices, "BLOCK", block)
    (matrix,) = draw(9, 1)
    wide = matrix.double()
    torch.testing.assert_close(gram(matrix), wide.T @ wide)
    torch.testing.assert_close(gram(matrix.T), wide @ wide.T)
    torch.testing.assert_close(times(matrix, wide.T), wide @ wide.T)
