"""What a search found, in its folder: best.yaml, trials.csv, search.json and plot.png."""

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fuse import __version__
from fuse.errors import MachineError, printable
from fuse.evaluate.questions import Question
from fuse.evaluate.table import Result, Table, tabulate, to_json
from fuse.recipe_edit import recipe_text
from fuse.recipe_yaml import LoadedRecipe
from fuse.search.objective import keys
from fuse.search.run import Search, at, several_skills, skill_score, spent
from fuse.search.split import is_labelled, shared_images
from fuse.search.trials import Log, Trial

BEST, CSV, JSON, PLOT = "best.yaml", "trials.csv", "search.json", "plot.png"


def write_report(search: Search, log: Log, best: Trial, ended: str) -> dict[str, Any]:
    """Write the four files, each whole or not at all, and return what search.json holds.

    ended: why the search ended: "budget", "done" or "interrupted". Raises MachineError where they cannot be written.
    """
    from fuse.search.plot import plot

    changes = changes_of(search, log)
    told = document(search, log, best, ended, changes)
    _write(log.folder / BEST, best_text(search, best, log.folder).encode())
    _write(log.folder / CSV, table_of(search, log, changes).encode())
    _write(log.folder / JSON, (json.dumps(told, indent=1, ensure_ascii=False) + "\n").encode())
    _write(log.folder / PLOT, plot(search, log, best, changes))
    return told


def recipe_of(search: Search, trial: Trial) -> LoadedRecipe:
    """The recipe of a trial."""
    return search.loaded if trial.number == 0 or trial.point is None else at(search.loaded, search.space, trial.point)


def best_text(search: Search, best: Trial, folder: Path) -> str:
    """The best recipe as it stands in the folder; paths of members lead there from it."""
    figures = figures_of(best)
    objective, count = search.objective.name, len(search.tuning)
    head = f"# found by fuse search --objective {objective} on {count} questions: trial {best.number}"
    told = ", ".join(f"{name} {value:.4g}" for name, value in figures.items())
    return printable(f"{head}{f' ({told})' if told else ''}") + "\n" + recipe_text(recipe_of(search, best), folder)


def figures_of(trial: Trial) -> dict[str, float]:
    """What was measured of a trial, by name."""
    named = {"score": trial.score, "loss": trial.loss, "entropy": trial.entropy}
    return {name: value for name, value in named.items() if value is not None}


def changes_of(search: Search, log: Log) -> dict[int, float]:
    """For the objective stability: the share of answers that change from a trial to its neighbours, by trial.

    Along one axis after the other in a coordinate search, so that a trial's neighbours are those of its last line.
    """
    if search.objective.key is not None:
        return {}
    done = {trial.point: trial for trial in log.tuning if trial.point is not None}
    axes, steps = search.space.axes, search.options.steps
    lines = [list(search.space.grid(steps))]
    if search.options.method == "coordinate":
        lines = [[(*point[:n], value, *point[n + 1 :]) for value in axis.grid(steps)]
                 for n, axis in enumerate(axes) for point in done]  # fmt: skip
    found: dict[int, float] = {}
    for line in lines:
        for point, key in zip(line, keys(search.objective, line, done, axes), strict=True):
            if key is not None:
                found[done[point].number] = -key[0] + 0.0
    return found


def document(search: Search, log: Log, best: Trial, ended: str, changes: dict[int, float]) -> dict[str, Any]:
    """search.json: what was searched, what was found, and how it does on tuning and testing questions."""
    options, first = search.options, log.tuning[0]

    def told(trial: Trial) -> dict[str, Any]:
        point = None if trial.point is None else search.space.told(trial.point)
        values = {} if trial.number == 0 or trial.point is None else search.space.values(trial.point)
        shown = figures_of(trial) | ({"changes": changes[trial.number]} if trial.number in changes else {})
        return {"trial": trial.number, "point": point, "recipe values": values, **shown}

    tuned = comparison(search.tuning, first, best, options.seed) if is_labelled(search.tuning) else None
    pair = tested(log, best)
    testing = comparison(search.testing, *pair, options.seed) if pair else None
    return {
        "fuse": __version__, "recipe": str(search.loaded.file), "objective": search.objective.name,
        "method": options.method, "seed": options.seed, "budget": options.budget, "steps": options.steps,
        "space": [{"axis": a.name, "low": a.low, "high": a.high, "values": list(a.values)} for a in search.space.axes],
        "sums": {kept.table: kept.total for kept in search.space.sums},
        "trials": spent(log), "refused": sum(bool(trial.refused) for trial in log.tuning), "ended": ended,
        "seconds": round(sum(trial.seconds for trial in log.trials), 3), "start": told(first), "best": told(best),
        "tuning": {"questions": len(search.tuning), "table": tuned and to_json(tuned)},
        "testing": {
            "questions": len(search.testing), "table": testing and to_json(testing),
            "recipes that answered them": len(log.testing),
            "images that tuning asks about too": shared_images(search.tuning, search.testing),
        },
    }  # fmt: skip


def comparison(questions: Sequence[Question], first: Trial, best: Trial, seed: int) -> Table:
    """Start and best over the same questions, with paired intervals."""
    results = [Result(label, np.array(trial.scores)) for label, trial in (("start", first), ("best", best))]
    return tabulate(questions, results, seed=seed)


def tested(log: Log, best: Trial) -> tuple[Trial, Trial] | None:
    """The answers of the start recipe and of the best one to the testing questions; None before both are there."""
    by_number = {trial.number: trial for trial in log.testing if not trial.refused}
    if 0 not in by_number or best.number not in by_number:
        return None
    return by_number[0], by_number[best.number]


def table_of(search: Search, log: Log, changes: dict[int, float]) -> str:
    """trials.csv: a row a trial, a column an axis, and one for each skill where there are several."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    names = [axis.name for axis in search.space.axes]
    skills = several_skills(search)
    writer.writerow(["trial", *names, "score", "loss", "entropy", "changes", "seconds", "refused",
                     *(f"score of {skill}" for skill in skills)])  # fmt: skip
    for trial in log.tuning:
        point = trial.point if trial.point is not None else [""] * len(names)
        cells = ["+".join(v) if isinstance(v, tuple) else "null" if v is None else v for v in point]
        figures = [trial.score, trial.loss, trial.entropy, changes.get(trial.number), trial.seconds]
        writer.writerow([trial.number, *cells, *("" if v is None else v for v in figures), trial.refused,
                         *(skill_score(search, trial, skill) for skill in skills)])  # fmt: skip
    return out.getvalue()


def _write(file: Path, data: bytes) -> None:
    """A whole file, or what stood there before."""
    partial = file.with_name(f".{file.name}.partial")
    try:
        partial.write_bytes(data)
        partial.replace(file)
    except OSError as error:
        raise MachineError(f"cannot be written ({error.strerror})", where=file) from None
    finally:
        partial.unlink(missing_ok=True)
