"""The page of `fuse inspect pairs`: which members to fuse, the score of each pair and the parts it is made of."""

from collections.abc import Mapping, Sequence
from typing import Any

from fuse.align.pairs.compatibility import PARTS
from fuse.align.pairs.table import CAPTION
from fuse.report.colours import Scale
from fuse.report.page import Heat, Page, Section, Sentence, Table
from fuse.sizes import counted

Document = Mapping[str, Any]
SCORE = Scale(0.0, 1.0)
NONE = "-"


def page(document: Document) -> Page:
    """document: of `fuse inspect pairs`."""
    members, pairs = list(document["members"]), document["pairs"]
    seen = "" if document["images"] is None else f", over {counted(document['images'], 'image')}"
    return Page(
        title="Which of these go together?",
        about=f"{', '.join(members)} over {document['base']}{seen}.",
        verdicts=[Sentence(f"{pair['verdict']}.") for pair in pairs],
        sections=[
            Section("Scores", [_table(pairs), *_scores(members, pairs), _parts(pairs)]),
            Section("Why", [_reasons(pair) for pair in pairs]),
        ],
    )


def _scores(members: Sequence[str], pairs: Sequence[Document]) -> list[Heat]:
    found = {frozenset((pair["a"], pair["b"])): pair["score"] for pair in pairs}
    values = [[None if a == b else found[frozenset((a, b))] for b in members] for a in members]
    return [Heat("score", "Score of every pair", members, members, values, SCORE, "member", "member")]


def _parts(pairs: Sequence[Document]) -> Heat:
    rows = [f"{pair['a']}, {pair['b']}" for pair in pairs]
    values = [[pair["parts"][name]["value"] for name in PARTS] for pair in pairs]
    return Heat("parts", "What the scores are made of", rows, PARTS, values, SCORE, "pair", "part", "1 is best.")


def _table(pairs: Sequence[Document]) -> Table:
    rows = []
    for pair in pairs:
        numbers = [pair["score"], pair["fit"], *(pair["parts"][name]["value"] for name in PARTS)]
        balanced = pair["weights"]["balanced"]["weights"] if pair["weights"] else None
        weights = ", ".join(f"{balanced.get(name, 0):.2f}" for name in (pair["a"], pair["b"])) if balanced else NONE
        cells = ["≤" * bool(pair["missing"] and pair["score"]) + _told(numbers[0]), *map(_told, numbers[1:]), weights]
        rows.append([f"{pair['a']}, {pair['b']}", *cells])
    return Table(["pair", "score", "fit", *PARTS, "weights"], rows, CAPTION)


def _reasons(pair: Document) -> Table:
    rows = [[name, _told(part["value"]), part["why"]] for name, part in pair["parts"].items()]
    return Table([f"{pair['a']}, {pair['b']}", "value", "why"], rows, words=True)


def _told(value: float | None) -> str:
    return NONE if value is None else f"{value:.2f}"
