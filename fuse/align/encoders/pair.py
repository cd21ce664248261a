"""Two encoders at one place: every measure of the table that can be taken there, and why the others cannot."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from fuse.align import Unmeasurable
from fuse.align.measures.cka.linear import LinearCKA
from fuse.align.measures.cka.rbf import rbf_cka
from fuse.align.measures.knn import K, mutual_knn
from fuse.align.measures.mmd import mmd
from fuse.align.measures.procrustes import procrustes
from fuse.align.measures.spread import cosine_of_means
from fuse.align.measures.svcca import svcca

SAME_SPACE = (
    0.5  # mean cosine of two embedding tables' rows from which their language models share a space (our choice)
)
ROWS = 4096  # of an embedding, that are looked at
SIDES = ("the first features", "the second features")  # as the measures call them


@dataclass(frozen=True)
class Drawn:
    """Samples of one encoder at one place: rows [n, D] of cells, means [m, D] of images, cells [n], each row's cell."""

    rows: torch.Tensor
    means: torch.Tensor
    cells: torch.Tensor | None = None


def measured(a: Drawn, b: Drawn, names: tuple[str, str], no_space: str) -> dict[str, Any]:
    """The measures of two encoders whose rows are the same samples.

    Returns {"samples", "images", "values": {measure: number}, "details": {measure: {name: number}}, "unmeasured":
    {measure: sentence}}. Neighbours are those of images, as in the paper; all else is taken over cells. no_space: why
    the two do not share a space, "" where they do. The streamed CKA is not among them.
    """
    rows, means = (a.rows, b.rows), (a.means, b.means)
    values: dict[str, float] = {}
    details: dict[str, dict[str, float]] = {}
    unmeasured: dict[str, str] = {}

    def rbf() -> tuple[float, dict[str, float]]:
        biased, unbiased = rbf_cka(*rows)
        return unbiased, {"biased": biased}

    def with_details(found: Any) -> tuple[float, dict[str, float]]:
        return found.value, {name: value for name, value in found._asdict().items() if name != "value"}

    takes = {
        "rbf_cka": rbf,
        "svcca": lambda: with_details(svcca(*rows)),
        "procrustes": lambda: (procrustes(*rows), {}),
        "knn": lambda: with_details(mutual_knn(*means, k=K)),
        "mmd": lambda: with_details(mmd(*rows)),
        "cosine_of_means": lambda: (cosine_of_means(*rows), {}),
    }
    for measure, take in takes.items():
        if measure in ("mmd", "cosine_of_means") and no_space:
            unmeasured[measure] = no_space
            continue
        try:
            values[measure], found = take()
        except Unmeasurable as why:
            unmeasured[measure] = _named(str(why), names)
            continue
        if found:
            details[measure] = found
    counts = {"samples": len(a.rows), "images": len(a.means)}
    return {**counts, "values": values, "details": details, "unmeasured": unmeasured}


def matrices(cka: LinearCKA, names: tuple[str, str], layers: tuple[list[Any], list[Any]]) -> dict[str, Any]:
    """The CKA of all layers with all: {"a", "b": the layers, "samples", "how", "biased", "unbiased"}.

    Where it cannot be taken, {"a", "b", "unmeasured": why}.
    """
    found: dict[str, Any] = {"a": layers[0], "b": layers[1]}
    try:
        value = cka.value()
    except Unmeasurable as why:
        return {**found, "unmeasured": _named(str(why), names)}
    return {
        **found, "samples": value.samples, "how": value.how,
        "biased": value.biased.tolist(), "unbiased": value.unbiased.tolist(),
    }  # fmt: skip


def _named(sentence: str, names: tuple[str, str]) -> str:
    for side, name in zip(SIDES, names, strict=True):
        sentence = sentence.replace(side, f"the features of {name}")
    return sentence


def space_between(
    words: tuple[torch.Tensor | None, torch.Tensor | None], widths: tuple[int, int], names: tuple[str, str]
) -> tuple[float | None, str]:
    """Whether the projectors of two members write into one space: (mean cosine of embedding rows, "" or why not).

    The space is one where the language models' embeddings are alike: the mean cosine over rows of the same number, of
    the first 4,096 that are zero in neither, is at least `SAME_SPACE`. Fine-tunes of one base have nearly 1, language
    models trained apart nearly 0.
    """
    a, b = words
    if a is None or b is None:
        return None, f"needs a common space, and {names[0] if a is None else names[1]} has no language model"
    if widths[0] != widths[1]:
        return None, f"needs a common space, and tokens have {widths[0]} and {widths[1]} numbers"
    least = min(len(a), len(b), ROWS)
    first, second = a[:least].float(), b[:least].float()
    used = (first.norm(dim=1) > 0) & (second.norm(dim=1) > 0)
    cosine = float(torch.nn.functional.cosine_similarity(first[used], second[used]).mean()) if used.any() else 0.0
    if cosine < SAME_SPACE:
        return cosine, (
            f"needs a common space, and the embeddings of {names[0]} and {names[1]} have a mean cosine of {cosine:.2f}"
        )
    return cosine, ""


def value_at(place: Mapping[str, Any] | None, measure: str) -> float | None:
    """A measure of a place in the document, None where it could not be taken."""
    return place["values"].get(measure) if place else None
