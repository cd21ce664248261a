"""The measures as data: what each says, needs and ranges over. The functions live beside it; imports no torch."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Final


@dataclass(frozen=True)
class Measure:
    """One number about features x ``(n, p)`` and y ``(n, q)``.

    title: for a table's head. doc: one sentence for people. needs_common_space: whether p has to equal q.
    least: the fewest samples, from p, q and the number of neighbours k. What a measure needs beyond depends on the
    features themselves, and it says so. closer: whether a "higher" or a "lower" value means more alike, or "" where it
    is a fact about a side. low, high: the range; None for no end.
    function: where it is. streams: the class that adds up batches, "" where all samples are needed at once.
    """

    title: str
    doc: str
    needs_common_space: bool
    least: Callable[[int, int, int], int]
    closer: str
    low: float | None
    high: float | None
    function: str
    streams: str = ""

    def load(self) -> Callable[..., Any]:
        """The function of this measure; imports torch."""
        module, _, name = self.function.partition(":")
        return getattr(import_module(f"fuse.align.measures.{module}"), name)


def _at_least(n: int) -> Callable[[int, int, int], int]:
    return lambda p, q, k: n


MEASURES: Final[Mapping[str, Measure]] = {
    "cka": Measure(
        "linear CKA", "Likeness of the directions of largest spread; about 0 for independent features.",
        False, _at_least(4), "higher", -1, 1, "cka.linear:linear_cka", "cka.linear:LinearCKA",
    ),
    "cka_biased": Measure(
        "linear CKA, biased", "The same, larger the fewer samples there are beside features.",
        False, _at_least(4), "higher", 0, 1, "cka.linear:linear_cka", "cka.linear:LinearCKA",
    ),
    "rbf_cka": Measure(
        "RBF CKA", "Likeness of which samples are near each other; about 0 for independent features.",
        False, _at_least(4), "higher", -1, 1, "cka.rbf:rbf_cka",
    ),
    "svcca": Measure(
        "SVCCA",
        "Mean correlation, after the best linear maps, of the directions that hold 99% of each side's variance.",
        False, _at_least(4), "higher", 0, 1, "svcca:svcca",
    ),
    "procrustes": Measure(
        "Procrustes distance", "What is left between both sides after the best rotation; 0 for rotated copies.",
        False, _at_least(2), "lower", 0, 2, "procrustes:procrustes", "procrustes:Procrustes",
    ),
    "knn": Measure(
        "mutual neighbours", "Share of a sample's nearest neighbours that are the same on both sides.",
        False, lambda p, q, k: k + 2, "higher", 0, 1, "knn:mutual_knn",
    ),
    "mmd": Measure(
        "MMD squared", "Distance between the distributions of both sides; about 0, either sign, where they are one.",
        True, _at_least(4), "lower", None, 2, "mmd:mmd",
    ),
    "cosine_of_means": Measure(
        "cosine of means", "Whether the mean features of both sides point the same way.",
        True, _at_least(1), "higher", -1, 1, "spread:cosine_of_means", "spread:Spread",
    ),
    "effective_rank": Measure(
        "effective rank", "In how many directions features spread, counted by their singular values.",
        False, _at_least(2), "", 1, None, "spread:spread", "spread:Spread",
    ),
    "participation": Measure(
        "participation ratio", "The same, counted by variances, so that few large directions weigh more.",
        False, _at_least(2), "", 1, None, "spread:spread", "spread:Spread",
    ),
    "norm_ratio": Measure(
        "norm ratio", "Mean length of visual tokens over that of text embeddings.",
        True, _at_least(1), "", 0, None, "spread:norm_ratio",
    ),
}  # fmt: skip
