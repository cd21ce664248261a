"""What a folder's model card states at its beginning: the hub's YAML between two lines of `---`, flat keys alone."""

import re
from collections.abc import Mapping
from pathlib import Path

CARD = "README.md"
MAX_BYTES = 1 << 16
MAX_ITEMS = 1000
KEY = re.compile(r"([\w-]+):(?:\s+(.*))?")
ITEM = re.compile(r"\s*-\s+(.*)")


def read_front_matter(folder: Path) -> Mapping[str, tuple[str, ...]]:
    """Key -> what is stated there, one word or a list; empty where a folder has no card, or one without front matter.

    Read are scalars, `[a, b]` and lists of `- a`; keys that hold anything deeper are left out. A stranger's words:
    whoever uses one looks at it first.
    """
    card = folder / CARD
    if not card.is_file():
        return {}
    with card.open("rb") as file:
        text = file.read(MAX_BYTES).decode("utf-8", "replace").removeprefix("\ufeff").replace("\r\n", "\n")
    front = re.match(r"---[ \t]*\n(.*?)^---[ \t]*$", text, re.DOTALL | re.MULTILINE)
    return _keys(front[1].splitlines()) if front else {}


def _keys(lines: list[str]) -> dict[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    key = ""
    for line in lines:
        if match := KEY.fullmatch(line.rstrip()):
            key = "" if match[1] in found else match[1]  # said twice: the first counts
            if key:
                found[key] = _value(match[2] or "")
        elif key and (match := ITEM.fullmatch(line.rstrip())) and len(found[key]) < MAX_ITEMS:
            found[key] += _value(match[1])
        elif line.strip() and not line.lstrip().startswith("#"):
            found.pop(key, None)  # something deeper
            key = ""
    return found


def _value(text: str) -> tuple[str, ...]:
    """The words of a scalar, or of a list in brackets."""
    text = text.strip()
    if text[:1] == "[" and "]" in text:
        return tuple(word for part in text[1 : text.index("]")].split(",")[:MAX_ITEMS] for word in _scalar(part))
    return _scalar(text)


def _scalar(text: str) -> tuple[str, ...]:
    """One word or none, without quotes and without a comment."""
    text = text.strip()
    quoted = text[:1] in {'"', "'"}
    text = text[1:].partition(text[0])[0] if quoted else re.split(r"(?:^|\s)#", text)[0].strip()
    return () if text in {"", "null", "~"} or (not quoted and text[0] in "[{|>&*!") else (text,)
