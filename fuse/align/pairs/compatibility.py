"""Whether two members fit together, as one score made of measured parts; all formulas are our choice.

VisionFuse (arXiv 2412.01289) works for members of one language model, and fails where task vectors differ hugely; it
finds visual features behind the projectors aligned within a family, and gains from what encoders see differently.
Each of these is a part from 0 to 1, a plain function of one measure:

- tokens: the share of the smaller vocabulary that stands at the same ids; 0 where `fuse merge` refuses.
- distance: ``max(0, 1 - max(|d_a|, |d_b|) / |b|)``, of task vectors d over a base b.
- size: ``min(|d_a|, |d_b|) / max(|d_a|, |d_b|)``.
- signs: ``min(1, 2 w)``, w the share of ``|d_a d_b|`` with the same sign, 0.5 for task vectors that are unrelated.
- space: ``max(0, c)``, c the cosine of the mean visual tokens behind both projectors; where the language models' words
  lie in different spaces, the mean cosine of their embeddings.
- new: ``min(1, 1 - CKA)``, the unbiased linear CKA of both encoders' last layers: how differently they see.

fit is the smallest of the first five, since one that fails is enough to fail; score is ``fit * new``: what fits and
sees the same has nothing to gain. What was not measured is left out of both and named, and could only lower them.
Imports no torch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fuse.align.deltas.verdicts import HUGE, SAME, UNRELATED, digits, percent

FIT = ("tokens", "distance", "size", "signs", "space")
NEW = "new"
PARTS = (*FIT, NEW)
FITS = 1 / HUGE  # a fit below it is a poor one: that of task vectors that differ hugely in length
LITTLE = 0.1  # new below it: the encoders see nearly the same (a CKA of 0.9)


@dataclass(frozen=True)
class Part:
    """One part of a score. value: from 0 to 1, None where it was not measured. why: in words, or why not."""

    value: float | None
    why: str


@dataclass(frozen=True)
class Score:
    """score, fit: from 0 to 1, None where no part of them was measured. weakest: the part that fit is. missing: parts
    that were not measured, in order. verdict: a sentence."""

    score: float | None
    fit: float | None
    weakest: str | None
    missing: tuple[str, ...]
    verdict: str


def tokens(same: int, mine: int, theirs: int) -> Part:
    """same: tokens at the same id in vocabularies of `mine` and `theirs` tokens."""
    least = min(mine, theirs)
    return Part(_inside(same / least if least else 0.0), f"{same:,} of {least:,} tokens at the same ids")


def distance(relative: Sequence[float]) -> Part:
    """relative: the lengths of both task vectors over that of the base."""
    told = " and ".join(percent(one) for one in relative)
    return Part(_inside(1 - max(relative) / UNRELATED), f"{told} of the base's length away from it")


def size(norms: Sequence[float]) -> Part:
    """norms: the lengths of both task vectors. One without length is left out: there is nothing to weigh."""
    short, long = sorted(norms)
    if not short:
        return Part(None, "a language model is the base's own")
    return Part(short / long, f"one task vector is {long / short:.1f} times as long as the other")


def signs(agreement: float | None) -> Part:
    """agreement: of signs, weighted, as `deltas_sums` has it; None where one task vector is all zeros."""
    if agreement is None:
        return Part(None, "a language model is the base's own")
    return Part(_inside(2 * agreement), f"{percent(agreement)} of what both move has the same sign")


def space(cosine: float | None, embeddings: float | None, why: str) -> Part:
    """cosine: of the mean tokens behind both projectors. embeddings: mean cosine of the language models' embeddings.

    why: what kept the first from being measured.
    """
    if cosine is not None:
        return Part(_inside(cosine), f"mean visual tokens have a cosine of {digits(cosine)}")
    if embeddings is not None:
        return Part(_inside(embeddings), f"embeddings of words have a mean cosine of {digits(embeddings)}")
    return Part(None, why)


def new(cka: float | None, why: str) -> Part:
    """cka: unbiased linear CKA of both encoders' last layers. why: what kept it from being measured."""
    if cka is None:
        return Part(None, why)
    return Part(_inside(1 - cka), f"CKA of the encoders' last layers is {digits(cka)}")


def score(parts: Mapping[str, Part], names: tuple[str, str], cosine: float | None = None) -> Score:
    """The score of a pair and its verdict.

    parts: all of PARTS by name. cosine: of both task vectors; from SAME on the language models are one for a merge.
    """
    measured = {name: part.value for name in FIT if (part := parts[name]).value is not None}
    weakest = min(measured, key=lambda name: measured[name] or 0.0) if measured else None
    fit = measured[weakest] if weakest else None
    other = parts[NEW].value
    total = fit if fit is None or other is None else fit * other
    missing = tuple(name for name in PARTS if parts[name].value is None)
    return Score(total, fit, weakest, missing, _verdict(parts, names, fit, weakest, missing, cosine))


def _verdict(
    parts: Mapping[str, Part], names: tuple[str, str], fit: float | None, weakest: str | None,
    missing: Sequence[str], cosine: float | None,
) -> str:  # fmt: skip
    who = f"{names[0]} and {names[1]}"
    if fit is None or weakest is None:
        return f"{who}: nothing was measured"
    held = f"{weakest} is {fit:.2f}: {parts[weakest].why}"
    if fit == 0:
        found = [f"{who} do not fit ({held})"]
    elif fit < FITS:
        found = [f"{who} fit poorly, below {FITS:.2f} ({held})"]
    else:
        found = [f"{who} fit (the weakest, {held})"]
    other = parts[NEW].value
    if fit and other is not None and other < LITTLE:
        found.append(f"they see nearly the same, so fusing them gains little ({parts[NEW].why})")
    if fit and cosine is not None and cosine >= SAME:
        found.append(f"their task vectors are nearly one (cosine {digits(cosine)})")
    if missing:
        reasons: dict[str, list[str]] = {}
        for name in missing:
            reasons.setdefault(parts[name].why, []).append(name)
        told = (", ".join(names) + (f" ({why})" if why else "") for why, names in reasons.items())
        found.append(f"not measured: {', '.join(told)}")
    return "; ".join(found)


def _inside(value: float) -> float:
    return min(1.0, max(0.0, value))
