"""From the command line to the last line: the trials, the test at the end, the report, and what Ctrl-C leaves."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fuse.alone import alone
from fuse.recipe_yaml import LoadedRecipe
from fuse.search import plot
from fuse.search.report import BEST, comparison, recipe_of, tested, write_report
from fuse.search.run import Options, Search, best_of, read_search, run, spent
from fuse.search.show import final_table, progress, sentences
from fuse.search.space import Point
from fuse.search.split import is_labelled
from fuse.search.trials import Log, Trial


class Interrupted(Exception):
    """Ctrl-C, after what was found was written; says where it is and how to go on."""


@dataclass(frozen=True)
class Found:
    """What a search found: search.json, its table for rich (None without right answers), and closing sentences."""

    document: dict[str, Any]
    table: Any
    sentences: list[str]


def search_into(recipe: Path, data: Path, out: Path, options: Options, *, say: Callable[[str], None] | None) -> Found:
    """Run a search, or go on with it, in the folder `out`.

    say: is given a line for each trial. Raises what `read_search` raises before anything is written; Interrupted when
    Ctrl-C ended it early.
    """
    search = read_search(recipe, data, out, options)
    plot.check_installed()
    with alone(out):
        return _searched(search, out, options, say)


def _searched(search: Search, out: Path, options: Options, say: Callable[[str], None] | None) -> Found:
    """The search, in a folder that no other run writes into."""
    log = Log(out, search.identity)
    tell = progress(search, say) if say else lambda trial, best: None
    best: Trial | None = log.tuning[0] if log.tuning else None
    try:
        examiner = _examiner(search)

        def examine(loaded: LoadedRecipe, number: int, point: Point | None) -> Trial:
            return examiner().examine(
                loaded, search.tuning, number=number, point=point, loss=search.objective.loss
            )  # fmt: skip

        for best in run(search, log, examine, tell):  # noqa: B007 - what an interruption leaves
            pass
        assert best is not None
        _test(search, log, best, examiner)
    except KeyboardInterrupt:
        raise _interrupted(search, log, best) from None
    told = write_report(search, log, best, "budget" if spent(log) >= options.budget else "done")
    tuned = comparison(search.tuning, log.tuning[0], best, options.seed) if is_labelled(search.tuning) else None
    pair = tested(log, best)
    table = final_table(tuned, comparison(search.testing, *pair, options.seed) if pair else None)
    return Found(told, table, sentences(search, log, best, told))


def _examiner(search: Search) -> Callable[[], Any]:
    """The model, loaded when it is first asked for: a search that is finished needs none."""
    made: list[Any] = []

    def examiner() -> Any:
        if not made:
            from fuse.search.examine import Examiner

            options = search.options
            made.append(Examiner(search.loaded, device=options.device, batch=options.batch_size,
                                 max_tokens=options.max_tokens))  # fmt: skip
        return made[0]

    return examiner


def _test(search: Search, log: Log, best: Trial, examiner: Callable[[], Any]) -> None:
    """The recipe as it stands and the best one answer the testing questions, each once."""
    if not search.testing:
        return
    answered = {trial.number for trial in log.testing}
    for trial in (log.tuning[0], best):
        if trial.number not in answered:
            answered.add(trial.number)
            log.add(examiner().examine(recipe_of(search, trial), search.testing, number=trial.number,
                                       point=trial.point, loss=False, part="testing"))  # fmt: skip


def _interrupted(search: Search, log: Log, best: Trial | None) -> Interrupted:
    """Write what was found so far, and the sentence that says so."""
    log.reread()
    if not log.tuning:
        return Interrupted("interrupted before the first trial was done; the same command begins again")
    line = search.space.grid(search.options.steps) if search.options.method == "grid" else []
    best = best_of(search, log, best or log.tuning[0], line)
    write_report(search, log, best, "interrupted")
    count = f"{spent(log)} trial{'s' * (spent(log) != 1)}"
    return Interrupted(
        f"interrupted after {count}; the best so far is {log.folder / BEST}, and the same command goes on"
    )
