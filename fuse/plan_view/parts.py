"""The output by part, and each part by what becomes of its tensors."""

from collections.abc import Iterable
from dataclasses import dataclass
from math import prod

from fuse.dtypes import told
from fuse.plan import Row
from fuse.plan_view.words import treatment


@dataclass(frozen=True)
class Group:
    """Rows that are treated alike. what: how, such as `copy from a`."""

    what: str
    rows: tuple[Row, ...]

    @property
    def parameters(self) -> int:
        return sum(prod(row.shape) for row in self.rows)

    @property
    def nbytes(self) -> int:
        return sum(row.nbytes for row in self.rows)


@dataclass(frozen=True)
class Part:
    """A part of the output, its rows in groups."""

    name: str
    groups: tuple[Group, ...]

    @property
    def rows(self) -> tuple[Row, ...]:
        return tuple(row for group in self.groups for row in group.rows)

    @property
    def parameters(self) -> int:
        return sum(group.parameters for group in self.groups)

    @property
    def nbytes(self) -> int:
        return sum(group.nbytes for group in self.groups)

    @property
    def dtype(self) -> str:
        """The dtype that its tensors are written in, or all of them."""
        return told(list(self.rows))


def parts_of(rows: Iterable[Row]) -> list[Part]:
    """The parts in the order of the rows."""
    found: dict[str, dict[str, list[Row]]] = {}
    for row in rows:
        found.setdefault(row.part, {}).setdefault(treatment(row, every=False), []).append(row)
    return [
        Part(name, tuple(Group(what, tuple(inside)) for what, inside in groups.items()))
        for name, groups in found.items()
    ]
