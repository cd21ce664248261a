"""Near names for error messages."""

import difflib
from collections.abc import Iterable

LONGEST = 200  # letters of a word that are compared


def near(word: object, known: Iterable[str], cutoff: float = 0.6) -> list[str]:
    """At most three names that the word may have been meant as, nearest first; capitals and - for _ are no matter.

    cutoff: how alike they are at least, 1 for the same.
    """
    names: dict[str, str] = {}
    for name in sorted(known):
        names.setdefault(_plain(name), name)
    plain = _plain(str(word)[:LONGEST])
    if same := names.get(plain):
        return [same]
    return [names[found] for found in difflib.get_close_matches(plain, list(names), n=3, cutoff=cutoff)]


def did_you_mean(word: object, known: Iterable[str]) -> str:
    """`did you mean: x`, or the whole list when nothing is near."""
    names = sorted(known)
    found = near(word, names)
    return f"did you mean: {', '.join(found)}" if found else f"known: {', '.join(names)}"


def _plain(name: str) -> str:
    return name.lower().replace("-", "_").replace(" ", "_")
