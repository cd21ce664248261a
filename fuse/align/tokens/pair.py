"""What `fuse inspect tokens` tells of a host and another folder, side by side."""

from collections.abc import Sequence
from typing import Any

from fuse.align.tokens.chat import CONVERSATIONS
from fuse.align.tokens.cutting import CUTTING
from fuse.align.tokens.read import Read
from fuse.align.tokens.rows import Alignment

SHOWN = 12  # names of tokens that a list in the document holds at most


def pair_document(host: Read, other: Read, how: Alignment) -> dict[str, Any]:
    """The comparison as JSON holds it. What one of the two does not tell is null: it is not compared."""
    return {
        "host": host.speaker.name,
        "other": other.speaker.name,
        "vocabulary": {
            "kind": how.kind, "same_ids": how.same_ids, "other_ids": how.other_ids, "only_host": how.only_host,
            "only_other": how.only_other, "own_tokens_that_differ": how.own,
            "added_only_host": _some(how.added_only_host), "added_only_other": _some(how.added_only_other),
            "why_different": how.why,
        },
        "shared_rows": how.rows,
        "refused": how.refused,
        "special": _special(host, other),
        "image": _image(host, other),
        "same_ends": host.ends == other.ends if host.ends and other.ends else None,
        "cutting": _cutting(host, other),
        "template": _template(host, other, how),
    }  # fmt: skip


def _some(tokens: Sequence[str]) -> dict[str, Any]:
    return {"count": len(tokens), "first": list(tokens[:SHOWN])}


def _special(host: Read, other: Read) -> dict[str, dict[str, bool]]:
    """Role -> whether both give it to the same token, and to the same id; of roles that both fill."""
    found = {}
    for role, mine in host.special.items():
        if theirs := other.special.get(role):
            found[role] = {"token": mine.token == theirs.token, "id": mine.id == theirs.id}
    return found


def _image(host: Read, other: Read) -> dict[str, bool] | None:
    if host.image.token is None or other.image.token is None:
        return None
    return {"token": host.image.token == other.image.token, "id": host.image.id == other.image.id}


def _cutting(host: Read, other: Read) -> dict[str, Any]:
    mine, theirs = host.cutting, other.cutting
    differ = None
    if mine.parts and theirs.parts:
        differ = [name for name, part in mine.parts.items() if part.digest != theirs.parts[name].digest]
    sides = ((mine.before, theirs.before), (mine.behind, theirs.behind))
    known = [one == two for one, two in sides if one is not None and two is not None]
    around = False if False in known else True if len(known) == len(sides) else None
    flags = sorted(t for t in mine.flags.keys() & theirs.flags.keys() if mine.flags[t] != theirs.flags[t])
    same = None if differ is None else not set(differ) & set(CUTTING)
    return {"same": same, "parts_that_differ": differ, "same_around": around, "flags_that_differ": _some(flags)}


def _template(host: Read, other: Read, how: Alignment) -> dict[str, Any]:
    mine, theirs = host.template, other.template
    foreign = [token for token in how.added_only_other if token in theirs.text]
    if not (mine.text and theirs.text):
        return {"same_text": None, "same_prompts": None, "writes_only_other": foreign}
    talks = [name for name in CONVERSATIONS if name in mine.written and name in theirs.written]
    same = {name: mine.written[name] == theirs.written[name] for name in talks}
    return {"same_text": mine.text == theirs.text, "same_prompts": same, "writes_only_other": foreign}
