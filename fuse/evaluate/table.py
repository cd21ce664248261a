"""The result of an evaluation: a row a skill, and the means, with intervals; for people, programs and model cards."""

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from fuse.errors import printable
from fuse.evaluate import bootstrap
from fuse.evaluate.questions import Question

SKILL, OF_SKILLS, OF_QUESTIONS = "skill", "mean of skills", "mean of questions"


@dataclass(frozen=True)
class Result:
    """One folder's scores: float64 [n], in the order of the questions, under a label of its own."""

    label: str
    scores: np.ndarray


@dataclass(frozen=True)
class Estimate:
    """A mean with its interval; None and None where there is one question only, which has no spread."""

    score: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Row:
    """n questions: those of a skill, or all of one scale (accuracy, or cider) for the means."""

    kind: str  # SKILL, OF_SKILLS or OF_QUESTIONS
    name: str
    metrics: tuple[str, ...]
    n: int
    scores: tuple[Estimate, ...]  # one a folder
    differences: tuple[Estimate, ...]  # one a folder but the first: its score minus that of the first, paired


@dataclass(frozen=True)
class Table:
    """Rows over folders; scores as `fuse.evaluate.metrics` gives them, not yet times 100."""

    labels: tuple[str, ...]
    rows: tuple[Row, ...]
    level: float
    resamples: int
    seed: int


def tabulate(
    questions: Sequence[Question], results: Sequence[Result], *, level: float = bootstrap.LEVEL, seed: int = 0,
    resamples: int = bootstrap.RESAMPLES,
) -> Table:  # fmt: skip
    """The table of one folder or more over the same questions.

    Skills stand in the order of the file. With more than one skill follow their mean, in which each skill counts the
    same, and the mean of all questions; questions with metric cider have means of their own.
    """
    settings = {"level": level, "seed": seed, "resamples": resamples}
    scores = [result.scores for result in results]
    rows = [
        _row(SKILL, skill, questions, where, scores, settings)
        for skill in dict.fromkeys(question.skill for question in questions)
        for where in [np.array([question.skill == skill for question in questions])]
    ]
    captions = np.array([question.metric == "cider" for question in questions])
    scales = [scale for scale in (~captions, captions) if scale.any()]
    for where in scales:
        if len({question.skill for question, inside in zip(questions, where, strict=True) if inside}) > 1:
            scale = "" if len(scales) == 1 else " (cider)" if where is captions else " (accuracy)"
            for kind in (OF_SKILLS, OF_QUESTIONS):
                rows.append(_row(kind, f"{kind}{scale}", questions, where, scores, settings))
    return Table(tuple(result.label for result in results), tuple(rows), level, resamples, seed)


def _row(
    kind: str, name: str, questions: Sequence[Question], where: np.ndarray, scores: Sequence[np.ndarray],
    settings: dict[str, Any],
) -> Row:  # fmt: skip
    """The questions where bool [n] is true, as one row."""
    inside = [question for question, taken in zip(questions, where, strict=True) if taken]
    number = {skill: i for i, skill in enumerate(dict.fromkeys(question.skill for question in inside))}
    groups = np.array([number[question.skill] for question in inside]) if kind == OF_SKILLS else None

    def estimate(values: np.ndarray) -> Estimate:
        low, high = bootstrap.interval(values, groups=groups, **settings) if len(values) > 1 else (None, None)
        return Estimate(bootstrap.mean(values, groups), low, high)

    return Row(
        kind, name, tuple(dict.fromkeys(question.metric for question in inside)), len(inside),
        tuple(estimate(one[where]) for one in scores),
        tuple(estimate(one[where] - scores[0][where]) for one in scores[1:]),
    )  # fmt: skip


def to_json(table: Table) -> dict[str, Any]:
    """The table as JSON: scores not times 100, null for an interval of one question."""
    return {
        "level": table.level, "resamples": table.resamples, "seed": table.seed, "folders": list(table.labels),
        "rows": [
            {"kind": row.kind, "name": row.name, "metrics": list(row.metrics), "n": row.n,
             "scores": [asdict(one) for one in row.scores], "differences": [asdict(one) for one in row.differences]}
            for row in table.rows
        ],
    }  # fmt: skip


def to_markdown(table: Table) -> str:
    """The table in Markdown with a sentence about its figures, which are times 100."""
    first, *others = (_cell(label) for label in table.labels)
    heads = ["skill", "metric", "n", first]
    for label in others:
        heads += [label, f"{label} - {first}"]
    lines = [heads, ["---", "---", *["---:"] * (len(heads) - 2)]]
    for row in table.rows:
        cells = [_cell(row.name), ", ".join(row.metrics), f"{row.n:,}", _figure(row.scores[0])]
        for score, difference in zip(row.scores[1:], row.differences, strict=True):
            cells += [_figure(score), _figure(difference, sign="+")]
        lines.append(cells)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + f"\n\n{_cell(caption(table))}\n"


def to_rich(table: Table) -> Any:
    """The table for a terminal, figures times 100: a line per row and folder, so that any number of folders fits."""
    from rich import box
    from rich.table import Table as RichTable
    from rich.text import Text

    several = len(table.labels) > 1
    shown = RichTable(box=box.SIMPLE, padding=0, show_edge=False, caption=Text(caption(table)), caption_justify="left")
    for head in ("skill", "metric", "n", "folder", "score", *(("difference",) if several else ())):
        figures = head in {"n", "score", "difference"}
        shown.add_column(head, justify="right" if figures else "left", no_wrap=figures, overflow="fold")
    for row in table.rows:
        differences = ["", *(_figure(one, sign="+") for one in row.differences)]
        for i, label in enumerate(table.labels):
            told = (_line(row.name), ", ".join(row.metrics), f"{row.n:,}") if i == 0 else ("", "", "")
            texts = (*told, _line(label), _figure(row.scores[i]), *((differences[i],) if several else ()))
            shown.add_row(*(Text(text) for text in texts), end_section=several and i + 1 == len(table.labels))
    return shown


def caption(table: Table) -> str:
    """What the figures are."""
    told = (
        f"Scores times 100, with {100 * table.level:g}% intervals from {table.resamples:,} resamples of the questions "
        f"(seed {table.seed})."
    )
    if len(table.labels) > 1:
        told += f" Differences are to {_line(table.labels[0])}, at the same questions."
    return told


def _figure(estimate: Estimate, sign: str = "") -> str:
    """41.2 [38.0, 44.3], or with sign "+" +3.8 [+1.0, +6.5]."""

    def number(value: float) -> str:
        return f"{round(100 * value, 1) + 0.0:{sign}.1f}"  # + 0.0: no -0.0

    if estimate.low is None or estimate.high is None:
        return number(estimate.score)
    return f"{number(estimate.score)} [{number(estimate.low)}, {number(estimate.high)}]"


def _line(text: str) -> str:
    return printable(" ".join(text.split()))


def _cell(text: str) -> str:
    return re.sub(r"([|<>`*\[\]\\])", r"\\\1", _line(text))
