"""The document of `fuse inspect pairs` for a terminal: a line a pair, the best first, and what is said of each."""

from collections.abc import Iterator, Mapping
from typing import Any

from fuse.align.pairs.compatibility import PARTS
from fuse.errors import printable
from fuse.sizes import counted

WIDEST = 19  # letters of two names that are sure to stand in one line
CAPTION = (
    "score: fit x new. fit: the smallest of tokens, distance, size, signs and space. new: how differently the encoders "
    "see. All from 0 to 1, higher is better; -: not measured, which leaves a score at most as high as ≤ says. weights: "
    "by which both move the model equally far."
)


def to_rich(document: Mapping[str, Any]) -> Any:
    """The table of all pairs."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE, padding=0, show_edge=False, caption=CAPTION, caption_justify="left")
    for head in ("pair", "score", "fit", *PARTS, "weights"):
        table.add_column(head, justify="left" if head in ("pair", "weights") else "right", overflow="fold")
    longest = max(len(pair["a"]) + len(pair["b"]) for pair in document["pairs"]) + 2
    table.columns[0].min_width = min(longest, WIDEST)
    for pair in document["pairs"]:
        most = "≤" if pair["missing"] and pair["score"] else ""
        numbers = [pair["fit"], *(pair["parts"][name]["value"] for name in PARTS)]
        names = printable(f"{pair['a']}, {pair['b']}")
        cells = [names, most + _told(pair["score"]), *map(_told, numbers), _weights(pair)]
        table.add_row(*map(Text, cells))
    return table


def lines(document: Mapping[str, Any]) -> Iterator[str]:
    """Which images were looked at, who could not, and the verdict on each pair, in the same order."""
    if document["images"] is not None:
        skipped = [f"{one['file']} ({one['why']})" for one in document["skipped"]]
        told = f"; skipped: {', '.join(skipped)}" if skipped else ""
        yield printable(f"{counted(document['images'], 'image')}{told}.")
    for name, member in document["members"].items():
        if member["unseen"]:
            yield printable(f"{name} did not look at images: {member['unseen']}.")
    for pair in document["pairs"]:
        yield printable(f"{pair['verdict']}.")


def _told(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _weights(pair: Mapping[str, Any]) -> str:
    if pair["weights"] is None:
        return "-"
    weights = pair["weights"]["balanced"]["weights"]
    return ", ".join(f"{weights.get(name, 0):.2f}" for name in (pair["a"], pair["b"]))
