"""What a report is made of before it is drawn: a page of sections with tables, heat maps, scatters and pictures."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from fuse.errors import printable
from fuse.report.colours import Scale

Cells = Sequence[Sequence[float | None]]


def line(text: object) -> str:
    """A stranger's text in one line, control and direction characters escaped."""
    return printable(" ".join(str(text).split()))


def three_digits(value: float) -> str:
    """0.04983 is 0.050."""
    return f"{round(value, 3) + 0.0:.3f}"  # + 0.0: no -0.000


@dataclass(frozen=True)
class Sentence:
    """agrees: whether it says that the parts fit; None where it says neither."""

    text: str
    agrees: bool | None = None


def verdicts_of(found: Sequence[Mapping[str, Any]]) -> list[Sentence]:
    """Verdicts of a document, {"topic", "agrees", "text"}, as sentences; what does not fit comes first."""
    ordered = sorted(found, key=lambda one: one["agrees"])
    return [Sentence(f"{one['topic']}: {one['text']}", one["agrees"]) for one in ordered]


@dataclass(frozen=True)
class Table:
    """head and rows as text; the first cell of a row names it. words: whether cells are words, not numbers."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""
    words: bool = False


@dataclass(frozen=True)
class Heat:
    """A matrix of coloured cells.

    name: of its PNG, lower-case letters, digits and hyphens. values: ``[rows][columns]``, None for what is not there.
    down, across: what the rows and the columns are. short: a value inside its cell; told: the same in full.
    """

    name: str
    title: str
    rows: Sequence[str]
    columns: Sequence[str]
    values: Cells
    scale: Scale
    down: str
    across: str
    caption: str = ""
    short: Callable[[float], str] = lambda value: f"{round(value, 2) + 0.0:.2f}"
    told: Callable[[float], str] = three_digits

    @property
    def alt(self) -> str:
        """The picture in words: what it shows, its range, and where it is largest and least."""
        at = {
            (row, column): value
            for row, values in zip(self.rows, self.values, strict=True)
            for column, value in zip(self.columns, values, strict=True)
            if value is not None
        }
        shown = f"Heat map of {len(self.rows)} by {len(self.columns)} cells, {self.down} by {self.across}"
        if not at:
            return f"{shown}; no cell has a value."
        least, most = min(at, key=lambda one: at[one]), max(at, key=lambda one: at[one])
        return (
            f"{shown}; from {self.told(at[least])} at {least[0]}, {least[1]} "
            f"to {self.told(at[most])} at {most[0]}, {most[1]}."
        )


@dataclass(frozen=True)
class Scatter:
    """Points of several groups in a plane, the same scale both ways."""

    name: str
    title: str
    groups: Mapping[str, Sequence[tuple[float, float]]]
    caption: str = ""

    @property
    def alt(self) -> str:
        counts = ", ".join(f"{len(points)} of {name}" for name, points in self.groups.items())
        return f"Scatter of points in a plane: {counts}."


@dataclass(frozen=True)
class Picture:
    """A PNG that is there already."""

    name: str
    title: str
    png: bytes
    alt: str
    caption: str = ""


Chart = Heat | Scatter | Picture


@dataclass(frozen=True)
class Section:
    """folded: shown only when it is opened."""

    title: str
    parts: Sequence[Table | Chart] = ()
    sentences: Sequence[Sentence] = ()
    folded: bool = False


@dataclass(frozen=True)
class Page:
    """title: of the document. about: one line on what was looked at. verdicts: stand first."""

    title: str
    about: str
    verdicts: Sequence[Sentence]
    sections: Sequence[Section] = field(default_factory=tuple)

    @property
    def charts(self) -> list[Chart]:
        """All that gets a PNG, in order."""
        parts = chain.from_iterable(section.parts for section in self.sections)
        return [part for part in parts if not isinstance(part, Table)]
