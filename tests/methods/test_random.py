import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fuse.methods import random
from fuse.methods.random import key, uniform

keys = st.integers(0, 2**64 - 1)


def splitmix(key, index):
    """SplitMix64 in Python's unbounded integers."""
    z = (key + (index + 1) * 0x9E3779B97F4A7C15) % 2**64
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
    return z ^ (z >> 31)


def oracle(key, index):
    """triple32 with a key in front and one after its first round."""
    high, low = divmod(index, 2**32)
    second, first = divmod(splitmix(key, high), 2**32)
    x = (low + first) % 2**32
    x = ((x ^ (x >> 17)) * 0xED5AD4BB + second) % 2**32
    x = (x ^ (x >> 11)) * 0xAC4C1B51 % 2**32
    x = (x ^ (x >> 15)) * 0x31848BAB % 2**32
    return ((x ^ (x >> 14)) >> 8) / 2**24


@given(keys, st.integers(0, 40), st.integers(0, 2**40))
def test_every_bit_equals_the_oracle(key, count, offset):
    draws = uniform(key, count, offset)
    assert draws.dtype == torch.float32
    assert draws.tolist() == [oracle(key, offset + i) for i in range(count)]


@pytest.mark.parametrize("key", [0, 1, 2**63 - 1, 2**63, 2**64 - 1])
def test_extreme_keys(key):
    assert uniform(key, 5).tolist() == [oracle(key, i) for i in range(5)]


def test_published_numbers():
    """The first outputs of SplitMix64 with seed 1234567, as Rosetta Code lists them: they make the keys."""
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    halves = [random._split(1234567, high) for high in range(3)]
    assert [first + (second << 32) for first, second in halves] == published


@pytest.mark.parametrize("offset", [2**32 - 3, 5 * 2**32 - 1, 2**31 - 2])
def test_a_block_over_the_end_of_a_word(offset):
    assert uniform(11, 6, offset).tolist() == [oracle(11, offset + i) for i in range(6)]


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
    assert abs(np.corrcoef((one * 256) % 1, other)[0, 1]) < noise  # the low bits
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


def test_every_bit_of_the_key_changes_half_of_the_bits():
    count = 1 << 14
    plain = (uniform(99, count).double() * 2**24).long()
    for bit in range(64):
        other = (uniform(99 ^ (1 << bit), count).double() * 2**24).long()
        for place in range(24):
            changed = ((plain ^ other) >> place & 1).double().mean()
            assert abs(changed - 0.5) < 5 * 0.5 / count**0.5, (bit, place)


def test_neighbours_differ_in_half_of_the_bits():
    count = 1 << 16
    draws = (uniform(5, count).double() * 2**24).long()
    for step in (1, 2, 4, 256, 4096):
        changed = draws[step:] ^ draws[:-step]
        for place in range(24):
            assert abs((changed >> place & 1).double().mean() - 0.5) < 5 * 0.5 / count**0.5, (step, place)
