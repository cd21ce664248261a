"""How much of a merge an adapter holds: norms of the differences, and what is missing of each."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from fuse.errors import printable
from fuse.sizes import counted


@dataclass(frozen=True)
class Held:
    """A matrix of the adapter. delta: the norm of the difference. error: of what is missing, by delta."""

    rank: int
    delta: float
    error: float


@dataclass
class Report:
    """What the adapter holds, by names in the base's class: matrices, tensors as they are, and what it leaves out.

    whole, left: the norm of each difference. beside: tensors of branches and grafts, which no base has.
    """

    rank: int
    base: str
    held: dict[str, Held] = field(default_factory=dict)
    whole: dict[str, float] = field(default_factory=dict)
    left: dict[str, float] = field(default_factory=dict)
    beside: int = 0

    @property
    def missing(self) -> float:
        """The norm of what the matrices miss of theirs."""
        return math.hypot(*(one.delta * one.error for one in self.held.values()))

    @property
    def error(self) -> float:
        """What the matrices miss of all matrices, by the norm of those."""
        return share(self.missing, math.hypot(*(one.delta for one in self.held.values())))

    @property
    def error_in_all(self) -> float:
        """What the adapter misses of everything that differs, what it leaves out too."""
        everything = math.hypot(*(one.delta for one in self.held.values()), *self.whole.values(), *self.left.values())
        return share(math.hypot(self.missing, *self.left.values()), everything)


def report_json(report: Report) -> dict[str, Any]:
    """The report for programs: errors are relative Frobenius norms."""
    return {
        "to": "adapter", "rank": report.rank, "base": report.base, "error": report.error,
        "error_in_all": report.error_in_all, "beside": report.beside,
        "tensors": {n: {"rank": o.rank, "delta": o.delta, "error": o.error} for n, o in report.held.items()},
        "whole": dict(report.whole), "left_out": dict(report.left),
    }  # fmt: skip


def report_lines(report: Report) -> Iterator[str]:
    """A line per tensor with its error, then all of them together, then what is stored whole and what is left out."""
    wide = max((len(name) for name in report.held), default=0)
    if report.held:
        yield f"{'matrix':{wide}}  rank  difference    error"
    for name, one in report.held.items():
        yield f"{printable(name):{wide}}  {one.rank:4}  {one.delta:10.4g}  {one.error:7.3%}"
    many = "matrix" if len(report.held) == 1 else "matrices"
    yield f"{len(report.held):,} {many} of rank {report.rank}: error {report.error:.3%}"
    if report.whole:
        yield f"{counted(len(report.whole), 'tensor')} stored whole: {_named(report.whole)}"
    if report.left:
        yield f"{counted(len(report.left), 'tensor')} left out: {_named(report.left)}"
    if report.whole or report.left:
        yield f"of everything that differs: error {report.error_in_all:.3%}"
    if report.beside:
        yield f"{counted(report.beside, 'tensor')} of branches and grafts are beside the language model, not in it"


def _named(sizes: dict[str, float]) -> str:
    """The largest differences by name."""
    largest = sorted(sizes.items(), key=lambda row: -row[1])[:3]
    more = f" and {len(sizes) - 3} more" if len(sizes) > 3 else ""
    return ", ".join(f"{printable(name)} ({size:.4g})" for name, size in largest) + more


def share(part: float, whole: float) -> float:
    """part / whole, 0 of nothing."""
    return part / whole if whole else 0.0
