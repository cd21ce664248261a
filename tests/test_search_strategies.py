"""Grid, coordinate and Bayesian search against functions whose tops are known; keys of objectives; stability."""

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fuse.errors import RecipeError
from fuse.search.bayes import bayes, propose
from fuse.search.coordinate import HALVINGS, coordinate
from fuse.search.grid import Key, Strategy, grid
from fuse.search.objective import OBJECTIVES, check_objective, keys, stability
from fuse.search.space import Axis, Knob, Point, Space
from fuse.search.trials import Trial

X, Y = Axis("x", 0.0, 1.0), Axis("y", -1.0, 1.0)
WORD = Axis("w", values=("linear", "ties", "slerp"))


def space(*axes: Axis) -> Space:
    return Space(tuple(Knob((axis.name,), (axis,)) for axis in axes))


def follow(
    strategy: Strategy, function: Callable[[Point], float | None], budget: int = 10_000
) -> tuple[Point, list[Point]]:  # fmt: skip
    """The best point, and every point that was tried once, in order."""
    tried: dict[Point, Key | None] = {}
    line = next(strategy, None)
    while line is not None and len(tried) < budget:
        for point in line:
            if point not in tried:
                value = function(point)
                tried[point] = None if value is None else (value,)
        try:
            line = strategy.send([tried[point] for point in line])
        except StopIteration:
            line = None
    best = max((p for p in tried if tried[p] is not None), key=lambda p: tried[p] or ())
    return best, list(tried)


def test_a_grid_has_every_point_once() -> None:
    line = next(grid(space(X, WORD), steps=3))
    assert line == list(itertools.product([0.0, 0.5, 1.0], ["linear", "ties", "slerp"]))
    assert space(X, Y, WORD).size(7) == 7 * 7 * 3


@settings(max_examples=40, deadline=None)
@given(st.floats(0, 1), st.floats(-1, 1), st.integers(2, 9), st.sampled_from(WORD.values))
def test_coordinate_finds_the_top_of_a_separable_function(x: float, y: float, steps: int, word: Any) -> None:
    def function(point: Any) -> float:
        return -abs(point[0] - x) - (point[1] - y) ** 2 - (point[2] != word)

    best, tried = follow(coordinate((X, Y, WORD), (0.5, 0.0, "slerp"), steps=steps), function)
    share = 1 / (steps - 1) / 2**HALVINGS
    assert abs(best[0] - x) <= share + 1e-6  # pyright: ignore
    assert abs(best[1] - y) <= 2 * share + 1e-6  # pyright: ignore
    assert best[2] == word
    assert len(tried) == len(set(tried)) < 3 * (3 * steps + 20)


@settings(max_examples=25, deadline=None)
@given(st.floats(0.1, 0.9), st.floats(-0.8, 0.8), st.floats(-0.8, 0.8))
def test_coordinate_climbs_where_axes_depend_on_each_other(x: float, y: float, turn: float) -> None:
    def function(point: Any) -> float:
        a, b = point[0] - x, (point[1] - y) / 2
        return -(a * a + b * b + turn * a * b)

    best, _ = follow(coordinate((X, Y), (0.0, -1.0), steps=5), function)
    assert function(best) > function((0.0, -1.0)) or function((0.0, -1.0)) == 0
    for number, width in ((0, 1 / 16), (1, 2 / 16)):  # nothing beside it is better: it is a top of the steps taken
        for side in (-width, width):
            beside = list(best)
            beside[number] += side  # pyright: ignore
            if 0 <= beside[0] <= 1 and -1 <= beside[1] <= 1:  # pyright: ignore
                assert function(beside) <= function(best) + 1e-6


def test_coordinate_ends_on_a_plateau_where_it_began() -> None:
    best, tried = follow(coordinate((X, Y), (0.3, 0.3), steps=3), lambda _: 1.0)
    assert tried[0] == (0.3, 0.3)
    assert len(tried) < 20
    strategy = coordinate((X,), (0.3,), steps=3)
    line = next(strategy)
    assert line == [(0.3,), (0.0,), (0.5,), (1.0,)]
    assert best == (0.3, 0.3)


def test_coordinate_passes_over_points_without_key() -> None:
    best, _ = follow(coordinate((X,), (0.5,), steps=5), lambda p: None if p[0] > 0.4 else p[0])  # pyright: ignore
    assert best[0] == pytest.approx(0.375)
    assert follow(coordinate((X,), (0.5,), steps=5), lambda p: None if p != (0.5,) else 0.0)[0] == (0.5,)


def bumpy(point: Any) -> float:
    return -((point[0] - 0.3) ** 2) - (point[1] - 0.4) ** 2 + (0.2 if point[2] == "ties" else 0)


def test_bayes_finds_the_top() -> None:
    distances = []
    for seed in range(2):
        best, tried = follow(bayes((X, Y, WORD), None, seed=seed), bumpy, budget=30)
        assert best[2] == "ties"
        distances.append(bumpy(best))
        assert len(set(tried)) == 30
    assert min(distances) > 0.2 - 0.03


def test_bayes_goes_on_as_if_it_had_not_stopped() -> None:
    whole = follow(bayes((X, Y, WORD), (0.5, 0.0, "ties"), seed=4), bumpy, budget=16)[1]
    told: list[tuple[Point, Key | None]] = [(point, (bumpy(point),)) for point in whole[:9]]
    rest = follow(bayes((X, Y, WORD), (0.5, 0.0, "ties"), seed=4, told=told), bumpy, budget=7)[1]
    assert whole[0] == (0.5, 0.0, "ties")
    assert whole[9:] == rest
    assert follow(bayes((X, Y, WORD), None, seed=5), bumpy, budget=3)[1] != whole[:3]


def test_bayes_looks_at_the_order_of_keys_alone() -> None:
    points = follow(bayes((X, Y), None, seed=1), lambda p: float(p[0]), budget=12)[1]  # pyright: ignore
    near: list[tuple[Point, Key | None]] = [(p, (0.5, float(p[0]))) for p in points]  # pyright: ignore
    far: list[tuple[Point, Key | None]] = [(p, (float(p[0]) * 1000,)) for p in points]  # pyright: ignore
    assert propose((X, Y), near, seed=1) == propose((X, Y), far, seed=1)
    refused = [(p, None if p == points[0] else key) for p, key in near]
    assert len(propose((X, Y), refused, seed=1)) == 2


def test_bayes_ends_when_everything_was_tried() -> None:
    axes = (Axis("n", values=(1, 2, 4)), Axis("b", values=(True, False)))
    tried = follow(bayes(axes, None, seed=0), lambda p: float(p[0]))[1]  # pyright: ignore
    assert sorted(tried) == sorted(itertools.product((1, 2, 4), (True, False)))


def trial(point: Point, answers: str = "", **how: Any) -> Trial:
    return Trial(0, point, tuple(answers), **how)


def test_keys_of_objectives() -> None:
    line: list[Point] = [(0.0,), (0.5,), (1.0,), (2.0,)]
    trials = {
        (0.0,): trial((0.0,), score=0.5, loss=1.0, entropy=0.3), (0.5,): trial((0.5,), score=0.5, loss=0.9, entropy=0.4),
        (1.0,): trial((1.0,), refused="no"),
    }  # fmt: skip
    found = {name: keys(OBJECTIVES[name], line, trials, (X,)) for name in ("score", "loss", "entropy")}
    assert found == {
        "score": [(0.5, -1.0), (0.5, -0.9), None, None], "loss": [(-1.0,), (-0.9,), None, None],
        "entropy": [(-0.3,), (-0.4,), None, None],
    }  # fmt: skip
    assert max(k for k in found["score"] if k) == (0.5, -0.9)


def by_the_paper(answers: list[list[str]]) -> int:
    """AdaMMS, algorithm 1: the candidate with the least DiffCnt to both neighbours; the ends are none."""
    count = [
        sum(a != b for a, b in zip(answers[i], answers[i - 1], strict=True))
        + sum(a != b for a, b in zip(answers[i], answers[i + 1], strict=True))
        for i in range(1, len(answers) - 1)
    ]
    return 1 + int(np.argmin(count)), count  # pyright: ignore


@given(
    st.integers(3, 8).flatmap(
        lambda n: st.lists(st.lists(st.sampled_from("ab"), min_size=6, max_size=6), min_size=n, max_size=n)
    )
)
def test_stability_of_one_coefficient_is_that_of_the_paper(answers: list[list[str]]) -> None:
    line: list[Point] = [(float(i),) for i in range(len(answers))]
    found = stability(line, {p: trial(p, "".join(a)) for p, a in zip(line, answers, strict=True)}, (X,))
    _, counts = by_the_paper(answers)  # pyright: ignore
    assert [-found[p][0] * 2 * 6 for p in line[1:-1]] == pytest.approx(counts)
    assert line[0] not in found and line[-1] not in found
    best = max(found, key=lambda p: found[p])
    assert -found[best][0] * 12 == pytest.approx(min(counts))


def test_the_middle_of_a_plateau_is_the_stablest() -> None:
    line: list[Point] = [(float(i),) for i in range(8)]
    trials = {p: trial(p, a) for p, a in zip(line, ["ab", "cd", "xy", "xy", "xy", "xy", "xy", "qr"], strict=True)}
    found = stability(line, trials, (X,))
    assert max(found, key=lambda p: found[p]) == (4.0,)


def test_stability_over_several_axes_and_words() -> None:
    axes = (X, Y, WORD)
    points = list(itertools.product((0.0, 0.5, 1.0), (-1.0, 0.0, 1.0), ("linear", "ties")))
    trials = {p: trial(p, "xx" if p[2] == "ties" else f"{int(p[0] * 2)}x") for p in points}
    found = stability(points, trials, axes)
    assert set(found) == {(0.5, 0.0, "linear"), (0.5, 0.0, "ties")}
    assert found[0.5, 0.0, "ties"] == (0.0, -1.0)
    assert found[0.5, 0.0, "linear"][0] == -0.25  # one of two answers, along one of two axes
    trials[0.5, 1.0, "ties"] = trial((0.5, 1.0, "ties"), refused="no")
    del trials[0.5, 1.0, "linear"]
    assert stability(points, trials, axes) == {}


@pytest.mark.parametrize(
    ("method", "axes", "steps", "said"),
    [
        ("bayes", (X,), 5, "--objective stability compares neighbours, and --method bayes has none (--method grid or coordinate)"),
        ("grid", (X,), 2, "x: --objective stability needs three numbers or more, to have neighbours on both sides"),
        ("coordinate", (X, WORD), 5, "w: words have no neighbours that --objective stability could compare (--method grid compares the numbers for each word)"),
        ("grid", (WORD,), 5, "--objective stability needs numbers to compare neighbours of, and there are words only"),
    ],
)  # fmt: skip
def test_where_stability_means_nothing(method: str, axes: tuple[Axis, ...], steps: int, said: str) -> None:
    with pytest.raises(RecipeError) as error:
        check_objective(OBJECTIVES["stability"], method, axes, steps)
    assert str(error.value) == said
    check_objective(OBJECTIVES["score"], method, axes, steps)


def test_coordinate_by_lines_keeps_to_the_grid() -> None:
    _, tried = follow(coordinate((X, Y), (0.5, 0.0), steps=5, lines=True), bumpy_two)
    assert set(tried) <= set(space(X, Y).grid(5))


def bumpy_two(point: Any) -> float:
    return -((point[0] - 0.3) ** 2) - (point[1] - 0.4) ** 2
