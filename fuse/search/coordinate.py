"""Coordinate search: the best value of one axis after the other, while the others stand still."""

from collections.abc import Sequence

from fuse.search.grid import Key, Strategy
from fuse.search.space import Axis, Point, Value, is_number, tidy

HALVINGS = 2  # times that the two sides of the best value of a range are halved, in each pass
PASSES = 20


def coordinate(axes: Sequence[Axis], start: Point, *, steps: int, lines: bool = False) -> Strategy:
    """One line of points after the other; ends when a pass over all axes gains nothing.

    On a range the first pass tries `steps` numbers and then, HALVINGS times, the middles between the best one and its
    neighbours; a later pass begins with the two numbers one step beside the best one. So a value is found to a
    quarter of (high - low) / (steps - 1), on an objective that has one top along each axis; one that is flat or noisy
    may stop earlier. Our choice, rather than golden section, which has no answer to the plateaus of accuracies.
    lines: try the same values in each pass and halve nothing, so that neighbours are always equally far apart (the
    objective compares them); `start` must then be a point of the grid.
    """
    best = start
    for turn in range(PASSES):
        before = best
        for number, axis in enumerate(axes):
            values = axis.grid(steps)
            if turn and not lines and axis.low is not None:
                values = _beside(axis, best[number], steps, 1.0)
            for halved in range(1 if lines or axis.low is None else 1 + HALVINGS):
                if halved:
                    values = _beside(axis, best[number], steps, 0.5**halved)
                line = [(*best[:number], value, *best[number + 1 :]) for value in values]
                line = line if best in line else [best, *line]
                best = _winner(best, line, (yield line))
        if best == before:
            return


def _beside(axis: Axis, value: Value, steps: int, share: float) -> tuple[Value, ...]:
    """The values at a share of the grid's spacing on both sides, within the range."""
    assert axis.low is not None and axis.high is not None and is_number(value)
    width = (axis.high - axis.low) / (steps - 1) * share
    sides = (max(axis.low, value - width), min(axis.high, value + width))  # pyright: ignore[reportOperatorIssue]
    return tuple(side for side in map(tidy, sides) if side != value)


def _winner(best: Point, line: Sequence[Point], keys: Sequence[Key | None]) -> Point:
    """The point with the largest key; the present one where no other is larger."""
    known = {point: key for point, key in zip(line, keys, strict=True) if key is not None}
    if not known:
        return best
    top = max(known.values())
    return best if known.get(best) == top else next(point for point, key in known.items() if key == top)
