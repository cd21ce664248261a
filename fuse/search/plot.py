"""plot.png: how the search went, the objective over every axis, each skill over a single one, a map of two."""

import io
import math
from typing import Any

from fuse.errors import MachineError, printable
from fuse.search.run import Search, several_skills, skill_score
from fuse.search.space import Axis, is_number
from fuse.search.trials import Log, Trial

MOST = 8  # axes that get a panel of their own
COLUMNS = 3
LABELS = {
    "score": "mean of skills", "loss": "loss (nats a token)", "changes": "share of answers that change",
    "entropy": "entropy (nats a token)",
}  # fmt: skip


def check_installed() -> None:
    """MachineError where matplotlib is not installed."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise MachineError("fuse search draws with matplotlib, which is not installed",
                           hint="pip install fuse-mllm[search]") from None  # fmt: skip


def plot(search: Search, log: Log, best: Trial, changes: dict[int, float]) -> bytes:
    """The PNG: values in the order of the trials, then a panel an axis (the first MOST), the best trial marked.

    With one axis of numbers one more panel shows every skill over it; with two, the objective over both as a map.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    kind = search.objective.value
    values = {trial.number: _value(trial, kind, changes) for trial in log.tuning}
    shown = [trial for trial in log.tuning if values[trial.number] is not None]
    axes = search.space.axes[:MOST]
    numbers = all(axis.ordered for axis in axes)
    more = (
        (_map if len(axes) == 2 else _skills if several_skills(search) else None) if numbers and len(axes) < 3 else None
    )
    count = len(axes) + (2 if more else 1)
    columns = 2 if count == 4 else min(COLUMNS, count)
    rows = math.ceil(count / columns)
    figure = Figure(figsize=(4.2 * columns, 3.2 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(rows, columns, squeeze=False).flatten().tolist()
    _dots(panels[0], [(trial.number, values[trial.number], trial) for trial in shown], best)
    panels[0].set_xlabel("trial")
    panels[0].set_ylabel(LABELS[kind])
    for number, (axis, panel) in enumerate(zip(axes, panels[1 : 1 + len(axes)], strict=True)):
        points = [(_place(axis, trial.point[number]), values[trial.number], trial)
                  for trial in shown if trial.point is not None]  # fmt: skip
        _dots(panel, points, best)
        panel.set_xlabel(printable(axis.name))
        if not axis.ordered:
            panel.set_xticks(range(len(axis.values)), [_word(value) for value in axis.values])
    if more:
        panel = panels[len(axes) + 1]
        more(figure, panel, search, [(trial, values[trial.number]) for trial in shown if trial.point is not None])
    for panel in panels[count:]:
        panel.axis("off")
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=120, metadata={"Software": None})
    return out.getvalue()


def _skills(_figure: Any, panel: Any, search: Search, trials: list[tuple[Trial, Any]]) -> None:
    """Every skill's score, and their mean, over the only axis."""
    axis = search.space.axes[0]
    placed = [(_place(axis, value), trial) for trial, _ in trials if trial.scores for value in trial.point or ()]
    placed.sort(key=lambda one: one[0])
    places, ordered = [place for place, _ in placed], [trial for _, trial in placed]
    for skill in several_skills(search):
        panel.plot(places, [skill_score(search, trial, skill) for trial in ordered], label=printable(skill), alpha=0.8)
    panel.plot(places, [trial.score for trial in ordered], label=LABELS["score"], color="black", linewidth=2)
    panel.grid(alpha=0.3)
    panel.set_xlabel(printable(axis.name))
    panel.set_ylabel("score")
    panel.legend(fontsize="x-small")


def _map(figure: Any, panel: Any, search: Search, trials: list[tuple[Trial, Any]]) -> None:
    """The objective over two axes, as colored squares."""
    first, second = search.space.axes
    points = [trial.point for trial, _ in trials if trial.point is not None]
    across, up = ([_place(axis, point[number]) for point in points] for number, axis in enumerate((first, second)))
    values = [value for _, value in trials]
    drawn = panel.scatter(across, up, c=values, marker="s", s=90)
    figure.colorbar(drawn, ax=panel)
    panel.set_xlabel(printable(first.name))
    panel.set_ylabel(printable(second.name))


def _dots(panel: Any, points: list[tuple[float, Any, Trial]], best: Trial) -> None:
    """Every trial a dot; a ring around the best, a square for the recipe as it stands."""
    panel.grid(alpha=0.3)
    panel.plot([x for x, _, _ in points], [y for _, y, _ in points], "o", color="#4477aa", markersize=4, alpha=0.8)
    for mark, number, size in (("s", 0, 6), ("o", best.number, 11)):
        there = [(x, y) for x, y, trial in points if trial.number == number]
        panel.plot([x for x, _ in there], [y for _, y in there], mark, color="#cc3311", markersize=size,
                   markerfacecolor="none", markeredgewidth=1.5)  # fmt: skip


def _value(trial: Trial, kind: str, changes: dict[int, float]) -> float | None:
    if trial.refused:
        return None
    return changes.get(trial.number) if kind == "changes" else getattr(trial, kind)


def _place(axis: Axis, value: Any) -> float:
    return float(value) if axis.ordered and is_number(value) else axis.values.index(value)


def _word(value: Any) -> str:
    return printable("+".join(value) if isinstance(value, tuple) else str(value))
