"""What a search looks for: the objectives as data, and the key by which trials are compared (larger is better)."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from fuse.errors import RecipeError
from fuse.search.grid import Key
from fuse.search.space import Axis, Point
from fuse.search.trials import Trial


@dataclass(frozen=True)
class Objective:
    """One objective.

    labelled: needs right answers. loss: asks for the teacher-forced loss of the right answers. key: of one trial by
    itself; None where trials are compared with their neighbours. value: the figure that is shown for a trial.
    """

    name: str
    doc: str
    labelled: bool
    loss: bool
    value: str
    key: Callable[[Trial], Key] | None = None


def _number(value: float | None) -> float:
    assert value is not None
    return value


OBJECTIVES = {
    "score": Objective(
        "score", "mean of the skills' scores; equal scores by the loss", labelled=True, loss=True, value="score",
        key=lambda trial: (_number(trial.score), -_number(trial.loss)),
    ),
    "loss": Objective(
        "loss", "teacher-forced loss of the right answers, in nats a token", labelled=True, loss=True, value="loss",
        key=lambda trial: (-_number(trial.loss),),
    ),
    "stability": Objective(
        "stability", "answers that change between neighbouring values, fewest", labelled=False, loss=False,
        value="changes",
    ),
    "entropy": Objective(
        "entropy", "mean entropy of what was said, in nats a token, lowest", labelled=False, loss=False,
        value="entropy", key=lambda trial: (-_number(trial.entropy),),
    ),
}  # fmt: skip


def keys(
    objective: Objective, line: Sequence[Point], trials: Mapping[Point, Trial], axes: Sequence[Axis]
) -> list[Key | None]:
    """The key of every point of a line; None for one that is no candidate or was not tried yet."""
    if objective.key is None:
        found = stability(line, trials, axes)
        return [found.get(point) for point in line]
    tried = [trials.get(point) for point in line]
    return [objective.key(trial) if trial is not None and not trial.refused else None for trial in tried]


def stability(
    line: Sequence[Point], trials: Mapping[Point, Trial], axes: Sequence[Axis]
) -> dict[Point, tuple[float, float]]:
    """Minus the share of answers that change from each point to its neighbours, and minus the same of the neighbours.

    AdaMMS (arXiv 2503.23733, section 3.3 and algorithm 1): of candidates in rising order, take the one with the least
    DiffCnt(G_i, G_i-1) + DiffCnt(G_i, G_i+1), where DiffCnt counts answers that do not match exactly; the first and
    the last are no candidates. Ours: the mean share instead of the sum of counts; with several axes the mean over the
    neighbours along each; and of equal ones the point whose candidate neighbours change least as well, so that the
    middle of a plateau wins and not its edge.
    """
    places = [_places(line, number, axis) for number, axis in enumerate(axes)]
    changes: dict[Point, float] = {}
    around: dict[Point, list[Point]] = {}
    for point in line:
        near = _neighbours(point, places)
        if near and all(p in trials and not trials[p].refused for p in (point, *near)):
            around[point] = near
            changes[point] = sum(changed(trials[point].answers, trials[p].answers) for p in near) / len(near)
    found = {}
    for point, near in around.items():
        beside = [changes[p] for p in near if p in changes]
        found[point] = (-changes[point], -sum(beside) / len(beside) if beside else -1.0)
    return found


def _places(line: Sequence[Point], number: int, axis: Axis) -> list:
    """The values that an axis of numbers takes in a line, in rising order; [] where it stands still or is of words."""
    values = sorted({point[number] for point in line}) if axis.ordered else []  # pyright: ignore[reportArgumentType]
    return values if len(values) > 1 else []


def _neighbours(point: Point, places: Sequence[list]) -> list[Point]:
    """The two neighbours along every axis; [] for a point at an end of one."""
    found = []
    for number, values in enumerate(places):
        if not values:
            continue
        at = values.index(point[number])
        if at in {0, len(values) - 1}:
            return []
        found += [(*point[:number], values[at + side], *point[number + 1 :]) for side in (-1, 1)]
    return found


def changed(first: Sequence[str], second: Sequence[str]) -> float:
    """The share of answers that are not exactly the same."""
    return sum(a != b for a, b in zip(first, second, strict=True)) / len(first)


def check_objective(objective: Objective, method: str, axes: Sequence[Axis], steps: int) -> None:
    """RecipeError where the objective means nothing for the method or the axes."""
    if objective.key is not None:
        return
    if method == "bayes":
        raise RecipeError("--objective stability compares neighbours, and --method bayes has none",
                          hint="--method grid or coordinate")  # fmt: skip
    for axis in axes:
        if axis.ordered and len(axis.grid(steps)) < 3:
            raise RecipeError(f"{axis.name}: --objective stability needs three numbers or more, to have neighbours on "
                              "both sides")  # fmt: skip
        if not axis.ordered and method == "coordinate":
            raise RecipeError(f"{axis.name}: words have no neighbours that --objective stability could compare",
                              hint="--method grid compares the numbers for each word")  # fmt: skip
    if not any(axis.ordered for axis in axes):
        raise RecipeError("--objective stability needs numbers to compare neighbours of, and there are words only")
