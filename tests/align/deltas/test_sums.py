"""Lengths, angles and signs of task vectors against sums written out in numpy, and known answers."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fuse.align.deltas.sums import DeltaSums

few = settings(deadline=None, max_examples=25)
seeds = st.integers(0, 10_000)


def drawn(seed: int, count: int, size: int = 301, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    """A base and tensors near it, a third of whose elements are the base's."""
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(size, generator=generator)
    near = []
    for _ in range(count):
        moved = torch.rand(size, generator=generator) < 2 / 3
        near.append(base + 0.1 * torch.randn(size, generator=generator) * moved)
    return [tensor.to(dtype) for tensor in [base, *near]]


def measured(base: torch.Tensor, *tensors: torch.Tensor) -> dict[str, np.ndarray]:
    sums = DeltaSums(len(tensors))
    sums.add(tensors, base)
    return {name: value.numpy() for name, value in sums.value().items()}


def oracle(base: torch.Tensor, *tensors: torch.Tensor) -> dict[str, np.ndarray]:
    """From the definitions, element by element."""
    b = base.double().numpy()
    deltas = [tensor.double().numpy() - b for tensor in tensors]
    n = len(deltas)
    found = {name: np.full((n, n), np.nan) for name in ("cosine", "sign_agreement", "weighted_agreement")}
    for i, x in enumerate(deltas):
        for j, y in enumerate(deltas):
            both = [(p, q) for p, q in zip(x, y, strict=True) if p != 0 and q != 0]
            alike = [(p, q) for p, q in both if (p > 0) == (q > 0)]
            found["cosine"][i, j] = np.dot(x, y) / (np.linalg.norm(x) * np.linalg.norm(y))
            found["sign_agreement"][i, j] = len(alike) / len(both)
            found["weighted_agreement"][i, j] = sum(abs(p * q) for p, q in alike) / sum(abs(p * q) for p, q in both)
    norms = np.array([np.linalg.norm(x) for x in deltas])
    return found | {
        "product": np.array([[np.dot(x, y) for y in deltas] for x in deltas]),
        "base_norm": np.full(n, np.linalg.norm(b)), "norm": norms, "relative": norms / np.linalg.norm(b),
        "changed": np.array([np.mean(x != 0) for x in deltas]),
    }  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.float16])
def test_oracle(dtype: torch.dtype) -> None:
    inputs = drawn(1, 3, dtype=dtype)
    found, wanted = measured(*inputs), oracle(*inputs)
    assert found.keys() == wanted.keys()
    for name in wanted:
        np.testing.assert_allclose(found[name], wanted[name], rtol=1e-12, err_msg=name)


@few
@given(seeds, st.integers(1, 300))
def test_blocks_add_up_to_the_whole(seed: int, at: int) -> None:
    base, *tensors = drawn(seed, 3)
    first, second = DeltaSums(3), DeltaSums(3)
    first.add([tensor[:at] for tensor in tensors], base[:at])
    second.add([tensor[at:] for tensor in tensors], base[at:])
    first += second
    for name, wanted in measured(base, *tensors).items():
        np.testing.assert_allclose(first.value()[name].numpy(), wanted, rtol=1e-10, atol=1e-12, err_msg=name)


@few
@given(seeds)
def test_laws(seed: int) -> None:
    """Symmetry, ranges, and that the order of members is theirs alone."""
    base, *tensors = drawn(seed, 3)
    found, turned = measured(base, *tensors), measured(base, *tensors[::-1])
    for name in ("cosine", "sign_agreement", "weighted_agreement"):
        assert np.array_equal(found[name], found[name].T)
        np.testing.assert_allclose(np.diag(found[name]), 1, rtol=1e-12)
        np.testing.assert_allclose(found[name], turned[name][::-1, ::-1], rtol=1e-12, atol=1e-12)
    assert (np.abs(found["cosine"]) <= 1).all()
    # among the elements that both move, the weighted share follows from the products alone
    assert ((found["weighted_agreement"] >= 0.5) == (found["cosine"] >= 0)).all()


def test_known_answers() -> None:
    base = torch.tensor([3.0, 4.0, 0.0, 0.0])
    a = base + torch.tensor([1.0, 0.0, 2.0, 2.0])
    b = base + torch.tensor([3.0, 1.0, -1.0, 0.0])
    found = measured(base, a, b, base + 2 * (a - base), base - (a - base), base)
    assert found["base_norm"].tolist() == [5.0] * 5
    assert found["norm"].tolist() == [3.0, 11**0.5, 6.0, 3.0, 0.0]
    np.testing.assert_allclose(found["relative"], [0.6, 11**0.5 / 5, 1.2, 0.6, 0], rtol=1e-15)
    assert found["changed"].tolist() == [0.75, 0.75, 0.75, 0.75, 0.0]
    assert found["cosine"][0, 2] == pytest.approx(1) and found["cosine"][0, 3] == pytest.approx(-1)
    assert (found["sign_agreement"][0, 2], found["sign_agreement"][0, 3]) == (1, 0)
    assert found["sign_agreement"][0, 1] == 0.5  # elements 0 and 2 are moved by both; element 2 against each other
    assert found["weighted_agreement"][0, 1] == pytest.approx(3 / 5)
    assert np.isnan(found["cosine"][4]).all() and np.isnan(found["sign_agreement"][4]).all()


def test_a_member_that_is_not_there() -> None:
    """Its figures are NaN until it is added; those of the others do not see it."""
    base, a, b = drawn(3, 2)
    sums = DeltaSums(3)
    sums.add([a, b], base, who=(2, 0))
    found, wanted = sums.value(), measured(base, b, a)
    for name, value in found.items():
        there = value[[0, 2]] if value.ndim == 1 else value[[0, 2]][:, [0, 2]]
        np.testing.assert_allclose(there.numpy(), wanted[name], rtol=1e-12)
        assert value[1].isnan().all()
    assert sums.value()["product"][0, 2] == pytest.approx(float((a - base).double() @ (b - base).double()))
    sums.add([a + 1], base, who=[1])
    assert sums.value()["base_norm"][1] == pytest.approx(float(base.double().norm()))
    assert sums.value()["cosine"][0, 1].isnan()
    sums.add([base + 5, base + 5], base, who=[0, 1])  # what only one of two has does not count for the pair
    assert sums.value()["cosine"][0, 1] == pytest.approx(1) and sums.value()["cosine"][0, 2] == found["cosine"][0, 2]


def test_nothing_is_written_to() -> None:
    inputs = drawn(4, 2, dtype=torch.float64)
    copies = [tensor.clone() for tensor in inputs]
    measured(*inputs)
    assert all(torch.equal(x, y) for x, y in zip(inputs, copies, strict=True))
