"""What a search may change: axes (one number or option each), and the knobs that write them into the recipe.

A point has one value for each axis, in the order of the axes. A knob writes the values of its axes into the recipe: one
number, a list over depth, or a table of name patterns, at one path or the same at several.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from math import prod
from typing import Any, Literal

from fuse.errors import RecipeError

Value = float | int | str | bool | tuple[str, ...] | None  # tuple: an order of branches; None takes the key out
Point = tuple[Value, ...]
Setting = float | list[float] | dict[str, float]  # what a parameter of a method may be in a recipe


@dataclass(frozen=True)
class Axis:
    """One value to find: in a range of numbers, or among the values that were listed.

    name: unique in a search, such as language.weights.b or language.weights.b[mlp]. low, high: the ends of a range;
    None with values. values: what was listed, numbers in rising order; () with a range.
    """

    name: str
    low: float | None = None
    high: float | None = None
    values: tuple[Value, ...] = ()

    @property
    def ordered(self) -> bool:
        """Whether values have neighbours: numbers do, words do not."""
        return not self.values or all(is_number(value) for value in self.values)

    def grid(self, steps: int) -> tuple[Value, ...]:
        """The listed values, or `steps` numbers from one end of the range to the other."""
        if self.low is None or self.high is None:
            return self.values
        return tuple(tidy(self.low + (self.high - self.low) * i / (steps - 1)) for i in range(steps))

    def near(self, value: Any, steps: int) -> Value:
        """The value of the grid that is nearest to a number; the middle one for anything else that is not in it."""
        found = self.grid(steps)
        if value in found:
            return found[found.index(value)]
        if self.ordered and is_number(value):
            return min(found, key=lambda v: abs(v - value))  # pyright: ignore[reportOperatorIssue]
        return found[len(found) // 2]

    def holds(self, value: Any) -> bool:
        """Whether the axis can take this value."""
        if self.low is None or self.high is None:
            return value in self.values
        return is_number(value) and self.low <= value <= self.high


@dataclass(frozen=True)
class Knob:
    """What writes the values of its axes into the recipe.

    paths: recipe paths, all set to the same value. patterns: for shape "parts", each pattern with the number of its
    axis in `axes`.
    """

    paths: tuple[str, ...]
    axes: tuple[Axis, ...]
    shape: Literal["value", "depth", "parts"] = "value"
    patterns: tuple[tuple[str, int], ...] = ()

    def setting(self, values: Sequence[Value]) -> Any:
        """The recipe value for one value an axis."""
        if self.shape == "value":
            return list(values[0]) if isinstance(values[0], tuple) else values[0]
        if self.shape == "depth":
            return list(values)
        return {pattern: values[number] for pattern, number in self.patterns}


@dataclass(frozen=True)
class Sum:
    """A sum to keep: the member at `first` takes what the others at `rest` leave of the total.

    fixed: what the recipe says of those in `rest` that no knob sets.
    """

    table: str
    total: float
    first: str
    rest: tuple[str, ...]
    fixed: Mapping[str, Setting] = field(default_factory=dict)


@dataclass(frozen=True)
class Space:
    """Every knob of a search, and the sums to keep."""

    knobs: tuple[Knob, ...]
    sums: tuple[Sum, ...] = ()

    @property
    def axes(self) -> tuple[Axis, ...]:
        return tuple(axis for knob in self.knobs for axis in knob.axes)

    def size(self, steps: int) -> int:
        """How many points the grid has."""
        return prod(len(axis.grid(steps)) for axis in self.axes)

    def grid(self, steps: int) -> list[Point]:
        """Every point of the grid, the last axis running fastest."""
        return list(product(*(axis.grid(steps) for axis in self.axes)))

    def values(self, point: Point) -> dict[str, Any]:
        """The recipe values of a point, by path.

        Raises RecipeError where a sum is to be kept over lists and tables that do not add up.
        """
        found: dict[str, Any] = {}
        at = 0
        for knob in self.knobs:
            setting = knob.setting(point[at : at + len(knob.axes)])
            found |= dict.fromkeys(knob.paths, setting)
            at += len(knob.axes)
        for kept in self.sums:
            found[kept.first] = left_of(kept.total, [found.get(path, kept.fixed.get(path)) for path in kept.rest], kept)
        return found

    def told(self, point: Point) -> dict[str, Any]:
        """The values of a point by the axes' names."""
        return dict(zip((axis.name for axis in self.axes), point, strict=True))


def left_of(total: float, settings: Sequence[Any], kept: Sum) -> Setting:
    """What is left of a total, place by place; a number beside lists or tables stands in each of their places."""
    lists = {len(s) for s in settings if isinstance(s, list)}
    tables = {tuple(s) for s in settings if isinstance(s, dict)}
    if len(lists) + len(tables) > 1:
        raise RecipeError(
            f"{kept.table}: lists or tables of different kinds have no sum",
            hint="give all members the same @depth:N, or @parts, or plain numbers",
        )

    def at(place: Any) -> float:
        return tidy(total - sum(s[place] if isinstance(s, list | dict) else s for s in settings))

    if lists:
        return [at(place) for place in range(*lists)]
    if tables:
        return {pattern: at(pattern) for pattern in next(iter(tables))}
    return at(None)


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def tidy(number: float) -> float:
    """The number at ten decimals: 0.3, not 0.30000000000000004; of tiny ones six digits."""
    return round(number, 10) if abs(number) >= 1e-4 else float(f"{number:.6g}")
