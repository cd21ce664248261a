"""fuse.kernels: what is compiled gives the bytes of the torch code that it stands in for."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fuse import kernels
from fuse.engine.finite import is_finite
from fuse.methods.arithmetic import combination, moved
from fuse.methods.crumbs import middle
from fuse.methods.drop import drop_at_random
from fuse.methods.gram import gram
from fuse.methods.random import WORD
from fuse.methods.ranks import drop_by_rank
from fuse.methods.ties import elected
from fuse.methods.trim import Cut, Delta, find_cuts, trimmed

SPECIAL = [0.0, -0.0, 1.0, -1.0, 1e-40, -1e-40, 3e38, -3e38]
NOT_FINITE = [float("inf"), -float("inf"), float("nan")]
sizes = st.sampled_from([1, 3, 16, 2047, 2048, 2049, 5000])
INFINITY = 0x7F800000
seeds = st.integers(0, 1000)
floats = st.sampled_from([torch.float32, torch.bfloat16, torch.float16])


@contextmanager
def least(elements: int) -> Iterator[None]:
    before, kernels.LEAST = kernels.LEAST, elements
    kernels.load()
    try:
        yield
    finally:
        kernels.LEAST = before
        kernels.STATE.ready = False


def both(function: Callable[[], Any]) -> tuple[Any, Any]:
    """What the kernels make of it, and what torch makes of it."""
    with least(0):
        compiled = function()
    with least(1 << 60):
        return compiled, function()


def same(function: Callable[[], Tensor]) -> None:
    compiled, plain = both(function)
    assert compiled.dtype == plain.dtype and compiled.shape == plain.shape
    bits = torch.int32 if plain.dtype == torch.float32 else torch.int16
    known = ~plain.isnan()
    assert torch.equal(compiled.isnan(), plain.isnan())
    assert torch.equal(compiled.view(bits)[known], plain.view(bits)[known])


def numbers(seed: int, count: int, size: int, dtype: torch.dtype = torch.float32, *, odd: bool = True) -> list[Tensor]:
    """Tensors near each other, with zeros, denormal and very large numbers among them, and some that are not finite."""
    made = torch.Generator().manual_seed(seed)
    ground = torch.randn(size, generator=made)
    found = [ground + 0.01 * torch.randn(size, generator=made) for _ in range(count)]
    values = [*SPECIAL, *(NOT_FINITE if odd else [])]
    for tensor in found:
        places = torch.randint(size, (size // 8,), generator=made)
        tensor[places] = torch.tensor(values)[torch.randint(len(values), (size // 8,), generator=made)]
    rounded = [tensor.to(dtype) for tensor in found]
    return rounded if odd else [tensor.nan_to_num() for tensor in rounded]  # 3e38 is infinite in float16


@given(seeds, sizes, st.sampled_from([1, 3]), st.booleans(), floats)
@settings(max_examples=60, deadline=None)
def test_weighted_sums(seed: int, size: int, count: int, based: bool, dtype: torch.dtype) -> None:
    *tensors, base = numbers(seed, count + 1, size, dtype)
    factors = [0.3, -1.7, 1e-3, 0.1][:count]
    same(lambda: combination(tensors, base if based else None, factors))


@given(seeds, sizes, st.sampled_from([1, 3]), st.booleans(), floats)
@settings(max_examples=60, deadline=None)
def test_elected_sums(seed: int, size: int, count: int, normalize: bool, dtype: torch.dtype) -> None:
    (base,) = numbers(seed, 1, size, dtype)
    deltas = numbers(seed + 1, count, size)
    same(lambda: elected([d.clone() for d in deltas], base, [0.5, -0.25, 0.0, 2.0][:count], 0.3, normalize))


@given(seeds, sizes, st.booleans(), floats)
@settings(max_examples=60, deadline=None)
def test_results_are_rounded_as_torch_does(seed: int, size: int, odd: bool, dtype: torch.dtype) -> None:
    *tensors, base = numbers(seed, 3, size, dtype, odd=odd)
    deltas = [tensor.float() - base.float() for tensor in tensors]

    def results() -> Tensor:
        with kernels.rounding(torch.bfloat16):
            one = combination(tensors, base, [0.5, 0.7])
            other = elected([delta.clone() for delta in deltas], base, [0.5, 0.7], 1.1, True)
        assert {one.dtype, other.dtype} <= {torch.float32, torch.bfloat16}
        return torch.cat([one.bfloat16(), other.bfloat16()])

    same(results)


def test_every_float_between_two_halves_is_rounded_right() -> None:
    bits = torch.arange(0x3F80_0000, 0x3F84_0000, dtype=torch.int32)
    numbers = torch.cat([bits, bits | -(1 << 31), torch.arange(0, 1 << 18, dtype=torch.int32)]).view(torch.float32)
    with kernels.rounding(torch.bfloat16):
        compiled, plain = both(lambda: combination([numbers], None, [1.0]))
    assert compiled.dtype == torch.bfloat16
    assert torch.equal(compiled.view(torch.int16), plain.bfloat16().view(torch.int16))


@given(seeds, sizes, st.sampled_from([1, 3]), floats)
@settings(max_examples=40, deadline=None)
def test_moved_bases(seed: int, size: int, count: int, dtype: torch.dtype) -> None:
    (base,) = numbers(seed, 1, size, dtype)
    deltas = numbers(seed + 1, count, size)
    same(lambda: moved(base, [delta.clone() for delta in deltas], [0.5, -0.25, 2.0][:count]))


def test_weights_that_agree_and_cancel() -> None:
    deltas = [torch.ones(64), torch.ones(64), -torch.zeros(64)]
    base = torch.tensor([0.0, -0.0]).repeat(32)
    same(lambda: elected([d.clone() for d in deltas], base, [1.0, -1.0, 1.0], 1.0, True))


@given(
    seeds,
    sizes,
    st.sampled_from([0, 5, WORD - 7, WORD - 2048, 3 * WORD + 1]),
    st.floats(0.001, 0.999),
    st.booleans(),
    floats,
)
@settings(max_examples=60, deadline=None)
def test_drops(seed: int, size: int, offset: int, density: float, rescale: bool, dtype: torch.dtype) -> None:
    tensor, base = numbers(seed, 2, size, dtype)
    key = seed * 0x9E3779B97F4A7C15 % (1 << 64)
    same(lambda: drop_at_random(
        tensor, base, torch.float32, density=density, rescale=rescale, key=key, offset=offset
    ))  # fmt: skip


def test_a_density_between_two_draws() -> None:
    """A draw is a multiple of 2**-24 and density is compared as float32: the two must round it alike."""
    ones, zeros = torch.ones(1 << 16), torch.zeros(1 << 16)
    for density in (np.nextafter(np.float32(0.3), np.float32(1)).item(), 0.3, 1 / 3, 1 - 2**-30):
        same(lambda density=density: drop_at_random(
            ones, zeros, torch.float32, density=density, rescale=True, key=7, offset=0
        ))  # fmt: skip


@given(seeds, st.sampled_from([(1, 1), (1, 7), (5, 1), (40, 33), (3, 5000)]), st.booleans())
@settings(max_examples=40, deadline=None)
def test_drops_by_rank(seed: int, shape: tuple[int, int], rescale: bool) -> None:
    (delta,) = numbers(seed, 1, shape[0] * shape[1], odd=False)
    delta = delta.view(shape)
    delta[delta > 1] = 1.5  # equals
    same(lambda: drop_by_rank(delta.clone(), 0.5, 0.3, rescale, seed, 11))


@given(seeds, sizes, st.data())
@settings(max_examples=60, deadline=None)
def test_cuts(seed: int, size: int, data: st.DataObject) -> None:
    tensor, base = numbers(seed, 2, size, data.draw(floats))
    step = data.draw(st.sampled_from([7, 1024, 3000]))
    keeps = data.draw(st.lists(st.integers(1, size), min_size=1, max_size=2))
    delta = tensor.float() - base.float()
    delta[delta.abs() > 0.015] = 0.02
    pairs = [Delta(*pair) for pair in zip(tensor.split(step), base.split(step), strict=True)]
    for blocks in ([*delta.split(step), delta[:0]], [*pairs, Delta(tensor[:0], base[:0])]):
        compiled, plain = both(lambda blocks=blocks: find_cuts(lambda: blocks, keeps, torch.float32))
        assert [one.bits > INFINITY for one in compiled] == [one.bits > INFINITY for one in plain]  # NaN has many bits
        assert [one for one in compiled if one.bits <= INFINITY] == [one for one in plain if one.bits <= INFINITY]


@given(seeds, sizes, st.data(), floats)
@settings(max_examples=60, deadline=None)
def test_trims(seed: int, size: int, data: st.DataObject, dtype: torch.dtype) -> None:
    tensor, base = numbers(seed, 2, size, dtype)
    bits = data.draw(st.sampled_from([0, 1, 0x3C000000, 0x3C23D70A, 0x7F800000]))
    cut, offset = Cut(bits, data.draw(st.integers(0, 2 * size))), data.draw(st.integers(0, size))
    same(lambda: trimmed(tensor, base, torch.float32, cut, offset))
    same(lambda: trimmed(tensor, base, torch.float32, None, offset))
    top = Cut(data.draw(st.sampled_from([1, 0x3C23D70A, 0x3F000000, 0x7F7FFFFF, 0x7F800000])), cut.last)
    for cuts in ((cut, top), (None, top), (cut, None)):
        same(lambda cuts=cuts: middle(tensor, base, torch.float32, cuts, offset))


@given(seeds, sizes, st.integers(1, 3), st.booleans(), floats)
@settings(max_examples=60, deadline=None)
def test_products(seed: int, size: int, count: int, based: bool, dtype: torch.dtype) -> None:
    *tensors, base = numbers(seed, count + 1, size, dtype, odd=False)
    compiled, plain = both(lambda: gram(tensors, base if based else None))
    assert compiled.shape == plain.shape == (count, count, 1)
    assert torch.equal(compiled, plain)


@given(seeds, sizes, floats, st.sampled_from([None, *NOT_FINITE]), st.data())
@settings(max_examples=60, deadline=None)
def test_finite(seed: int, size: int, dtype: torch.dtype, bad: float | None, data: st.DataObject) -> None:
    (tensor,) = numbers(seed, 1, size, dtype, odd=False)
    if bad is not None:
        tensor[data.draw(st.integers(0, size - 1))] = bad
    assert both(lambda: is_finite(tensor)) == (bad is None, bad is None)


@pytest.mark.parametrize(
    ("tensors", "suits"),
    [
        ([torch.zeros(20_000)], True),
        ([torch.zeros(20_000), torch.zeros(20_000, dtype=torch.bfloat16)], False),
        ([torch.zeros(20_000, dtype=torch.bfloat16)] * 2, True),
        ([torch.zeros(20_000, dtype=torch.float16)], True),
        ([torch.zeros(20_000, dtype=torch.float16), torch.zeros(20_000, dtype=torch.bfloat16)], False),
        ([torch.zeros(20_000, dtype=torch.float64)], False),
        ([torch.zeros(1000)], False),
        ([torch.zeros(200, 200).T], False),
        ([torch.zeros(20_000, device="meta")], False),
    ],
)
def test_what_suits(tensors: list[Tensor], suits: bool) -> None:
    with least(kernels.LEAST):
        assert kernels.suit(tensors, halves=True) == suits
    assert not kernels.suit(tensors, halves=True)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_halves_only_where_they_are_read(dtype: torch.dtype) -> None:
    with least(kernels.LEAST):
        assert not kernels.suit([torch.zeros(20_000, dtype=dtype)])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_every_half_is_read_right(dtype: torch.dtype) -> None:
    every = torch.arange(1 << 16, dtype=torch.int32).to(torch.uint16).view(dtype)
    same(lambda: combination([every], None, [1.0]))
    assert both(lambda: is_finite(every[: 1 << 10])) == (True, True)


def test_they_are_loaded_for_a_large_merge_alone() -> None:
    kernels.load_for(kernels.WORTH - 1)
    assert not kernels.STATE.ready
    kernels.load_for(kernels.WORTH)
    assert kernels.STATE.ready
    kernels.STATE.ready = False


def test_what_cannot_be_loaded_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fuse.kernels.finite", None)
    kernels.load_for(kernels.WORTH)
    assert not kernels.STATE.ready
