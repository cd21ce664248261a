"""A stored tensor with an adapter's change, computed where it is looked at; no copy of it is kept.

Any way of cutting it gives the same bytes: numbers of a row never depend on which other rows are asked for. Computed
in float64 and rounded once to float32 (not rounded where the stored tensor is float64). Formulas are PEFT's:

    lora   W + s B A                                           arXiv 2106.09685, section 4.1
    dora   m (W + s B A) / |W + s B A|, row by row of outputs  arXiv 2402.09353, equation 5
    loha   W + s (B1 A1) * (B2 A2)                             arXiv 2108.06098, equation 1
    lokr   W + s C1 (x) C2, each whole or a product            arXiv 2309.14859, section 3.2
    scale  l W, by row or column                               IA3, arXiv 2205.05638, section 3.3
    bias   b + s v
    rows   W with some rows replaced
"""

from collections.abc import Callable, Mapping, Sequence
from math import prod

import torch
from torch import Tensor

from fuse.engine.exact_product import left, product, right

TILE = 1 << 16  # numbers that are computed at a time: their float64 fits a core's cache
Rows = slice | Tensor
Change = Callable[[Tensor, Rows], Tensor]


class Adapted:
    """Acts like a flat tensor: `numel`, `dtype`, `shape`, and slices `[start:stop]` of the flat order.

    stored: of any float dtype, [rows, width] or [n]. kind, scale, transposed, rows: as `fuse.adapters.update.Update`
    says them. parts: the adapter's tensors by role.
    """

    def __init__(
        self, stored: Tensor, kind: str, parts: Mapping[str, Tensor], scale: float = 1.0, transposed: bool = False,
        rows: Sequence[int] = (),
    ) -> None:  # fmt: skip
        self.shape = stored.shape
        self.dtype = torch.promote_types(stored.dtype, torch.float32)
        self.device = stored.device
        self._table = stored.reshape(stored.shape[0], -1)
        self._change = _KINDS[kind](self._table, parts, scale, transposed, rows)

    def numel(self) -> int:
        return prod(self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, part: slice) -> Tensor:
        start, stop, _ = part.indices(self.numel())
        if stop <= start:
            return torch.empty(0, dtype=self.dtype, device=self.device)
        width = self._table.shape[1]
        first = start // width
        found = self.rows(slice(first, -(-stop // width))).view(-1)
        return found[start - first * width : stop - first * width]

    def rows(self, which: Rows) -> Tensor:
        """Some rows, [n, width], by a slice or by their numbers."""
        count = range(*which.indices(len(self))) if isinstance(which, slice) else which
        step = max(TILE // self._table.shape[1], 1)
        if len(count) <= step:
            return self._rows(which)
        out = torch.empty(len(count), self._table.shape[1], dtype=self.dtype, device=self.device)
        for at in range(0, len(count), step):
            some = count[at : at + step]
            out[at : at + step] = self._rows(slice(some.start, some.stop) if isinstance(some, range) else some)
        return out

    def _rows(self, which: Rows) -> Tensor:
        return self._change(_copied(self._table[which]), which).to(self.dtype)

    def whole(self) -> Tensor:
        """All of it, in its shape."""
        return self.rows(slice(0, len(self))).view(self.shape)


def _copied(stored: Tensor) -> Tensor:
    """In float64, for a change to write to."""
    return stored.to(torch.float64, copy=True)


def _low_rank(
    table: Tensor, parts: Mapping[str, Tensor], scale: float, transposed: bool, rows: Sequence[int]
) -> Change:
    del table, rows
    a, b = parts["A"], parts["B"]
    up, down = (left(a.T), right(b.T, scale)) if transposed else (left(b), right(a, scale))
    return lambda given, which: given.add_(product(up[which], down))


def _dora(table: Tensor, parts: Mapping[str, Tensor], scale: float, transposed: bool, rows: Sequence[int]) -> Change:
    changed = _low_rank(table, parts, scale, transposed, rows)
    size = parts["m"].double().view(-1)
    if not transposed:

        def by_row(given: Tensor, which: Rows) -> Tensor:
            new = changed(given, which)
            return new * (size[which] / _summed((new * new).T).sqrt())[:, None]

        return by_row

    factor: list[Tensor] = []  # of all columns, once they were looked through

    def by_column(given: Tensor, which: Rows) -> Tensor:
        if not factor:
            total = torch.zeros_like(size)
            step = max(TILE // table.shape[1], 1)
            for at in range(0, len(table), step):
                new = changed(_copied(table[at : at + step]), slice(at, at + step))
                total += _summed(new * new)
            factor.append(size / total.sqrt())
        return changed(given, which) * factor[0]

    return by_column


def _summed(matrix: Tensor) -> Tensor:
    """The sum of the rows [n, width] -> [width], by halves, so that its order depends on n alone."""
    while len(matrix) > 1:
        half = len(matrix) // 2
        rest = matrix[2 * half :]
        matrix = torch.cat([matrix[:half] + matrix[half : 2 * half], rest])
    return matrix[0]


def _loha(table: Tensor, parts: Mapping[str, Tensor], scale: float, transposed: bool, rows: Sequence[int]) -> Change:
    del table, transposed, rows
    sides = [(left(parts[f"w{n}_a"]), right(parts[f"w{n}_b"], by)) for n, by in ((1, scale), (2, 1.0))]

    def change(given: Tensor, which: Rows) -> Tensor:
        one, two = (product(up[which], down) for up, down in sides)
        return given.add_(one.mul_(two))

    return change


def _lokr(table: Tensor, parts: Mapping[str, Tensor], scale: float, transposed: bool, rows: Sequence[int]) -> Change:
    del transposed, rows
    outer, inner = _factor(parts, "w1"), _factor(parts, "w2")
    numbers = torch.arange(len(table), device=table.device)

    def change(given: Tensor, which: Rows) -> Tensor:
        at = numbers[which]
        one, two = outer[at // len(inner)], inner[at % len(inner)]
        return given + (one[:, :, None] * two[:, None, :]).view(given.shape) * scale

    return change


def _factor(parts: Mapping[str, Tensor], name: str) -> Tensor:
    """One side of a Kronecker product, in float64."""
    if name in parts:
        return parts[name].double()
    return product(left(parts[f"{name}_a"]), right(parts[f"{name}_b"]))


def _scale(table: Tensor, parts: Mapping[str, Tensor], scale: float, transposed: bool, rows: Sequence[int]) -> Change:
    del table, scale, rows
    factor = parts["l"].double().view(-1)
    if transposed:
        return lambda given, which: given * factor
    return lambda given, which: given * factor[which][:, None]


def _bias(table: Tensor, parts: Mapping[str, Tensor], scale: float, transposed: bool, rows: Sequence[int]) -> Change:
    del table, transposed, rows
    added = parts["v"].double().view(-1) * scale
    return lambda given, which: given + added[which][:, None]


def _replaced(
    table: Tensor, parts: Mapping[str, Tensor], scale: float, transposed: bool, rows: Sequence[int]
) -> Change:
    del scale, transposed
    own = torch.full((len(table),), -1, device=table.device)
    own[torch.tensor(rows, device=table.device)] = torch.arange(len(rows), device=table.device)

    def change(given: Tensor, which: Rows) -> Tensor:
        at = own[which]
        found = at >= 0
        given[found] = parts["rows"][at[found]].double()
        return given

    return change


_KINDS: Mapping[str, Callable[..., Change]] = {
    "lora": _low_rank, "dora": _dora, "loha": _loha, "lokr": _lokr, "scale": _scale, "bias": _bias, "rows": _replaced,
}  # fmt: skip
