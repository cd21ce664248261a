"""What adapters make of a stored tensor: the formulas, and that no way of cutting changes a byte."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fuse.engine import adapted
from fuse.engine.adapted import Adapted
from fuse.engine.exact_product import left, product, right

OUT, IN, RANK = 6, 20, 3


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def wide(tensor: torch.Tensor) -> np.ndarray:
    return tensor.double().numpy()


STORED = drawn(OUT, IN).bfloat16()
A, B, M = drawn(RANK, IN), drawn(OUT, RANK), drawn(OUT).abs()
LOHA = {
    "w1_a": drawn(OUT, RANK),
    "w1_b": drawn(RANK, IN),
    "w2_a": drawn(OUT, RANK, seed=1),
    "w2_b": drawn(RANK, IN, seed=1),
}
LOKR = {"w1": drawn(2, 5), "w2_a": drawn(3, RANK), "w2_b": drawn(RANK, 4)}
LOW_RANK = wide(STORED) + 1.7 * wide(B) @ wide(A)


def normed(matrix: np.ndarray, axis: int, size: np.ndarray) -> np.ndarray:
    return matrix * size / np.sqrt((matrix**2).sum(axis, keepdims=True))


def replaced() -> np.ndarray:
    table = wide(STORED)
    table[[4, 1]] = wide(A[:2])
    return table


# name -> what `Adapted` is made from, and the formula
CASES: dict[str, tuple[tuple[Any, ...], np.ndarray]] = {
    "lora": ((STORED, "lora", {"A": A, "B": B}, 1.7), LOW_RANK),
    "lora of [in, out]": ((STORED.T.contiguous(), "lora", {"A": A, "B": B}, 1.7, True), LOW_RANK.T),
    "dora": ((STORED, "dora", {"A": A, "B": B, "m": M}, 1.7), normed(LOW_RANK, 1, wide(M)[:, None])),
    "dora of [in, out]": (
        (STORED.T.contiguous(), "dora", {"A": A, "B": B, "m": M}, 1.7, True),
        normed(LOW_RANK, 1, wide(M)[:, None]).T,
    ),
    "loha": (
        (STORED, "loha", LOHA, 0.6),
        wide(STORED) + 0.6 * (wide(LOHA["w1_a"]) @ wide(LOHA["w1_b"])) * (wide(LOHA["w2_a"]) @ wide(LOHA["w2_b"])),
    ),
    "lokr": (
        (STORED, "lokr", LOKR, 0.6),
        wide(STORED) + 0.6 * np.kron(wide(LOKR["w1"]), wide(LOKR["w2_a"]) @ wide(LOKR["w2_b"])),
    ),
    "scaled rows": ((STORED, "scale", {"l": M[:, None]}), wide(STORED) * wide(M)[:, None]),
    "scaled columns": ((STORED, "scale", {"l": A[:1]}, 1.0, True), wide(STORED) * wide(A)[:1]),
    "bias": ((STORED[:, 0], "bias", {"v": M}, 1.7), wide(STORED[:, 0]) + 1.7 * wide(M)),
    "rows": ((STORED, "rows", {"rows": A[:2]}, 1.0, False, (4, 1)), replaced()),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_formulas(case: str) -> None:
    """Against numpy in float64: rounded once, so within half a step of float32."""
    made, wanted = CASES[case]
    found = Adapted(*made)
    assert (found.dtype, tuple(found.shape), found.numel()) == (torch.float32, wanted.shape, wanted.size)
    assert found.whole().shape == found.shape
    np.testing.assert_allclose(wide(found.whole()), wanted, rtol=2**-24, atol=1e-12)


def test_a_stored_float64_is_not_rounded() -> None:
    found = Adapted(STORED.double(), "lora", {"A": A, "B": B}, 1.7)
    assert found.dtype == torch.float64
    np.testing.assert_allclose(found.whole().numpy(), LOW_RANK, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("case", CASES)
@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_any_cut_gives_the_same_bytes(case: str, data: st.DataObject) -> None:
    found = Adapted(*CASES[case][0])
    whole = found.whole().reshape(-1)
    start = data.draw(st.integers(0, found.numel()))
    stop = data.draw(st.integers(0, found.numel() + 3))
    assert torch.equal(found[start:stop], whole[start:stop])
    numbers = torch.tensor(data.draw(st.lists(st.integers(0, len(found) - 1), min_size=1, max_size=9)))
    assert torch.equal(found.rows(numbers), whole.view(len(found), -1)[numbers])


@pytest.mark.parametrize("case", CASES)
def test_tiles_do_not_change_a_byte(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Adapted(*CASES[case][0]).whole()
    monkeypatch.setattr(adapted, "TILE", 1)
    assert torch.equal(Adapted(*CASES[case][0]).whole(), whole)


@given(
    rank=st.integers(1, 700), rows=st.integers(1, 5), columns=st.integers(1, 5), spread=st.integers(0, 30),
    seed=st.integers(0, 99),
)  # fmt: skip
@settings(max_examples=40, deadline=None)
def test_products_are_sums_in_any_order(rank: int, rows: int, columns: int, spread: int, seed: int) -> None:
    """The terms shuffled, or a row and a column alone: the same bytes, near the product in float64."""
    generator = torch.Generator().manual_seed(seed)
    near = torch.exp2(torch.randint(-spread, spread + 1, (1, rank), generator=generator))
    a = torch.randn(rows, rank, generator=generator) * near
    b = torch.randn(rank, columns, generator=generator) / near.T
    found = product(left(a), right(b))
    largest = (a.abs().amax(1, keepdim=True) * b.abs().amax(0, keepdim=True)).double()
    assert bool(((found - a.double() @ b.double()).abs() <= largest * rank * 2.0**-40).all())
    assert torch.equal(product(left(a[:1]), right(b[:, -1:])), found[:1, -1:])
    if rank <= 512:
        order = torch.randperm(rank, generator=generator)
        assert torch.equal(product(left(a[:, order]), right(b[order])), found)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("role", ["A", "B"])
def test_what_is_not_finite_reaches_the_output(bad: float, role: str) -> None:
    parts = {"A": A.clone(), "B": B.clone()}
    parts[role][0, 0] = bad
    found = Adapted(STORED, "lora", parts).whole()
    assert not torch.isfinite(found[:, 0] if role == "A" else found[0]).any()


def test_nothing_is_written_to_what_is_stored() -> None:
    stored, parts = STORED.double(), {"A": A.double(), "B": B.double()}
    before = stored.clone()
    make: list[Callable[[], Adapted]] = [
        lambda: Adapted(stored, "lora", parts), lambda: Adapted(stored, "rows", {"rows": parts["A"][:1]}, rows=(2,)),
    ]  # fmt: skip
    for one in make:
        one().whole()
        one()[3:9]
    assert torch.equal(stored, before)
