"""What the matrix methods share: which tensors are matrices, and what is no number."""

import signal

import numpy as np
import pytest
import torch

from fuse import interruption
from fuse.methods import load, matrices
from fuse.methods.matrices import as_matrices, gram, times, total
from fuse.methods.matrix_sides import sides

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
def test_a_stack_is_merged_matrix_by_matrix(draw, name):
    base, a, b = draw(8, 3, (3, 4, 6))
    alone = [load(name)([a[i], b[i]], base[i], lambda_=0.5) for i in range(3)]
    assert torch.equal(load(name)([a, b], base, lambda_=0.5), torch.stack(alone))
    kernels = [tensor.view(3, 4, 6, 1) for tensor in (a, b, base)]
    flat = [tensor.view(3, 24) for tensor in (a, b, base)]
    assert torch.equal(load(name)(kernels[:2], kernels[2]).view(3, 24), load(name)(flat[:2], flat[2]))


def test_sides():
    shapes = {
        (): (1, 1),
        (5,): (1, 1),
        (2, 3): (2, 3),
        (7, 2, 3): (2, 3),
        (7, 2, 3, 4): (7, 24),
        (7, 1, 2, 3, 4): (7, 24),
    }
    assert {shape: sides(shape) for shape in shapes} == shapes


@pytest.mark.parametrize("name", ["wudi", "optmerge", "swudi"])
def test_a_signal_ends_the_work_inside_a_tensor(draw, monkeypatch, name):
    base, a = draw(9, 2)
    monkeypatch.setattr(interruption, "_asked", [signal.SIGTERM])
    with pytest.raises(SystemExit, match="143"):
        load(name)([a, base], base)


def test_a_signal_ends_adam_between_two_steps(draw, monkeypatch):
    base, a = draw(9, 2)
    seen = []
    monkeypatch.setattr(interruption, "check", lambda: seen.append(1))
    for steps in (0, 5):
        load("wudi")([a], base, steps=steps)
        seen.append(0)
    first = seen.index(0)
    assert len(seen) - first - 2 == first + 5


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
