"""The page of `fuse inspect attention`: where each member looks, side by side."""

from collections.abc import Iterator, Mapping
from io import BytesIO
from typing import Any

import numpy as np

from fuse.align.attention.table import PAIRS, closer, heads
from fuse.report.overlay import PANEL, heat, top_of_scale
from fuse.report.page import Page, Picture, Section, Sentence, Table, three_digits

Document = Mapping[str, Any]


def page(document: Document, image: Any) -> Page:
    """document: of `fuse inspect attention`. image: the Pillow image that was asked about, as it was opened."""
    members, pairs = document["members"], document["pairs"]
    answers = [[name, one["answer"], f"{one['share']:.1%}"] for name, one in members.items()]
    told = f"on image: part of the answer's attention, a mean {document['averaged']}."
    sections = [
        Section("Where each looks", list(_overlays(document, image))),
        Section("What each answers", [Table(["member", "answer", "on image"], answers, told, words=True)]),
    ]
    if pairs:
        rows = [[f"{pair['a']}, {pair['b']}", *(three_digits(pair[name]) for name in PAIRS)] for pair in pairs]
        table = Table(["pair", *heads(document)], rows, closer(document))
        sections.append(Section("How far apart their maps are", [table]))
    return Page(
        title="Where do these models look?",
        about=f"{', '.join(members)}, asked: {document['question']}",
        verdicts=[Sentence(text) for text in document["sentences"]],
        sections=sections,
    )


def _overlays(document: Document, image: Any) -> Iterator[Picture]:
    """The image in grey under each map; one scale a member, whose top is the 99th percentile of its values."""
    ratio = PANEL / max(image.size)
    small = image.convert("RGB").resize([max(1, round(side * ratio)) for side in image.size])
    for name, one in document["members"].items():
        if one["map"] is None:
            continue
        values = np.array(one["map"], dtype=np.float64)
        held = BytesIO()
        heat(small, values / top_of_scale(values)).save(held, "PNG")
        rows, columns = values.shape
        row, column = np.unravel_index(int(values.argmax()), values.shape)
        across, down = (column + 0.5) / columns, (row + 0.5) / rows
        alt = (
            f"The image in grey with the attention of {name} over it as heat, brightest {across:.0%} of the way from "
            f"the left and {down:.0%} from the top."
        )
        yield Picture("attention", name, held.getvalue(), alt, f"Answer: {one['answer']}")
