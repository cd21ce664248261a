"""Matching the rows of embedding tables and heads by token."""

from collections.abc import Sequence
from dataclasses import dataclass

from fuse.vocabulary import Vocabulary


@dataclass(frozen=True)
class Run:
    """`length` neighbouring rows: where they start in the host's table and in each source's."""

    host: int
    length: int
    sources: tuple[int, ...]


@dataclass(frozen=True)
class Added:
    """One row behind or between the host's: taken from a row of one source's table, or zero where source is None.

    source counts through the row's sources and then its donors.
    """

    row: int
    source: int | None
    source_row: int = 0


def match_rows(host: Vocabulary, host_rows: int, sources: Sequence[tuple[Vocabulary, int]]) -> tuple[Run, ...]:
    """The host's rows whose token every source has too, as runs of neighbours.

    sources: each one's vocabulary and number of stored rows; a token whose row is not stored does not count.
    """
    runs: list[list] = []
    for token, row in sorted(host.ids.items(), key=lambda item: item[1]):
        if row >= host_rows:
            continue
        starts = tuple(found if (found := vocabulary.ids.get(token, -1)) < rows else -1 for vocabulary, rows in sources)
        if -1 in starts:
            continue
        last = runs[-1] if runs else None
        if last and last[0] + last[1] == row and all(s == t + last[1] for s, t in zip(starts, last[2], strict=True)):
            last[1] += 1
        else:
            runs.append([row, 1, starts])
    return tuple(Run(*run) for run in runs)


def shared_rows(runs: Sequence[Run]) -> int:
    return sum(run.length for run in runs)
