"""The page of `fuse inspect deltas`: how far each member moved, by layer and module, and how their moves lie."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any

from fuse.align.deltas.verdicts import digits, percent
from fuse.report.colours import DIVERGING, Scale
from fuse.report.page import Heat, Page, Section, Table, verdicts_of
from fuse.sizes import counted

Document = Mapping[str, Any]
MOST = 6  # pairs that have maps of their own
COSINE, SHARE = Scale(-1.0, 1.0, DIVERGING), Scale(0.0, 1.0, DIVERGING)
NONE = "-"


def page(document: Document) -> Page:
    """document: of `fuse inspect deltas`."""
    members, overall = document["members"], document["overall"]
    matrices = "1 matrix" if overall["matrices"] == 1 else f"{overall['matrices']:,} matrices"
    return Page(
        title="How do these task vectors lie?",
        about=f"{', '.join(members)} over their base: {matrices}, {counted(overall['elements'], 'weight')}.",
        verdicts=verdicts_of(document["verdicts"]),
        sections=[
            *([Section("Between members", list(_matrices(overall, members)))] if len(members) > 1 else []),
            Section("How far each layer moved", list(_moved(document["maps"], members))),
            *_by_pair(document, members),
            Section("By type of module", [_modules(document["modules"], members)]),
            Section("Weights to begin with", [_weights(document["weights"], members)]),
        ],
    )


def _matrices(overall: Document, members: Sequence[str]) -> Iterator[Heat]:
    for key, name, title, scale, caption in (
        ("cosine", "cosine", "Cosine of task vectors", COSINE, "1: one direction, 0: unrelated, -1: opposite."),
        ("weighted_agreement", "signs", "Agreement of signs", SHARE,
         "The share of what two members both move that has the same sign; 50% for unrelated ones."),
    ):  # fmt: skip
        told = digits if key == "cosine" else percent
        if key in overall:
            yield Heat(name, title, members, members, overall[key], scale, "member", "member", caption, told=told)


def _moved(maps: Sequence[Document], members: Sequence[str]) -> Iterator[Heat]:
    every = [value for one in maps for table in one["relative"] for row in table for value in row if value is not None]
    scale = Scale(0.0, max(every, default=0.0) or 1.0)
    for one in maps:
        for name, values in zip(members, one["relative"], strict=True):
            if any(value is not None for row in values for value in row):
                yield _map(one, "moved", f"{name}{_stack(one, maps)}", values, scale, percent, _short_percent,
                           "The length of the task vector as a share of the base's.")  # fmt: skip


def _by_pair(document: Document, members: Sequence[str]) -> Iterator[Section]:
    """Cosines by layer and module, for a few pairs."""
    maps = document["maps"]
    if len(members) < 2 or not maps:
        return
    charts = [
        _map(one, "cosines", f"{members[i]} and {members[j]}{_stack(one, maps)}", values, COSINE, digits, None,
             "The cosine of both task vectors.")
        for one in maps
        for (i, j), values in list(zip(one["pairs"], one["cosine"], strict=True))[:MOST]
        if any(value is not None for row in values for value in row)
    ]  # fmt: skip
    pairs = len(members) * (len(members) - 1) // 2
    title = "Cosines by layer" if pairs <= MOST else f"Cosines by layer, of the first {MOST} pairs"
    if charts:
        yield Section(title, charts, folded=True)


def _map(one: Document, name: str, title: str, values: Any, scale: Scale, told: Any, short: Any, caption: str) -> Heat:
    rows, shorts = [str(layer) for layer in one["layers"]], {"short": short} if short else {}
    return Heat(name, title, rows, one["modules"], values, scale, "layer", "module", caption, told=told, **shorts)


def _stack(one: Document, maps: Sequence[Document]) -> str:
    return f", {one['part']} {one['stack']}" if len(maps) > 1 else ""


def _short_percent(value: float) -> str:
    return f"{100 * value:.1f}" if value < 0.995 else f"{100 * value:.0f}"


def _modules(modules: Sequence[Document], members: Sequence[str]) -> Table:
    pairs = list(combinations(range(len(members)), 2))[:MOST]
    rows = []
    for row in modules:
        name = row["module"] if row["part"] == "language" else f"{row['part']} {row['module']}"
        cosines = [_told(row["cosine"][i][j], digits) for i, j in pairs]
        rows.append([name, *(_told(value, percent) for value in row["relative"]), *cosines])
    heads = [f"cosine of {members[i]}, {members[j]}" for i, j in pairs]
    told = "Under a member's name: the length of its task vector as a share of the base's."
    return Table(["module", *members, *heads], rows, told)


def _weights(found: Document, members: Sequence[str]) -> Table:
    rows = [
        [name, *(_told(one["weights"].get(member), digits) for member in members), _told(one["length"], percent)]
        for name, one in found.items()
    ]
    return Table(
        ["choice", *members, "length"], rows,
        "equal: all the same. balanced: so that every member moves the model equally far. length: of the merged task "
        "vector, as a share of the base's.",
    )  # fmt: skip


def _told(value: float | None, told: Any) -> str:
    return NONE if value is None else told(value)
