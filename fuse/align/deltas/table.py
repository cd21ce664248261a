"""The document of `fuse inspect deltas` for a terminal."""

from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Any

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from fuse.align.deltas.verdicts import digits, percent
from fuse.errors import printable
from fuse.sizes import counted

EXTREMES = 3  # layers of each kind that are shown of a model with more than twice as many
MOST = 3  # members that have a column each
LINES = 10  # pairs that have a line each
NOTHING = "-"
PAIRS = {"cosine": "cosine", "weighted_agreement": "signs", "overlap_left": "outputs", "overlap_right": "inputs"}
Row = dict[str, Any]


def to_rich(document: dict[str, Any]) -> Group:
    """Members, types of modules, pairs, the layers that stand out, the verdicts and the suggested weights."""
    members, overall = document["members"], document["overall"]
    modules = [(_module(row), row) for row in document["modules"]]
    shown: list[Any] = [_members(overall, members), Text()]
    shown += [_table("module", [*modules, ("all", overall)], members), Text()]
    if len(members) > 2:
        shown += [*_pairs(overall, members), Text()]
    if document["layers"]:
        shown += [_table("layer", _extremes(document["layers"]), members), Text()]
    shown += [_line(_caption(document)), Text()]
    shown += [_line(f"{'=' if one['agrees'] else '!'} {one['topic']}: {one['text']}") for one in document["verdicts"]]
    shown += [_line(one) for one in _weights(document["weights"])]
    return Group(*shown)


def _table(head: str, rows: Sequence[tuple[str, Row]], members: Sequence[str]) -> Table:
    """A line a row: how far each member is from the base, or their range, and the range of what all pairs have."""
    several, many = len(members) > 1, len(members) > MOST
    heads = ["members"] if many else list(members)
    table = _empty(head, [*heads, *(PAIRS.values() if several else ())])
    for name, row in rows:
        moved = [value for value in row["relative"] if value is not None]
        cells = [_span(moved, percent)] if many else [_told(value, percent) for value in row["relative"]]
        cells += [_span(_values(row.get(key)), digits) for key in PAIRS] if several else []
        table.add_row(_line(name), *map(Text, cells))
    return table


def _members(row: Row, members: Sequence[str]) -> Table:
    table = _empty("member", ["moved", "weights changed", "participation", "strongest"])
    for i, name in enumerate(members):
        rank, energy = ((row.get(key) or {i: None})[i] for key in ("participation", "energy"))
        moved = [_told(row[key][i], percent) for key in ("relative", "changed")]
        table.add_row(_line(name), *moved, _told(rank, lambda value: f"{value:.1f}"), _told(energy, percent))
    return table


def _pairs(row: Row, members: Sequence[str]) -> list[Any]:
    """A line a pair, those of the largest cosines where there are many."""
    pairs = list(combinations(range(len(members)), 2))
    cosines = {(i, j): -2.0 if row["cosine"][i][j] is None else row["cosine"][i][j] for i, j in pairs}
    shown = pairs if len(pairs) <= LINES else sorted(pairs, key=lambda pair: -cosines[pair])[:LINES]
    table = _empty("members", list(PAIRS.values()))
    for i, j in shown:
        cells = [_told(row[key][i][j], digits) if key in row else NOTHING for key in PAIRS]
        table.add_row(_line(f"{members[i]}, {members[j]}"), *map(Text, cells))
    left = len(pairs) - len(shown)
    return [table, *([_line(f"and {counted(left, 'pair')} of smaller cosine")] if left else [])]


def _empty(head: str, heads: Sequence[str]) -> Table:
    table = Table(box=box.SIMPLE, padding=(0, 1, 0, 0), show_edge=False)
    table.add_column(head, overflow="fold")
    for one in heads:
        table.add_column(_line(one), justify="right", overflow="fold")
    return table


def _module(row: Row) -> str:
    return row["module"] if row["part"] == "language" else f"{row['part']} {row['module']}"


def _extremes(layers: Sequence[Row]) -> list[tuple[str, Row]]:
    """The layers that moved the most, and those whose members are the least alike; all of a small model.

    In the order of the model, with the reason.
    """
    stacks = {(row["part"], row["stack"]) for row in layers}
    names = [f"{row['stack']}.{row['layer']}" if len(stacks) > 1 else str(row["layer"]) for row in layers]
    if len(layers) <= 2 * EXTREMES:
        return list(zip(names, layers, strict=True))
    moved = [max((value for value in row["relative"] if value is not None), default=0.0) for row in layers]
    alike = [min(_values(row["cosine"]), default=2.0) for row in layers]
    most = sorted(range(len(layers)), key=lambda n: -moved[n])[:EXTREMES]
    least = [n for n in sorted(range(len(layers)), key=lambda n: alike[n])[:EXTREMES] if alike[n] < 2]
    why = {n: [*(["moved most"] if n in most else []), *(["least alike"] if n in least else [])] for n in most + least}
    return [(f"{names[n]} ({', '.join(why[n])})", layers[n]) for n in sorted(why)]


def _values(matrix: Sequence[Sequence[float | None]] | None) -> list[float]:
    """Of every pair that has one."""
    found = [matrix[i][j] for i, j in combinations(range(len(matrix)), 2)] if matrix else []
    return [value for value in found if value is not None]


def _span(values: Sequence[float], told: Callable[[float], str]) -> str:
    low, high = (told(min(values)), told(max(values))) if values else (NOTHING, NOTHING)
    return low if low == high else f"{low} to {high}"


def _told(value: float | None, told: Callable[[float], str]) -> str:
    return NOTHING if value is None else told(value)


def _caption(document: dict[str, Any]) -> str:
    overall, top = document["overall"], document["top"]
    matrices = "1 matrix" if overall["matrices"] == 1 else f"{overall['matrices']:,} matrices"
    told = (
        f"all: {matrices}, {counted(overall['elements'], 'weight')}; norms and biases count where there is no matrix. "
        "moved, and under a member's name: the length of its task vector as a share of the base's. participation: "
        f"directions of a matrix; strongest: what the {top} largest of them hold of its energy."
    )
    if len(document["members"]) > 1:
        told += (
            " signs: the share of what two members both move that has the same sign. outputs, inputs: the share of "
            f"these {top} directions that two members have in common."
        )
    return told


def _weights(found: dict[str, Any]) -> list[str]:
    lines = []
    for name, one in found.items():
        weights = ", ".join(f"{member}: {weight:.3f}" for member, weight in one["weights"].items())
        length = f" (the merged task vector is {percent(one['length'])} of the base's length)" if one["length"] else ""
        lines.append(f"weights, {name}: {{{weights}}}{length}")
    return lines


def _line(text: str) -> Text:
    return Text(printable(" ".join(text.split())))
