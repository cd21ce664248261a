"""Linear CKA, biased and unbiased, of all pairs of layers of two models, a batch of samples at a time.

    CKA(X, Y) = HSIC(XX', YY') / sqrt(HSIC(XX', XX') HSIC(YY', YY'))     (Kornblith et al., arXiv 1905.00414, section 3)

With HSIC_0 and centred features this is ``|Y'X|_F^2 / (|X'X|_F |Y'Y|_F)``. It is 1 where the features of one side are
those of the other rotated, scaled and moved. With HSIC_1 (Song et al. 2012) independent features have a value near 0
however few the samples; HSIC_0 gives them up to 1 where features are more than samples. Both are in
`fuse.align.measures.cka.hsic`.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from torch import Tensor

from fuse.align.measures.cka import batches, covariances, kernels
from fuse.align.measures.cka.hsic import alignment, check_unbiased
from fuse.align.measures.samples import SIDES, enough

LEAST = 4  # HSIC_1 divides by n - 3
MOST = 2 << 30  # bytes
ROWS = 2048  # of all layers, in float64 at a time

_Form = type[covariances.Covariances] | type[kernels.Kernels] | type[batches.Batches]
_Memory = Callable[[Sequence[int], Sequence[int], int], int]
FORMS: dict[str, tuple[_Form, _Memory]] = {
    "covariances": (covariances.Covariances, covariances.memory),
    "kernels": (kernels.Kernels, kernels.memory),
    "batches": (batches.Batches, batches.memory),
}


class CKA(NamedTuple):
    """biased, unbiased: float64 ``(L, M)`` on the CPU, from 0 to 1, and -1 to 1. how: a clause that says of what."""

    biased: Tensor
    unbiased: Tensor
    samples: int
    how: str


class LinearCKA:
    """Adds up batches of samples of L layers of one model and M of another.

    samples: how many will come at most, where this is known. Fewer than features make samples x samples matrices the
    smaller form. most: the bytes that an exact form may take; above it HSIC is averaged over batches.
    form: to ask for "covariances", "kernels" or "batches" by name.

    Memory besides the form's (`FORMS`): `ROWS` samples of all layers in float64. The exact forms agree to rounding.
    """

    def __init__(self, samples: int | None = None, *, most: int = MOST, form: str | None = None) -> None:
        if form is not None and form not in FORMS:
            raise ValueError(f"form should be one of {', '.join(FORMS)}, not {form}")
        self.samples, self.form = 0, form
        self._expected, self._most = samples, most
        self._widths: list[list[int]] = []

    def add(self, a: Sequence[Tensor], b: Sequence[Tensor]) -> None:
        """Take in the same samples of all layers.

        a: L tensors ``(rows, p_i)``; b: M tensors ``(rows, q_j)``; any float dtype; the widths of the first call.
        Raises ValueError where rows or widths do not agree.
        """
        widths = [[x.shape[-1] for x in side] for side in (a, b)]
        if not a or not b or any(x.ndim != 2 for x in (*a, *b)):
            raise ValueError("each side should have at least one layer, and each layer a matrix of samples by features")
        if len({len(x) for x in (*a, *b)}) != 1:
            raise ValueError("all layers of both sides should have the same samples")
        if not self._widths:
            self._widths = widths
            self.form = self.form or choose(widths[0], widths[1], self._expected, self._most)
            self._sums = FORMS[self.form][0](widths[0], widths[1], a[0].device)
        if widths != self._widths:
            raise ValueError(f"layers should stay as wide as in the first batch, {self._widths}, not {widths}")
        for start in range(0, len(a[0]), ROWS):
            self._sums.add(*([x[start : start + ROWS].detach() for x in side] for side in (a, b)))
        self.samples += len(a[0])

    def value(self) -> CKA:
        """Of the samples so far.

        Raises Unmeasurable for fewer than 4 samples, and naming a layer that does not vary or is not finite.
        """
        enough(self.samples, LEAST, "CKA")
        own = [self._sums.own(side) for side in range(2)]
        for side, widths in enumerate(self._widths):
            for layer in range(len(widths)):
                whose = SIDES[side] if len(widths) == 1 else f"{SIDES[side]} at layer {layer}"
                self._sums.check(side, layer, whose)
                check_unbiased(own[side].unbiased[layer], own[side].biased[layer], whose)
        kinds = zip(self._sums.cross(), *own, strict=True)
        biased, unbiased = (alignment(cross, x[:, None], y[None]).cpu() for cross, x, y in kinds)
        return CKA(biased, unbiased, self.samples, self._sums.how())


def choose(widths_a: Sequence[int], widths_b: Sequence[int], samples: int | None, most: int = MOST) -> str:
    """The smaller exact form, by name, or "batches" where that is more than `most` bytes."""
    exact = ["covariances"] if samples is None else ["covariances", "kernels"]
    sizes = {form: FORMS[form][1](widths_a, widths_b, samples or 0) for form in exact}
    smallest = min(sizes, key=sizes.__getitem__)
    return smallest if sizes[smallest] <= most else "batches"


def linear_cka(x: Tensor, y: Tensor) -> tuple[float, float]:
    """The biased and the unbiased linear CKA of two matrices of features, rows being the same samples.

    x: ``(n, p)``; y: ``(n, q)``, any float dtype, n >= 4. Raises as `LinearCKA`.

    >>> linear_cka(x, x @ rotation)
    (1.0, 1.0)
    """
    cka = LinearCKA(len(x))
    cka.add([x], [y])
    value = cka.value()
    return float(value.biased), float(value.unbiased)
