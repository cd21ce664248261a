import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fuse.methods import random
from fuse.methods.random import key, uniform

keys = st.integers(0, 2**64 - 1)


def oracle(key, index):
    """SplitMix64 in Python's unbounded integers."""
    z = (key + (index + 1) * 0x9E3779B97F4A7C15) % 2**64
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
    return ((z ^ (z >> 31)) >> 40) / 2**24


@given(keys, st.integers(0, 40), st.integers(0, 2**40))
def test_every_bit_equals_the_oracle(key, count, offset):
    draws = uniform(key, count, offset)
    assert draws.dtype == torch.float32
    assert draws.tolist() == [oracle(key, offset + i) for i in range(count)]


@pytest.mark.parametrize("key", [0, 1, 2**63 - 1, 2**63, 2**64 - 1])
def test_extreme_keys(key):
    assert uniform(key, 5).tolist() == [oracle(key, i) for i in range(5)]


def test_published_numbers():
    """The first outputs of SplitMix64 with seed 1234567, as Rosetta Code lists them."""
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    assert uniform(1234567, 3).tolist() == [(number >> 40) / 2**24 for number in published]


@given(keys, st.integers(1, 60), st.integers(0, 100))
def test_blocks_equal_the_whole(key, block, offset):
    whole = uniform(key, 100, offset)
    parts = [uniform(key, min(block, 100 - start), offset + start) for start in range(0, 100, block)]
    assert torch.equal(torch.cat(parts), whole)


def test_inner_blocks_equal_the_whole(monkeypatch):
    whole = uniform(7, 1000, 3)
    monkeypatch.setattr(random, "BLOCK", 64)
    assert torch.equal(uniform(7, 1000, 3), whole)


@pytest.mark.parametrize("name", ["model.layers.0.mlp.up_proj.weight", "lm_head.weight"])
@pytest.mark.parametrize("seed", [0, 1])
def test_draws_look_uniform_and_independent(seed, name):
    count = 1 << 18
    one, other = (uniform(key(seed, name, member), count).double().numpy() for member in ("mgm", "slime"))
    noise = 5 / count**0.5  # five standard deviations
    assert one.min() >= 0 and one.max() < 1
    assert abs(one.mean() - 0.5) < noise * (1 / 12) ** 0.5
    assert abs(one.var() - 1 / 12) < noise * (1 / 180) ** 0.5
    for lag in (1, 2, 3, 64, 4096):
        assert abs(np.corrcoef(one[lag:], one[:-lag])[0, 1]) < noise
    assert abs(np.corrcoef(one, other)[0, 1]) < noise
    counts = np.histogram(one, bins=256, range=(0, 1))[0]
    chi_square = ((counts - count / 256) ** 2).sum() / (count / 256)
    assert abs(chi_square - 255) < 5 * (2 * 255) ** 0.5


def test_keys_are_stable_and_differ():
    assert key(0, "w", "a") == 0x4472F70B2A50648E
    parts = [(seed, name, member) for seed in (0, 1, 10, -1) for name in ("w", "w1", "") for member in ("a", "1a")]
    assert len({key(*part) for part in parts}) == len(parts)
    assert key(0, 'w", "a', "b") != key(0, "w", 'a", "b')
    assert all(0 <= key(*part) < 2**64 for part in parts)
    key(0, "Gewichte \ud800 重み", "ü")


def test_wrong_inputs():
    for count, offset in ((-1, 0), (0, -1)):
        with pytest.raises(ValueError, match="at least 0"):
            uniform(0, count, offset)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_gpu_draws_the_same_bits():
    assert torch.equal(uniform(2**63 + 5, 300_000, 17, "cuda").cpu(), uniform(2**63 + 5, 300_000, 17))
