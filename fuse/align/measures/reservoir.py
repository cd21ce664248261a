"""An even random draw of samples that come in batches, for the measures whose cost grows with samples squared."""

from collections.abc import Sequence

import torch
from torch import Tensor


class Reservoir:
    """Keeps `limit` of all rows added, each set of them equally likely, in the order in which they came.

    Every row gets a random key and the rows with the smallest keys stay (Efraimidis and Spirakis 2006, with equal
    weights). The draw depends on the seed and the order of rows, not on the size of the batches.
    Memory: limit rows, and once a batch.
    """

    def __init__(self, limit: int, seed: int = 0) -> None:
        if limit < 1:
            raise ValueError(f"limit should be at least 1, not {limit}")
        self.seen = 0
        self._limit, self._generator = limit, torch.Generator().manual_seed(seed)
        self._keys = torch.zeros(0, dtype=torch.float64)
        self._kept: list[Tensor] = []

    def add(self, *sides: Tensor) -> None:
        """Take in rows that belong together: tensors ``(rows, ...)``, as many at each call."""
        rows = len(sides[0])
        if any(len(side) != rows for side in sides):
            raise ValueError("all sides should have the same samples")
        self.seen += rows
        new = torch.rand(rows, dtype=torch.float64, generator=self._generator)
        keys = torch.cat([self._keys, new])
        stay = keys.argsort(stable=True)[: self._limit].sort().values
        self._keys, old = keys[stay], len(self._keys)
        kept, fresh = stay[stay < old], stay[stay >= old] - old
        if self._kept and len(kept) == old and not len(fresh):
            return
        before: Sequence[Tensor] = self._kept or [side[:0] for side in sides]
        self._kept = [
            torch.cat([held[kept.to(held.device)], side.detach()[fresh.to(side.device)]])
            for held, side in zip(before, sides, strict=True)
        ]

    def value(self) -> tuple[Tensor, ...]:
        """The rows kept of each side: ``(min(limit, seen), ...)`` in the dtype they came in."""
        return tuple(self._kept)
