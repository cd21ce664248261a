"""What a licence asks of whoever shares something that was made of it: in a few words, and how strict that is.

A summary of well-known licences by the hub's words for them, not their text, and no legal advice.
"""

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Terms:
    """asks: in a few words. strictness: the higher, the less may be done. same: what is made of it bears it alone."""

    asks: str
    strictness: int
    same: bool = False


NOTICES = Terms("its notices are kept", 0)
NOTHING = Terms("asks for nothing", 0)
OWN = Terms("has terms of its own, which go with what is made of it", 1)
SAME = Terms("what is made of it bears the same licence", 2, same=True)
RESEARCH = Terms("for research alone", 3)
NO_TRADE = Terms("no commercial use", 3)
NO_TRADE_SAME = Terms("no commercial use, and what is made of it bears the same licence", 3, same=True)
NO_CHANGE = Terms("nothing that was made of it may be shared", 4)
UNKNOWN = Terms("fuse does not know its terms", 1)

# patterns of the hub's words, the first that fits counts
TERMS: tuple[tuple[str, Terms], ...] = (
    (r"cc-by-(nc-)?nd-.*", NO_CHANGE),
    (r"cc-by-nc-sa-.*", NO_TRADE_SAME),
    (r"cc-by-nc-.*|fair-noncommercial-research-license", NO_TRADE),
    (r"apple-amlr|h-research|intel-research|qwen-research", RESEARCH),
    (r"cc-by-sa-.*|[al]?gpl(-.*)?|odbl|osl-3\.0|cdla-sharing-1\.0|eupl-.*|gfdl|mpl-2\.0|epl-.*", SAME),
    (r"cc0-1\.0|unlicense|wtfpl|pddl", NOTHING),
    (
        r"apache-2\.0|mit|bsd(-.*)?|isc|zlib|bsl-1\.0|afl-3\.0|artistic-2\.0|ecl-2\.0|ms-pl|ncsa|postgresql|odc-by"
        r"|etalab-2\.0|cdla-permissive-.*|cc-by-\d.*|openmdw-.*|ofl-1\.1",
        NOTICES,
    ),
    (r"llama.*|gemma|grok.*|.*rail.*|deepfloyd-if-license|apple-ascl|c-uda", OWN),
)


def terms_of(licence: str) -> Terms:
    """The strictest terms of a licence, or of the several in `a + b`; UNKNOWN for words that are in no table."""
    return max((_terms(word) for word in licence.split(" + ")), key=lambda terms: terms.strictness)


def _terms(word: str) -> Terms:
    return next((terms for pattern, terms in TERMS if re.fullmatch(pattern, word)), UNKNOWN)
