"""CKA with Gaussian kernels: likeness of neighbourhoods where linear CKA sees the directions of largest spread."""

import torch
from torch import Tensor

from fuse.align.measures.cka.hsic import Hsic, alignment, check_unbiased, from_rows
from fuse.align.measures.distances import BLOCK, gaussian, median_squared
from fuse.align.measures.samples import SIDES, centred, paired

LEAST = 4


def rbf_cka(x: Tensor, y: Tensor, *, fraction: float = 0.8) -> tuple[float, float]:
    """The biased and the unbiased CKA of kernels ``exp(-|x_i - x_j|^2 / (2 s^2))``, s a share of the median distance.

    Kornblith et al. (arXiv 1905.00414), section 3, which tries the fractions 0.2, 0.4 and 0.8. Each side has its own
    bandwidth, so that the value does not change when a side is rotated, scaled or moved.
    x: ``(n, p)``; y: ``(n, q)``, any float dtype, n >= 4; computed in float64. Returns numbers between 0 and 1, and
    between -1 and 1; the unbiased one has a mean near 0 for independent features.
    Time grows with n^2 (p + q); memory is four blocks of 512 x n, and 100 MB for the median (`median_squared`).

    Raises Unmeasurable for fewer than 4 samples, features that do not vary or are not finite, or mostly equal samples.
    """
    if fraction <= 0:
        raise ValueError(f"fraction should be above 0, not {fraction}")
    sides = [centred(side, whose) for side, whose in zip(paired(x, y, LEAST, "RBF CKA"), SIDES, strict=True)]
    widths = [fraction**2 * median_squared(side, whose) for side, whose in zip(sides, SIDES, strict=True)]
    cross, first, second = _hsic(sides, widths)
    for own, whose in zip((first, second), SIDES, strict=True):
        check_unbiased(own.unbiased, own.biased, whose)
    biased, unbiased = (float(alignment(*kind)) for kind in zip(cross, first, second, strict=True))
    return biased, unbiased


def _hsic(sides: list[Tensor], widths: list[float]) -> tuple[Hsic, Hsic, Hsic]:
    """HSIC of the first side with the second, the first with itself, and the second with itself."""
    n = len(sides[0])
    products = torch.zeros(3, dtype=torch.float64, device=sides[0].device)
    rows: list[list[Tensor]] = [[], []]
    for start in range(0, n, BLOCK):
        blocks = [gaussian(x[start : start + BLOCK], x, square) for x, square in zip(sides, widths, strict=True)]
        for block, sums in zip(blocks, rows, strict=True):
            block.diagonal(start).zero_()
            sums.append(block.sum(1))
        k, l = (block.view(-1) for block in blocks)  # noqa: E741 - the letters of the paper
        products += torch.stack([k @ l, k @ k, l @ l])
    first, second = (torch.cat(sums) for sums in rows)
    pairs = ((first, second), (first, first), (second, second))
    cross, *own = (from_rows(product, *pair) for product, pair in zip(products, pairs, strict=True))
    return cross, own[0], own[1]
