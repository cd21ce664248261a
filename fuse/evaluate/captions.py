"""CIDEr of captions: Vedantam, Zitnick, Parikh, arXiv:1411.5726, as pycocoevalcap computes it for COCO.

That is CIDEr-D (section 7 there: clipping, and a Gaussian penalty on the difference in length with sigma 6), over 1-
to 4-grams, times 10. The library's own tokenizer starts a Java program; ours is one line, stated at `words`, and needs
none, so figures differ a little from those of the COCO server.
"""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from fuse.errors import MachineError

_WORD = re.compile(r"[^\W_]+(?:['-][^\W_]+)*")


def words(caption: str) -> list[str]:
    """The words of a caption in lower case: runs of letters and digits, joined by single apostrophes and hyphens.

    Everything else is left out, and a typographic apostrophe is a plain one: "A dog's half-eaten bone." is
    ``a dog's half-eaten bone``.
    """
    return _WORD.findall(caption.lower().replace("\u2019", "'"))


def library() -> Any:
    """pycocoevalcap's class `Cider`; MachineError where it is not installed."""
    try:
        from pycocoevalcap.cider.cider import Cider
    except ImportError:
        raise MachineError("metric 'cider' needs pycocoevalcap", hint="pip install fuse-mllm[eval]") from None
    return Cider


def cider(captions: Sequence[str], references: Sequence[Sequence[str]]) -> np.ndarray:
    """CIDEr-D of each caption against its references, float64 [n], 0..10 (what papers print as 120 is 1.2 here).

    captions: n. references: of each caption one or more with words. An n-gram weighs more the fewer of the n sets of
    references hold it, so scores depend on the whole set, and one caption alone scores 0. Raises what `library` does.
    """
    said = {i: [" ".join(words(caption))] for i, caption in enumerate(captions)}
    right = {i: [" ".join(words(one)) for one in of_one] for i, of_one in enumerate(references)}
    _, found = library()().compute_score(right, said)
    return np.asarray(found, dtype=np.float64)
