"""Bayesian search: optuna's TPE proposes the next point from those that were tried."""

import warnings
from collections.abc import Sequence
from typing import Any

from fuse.errors import MachineError
from fuse.search.grid import Key, Strategy
from fuse.search.space import Axis, Point, tidy

REPEATS = 50  # proposals in a row that were all tried before; then the space is taken as exhausted
AT_RANDOM = (4, 2, 10)  # points at random before the model proposes: 4 and 2 an axis, 10 at most


def bayes(
    axes: Sequence[Axis], start: Point | None, *, seed: int, told: Sequence[tuple[Point, Key | None]] = ()
) -> Strategy:
    """One point after the other, without end unless all of a finite space was tried.

    start: tried first, where it lies in the space. told: points that were tried before, in their order: the next
    proposal depends on them and on the seed alone, so that a search that goes on proposes what it would have proposed.
    """
    known = list(told)
    if not known and start is not None and all(axis.holds(v) for axis, v in zip(axes, start, strict=True)):
        known.append((start, (yield [start])[0]))
    repeats = 0
    while repeats < REPEATS:
        point = propose(axes, known, seed=seed, repeat=repeats)
        if any(point == tried for tried, _ in known):
            repeats += 1
            continue
        repeats = 0
        known.append((point, (yield [point])[0]))


def propose(axes: Sequence[Axis], told: Sequence[tuple[Point, Key | None]], *, seed: int, repeat: int = 0) -> Point:
    """The next point, by multivariate TPE (Bergstra et al. 2011; optuna's TPESampler).

    TPE looks at nothing but the order of what it was told, so each point is told the rank of its key: keys of several
    places keep their meaning, and points that the recipe refused (key None) rank lowest.
    """
    optuna = _optuna()
    few, more, most = AT_RANDOM
    spread = {str(number): _distribution(optuna, axis) for number, axis in enumerate(axes)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        sampler = optuna.samplers.TPESampler(
            seed=(seed * 1_000_003 + len(told) * 101 + repeat) % (1 << 32), multivariate=True,
            n_startup_trials=min(few + more * len(axes), most),
        )  # fmt: skip
    study = optuna.create_study(direction="maximize", sampler=sampler)
    for (point, _), rank in zip(told, _ranks([key for _, key in told]), strict=True):
        params = {str(n): _coded(axis, value) for n, (axis, value) in enumerate(zip(axes, point, strict=True))}
        study.add_trial(optuna.create_trial(params=params, distributions=spread, value=rank))
    asked = study.ask(spread).params
    return tuple(_decoded(axis, asked[str(number)]) for number, axis in enumerate(axes))


def check_installed() -> None:
    """MachineError where optuna is not installed."""
    _optuna()


def _optuna() -> Any:
    try:
        import optuna
    except ImportError:
        raise MachineError("--method bayes needs optuna", hint="pip install fuse-mllm[search]") from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


def _distribution(optuna: Any, axis: Axis) -> Any:
    """A range is a float; listed numbers are their place in the list, so that neighbours are near; words a choice."""
    if axis.low is not None:
        return optuna.distributions.FloatDistribution(axis.low, axis.high)
    if axis.ordered:
        return optuna.distributions.IntDistribution(0, len(axis.values) - 1)
    return optuna.distributions.CategoricalDistribution(tuple(range(len(axis.values))))


def _coded(axis: Axis, value: Any) -> float | int:
    return value if axis.low is not None else axis.values.index(value)


def _decoded(axis: Axis, value: Any) -> Any:
    return _rounded(axis, value) if axis.low is not None else axis.values[value]


def _rounded(axis: Axis, value: float) -> float:
    """To a thousandth of the range: finer steps make no difference that a set of questions shows."""
    assert axis.low is not None and axis.high is not None
    return tidy(axis.low + round((value - axis.low) / (axis.high - axis.low) * 1000) * (axis.high - axis.low) / 1000)


def _ranks(keys: Sequence[Key | None]) -> list[float]:
    """The place of each key among the different keys, from 1; 0 for None."""
    order = {key: place for place, key in enumerate(sorted({key for key in keys if key is not None}), start=1)}
    return [float(order[key]) if key is not None else 0.0 for key in keys]
