"""From the command line to the last line: the trials, the test at the end, the report, and what Ctrl-C leaves."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fuse.evaluate.table import to_rich
from fuse.recipe_yaml import LoadedRecipe
from fuse.search import plot
from fuse.search.report import BEST, comparison, figures_of, recipe_of, tested, write_report
from fuse.search.run import Options, Search, read_search, run, spent
from fuse.search.space import Point
from fuse.search.trials import Log, Trial


class Interrupted(Exception):
    """Ctrl-C, after what was found was written; says where it is and how to go on."""


@dataclass(frozen=True)
class Found:
    """What a search found: search.json, tables for a terminal with their titles, and closing sentences."""

    document: dict[str, Any]
    tables: list[tuple[str, Any]]
    sentences: list[str]


def search_into(recipe: Path, data: Path, out: Path, options: Options, *, say: Callable[[str], None] | None) -> Found:
    """Run a search, or go on with it, in the folder `out`.

    say: is given a line for each trial. Raises what `read_search` raises before anything is written; Interrupted when
    Ctrl-C ended it early.
    """
    search = read_search(recipe, data, out, options)
    plot.check_installed()
    log = Log(out, search.identity)
    progress = _progress(search, say) if say else lambda trial, best: None
    best: Trial | None = log.tuning[0] if log.tuning else None
    try:
        examiner = _examiner(search)

        def examine(loaded: LoadedRecipe, number: int, point: Point | None) -> Trial:
            return examiner().examine(
                loaded, search.tuning, number=number, point=point, loss=search.objective.loss
            )  # fmt: skip

        for best in run(search, log, examine, progress):  # noqa: B007 - what an interruption leaves
            pass
        assert best is not None
        _test(search, log, best, examiner)
    except KeyboardInterrupt:
        raise _interrupted(search, log, best) from None
    ended = "budget" if spent(log) >= options.budget else "done"
    return _found(search, log, best, write_report(search, log, best, ended))


def _examiner(search: Search) -> Callable[[], Any]:
    """The model, loaded when it is first asked for: a search that is finished needs none."""
    made: list[Any] = []

    def examiner() -> Any:
        if not made:
            from fuse.search.examine import Examiner

            options = search.options
            made.append(Examiner(search.loaded, device=options.device, batch=options.batch_size,
                                 max_tokens=options.max_tokens, labelled=search.labelled))  # fmt: skip
        return made[0]

    return examiner


def _test(search: Search, log: Log, best: Trial, examiner: Callable[[], Any]) -> None:
    """The recipe as it stands and the best one answer the testing questions, each once."""
    if not search.testing or not search.labelled:
        return
    answered = {trial.number for trial in log.testing}
    for trial in (log.tuning[0], best):
        if trial.number not in answered:
            answered.add(trial.number)
            log.add(examiner().examine(recipe_of(search, trial), search.testing, number=trial.number,
                                       point=trial.point, loss=False, part="testing"))  # fmt: skip


def _interrupted(search: Search, log: Log, best: Trial | None) -> Interrupted:
    """Write what was found so far, and the sentence that says so."""
    from fuse.search.run import best_of

    if not log.tuning:
        return Interrupted("interrupted before the first trial was done; the same command begins again")
    line = search.space.grid(search.options.steps) if search.options.method == "grid" else []
    best = best_of(search, log, best or log.tuning[0], line)
    write_report(search, log, best, "interrupted")
    count = f"{spent(log)} trial{'s' * (spent(log) != 1)}"
    return Interrupted(
        f"interrupted after {count}; the best so far is {log.folder / BEST}, and the same command goes on"
    )


def _progress(search: Search, say: Callable[[str], None]) -> Callable[[Trial, Trial | None], None]:
    """A line for each trial: its place in the budget, its values, its figures, the best so far."""
    kind = search.objective.value

    def progress(trial: Trial, best: Trial | None) -> None:
        point = search.space.told(trial.point) if trial.number and trial.point is not None else {}
        words = [f"{name} {_shown(value)}" for name, value in point.items()]
        head = f"trial {trial.number}/{search.options.budget}: {', '.join(words) or 'the recipe as it stands'}"
        if trial.refused:
            say(f"{head}; refused: {trial.refused}")
            return
        figures = ", ".join(f"{name} {value:.4f}" for name, value in figures_of(trial).items())
        told = f"; best {figures_of(best)[kind]:.4f} (trial {best.number})" if best and kind in figures_of(best) else ""
        say(f"{head}; {figures}{told}; {trial.seconds:.1f} s")

    return progress


def _shown(value: Any) -> str:
    return "+".join(value) if isinstance(value, tuple) else f"{value:g}" if isinstance(value, float) else str(value)


def _found(search: Search, log: Log, best: Trial, document: dict[str, Any]) -> Found:
    tables, seed = [], search.options.seed
    if search.labelled:
        table = comparison(search.tuning, log.tuning[0], best, seed)
        tables.append((f"tuning: {len(search.tuning)} questions, which chose the best of {spent(log)} trials", table))
    if pair := tested(log, best):
        table = comparison(search.testing, *pair, seed)
        tables.append((f"testing: {len(search.testing)} questions that no choice was made on", table))
    sentences = []
    if shared := document["testing"]["images that tuning asks about too"]:
        sentences.append(f"{shared} of the testing images are in the tuning questions too")
    if (looks := len(log.testing)) > 2:
        sentences.append(
            f"the testing questions were answered by {looks} recipes: the search went on after a test"
        )
    if not search.testing:
        sentences.append("no questions were kept for testing, so the figures of the best recipe are too good")
    values = document["best"]["recipe values"]
    told = ", ".join(f"{path} = {_shown(value)}" for path, value in values.items()) or "the recipe as it stands"
    sentences.append(f"best: trial {best.number}, {told}; {log.folder / BEST}")
    return Found(document, [(title, to_rich(table)) for title, table in tables], sentences)
