"""Where a search begins: the point of the space that is nearest to what the recipe says."""

from collections.abc import Sequence
from typing import Any

from fuse.recipe import Recipe
from fuse.search.over import current
from fuse.search.space import Axis, Knob, Point, Space, Value, is_number


def start_point(space: Space, recipe: Recipe, steps: int, *, on_grid: bool = False) -> Point:
    """A value for each axis: the recipe's own where the axis holds it, else the nearest, else the middle.

    on_grid: the nearest one of the grid.
    """
    said = [value for knob in space.knobs for value in _said(knob, current(recipe, knob.paths[0]))]
    return tuple(_nearest(axis, value, steps, on_grid) for axis, value in zip(space.axes, said, strict=True))


def _said(knob: Knob, value: Any) -> Sequence[Any]:
    """The recipe's value for each axis of a knob; None where it has none of this shape."""
    if knob.shape == "value":
        return [value]
    if knob.shape == "depth" and isinstance(value, list) and len(value) == len(knob.axes):
        return value
    if knob.shape == "parts" and isinstance(value, dict) and all(pattern in value for pattern, _ in knob.patterns):
        return [next(value[p] for p, n in knob.patterns if n == number) for number in range(len(knob.axes))]
    return [value if is_number(value) else None] * len(knob.axes)


def _nearest(axis: Axis, value: Any, steps: int, on_grid: bool) -> Value:
    if on_grid or axis.low is None or axis.high is None or not is_number(value):
        return axis.near(value, steps)
    return min(max(value, axis.low), axis.high)
