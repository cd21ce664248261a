"""Strongest directions, participation and overlap of subspaces against numpy's singular value decomposition."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fuse.align.deltas import directions as module
from fuse.align.deltas.directions import chance, directions, overlap

few = settings(deadline=None, max_examples=15)
SHAPES = [(60, 40), (40, 60), (50, 50), (7, 90), (1, 9), (9, 1)]


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def orthonormal(seed: int, rows: int, k: int) -> Tensor:
    return torch.linalg.qr(normal(seed, rows, k)).Q


def spread(seed: int, rows: int, width: int, fall: float = 0.5) -> Tensor:
    """A matrix whose singular values are 1, fall, fall^2 ..."""
    small = min(rows, width)
    values = fall ** torch.arange(small, dtype=torch.float64)
    return (orthonormal(seed, rows, small) * values) @ orthonormal(seed + 1, width, small).T


def rank_of(matrix: Tensor) -> float:
    squares = np.linalg.svd(matrix.double().numpy(), compute_uv=False) ** 2
    return squares.sum() ** 2 / (squares**2).sum()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", SHAPES)
def test_oracle(shape: tuple[int, int], dtype: torch.dtype) -> None:
    matrix = spread(5, *shape).to(dtype)
    k = min(4, *shape)
    found = directions(matrix, 4, seed=0)
    left, values, right = np.linalg.svd(matrix.double().numpy(), full_matrices=False)
    np.testing.assert_allclose(found.values.numpy(), values[:k], rtol=1e-7)
    for mine, theirs in ((found.left, left[:, :k]), (found.right, right[:k].T)):
        assert mine.dtype == torch.float64
        np.testing.assert_allclose(mine.numpy() @ mine.numpy().T, theirs @ theirs.T, atol=1e-6)
    assert found.participation == pytest.approx(rank_of(matrix), rel=1e-9)
    assert found.energy == pytest.approx((values[:k] ** 2).sum() / (values**2).sum(), rel=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(90, 70), (70, 90)])
def test_a_sketch_finds_what_stands_out(
    shape: tuple[int, int], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eight directions in noise: the sketch and the exact way see the same."""
    matrix = (10 * spread(1, *shape, fall=0.8) + 0.01 * normal(3, *shape)).to(dtype)
    exact = directions(matrix, 8, seed=0)
    monkeypatch.setattr(module, "EXACT", 0)
    for seed in range(3):
        found = directions(matrix, 8, seed)
        np.testing.assert_allclose(found.values.numpy(), exact.values.numpy(), rtol=1e-3)
        assert overlap(found.left, exact.left) > 0.999 and overlap(found.right, exact.right) > 0.999
        assert found.participation == pytest.approx(rank_of(matrix), rel=0.01)
        assert found.energy == pytest.approx(exact.energy, rel=1e-3)
        np.testing.assert_allclose((found.left.T @ found.left).numpy(), np.eye(8), atol=1e-10)
        again = directions(matrix, 8, seed)
        assert torch.equal(again.left, found.left) and again.participation == found.participation


@pytest.mark.parametrize("shape", [(600, 1200), (1200, 600)])
def test_a_sketch_of_noise(shape: tuple[int, int]) -> None:
    """A flat spectrum: no direction stands out, and neither rank nor overlap is made up."""
    one, other = (normal(seed, *shape).float() for seed in (1, 2))
    a, b = directions(one, 8, seed=1), directions(other, 8, seed=2)
    assert a.participation == pytest.approx(rank_of(one), rel=0.05)
    assert a.participation == pytest.approx(shape[0] * shape[1] / sum(shape), rel=0.05)
    assert overlap(a.left, b.left) < 3 * chance(a.left, b.left)
    assert overlap(a.right, b.right) < 3 * chance(a.right, b.right)


def test_one_seed_for_two_matrices_would_make_up_an_overlap(monkeypatch: pytest.MonkeyPatch) -> None:
    """Why two matrices need two seeds: a wide one of equal singular values hands the sketch's draw back."""
    monkeypatch.setattr(module, "EXACT", 0)
    flat = [orthonormal(seed, 800, 600).T for seed in (1, 2)]
    same, apart = ([directions(x, 8, s).right for x, s in zip(flat, seeds, strict=True)] for seeds in ((0, 0), (0, 1)))
    assert overlap(*same) > 10 * chance(*same)
    assert overlap(*apart) < 4 * chance(*apart)


@few
@given(st.integers(0, 1000), st.sampled_from(SHAPES[:4]), st.floats(1e-6, 1e6))
def test_laws(seed: int, shape: tuple[int, int], scale: float) -> None:
    """Neither the scale nor the transpose changes what is measured; the rank lies between 1 and the smaller side."""
    matrix = normal(seed, *shape)
    found, turned, scaled = (directions(x, 3, seed=0) for x in (matrix, matrix.T, matrix * scale))
    assert 1 <= found.participation <= min(shape)
    assert turned.participation == pytest.approx(found.participation, rel=1e-9)
    assert scaled.participation == pytest.approx(found.participation, rel=1e-9)
    assert overlap(turned.right, found.left) == pytest.approx(1) == overlap(scaled.left, found.left)
    assert overlap(found.left, found.left @ orthonormal(seed, 3, 3)) == pytest.approx(1)


@pytest.mark.parametrize("sketched", [False, True])
def test_fewer_directions_than_asked_for(sketched: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A low-rank adapter has as many directions as its rank; rounding adds none."""
    monkeypatch.setattr(module, "EXACT", 0 if sketched else 512)
    basis = orthonormal(0, 50, 5)
    two = (basis[:, :2] @ normal(1, 2, 60)).float()
    four = (basis[:, 1:5] @ normal(2, 4, 60)).float()
    a, b = directions(two, 8, seed=0), directions(four, 8, seed=1)
    assert [int((one.values > 0).sum()) for one in (a, b)] == [2, 4]
    assert torch.count_nonzero(a.left[:, 2:]) == 0 == torch.count_nonzero(a.right[:, 2:])
    assert overlap(a.left, b.left) == pytest.approx(0.5, abs=1e-5)  # one of the two that the smaller one has
    assert chance(a.left, b.left) == 4 / 50 and chance(a.right, b.right) == 4 / 60
    assert (a.energy, a.participation) == (pytest.approx(1), pytest.approx(rank_of(two), rel=1e-5))


def test_known_answers() -> None:
    equal = directions(torch.eye(6), 2, seed=0)
    assert (equal.participation, equal.energy) == (pytest.approx(6), pytest.approx(1 / 3))
    one = directions(torch.outer(torch.arange(5.0), torch.ones(3)), 2, seed=0)
    assert (one.participation, one.energy, one.values[1]) == (pytest.approx(1), pytest.approx(1), 0)
    eye = torch.eye(6, dtype=torch.float64)
    assert [overlap(eye[:, :2], eye[:, a : a + 2]) for a in (0, 1, 2)] == [1, 0.5, 0]
    nothing = directions(torch.zeros(5, 3), 2, seed=0)
    assert math.isnan(nothing.participation) and math.isnan(nothing.energy)
    assert directions(torch.zeros(0, 3), 2, seed=0).right.shape == (3, 0)
    assert math.isnan(overlap(nothing.left, equal.left[:5])) and math.isnan(chance(nothing.left, equal.left[:5]))


def test_chance_is_the_mean_over_random_subspaces() -> None:
    found = [overlap(orthonormal(2 * seed, 30, 3), orthonormal(2 * seed + 1, 30, 6)) for seed in range(300)]
    assert np.mean(found) == pytest.approx(chance(orthonormal(0, 30, 3), orthonormal(1, 30, 6)), rel=0.05)
