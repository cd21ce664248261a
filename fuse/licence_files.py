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
MARKUP = " \t\f#*/=_~`<>-\ufeff"  # at the ends of a line
OWNER = re.compile(r"(portions )?copyright\b|©|\(c\)|all rights reserved", re.IGNORECASE)
# what no line of an owner says
ALLOWS = re.compile(r"\b(under|licen[sc]e|commercial|terms|use\b|permi|redistribut|prohibit)", re.IGNORECASE)
# titles of licences that are known by their text, and what else stands above it
TITLE = re.compile(
    r"(the )?(mit|expat)( licen[sc]e)?( \((mit|expat)\))?"
    r'|(the )?((new|simplified|revised) )?bsd([ -][23][ -]clause)?( "(new|simplified)"( or "revised")?)?( licen[sc]e)?'
    r"|(the )?[23][ -]clause bsd licen[sc]e|licen[sc]e"
    r"|spdx-license-identifier: [\w.+-]+|for [\w.+ -]{1,60} software|microsoft\.?",
    re.IGNORECASE,
)
CC = "(?:Creative Commons )?Attribution"
BSD = "Redistribution and use in source and binary forms, with or without modification, are permitted provided that"
# what a licence's text begins with, each gap one blank -> the hub's word for it; the first that fits counts
TEXTS = (
    (r"Apache License,? Version 2\.0,? January 2004", "apache-2.0"),
    (r"GNU AFFERO GENERAL PUBLIC LICENSE,? Version 3", "agpl-3.0"),
    (r"GNU LESSER GENERAL PUBLIC LICENSE,? Version 3", "lgpl-3.0"),
    (r"GNU GENERAL PUBLIC LICENSE,? Version 3", "gpl-3.0"),
    (r"GNU GENERAL PUBLIC LICENSE,? Version 2", "gpl-2.0"),
    (r"(?:META )?LLAMA (\d(?:\.\d)?) COMMUNITY LICENSE", r"llama\1"),
    (r"Gemma Terms of Use", "gemma"),
    (rf"{CC}-NonCommercial-ShareAlike 4\.0", "cc-by-nc-sa-4.0"),
    (rf"{CC}-NonCommercial-NoDerivatives 4\.0", "cc-by-nc-nd-4.0"),
    (rf"{CC}-NonCommercial 4\.0", "cc-by-nc-4.0"),
    (rf"{CC}-NoDerivatives 4\.0", "cc-by-nd-4.0"),
    (rf"{CC}-ShareAlike 4\.0", "cc-by-sa-4.0"),
    (rf"{CC} 4\.0 International", "cc-by-4.0"),
    (f"{BSD}.*Neither the name", "bsd-3-clause"),
    (BSD, "bsd-2-clause"),
    (
        r"Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated "
        r"documentation files \(the .{0,2}Software.{0,2}\), to deal in the Software without restriction",
        "mit",
    ),
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
    begins = " ".join(_own_words(text))
    for pattern, word in TEXTS:
        if match := re.match(pattern, begins, re.IGNORECASE):
            return match.expand(word)
    return OTHER if text.strip() else ""


def _own_words(text: str) -> list[str]:
    """The words of a licence from where its terms begin: after the lines of its owners, and titles of no more than one.

    What a text only mentions further on, or takes and changes under a title of its own, is not what it states.
    """
    lines, owners = [line.strip(MARKUP) for line in text.splitlines()], False
    for number, line in enumerate(lines):
        owners = bool(line) and not ALLOWS.search(line) and (owners or OWNER.match(line) is not None)
        if line and not owners and not TITLE.fullmatch(line):
            return " ".join(lines[number:]).split()
    return []
