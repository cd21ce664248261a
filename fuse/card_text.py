"""Texts of strangers in a model card: nothing in them ends a cell, a fence or a line."""

import re
from collections.abc import Iterable, Sequence

from fuse.errors import one_line, printable


def cell(text: str) -> str:
    """The text in one line, without a meaning in Markdown or HTML."""
    return re.sub(r"([|<>`\[\]\\])", r"\\\1", one_line(text))


def fenced(text: str, language: str = "") -> str:
    """The text in a fence that is longer than any in it; what would hide or turn a part of it is escaped, tabs stay."""
    fence = "`" * max(3, max((len(run) for run in re.findall(r"`+", text)), default=0) + 1)
    seen = "\t".join(map(printable, text.split("\t")))
    return f"{fence}{language}\n{seen}\n{fence}\n"


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of cells that are written already; "" without rows."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    head = f"| {' | '.join(heads)} |\n|{'---|' * len(heads)}\n"
    return head + "\n".join(lines) + "\n" if lines else ""
