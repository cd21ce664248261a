"""What the geometry of task vectors says in words, and two sets of weights that it suggests. Thresholds are our choice.

FAR: a task vector half as long as the base is further than fine-tunes go: VLMs and LLMs trained on from a base lie
within a few percent to a quarter of it. UNRELATED: two models that have nothing in common but their size are sqrt(2)
apart. HUGE: at equal weights a task vector that is a third as long gives less than a tenth of the merged energy, since
``1 / (1 + HUGE^2) = 0.1``; VisionFuse fails on such a pair (arXiv 2412.01289, MGM with VILA, whose reviewers put it to
the difference of the task vectors). SAME: two task vectors with that cosine hold one skill. CONFLICT: below it more of
the movement cancels than adds up (TIES, arXiv 2306.01708, section 3). SHARED: half of the strongest directions are
common, of those that are not by chance, where merging adds up or cancels (TSV, arXiv 2412.00081).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from itertools import combinations
from typing import Any

from fuse.sizes import counted
from fuse.verdicts import Verdict

FAR, UNRELATED, HUGE, SAME, CONFLICT, SHARED = 0.5, 1.0, 3.0, 0.9, 0.45, 0.5
THRESHOLDS = {
    "far": FAR, "unrelated": UNRELATED, "huge": HUGE, "same": SAME, "conflict": CONFLICT, "shared": SHARED,
}  # fmt: skip
Measures = dict[str, Any]
Pairs = list[tuple[float, tuple[int, int]]]


def verdicts_of(parts: Sequence[Measures], members: Sequence[str]) -> list[dict[str, Any]]:
    """A sentence a topic for each part of the model that is merged: distance, size, direction, signs, subspaces.

    parts: as `deltas_groups.numbers_of` gives them, with the name of each as `part`.
    """
    found = []
    for part in parts:
        where = "" if part["part"] == "language" else f"{part['part']}: "
        for verdict in _verdicts(part, members):
            found.append(asdict(Verdict(verdict.topic, verdict.agrees, where + verdict.text)))
    return found


def _verdicts(part: Measures, members: Sequence[str]) -> Iterator[Verdict]:
    here = [i for i, norm in enumerate(part["norm"]) if norm is not None]
    moved = [i for i in here if part["norm"][i] > 0]
    for i in here:
        if i not in moved:
            yield Verdict("distance", False, f"{members[i]} is the base, so it adds nothing")
    if moved:
        yield from _distance([(part["relative"][i], members[i]) for i in moved if part["relative"][i] is not None])
    if len(moved) > 1:
        yield _size(sorted((part["norm"][i], members[i]) for i in moved))
        if cosines := _pairs(part, "cosine"):
            yield _direction(cosines, members)
        if signs := _pairs(part, "weighted_agreement"):
            yield _signs(signs, members)
        if shared := _pairs(part, "overlap_left"):
            yield _subspaces(shared, part, members)


def _distance(found: Sequence[tuple[float, str]]) -> Iterator[Verdict]:
    near = [(relative, name) for relative, name in found if relative < FAR]
    for relative, name in found:
        if relative >= UNRELATED:
            told = (
                f"models that have nothing in common are {percent(2**0.5)} apart: it is hardly trained from this base"
            )
            yield Verdict("distance", False, f"{name} is {percent(relative)} of the base's length away from it; {told}")
        elif relative >= FAR:
            told = f"too far from the base ({percent(FAR)} or more)"
            yield Verdict("distance", False, f"{name} is {percent(relative)} of the base's length away from it: {told}")
    if near:
        names = ", ".join(name for _, name in near)
        verb, span = "is" if len(near) == 1 else "are", _span([relative for relative, _ in near], percent)
        yield Verdict("distance", True, f"{names} {verb} {span} of the base's length away from it")


def _size(ordered: Sequence[tuple[float, str]]) -> Verdict:
    (short, small), (long, large) = ordered[0], ordered[-1]
    ratio = long / short
    told = f"{large}'s task vector is {ratio:.1f} times as long as {small}'s"
    if ratio < HUGE:
        return Verdict("size", True, told)
    share = percent(1 / (1 + ratio**2))
    return Verdict("size", False, f"{told}, hugely different: at equal weights {small} gives {share} of their energy")


def _direction(pairs: Pairs, members: Sequence[str]) -> Verdict:
    same = sorted((pair for pair in pairs if pair[0] >= SAME), reverse=True)
    if same:
        told = f"{_named(same, members)} nearly the same (cosine {digits(same[0][0])}): merging them adds little to one"
        return Verdict("direction", False, told)
    return Verdict("direction", True, f"cosine of task vectors {_span([value for value, _ in pairs], digits)}")


def _signs(pairs: Pairs, members: Sequence[str]) -> Verdict:
    """In shares of ``|d_i d_j|``, so that elements that hardly move do not count."""
    against = sorted(pair for pair in pairs if pair[0] < CONFLICT)
    if against:
        told = f"{_named(against, members)} of conflicting signs: {percent(against[0][0])} of what both move agrees"
        return Verdict("signs", False, f"{told} (50% for unrelated ones); ties keeps one sign for each element")
    span = _span([value for value, _ in pairs], percent)
    return Verdict("signs", True, f"{span} of what two members both move has the same sign (50% for unrelated ones)")


def _subspaces(left: Pairs, part: Measures, members: Sequence[str]) -> Verdict:
    right, (i, j) = _pairs(part, "overlap_right"), left[0][1]
    chance = f"{digits(part['chance_left'][i][j])} and {digits(part['chance_right'][i][j])} by chance"
    beside = [(pair, part[f"chance_{side}"]) for side, pairs in (("left", left), ("right", right)) for pair in pairs]
    strong = sorted((pair for pair, chances in beside if _shared(pair, chances)), reverse=True)
    outputs, inputs = (_span([value for value, _ in side], digits) for side in (left, right))
    told = f"strongest directions in common: {outputs} of outputs and {inputs} of inputs ({chance})"
    if strong:
        names = _named(list({pair: (value, pair) for value, pair in strong[::-1]}.values())[::-1], members)
        return Verdict(
            "subspaces", False, f"{told}; {names} moving the same directions, which tsv and iso_c keep apart"
        )
    return Verdict("subspaces", True, told)


def _shared(pair: tuple[float, tuple[int, int]], chances: Sequence[Sequence[float]]) -> bool:
    value, (i, j) = pair
    return chances[i][j] < 1 and value - chances[i][j] >= SHARED * (1 - chances[i][j])


def _pairs(part: Measures, name: str) -> Pairs:
    """The measure of every pair that has it."""
    matrix = part.get(name) or []
    return [(matrix[i][j], (i, j)) for i, j in combinations(range(len(matrix)), 2) if matrix[i][j] is not None]


def _named(pairs: Pairs, members: Sequence[str]) -> str:
    """`a and b are`, or `a and b, and 2 more pairs, are`, the first pair by name."""
    i, j = pairs[0][1]
    rest = len(pairs) - 1
    more = f", and {counted(rest, 'more pair')}," if rest else ""
    return f"{members[i]} and {members[j]}{more} are"


def _span(values: Sequence[float], told: Callable[[float], str]) -> str:
    low, high = told(min(values)), told(max(values))
    return low if low == high else f"{low} to {high}"


def percent(value: float) -> str:
    """0.0498 is 5.0%."""
    return f"{100 * value:.1f}%"


def digits(value: float) -> str:
    """0.04983 is 0.050."""
    return f"{round(value, 3) + 0.0:.3f}"  # + 0.0: no -0.000


def weights_of(part: Measures, members: Sequence[str]) -> dict[str, Any]:
    """Two sets of weights for task arithmetic, and how long the merged task vector then is.

    equal: ``w_i = 1 / n``. balanced: ``w_i = (1 / |d_i|) / sum_j (1 / |d_j|)``, by which every member moves the model
    equally far, ``w_i |d_i|``, and the weights still sum to 1 (our choice). A member equal to the base gets no weight.
    Which is better only data can say: a long task vector may need its length.
    length: ``|sum_i w_i d_i| / |b|`` over the whole part; None where members have different layers.
    """
    norms = [norm or 0.0 for norm in part["norm"]]
    products = [[value or 0.0 for value in row] for row in part["product"]]
    moved = [i for i, norm in enumerate(norms) if norm > 0]
    bases = {length for length in part["base_norm"] if length}
    total = sum(1 / norms[i] for i in moved)
    found = {
        "equal": {i: 1 / len(moved) for i in moved},
        "balanced": {i: 1 / norms[i] / total for i in moved},
    }

    def length(weights: dict[int, float]) -> float | None:
        square = sum(weights[i] * weights[j] * products[i][j] for i in moved for j in moved)
        return max(square, 0.0) ** 0.5 / min(bases) if len(bases) == 1 else None

    return {
        name: {"weights": {members[i]: weight for i, weight in weights.items()}, "length": length(weights)}
        for name, weights in found.items()
    }
