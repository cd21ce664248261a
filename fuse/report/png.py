"""The same charts as PNGs, drawn by matplotlib without a display."""

import io
import warnings
from typing import Any

from fuse.errors import MachineError
from fuse.report.colours import GROUPS, ink
from fuse.report.page import Chart, Heat, Picture, Scatter, line
from fuse.report.svg import MOST, short_label

DPI = 120


def check_installed() -> None:
    """MachineError where matplotlib is not installed."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise MachineError("fuse inspect --report draws with matplotlib, which is not installed",
                           hint="pip install fuse-mllm[inspect]") from None  # fmt: skip


def draw(chart: Chart) -> bytes:
    """The PNG of a chart, black on white."""
    if isinstance(chart, Picture):
        return chart.png
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=_size(chart), layout="constrained")
    FigureCanvasAgg(figure)
    panel: Any = figure.subplots()
    if isinstance(chart, Heat):
        _heat(figure, panel, chart)
    else:
        _scatter(panel, chart)
    panel.set_title(_words(chart.title), fontsize="medium", wrap=True)
    out = io.BytesIO()
    with warnings.catch_warnings():  # a letter that the font lacks is a box
        warnings.simplefilter("ignore", UserWarning)
        figure.savefig(out, format="png", dpi=DPI, metadata={"Software": None})
    return out.getvalue()


def _size(chart: Chart) -> tuple[float, float]:
    if not isinstance(chart, Heat):
        return 6.4, 4.6
    wide = 0.5 if len(chart.columns) <= MOST else 0.2
    return max(3.6, 2.2 + wide * len(chart.columns)), max(2.6, 1.4 + 0.32 * len(chart.rows))


def _heat(figure: Any, panel: Any, chart: Heat) -> None:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LinearSegmentedColormap, Normalize

    rgb = [[[255] * 3 if value is None else chart.scale.at(value) for value in row] for row in chart.values]
    panel.imshow(rgb, aspect="auto")
    panel.set_xticks(range(len(chart.columns)), [_words(short_label(label)) for label in chart.columns])
    panel.set_yticks(range(len(chart.rows)), [_words(short_label(label)) for label in chart.rows])
    if max(map(len, chart.columns), default=0) > 4 or len(chart.columns) > MOST:
        panel.tick_params(axis="x", rotation=90)
    panel.set_xlabel(_words(chart.across))
    panel.set_ylabel(_words(chart.down))
    if len(chart.columns) <= MOST:
        for i, row in enumerate(chart.values):
            for j, value in enumerate(row):
                if value is not None:
                    colour = ink(chart.scale.at(value))
                    panel.text(j, i, chart.short(value), ha="center", va="center", fontsize=7, color=colour)
    colours = LinearSegmentedColormap.from_list("fuse", [[c / 255 for c in one] for one in chart.scale.colours])
    low, high = chart.scale.low, chart.scale.high
    bar = figure.colorbar(ScalarMappable(Normalize(low, high), colours), ax=panel)
    bar.set_ticks([low, high], labels=[chart.told(low), chart.told(high)])


def _scatter(panel: Any, chart: Scatter) -> None:
    for number, (name, points) in enumerate(chart.groups.items()):
        across, up = ([point[side] for point in points] for side in (0, 1))
        colour, mark = GROUPS[number % len(GROUPS)], "os"[number % 2]
        panel.plot(across, up, mark, color=colour, markersize=3, alpha=0.8, label=_words(short_label(name)))
    panel.set_aspect("equal", adjustable="datalim")
    panel.grid(alpha=0.3)
    panel.legend(fontsize="small")


def _words(text: str) -> str:
    """Text that matplotlib takes as it stands: a dollar begins no formula."""
    return line(text).replace("$", r"\$")
