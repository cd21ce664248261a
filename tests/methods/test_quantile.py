import torch
from hypothesis import given
from hypothesis import strategies as st

from fuse.methods.quantile import order_statistics


@given(st.integers(0, 10_000), st.integers(1, 80), st.integers(1, 80), st.sampled_from([torch.float32, torch.float64]))
def test_oracle(seed, size, block, dtype):
    generator = torch.Generator().manual_seed(seed)
    scale = 10.0 ** torch.randint(-45, 10, (size,), generator=generator)
    numbers = (torch.randint(0, 4, (size,), generator=generator) * scale).to(dtype)  # denormals, zeros and equals
    every = order_statistics(lambda: numbers.split(block), range(size), dtype)
    assert every == numbers.sort().values.tolist()


def test_the_same_place_twice_and_infinities():
    numbers = torch.tensor([1.0, torch.inf, 0, torch.inf])
    assert order_statistics(lambda: [numbers], [3, 0, 0, 1], torch.float32) == [torch.inf, 0, 0, 1]


def test_many_equals():
    numbers = torch.ones(1 << 17)
    numbers[::4] = 2
    places = [0, 3 * (1 << 15) - 1, 3 * (1 << 15)]
    assert order_statistics(lambda: numbers.split(1000), places, torch.float32) == [1, 1, 2]
