"""A search from its options to its report."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fuse import interruption
from fuse.errors import RecipeError
from fuse.evaluate.metrics import check_metrics
from fuse.evaluate.questions import Question, check_images, read_questions
from fuse.mergekit_recipe.translate import TranslatedRecipe
from fuse.plan import Plan
from fuse.planner import make_plan
from fuse.recipe_edit import changed
from fuse.recipe_yaml import LoadedRecipe, load_recipe
from fuse.search.bayes import bayes, check_installed
from fuse.search.coordinate import coordinate
from fuse.search.grid import Key, Strategy, grid
from fuse.search.identity import identity_of
from fuse.search.objective import OBJECTIVES, Objective, check_objective, keys
from fuse.search.over import read_space
from fuse.search.space import Point, Space
from fuse.search.split import is_labelled, other_scale, split
from fuse.search.start import start_point
from fuse.search.trials import Log, Trial, check_folder

METHODS = ("grid", "coordinate", "bayes")
HOLDOUT = 0.3  # share of the questions that tests, where the options say nothing


@dataclass(frozen=True)
class Options:
    """What the command line says; the names are those of its options."""

    over: tuple[str, ...] = ()
    sum: tuple[str, ...] = ()
    method: str = "coordinate"
    objective: str = "score"
    budget: int = 30
    steps: int = 5
    seed: int = 0
    holdout: float | None = None
    test: Path | None = None
    max_tokens: int = 32
    batch_size: int = 64
    device: str = "cpu"


@dataclass(frozen=True)
class Search:
    """Everything that is known before a model is loaded."""

    loaded: LoadedRecipe
    options: Options
    objective: Objective
    space: Space
    start: Point  # of the space, nearest to the recipe
    exact: bool  # whether the recipe is that point
    tuning: tuple[Question, ...]
    testing: tuple[Question, ...]
    identity: Mapping[str, Any]


def several_skills(search: Search) -> list[str]:
    """The skills of the tuning questions in the order of the data; none where there is only one."""
    found = list(dict.fromkeys(question.skill for question in search.tuning))
    return found if len(found) > 1 else []


def skill_score(search: Search, trial: Trial, skill: str) -> float | str:
    """The mean score of a trial's answers to the questions of a skill; "" where they have no scores."""
    pairs = zip(search.tuning, trial.scores, strict=bool(trial.scores))  # a trial that was refused has none
    scores = [score for question, score in pairs if question.skill == skill]
    return sum(scores) / len(scores) if scores else ""


def read_search(recipe: Path, data: Path, out: Path, options: Options) -> Search:
    """Read and check everything that can be checked without a model.

    Raises RecipeError, CheckpointError or MachineError, one sentence, for what cannot be searched.
    """
    objective = OBJECTIVES[options.objective]
    loaded = load_recipe(recipe)
    if isinstance(loaded, TranslatedRecipe):
        raise RecipeError("this is a recipe of mergekit, and a search changes settings by fuse's names", where=recipe,
                          hint="write it with members and language")  # fmt: skip
    plan = make_plan(loaded)
    space = read_space(loaded, options.over, options.sum, lambda: language_names(plan))
    check_objective(objective, options.method, space.axes, options.steps)
    if options.method == "bayes":
        check_installed()
    if options.method == "grid" and (size := space.size(options.steps)) > options.budget:
        raise RecipeError(f"the grid has {size:,} points and the budget is {options.budget:,}",
                          hint=f"--budget {size}, fewer values or --steps, or another --method")  # fmt: skip
    tuning, testing = _questions(data, options, labelled=objective.labelled)
    if options.objective == "score" and (other := other_scale(tuning)):
        raise RecipeError(f"metric {other.metric!r} and that of the questions before have different scales, and "
                          "--objective score has no mean of them", where=other.where,
                          hint="--objective loss, or a search for captions alone")  # fmt: skip
    check_metrics(question for question in (*tuning, *testing) if question.answers)
    start = start_point(space, loaded.recipe, options.steps, on_grid=objective.key is None)
    check_values(space, loaded, start, options.steps)
    check_folder(out)
    holdout = HOLDOUT if options.holdout is None else options.holdout
    identity = identity_of(loaded, plan, data, (*tuning, *testing), options, holdout)
    exact = at(loaded, space, start).recipe == loaded.recipe
    return Search(loaded, options, objective, space, start, exact, tuple(tuning), tuple(testing), identity)


def at(loaded: LoadedRecipe, space: Space, point: Point) -> LoadedRecipe:
    """The recipe at a point of the space."""
    return changed(loaded, space.values(point))


def language_names(plan: Plan) -> Iterator[str]:
    """Canonical names of the merged tensors of the language model."""
    return (row.canonical for row in plan.rows if row.part == "language" and row.action == "merge")


def check_values(space: Space, loaded: LoadedRecipe, start: Point, steps: int) -> None:
    """RecipeError, in the recipe's own words, for a value that the recipe takes neither where the search begins nor in
    the middle of the other axes."""
    middle = tuple(axis.grid(steps)[len(axis.grid(steps)) // 2] for axis in space.axes)
    for number, axis in enumerate(space.axes):
        for value in axis.values or (axis.low, axis.high):
            refused = [_refusal(space, loaded, (*p[:number], value, *p[number + 1 :])) for p in (start, middle)]
            if refused[0] and refused[1]:
                raise refused[0]


def _refusal(space: Space, loaded: LoadedRecipe, point: Point) -> RecipeError | None:
    try:
        make_plan(at(loaded, space, point))
    except RecipeError as error:
        return error
    return None


def strategy_of(search: Search, log: Log) -> Strategy:
    """The strategy, told what the log holds where it does not repeat it."""
    options, axes = search.options, search.space.axes
    if options.method == "grid":
        return grid(search.space, steps=options.steps)
    if options.method == "coordinate":
        return coordinate(axes, search.start, steps=options.steps, lines=search.objective.key is None)
    trials = [trial for trial in log.tuning if trial.point is not None]
    points = [trial.point for trial in trials if trial.point is not None]
    told = keys(search.objective, points, dict(zip(points, trials, strict=True)), axes)
    return bayes(axes, search.start, seed=options.seed, told=list(zip(points, told, strict=True)))


def run(
    search: Search, log: Log, examine: Callable[[LoadedRecipe, int, Point | None], Trial],
    say: Callable[[Trial, Trial | None], None],
) -> Iterator[Trial]:  # fmt: skip
    """Try points until the strategy or the budget ends; after each line of points yields the best trial so far.

    examine: answers one recipe. say: is told each new trial, and the best so far where trials compare by themselves.
    The log gets each trial before the next begins; trials that it holds are not done again.
    """
    if not log.tuning:
        first = examine(search.loaded, 0, search.start if search.exact else None)
        if first.refused:
            raise RecipeError(f"the recipe as it stands cannot be searched from: {first.refused}")
        log.add(first)
        say(first, first)
    done = {trial.point: trial for trial in log.tuning if trial.point is not None}
    best = log.tuning[0]
    yield best
    strategy = strategy_of(search, log)
    line = next(strategy, None)
    while line is not None:
        for point in line:
            if point in done:
                continue
            if spent(log) >= search.options.budget:
                yield best_of(search, log, best, line)
                return
            number = len(log.tuning)
            interruption.check()
            trial = _tried(search, point, number, examine)
            done[point] = trial
            log.add(trial)
            say(trial, best_of(search, log, best, []) if search.objective.key else None)
        best = best_of(search, log, best, line)
        yield best
        try:
            line = strategy.send(keys(search.objective, line, done, search.space.axes))
        except StopIteration:
            return


def _tried(
    search: Search, point: Point, number: int, examine: Callable[[LoadedRecipe, int, Point | None], Trial]
) -> Trial:  # fmt: skip
    """The trial of a point; a recipe that cannot be written is a trial with the reason in `refused`."""
    try:
        made = at(search.loaded, search.space, point)
    except RecipeError as error:
        return Trial(number, point, refused=str(error))
    return examine(made, number, point)


def spent(log: Log) -> int:
    """How much of the budget is spent: every trial but the recipe as it stands."""
    return len(log.tuning) - 1


def best_of(search: Search, log: Log, before: Trial, line: Sequence[Point]) -> Trial:
    """The best trial; the earlier one of equals.

    Where trials compare with their neighbours alone, the best of the line; the one before it if none of the line is a
    candidate or it is as good.
    """
    axes = search.space.axes
    if search.objective.key is None:
        done = {trial.point: trial for trial in log.tuning if trial.point is not None}
        found = [(key, done[point]) for point, key in zip(line, keys(search.objective, line, done, axes), strict=True)
                 if key is not None]  # fmt: skip
    else:
        found = [(search.objective.key(trial), trial) for trial in log.tuning if not trial.refused]
    top: tuple[Key, Trial] | None = max(found, key=lambda pair: (pair[0], -pair[1].number), default=None)
    if top is None or any(key == top[0] and trial is before for key, trial in found):
        return before
    return top[1]


def _questions(data: Path, options: Options, *, labelled: bool) -> tuple[list[Question], list[Question]]:
    """Questions for tuning and for testing, which have answers; their images opened once."""
    questions = list(read_questions(data, labelled=labelled))
    check_images(questions)
    if options.test is not None:
        if options.holdout is not None:
            raise RecipeError("--test and --holdout are two ways to test", hint="leave one of them out")
        testing = list(read_questions(options.test))
        check_images(testing)
        return questions, testing
    share = HOLDOUT if options.holdout is None else options.holdout
    if not is_labelled(questions):
        if options.holdout:
            raise RecipeError("--holdout tests by right answers, and not every question has one", where=data,
                              hint="--test FILE with answers, or --holdout 0")  # fmt: skip
        share = 0.0
    return split(questions, share, seed=options.seed) if share else (questions, [])
