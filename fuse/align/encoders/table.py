"""A comparison of encoders for a terminal: a line for each member and place, and one for each pair and place."""

from collections.abc import Iterator, Mapping
from typing import Any

from fuse.align.encoders.words import best_match
from fuse.align.measures.table import MEASURES
from fuse.errors import printable

COLUMNS = {
    "cka": "CKA", "rbf_cka": "RBF", "svcca": "SVCCA", "procrustes": "Procr", "knn": "kNN", "mmd": "MMD²",
    "cosine_of_means": "cos",
}  # fmt: skip
PLACES = {"encoder": "last layers", "projector": "projector", "llm": "LLM"}


def to_rich(document: Mapping[str, Any]) -> list[Any]:
    """The tables, in order: members and pairs."""
    return [_members(document), _pairs(document)]


def _table(caption: str, *heads: str) -> Any:
    from rich import box
    from rich.table import Table

    shown = Table(box=box.SIMPLE, padding=(0, 1, 0, 0), show_edge=False, caption=caption, caption_justify="left")
    words = {"member", "encoder", "pair", "place", "grid"}
    for head in heads:
        shown.add_column(head, justify="left" if head in words else "right", no_wrap=head not in words, overflow="fold")
    return shown


def _members(document: Mapping[str, Any]) -> Any:
    from rich.text import Text

    caption = "rank: effective rank of the tokens. length: their mean norm; to words: over that of the LLM's words."
    shown = _table(caption, "member", "encoder", "blocks", "place", "width", "grid", "rank", "length", "to words")
    for name, member in document["members"].items():
        first = (printable(name), member["architecture"], str(member["blocks"]))
        for number, (place, found) in enumerate((("last layer", member), ("projector", member["projector"]))):
            if found is not None:
                rank = "-" if found["effective_rank"] is None else f"{found['effective_rank']:.1f}"
                grid = "x".join(map(str, found["grid"])) if found["grid"] else "-"
                ratio = f"{found['norm_ratio']:.2f}" if found.get("norm_ratio") is not None else ""
                cells = (place, str(found["width"]), grid, rank, f"{found['norm']:.3g}", ratio)
                shown.add_row(*(Text(text) for text in (*(first if not number else ("", "", "")), *cells)))
    return shown


def _pairs(document: Mapping[str, Any]) -> Any:
    from rich.text import Text

    shown = _table(caption(), "pair", "place", *COLUMNS.values())
    for pair in document["pairs"]:
        lines = list(_lines(pair))
        for number, line in enumerate(lines):
            name = printable(f"{pair['a']}, {pair['b']}") if number == 0 else ""
            shown.add_row(*(Text(text) for text in (name, *line)), end_section=number + 1 == len(lines))
    return shown


def _lines(pair: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    if (best := best_match(pair["layers"])) is not None:
        i, j, value = best
        layers = f"layers {pair['layers']['a'][i]}, {pair['layers']['b'][j]}"
        yield (layers, f"{value:.3f}", *[""] * (len(COLUMNS) - 1))
    for place, title in PLACES.items():
        values = (pair[place] or {}).get("values")
        if values:
            yield (title, *(f"{values[name]:.3f}" if name in values else "-" for name in COLUMNS))


def caption() -> str:
    """What the columns are, and which way they point."""
    by_way: dict[str, list[str]] = {"higher": [], "lower": []}
    for name, head in COLUMNS.items():
        title = MEASURES[name].title
        by_way[MEASURES[name].closer].append(head if head == title else f"{head} ({title})")
    return (
        "First line of a pair: the layers with the largest CKA. "
        f"Higher is closer: {', '.join(by_way['higher'])}. Lower is closer: {', '.join(by_way['lower'])}."
    )
