"""The page of `fuse inspect tokens`: folders side by side."""

from collections.abc import Mapping
from typing import Any

from fuse.align.tokens.view import choice_text, heads, shown_rows
from fuse.report.page import Page, Section, Table, verdicts_of


def page(document: Mapping[str, Any]) -> Page:
    """document: of `fuse inspect tokens`."""
    rows = [[head, *cells] for head, cells in shown_rows(document)]
    sections = [Section("Side by side", [Table(["", *heads(document)], rows, words=True)])]
    choices = document["embeddings"]["choices"]
    if choices:
        members, base = document["embeddings"]["members"], document["embeddings"]["base"]
        told = f"Of {', '.join(members)}{f' over {base}' if base else ''}."
        table = Table(["embeddings", "gives"], [[one["choice"], choice_text(one)] for one in choices], told, words=True)
        sections.append(Section("What a recipe's choice of embeddings gives", [table]))
    return Page(
        title="Do these speak one language?",
        about=f"{', '.join(one['name'] for one in document['folders'])}; the first is the host.",
        verdicts=verdicts_of(document["verdicts"]),
        sections=sections,
    )
