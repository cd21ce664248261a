"""The page of `fuse inspect attention`: where each member looks, side by side."""

from collections.abc import Iterator, Mapping
from io import BytesIO
from typing import Any

import numpy as np

from fuse.report.overlay import PANEL, heat, top_of_scale
from fuse.report.page import Page, Picture, Section, Sentence, Table, three_digits

Document = Mapping[str, Any]
NONE = "-"


def page(document: Document, image: Any) -> Page:
    """document: of `fuse inspect attention`. image: the Pillow image that was asked about, as it was opened.

    Of pairs every number of the document is shown.
    """
    members, pairs = document["members"], document["pairs"]
    answers = [
        [name, one["answer"], NONE if one["share"] is None else f"{one['share']:.1%}"] for name, one in members.items()
    ]
    told = "attention: the part of the answer's that goes to the image."
    sections = [
        Section("Where each looks", list(_overlays(document, image))),
        Section("What each answers", [Table(["member", "answer", "attention"], answers, told, words=True)]),
    ]
    if pairs:
        measures = [name for name in pairs[0] if name not in ("a", "b")]
        rows = [[f"{pair['a']}, {pair['b']}", *(_told(pair[name]) for name in measures)] for pair in pairs]
        heads = ["pair", *(name.replace("_", " ") for name in measures)]
        sections.append(Section("How far apart their maps are", [Table(heads, rows)]))
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


def _told(value: Any) -> str:
    return three_digits(value) if isinstance(value, float) else NONE
