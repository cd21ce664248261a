"""Random numbers that depend on the seed, the tensor and the element's index, and on nothing else.

A counter-based generator, so that any block of a tensor can be drawn alone, in any order, on any device, by any worker,
with the same bits. It mixes 32-bit words, which a CPU does eight or sixteen at a time: the element's index goes through
the permutation `triple32` of C. Wellons' hash prospector (2018), with half of the key added in front and the other
half after its first round, so that two keys have two sequences and not two places in one. Our choice; the DARE paper
does not fix a generator.
"""

import hashlib
import json
from collections.abc import Iterator

import torch
from torch import Tensor

BLOCK = 1 << 17
WORD = 1 << 32
# SplitMix64 (Steele, Lea, Flood 2014), which makes the keys of every 2**32 elements
GAMMA, MIX_1, MIX_2 = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
# triple32's multipliers
ROUND_1, ROUND_2, ROUND_3 = 0xED5AD4BB, 0xAC4C1B51, 0x31848BAB


def key(seed: int, name: str, member: str) -> int:
    """The 64-bit key of one tensor of one member: a blake2b hash of the seed and the two names."""
    text = json.dumps([seed, name, member]).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8, person=b"fuse.random").digest(), "little")


def uniform(key: int, count: int, offset: int = 0, device: torch.device | str = "cpu") -> Tensor:
    """The draws number offset to offset + count - 1 of the key's stream, evenly spread over [0, 1).

    Returns float32 ``(count,)``: multiples of 2**-24.

    Raises ValueError for a negative count or offset.
    """
    if count < 0 or offset < 0:
        raise ValueError(f"count and offset should be at least 0, not {count} and {offset}")
    draws = torch.empty(count, dtype=torch.float32, device=device)
    for start, stop, halves, low in stretches(count, key, offset):
        for number, part in enumerate(draws[start:stop].split(BLOCK)):
            part.copy_(_words(halves, low + number * BLOCK, len(part), device)).mul_(2.0**-24)
    return draws


def stretches(count: int, key: int, offset: int) -> Iterator[tuple[int, int, tuple[int, int], int]]:
    """The parts of draws number offset to offset + count - 1 that share the halves of the key.

    Yields where a part begins and ends, from 0 to count, the halves, and the number of its first draw among theirs.
    """
    start = 0
    while start < count:
        high, low = divmod(offset + start, WORD)
        stop = min(count, start + WORD - low)
        yield start, stop, _split(key, high), low
        start = stop


def _words(keys: tuple[int, int], first: int, count: int, device: torch.device | str) -> Tensor:
    """24 random bits for each index from `first` on, as int32; int32 wraps around, which is arithmetic modulo 2**32."""
    x = torch.arange(count, dtype=torch.int32, device=device).add_(_signed(first + keys[0]))
    x.bitwise_xor_(_shift(x, 17)).mul_(_signed(ROUND_1)).add_(_signed(keys[1]))
    x.bitwise_xor_(_shift(x, 11)).mul_(_signed(ROUND_2))
    x.bitwise_xor_(_shift(x, 15)).mul_(_signed(ROUND_3))
    x.bitwise_xor_(_shift(x, 14))
    return _shift(x, 8)


def _split(key: int, high: int) -> tuple[int, int]:
    """The two halves of SplitMix64's output number `high`."""
    z = (key + (high + 1) * GAMMA) % (1 << 64)
    z = (z ^ (z >> 30)) * MIX_1 % (1 << 64)
    z = (z ^ (z >> 27)) * MIX_2 % (1 << 64)
    z ^= z >> 31
    return z % WORD, z // WORD


def _shift(x: Tensor, bits: int) -> Tensor:
    # torch shifts int32 with its sign; the mask makes the shift logical
    return (x >> bits).bitwise_and_((1 << (32 - bits)) - 1)


def _signed(number: int) -> int:
    number %= WORD
    return number - WORD if number >> 31 else number
