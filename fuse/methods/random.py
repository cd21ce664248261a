"""Random numbers that depend on the seed, the tensor and the element's index, and on nothing else.

A counter-based generator (SplitMix64: Steele, Lea, Flood 2014), so that any block of a tensor can be drawn
alone, in any order, on any device, by any worker, with the same bits. Our choice; the DARE paper does not fix
a generator.
"""

import hashlib
import json

import torch
from torch import Tensor

BLOCK = 1 << 17
_MASK = (1 << 64) - 1
# SplitMix64's increment and its two multipliers
GAMMA, MIX_1, MIX_2 = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def key(seed: int, name: str, member: str) -> int:
    """The 64-bit key of one tensor of one member: a blake2b hash of the seed and the two names."""
    text = json.dumps([seed, name, member]).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8, person=b"fuse.random").digest(), "little")


def uniform(key: int, count: int, offset: int = 0, device: torch.device | str = "cpu") -> Tensor:
    """The draws number offset to offset + count - 1 of the key's stream, evenly spread over [0, 1).

    Returns float32 ``(count,)``: multiples of 2**-24, ``mix(key + (i + 1) * gamma) >> 40`` for element i.

    Raises ValueError for a negative count or offset.
    """
    if count < 0 or offset < 0:
        raise ValueError(f"count and offset should be at least 0, not {count} and {offset}")
    draws = torch.empty(count, dtype=torch.float32, device=device)
    for start in range(0, count, BLOCK):
        part = draws[start : start + BLOCK]
        first = offset + start + 1
        z = torch.arange(first, first + len(part), dtype=torch.int64, device=device)
        z.mul_(_signed(GAMMA)).add_(_signed(key))  # int64 wraps around, which is arithmetic modulo 2**64
        z.bitwise_xor_(_shift(z, 30)).mul_(_signed(MIX_1))
        z.bitwise_xor_(_shift(z, 27)).mul_(_signed(MIX_2))
        z.bitwise_xor_(_shift(z, 31))
        part.copy_(_shift(z, 40)).mul_(2.0**-24)
    return draws


def _shift(z: Tensor, bits: int) -> Tensor:
    # torch shifts int64 with its sign; the mask makes the shift logical
    return (z >> bits).bitwise_and_((1 << (64 - bits)) - 1)


def _signed(number: int) -> int:
    number &= _MASK
    return number - (1 << 64) if number >> 63 else number
