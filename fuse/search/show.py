"""A search on a terminal: a line a trial, and at the end start and best, apart for tuning and testing."""

from collections.abc import Callable
from typing import Any

from fuse.errors import printable
from fuse.evaluate.table import Estimate, Table
from fuse.search.report import BEST, figures_of
from fuse.search.run import Search, spent
from fuse.search.trials import Log, Trial


def progress(search: Search, say: Callable[[str], None]) -> Callable[[Trial, Trial | None], None]:
    """A line for each trial: its place in the budget, its values, its figures, the best so far."""
    kind = search.objective.value

    def told(trial: Trial, best: Trial | None) -> None:
        point = search.space.told(trial.point) if trial.number and trial.point is not None else {}
        words = [f"{name} {shown(value)}" for name, value in point.items()]
        head = f"trial {trial.number}/{search.options.budget}: {', '.join(words) or 'the recipe as it stands'}"
        if trial.refused:
            say(printable(f"{head}; refused: {trial.refused}"))
            return
        figures = ", ".join(f"{name} {value:.4f}" for name, value in figures_of(trial).items())
        top = f"; best {figures_of(best)[kind]:.4f} (trial {best.number})" if best and kind in figures_of(best) else ""
        say(printable(f"{head}; {figures}{top}; {trial.seconds:.1f} s"))

    return told


def shown(value: Any) -> str:
    """A value as a person writes it."""
    return "+".join(value) if isinstance(value, tuple) else f"{value:g}" if isinstance(value, float) else str(value)


def final_table(tuned: Table | None, tested: Table | None) -> Any:
    """One table for rich: the skills and means of tuning, then of testing; figures times 100. None without either."""
    from rich import box
    from rich.table import Table as RichTable

    tables = [(name, table) for name, table in (("tuning", tuned), ("testing", tested)) if table is not None]
    if not tables:
        return None
    made = RichTable("", "skill", "n", "start", "best", "best - start", box=box.SIMPLE, pad_edge=False)
    for number, column in enumerate(made.columns):
        column.justify, column.no_wrap = "right" if number > 1 else "left", number != 1
    for name, table in tables:
        for number, row in enumerate(table.rows):
            figures = (*(number_of(score.score) for score in row.scores), figure(row.differences[0]))
            made.add_row("" if number else name, printable(row.name), f"{row.n:,}", *figures,
                         end_section=number + 1 == len(table.rows))  # fmt: skip
    return made


def number_of(value: float, sign: str = "") -> str:
    """A mean times 100."""
    return f"{round(100 * value, 1) + 0.0:{sign}.1f}"


def figure(estimate: Estimate) -> str:
    """+3.8 [+1.0, +6.5]: a difference times 100 with its interval, where it has one."""
    low, high = estimate.low, estimate.high
    return number_of(estimate.score, "+") + (
        f" [{number_of(low, '+')}, {number_of(high, '+')}]" if low is not None and high is not None else ""
    )


def sentences(search: Search, log: Log, best: Trial, document: dict[str, Any]) -> list[str]:
    """What stands below the table: what the figures are, what to beware of, and where the best recipe is."""
    table, found = document["tuning"]["table"] or document["testing"]["table"], []
    if table:
        found.append(f"scores times 100; {100 * table['level']:g}% intervals from {table['resamples']:,} resamples of "
                     "the questions, the same ones for both")  # fmt: skip
    if shared := document["testing"]["images that tuning asks about too"]:
        found.append(f"{shared} of the testing images are in the tuning questions too")
    if (looks := len(log.testing)) > 2:
        found.append(f"the testing questions were answered by {looks} recipes: the search went on after a test")
    if not search.testing:
        found.append("no questions were kept for testing, so the figures of the best recipe are too good")
    values = document["best"]["recipe values"]
    told = ", ".join(f"{path} = {shown(value)}" for path, value in values.items()) or "the recipe as it stands"
    found.append(f"best of {spent(log)} trial{'s' * (spent(log) != 1)}: {best.number}, {told}; {log.folder / BEST}")
    return found
