"""Where everything of a chart stands in its SVG. Templates write it; text takes the colour of the page."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fuse.report.colours import GROUPS, ink, text
from fuse.report.page import Heat, Scatter, line

CELL, HIGH, NARROW = 36, 24, 16  # width and height of a cell; the width of one that has no room for its number
MOST = 14  # columns that have room for numbers
LETTER, LONGEST = 6.6, 18  # width of a letter at 11 units; letters of a label
WIDE, TALL, EDGE = 480, 340, 14  # of a scatter
STEPS = 24  # of a colour bar
Label = dict[str, Any]


@dataclass(frozen=True)
class Drawing:
    """Sizes in units of the SVG's view box; labels and cells as the template takes them."""

    width: float
    height: float
    cells: Sequence[Label] = ()
    labels: Sequence[Label] = ()
    bar: Sequence[Label] = ()
    groups: Sequence[Label] = ()


def short_label(text: str) -> str:
    """At most 18 letters of a label."""
    text = line(text)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"


def heat(chart: Heat) -> Drawing:
    """Cells with their numbers where there is room, labels at the left and above, the colour bar below."""
    numbers = len(chart.columns) <= MOST
    cell = CELL if numbers else NARROW
    rows, columns = ([short_label(label) for label in side] for side in (chart.rows, chart.columns))
    longest = max((len(label) for label in columns), default=0) * LETTER
    upright = longest <= cell - 2
    left = max((len(label) for label in rows), default=0) * LETTER + 8
    top = 18 if upright else longest + 10
    labels: list[Label] = [
        {"x": left - 6, "y": top + (i + 0.5) * HIGH + 4, "text": t, "anchor": "end"} for i, t in enumerate(rows)
    ]
    for j, name in enumerate(columns):
        x = left + (j + 0.5) * cell
        place: Label = (
            {"x": x, "y": top - 6, "anchor": "middle"} if upright else {"x": x + 4, "y": top - 6, "turned": True}
        )
        labels.append({**place, "text": name})
    cells = []
    for i, row in enumerate(chart.values):
        for j, value in enumerate(row):
            place = {"x": left + j * cell, "y": top + i * HIGH, "width": cell - 1, "height": HIGH - 1}
            where = f"{line(chart.rows[i])}, {line(chart.columns[j])}"
            if value is None:
                cells.append({**place, "told": f"{where}: none"})
                continue
            colour = chart.scale.at(value)
            shown = {"text": chart.short(value), "ink": ink(colour)} if numbers else {}
            cells.append({**place, "fill": text(colour), "told": f"{where}: {chart.told(value)}", **shown})
    foot = top + len(rows) * HIGH + 10
    ends = [chart.told(end) for end in (chart.scale.low, chart.scale.high)]
    at = LETTER * len(ends[0]) + 6
    low, high = chart.scale.low, chart.scale.high
    bar = [{"x": at + i * 5, "y": foot, "fill": text(chart.scale.at(low + (high - low) * i / (STEPS - 1)))}
           for i in range(STEPS)]  # fmt: skip
    labels += [{"x": 0, "y": foot + 9, "text": ends[0]}, {"x": at + STEPS * 5 + 6, "y": foot + 9, "text": ends[1]}]
    width = max(left + len(columns) * cell, at + STEPS * 5 + 6 + LETTER * len(ends[1])) + 4
    return Drawing(width, foot + 16, cells, labels, bar)


def scatter(chart: Scatter) -> Drawing:
    """Groups of points, each a path of dots (round, square by turns), the same scale both ways, in the middle."""
    every = [point for points in chart.groups.values() for point in points]
    spans = [(min(values), max(values)) for values in zip(*every, strict=True)] if every else [(0.0, 1.0)] * 2
    sizes = [high - low for low, high in spans]
    scale = min((WIDE - 2 * EDGE) / (sizes[0] or 1), (TALL - 2 * EDGE) / (sizes[1] or 1))
    middle = [(low + high) / 2 for low, high in spans]

    def placed(point: tuple[float, float]) -> str:
        x = WIDE / 2 + (point[0] - middle[0]) * scale
        y = TALL / 2 - (point[1] - middle[1]) * scale
        return f"M{x:.1f} {y:.1f}h0"

    groups = [
        {"name": name, "path": "".join(map(placed, points)), "colour": GROUPS[i % len(GROUPS)], "round": i % 2 == 0}
        for i, (name, points) in enumerate(chart.groups.items())
    ]
    return Drawing(WIDE, TALL, groups=groups)
