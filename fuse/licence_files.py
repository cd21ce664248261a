"""The licence that a folder states: in the front matter of its card, in a LICENSE file, or in its config."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fuse.front_matter import CARD, read_front_matter

UNSTATED = "not stated"
OTHER = "other"  # the hub's word for a licence that it has no word for
WORD = re.compile(r"[\w.+-]{1,96}", re.ASCII)
LINK = re.compile(r"https://[\w.~:/?#@!$&*+,;=%-]{1,400}", re.ASCII)
NAMES = ("LICENSE", "LICENSE.txt", "LICENSE.md", "LICENCE", "LICENCE.txt", "LICENCE.md", "COPYING", "COPYING.txt")
BEGINNING = 8192  # bytes of a licence's text that are looked at
# what a licence's text begins with -> the hub's word for it; the first that fits counts
TEXTS = (
    (r"Apache License\s+Version 2\.0", "apache-2.0"),
    (r"GNU AFFERO GENERAL PUBLIC LICENSE\s+Version 3", "agpl-3.0"),
    (r"GNU LESSER GENERAL PUBLIC LICENSE\s+Version 3", "lgpl-3.0"),
    (r"GNU GENERAL PUBLIC LICENSE\s+Version 3", "gpl-3.0"),
    (r"GNU GENERAL PUBLIC LICENSE\s+Version 2", "gpl-2.0"),
    (r"LLAMA (\d(?:\.\d)?) COMMUNITY LICENSE", r"llama\1"),
    (r"Gemma Terms of Use", "gemma"),
    (r"Attribution-NonCommercial-ShareAlike 4\.0", "cc-by-nc-sa-4.0"),
    (r"Attribution-NonCommercial-NoDerivatives 4\.0", "cc-by-nc-nd-4.0"),
    (r"Attribution-NonCommercial 4\.0", "cc-by-nc-4.0"),
    (r"Attribution-NoDerivatives 4\.0", "cc-by-nd-4.0"),
    (r"Attribution-ShareAlike 4\.0", "cc-by-sa-4.0"),
    (r"Attribution 4\.0 International", "cc-by-4.0"),
    (r"Redistribution and use in source and binary forms(?s:.*)Neither the name", "bsd-3-clause"),
    (r"Redistribution and use in source and binary forms", "bsd-2-clause"),
    (r"Permission is hereby granted, free of charge", "mit"),
)


@dataclass(frozen=True)
class Stated:
    """What a folder states.

    licence: the hub's word, the name that stands beside `other`, `a + b` where several are stated, "" where none is.
    link: where its text is, "" where not told. file: the file that states it. named: it is such a name, no word of the
    hub's.
    """

    licence: str = ""
    link: str = ""
    file: str = ""
    named: bool = False


def stated_in(folder: Path, config: Mapping[str, Any] | None = None) -> Stated:
    """The licence of a folder: its card's, else that of a LICENSE file, else the `license` of its config.

    A LICENSE file whose beginning is that of no known licence gives `other`.
    """
    front = read_front_matter(folder)
    words = sorted({word.lower() for word in front.get("license", ()) if WORD.fullmatch(word)} - {"unknown"})
    if words:
        names, links = front.get("license_name", ()), front.get("license_link", ())
        named = words == [OTHER] and len(names) == 1 and WORD.fullmatch(names[0]) is not None
        link = links[0] if len(links) == 1 and LINK.fullmatch(links[0]) else ""
        return Stated(names[0].lower() if named else " + ".join(words), link, CARD, named)
    for name in NAMES:
        if found := _of_text(folder / name):
            return Stated(found, "", name)
    told = (config or {}).get("license")
    if isinstance(told, str) and WORD.fullmatch(told):
        return Stated(told.lower(), "", "config.json")
    return Stated()


def _of_text(file: Path) -> str:
    """The hub's word for the licence whose text a file holds; "" where there is no such file, or nothing in it."""
    if not file.is_file():
        return ""
    with file.open("rb") as opened:
        text = opened.read(BEGINNING).decode("utf-8", "replace")
    for pattern, word in TEXTS:
        if match := re.search(pattern, text, re.IGNORECASE):
            return match.expand(word)
    return OTHER if text.strip() else ""
