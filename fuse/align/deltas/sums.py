"""Lengths, angles and signs of task vectors, added up block by block.

A task vector is a member's weights minus the base's (Ilharco et al. 2023, arXiv 2212.04089, section 2).
"""

from collections.abc import Sequence

import torch
from torch import Tensor


class DeltaSums:
    """Sums over the elements of one tensor or of many, from which `value` computes every measure of this file.

    count: n, the number of members. Memory: a few float64 ``(n, n)``, and in `add` n + 3 float64 blocks.
    """

    def __init__(self, count: int) -> None:
        self.elements, self.changed, self.base = (torch.zeros(count, dtype=torch.float64) for _ in range(3))
        self.products, self.squares, self.masses, self.agree, self.differ = (
            torch.zeros(count, count, dtype=torch.float64) for _ in range(5)
        )

    def add(self, tensors: Sequence[Tensor], base: Tensor, who: Sequence[int] | None = None) -> None:
        """One block: the same elements of some members and of the base, flat, of any float dtypes.

        who: which members these are, where they are not all of them.
        """
        who = range(len(tensors)) if who is None else who
        ground = base.double()
        deltas = [tensor.to(torch.float64, copy=True).sub_(ground) for tensor in tensors]
        energy, product = float(torch.dot(ground, ground)), torch.empty_like(ground)
        for place, (i, delta) in enumerate(zip(who, deltas, strict=True)):
            changed, square = int(torch.count_nonzero(delta)), float(torch.dot(delta, delta))
            self.elements[i] += delta.numel()
            self.base[i] += energy
            self.changed[i] += changed
            self.squares[i, list(who)] += square
            self._put(i, i, square, square, changed, 0)
            for j, other in zip(who[:place], deltas[:place], strict=True):
                torch.mul(delta, other, out=product)
                agree, differ = (int(torch.count_nonzero(signs)) for signs in (product > 0, product < 0))
                self._put(i, j, float(product.sum()), float(product.abs_().sum()), agree, differ)

    def _put(self, i: int, j: int, product: float, mass: float, agree: int, differ: int) -> None:
        for sums, more in (
            (self.products, product), (self.masses, mass), (self.agree, agree), (self.differ, differ),
        ):  # fmt: skip
            sums[i, j] += more
            if i != j:
                sums[j, i] += more

    def __iadd__(self, other: "DeltaSums") -> "DeltaSums":
        """The sums over both, as if all elements were of one vector."""
        for name, sums in vars(self).items():
            sums.add_(getattr(other, name))
        return self

    def value(self) -> dict[str, Tensor]:
        """The measures, float64, NaN where one means nothing (a task vector of zeros, a member that was never added).

        base_norm ``(n,)``: ``|b|`` over the elements that the member has. norm ``(n,)``: ``|d_i|``. relative ``(n,)``:
        ``|d_i| / |b|``. changed ``(n,)``: the share of elements that differ from the base's.
        product, cosine ``(n, n)``: ``<d_i, d_j>``, and divided by ``|d_i| |d_j|`` over the elements that both members
        have (arXiv 2212.04089, section 6).
        sign_agreement ``(n, n)``: among the elements that both change, the share that both move the same way; 0.5 for
        task vectors that have nothing to do with each other. TIES (arXiv 2306.01708, section 3) counts conflicts, which
        are one minus this, after it dropped small elements; nothing is dropped here.
        weighted_agreement ``(n, n)``: the same, an element counting ``|d_i d_j|`` (our choice).
        """
        norms, lengths = self.products.diagonal().sqrt(), self.squares.sqrt()
        return {
            "base_norm": torch.where(self.elements > 0, self.base.sqrt(), torch.nan),
            "norm": torch.where(self.elements > 0, norms, torch.nan),
            "relative": _ratio(norms, self.base.sqrt()),
            "changed": _ratio(self.changed, self.elements),
            "product": torch.where(self.squares > 0, self.products, torch.nan),
            "cosine": _ratio(self.products, lengths * lengths.T).clamp_(-1, 1),
            "sign_agreement": _ratio(self.agree, self.agree + self.differ),
            "weighted_agreement": _ratio((self.masses + self.products) / 2, self.masses).clamp_(0, 1),
        }


def _ratio(share: Tensor, whole: Tensor) -> Tensor:
    return torch.where(whole > 0, share / whole, torch.nan)
