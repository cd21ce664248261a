"""Near names for error messages."""

import difflib
from collections.abc import Iterable


def did_you_mean(word: object, known: Iterable[str]) -> str:
    """`did you mean: x`, or the whole list when nothing is near."""
    names = sorted(known)
    near = difflib.get_close_matches(str(word), names, n=3, cutoff=0.6)
    return f"did you mean: {', '.join(near)}" if near else f"known: {', '.join(names)}"
