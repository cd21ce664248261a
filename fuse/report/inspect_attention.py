"""The page of `fuse inspect attention`: where each member looks, side by side."""

from collections.abc import Mapping
from typing import Any

from fuse.report.page import Page, Picture, Section, Sentence, Table, three_digits

NONE = "-"


def page(document: Mapping[str, Any], pictures: Mapping[str, bytes]) -> Page:
    """document: of `fuse inspect attention`. pictures: PNGs by their title, such as a member's name.

    Of members the answer is shown, of pairs every number.
    """
    members, pairs = document["members"], document["pairs"]
    answers = Table(["member", "answer"], [[name, one["answer"]] for name, one in members.items()], words=True)
    overlays = [
        Picture("attention", title, png, f"The image in grey with the attention of {title} over it as heat.")
        for title, png in pictures.items()
    ]
    sections = [Section("Where each looks", overlays), Section("What each answers", [answers])]
    if pairs:
        measures = list(dict.fromkeys(key for pair in pairs for key, value in pair.items() if isinstance(value, float)))
        rows = [[f"{pair['a']}, {pair['b']}", *(_told(pair.get(name)) for name in measures)] for pair in pairs]
        heads = ["pair", *(name.replace("_", " ") for name in measures)]
        sections.append(Section("How far apart their maps are", [Table(heads, rows)]))
    return Page(
        title="Where do these models look?",
        about=f"{', '.join(members)}, asked: {document['question']}",
        verdicts=[Sentence(text) for text in document["sentences"]],
        sections=sections,
    )


def _told(value: Any) -> str:
    return three_digits(value) if isinstance(value, float) else NONE
