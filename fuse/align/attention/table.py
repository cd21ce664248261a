"""The document of `fuse inspect attention` for a terminal: a line for each member, and one for each pair."""

from collections.abc import Mapping
from typing import Any

from fuse.errors import printable

PAIRS = {
    "jensen_shannon": "Jensen-Shannon", "cosine": "cosine", "top_overlap": "top {top:.0%}",
    "centre_distance": "centres",
}  # fmt: skip
LONGEST = 60  # letters of an answer


def to_rich(document: Mapping[str, Any]) -> list[Any]:
    """The tables, in order: members, and pairs where there are some."""
    return [_members(document), *([_pairs(document)] if document["pairs"] else [])]


def _table(caption: str, words: tuple[str, ...], *numbers: str) -> Any:
    from rich import box
    from rich.table import Table

    shown = Table(box=box.SIMPLE, padding=(0, 1, 0, 0), show_edge=False, caption=caption, caption_justify="left")
    for head in words:
        shown.add_column(head, overflow="fold")
    for head in numbers:
        shown.add_column(head, justify="right", no_wrap=True)
    return shown


def _members(document: Mapping[str, Any]) -> Any:
    from rich.text import Text

    caption = (
        f"on image: part of the answer's attention, a mean {document['averaged']}. from flat: Jensen-Shannon "
        "divergence from even attention. centre: in parts of the width and height."
    )
    shown = _table(caption, ("member", "answer"), "on image", "tokens", "from flat", "centre")
    for name, one in document["members"].items():
        flat = "-" if one["from_flat"] is None else f"{one['from_flat']:.3f}"
        centre = "-" if one["centre"] is None else ", ".join(f"{x:.2f}" for x in one["centre"])
        cells = (name, _short(one["answer"]), f"{one['share']:.1%}", f"{one['tokens']:,}", flat, centre)
        shown.add_row(*(Text(printable(cell)) for cell in cells))
    return shown


def _short(answer: str) -> str:
    line = " ".join(answer.split())
    return (f"{line[:LONGEST]}..." if len(line) > LONGEST else line) or "-"


def heads(document: Mapping[str, Any]) -> list[str]:
    """What the measures of a pair are called."""
    return [head.format(top=document["top"]) for head in PAIRS.values()]


def closer(document: Mapping[str, Any]) -> str:
    """Which way the measures of a pair point."""
    return (
        "Lower is closer: Jensen-Shannon (0 to 1), centres (distance in parts of the image). "
        f"Higher is closer: cosine, top {document['top']:.0%} (overlap of the hottest area)."
    )


def _pairs(document: Mapping[str, Any]) -> Any:
    from rich.text import Text

    shown = _table(closer(document), ("pair",), *heads(document))
    for pair in document["pairs"]:
        name = printable(f"{pair['a']}, {pair['b']}")
        shown.add_row(Text(name), *(Text(f"{pair[key]:.3f}") for key in PAIRS))
    return shown
