"""Measures of task vectors by tensor, layer and type of module, as one document."""

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fuse.align.deltas.modules import Place, rank_of
from fuse.align.deltas.sums import DeltaSums

Numbers = dict[str, Any]


@dataclass(frozen=True)
class Spectra:
    """What `deltas_directions` tells of the members' matrices, float64, NaN for a member that is not there.

    participation, energy: ``(n,)``. overlap_left, overlap_right: ``(n, n)``, of the spaces of outputs and of inputs
    where weights lie [out, in]. chance_left, chance_right: ``(n, n)``, of random directions.
    """

    participation: Tensor
    energy: Tensor
    overlap_left: Tensor
    overlap_right: Tensor
    chance_left: Tensor
    chance_right: Tensor


@dataclass(frozen=True)
class Measured:
    """One tensor. spectra: None where it is no matrix."""

    name: str
    canonical: str
    place: Place
    shape: tuple[int, ...]
    sums: DeltaSums
    spectra: Spectra | None


def numbers_of(group: Sequence[Measured]) -> Numbers:
    """The measures of some tensors as one: sums as of one long vector, spectra as their mean over the matrices.

    Norms and biases count only where there is no matrix: their weights lie near 1 or far beyond, and their length would
    drown that of the matrices, which make the model (our choice). tensors, elements: how many counted.
    Lists stand in the order of the members; null where a measure means nothing.
    """
    counted = [one for one in group if one.spectra is not None] or group
    sums = DeltaSums(len(group[0].sums.elements))
    for one in counted:
        sums += one.sums
    matrices = [vars(one.spectra) for one in counted if one.spectra is not None]
    found = sums.value()
    if matrices:
        found |= {name: torch.stack([one[name] for one in matrices]).nanmean(0) for name in matrices[0]}
    told = {name: _plain(values.tolist()) for name, values in found.items()}
    return {"tensors": len(counted), "elements": int(sums.elements.max()), "matrices": len(matrices), **told}


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(inner) for inner in value]
    return value if math.isfinite(value) else None


def grouped(measured: Sequence[Measured]) -> dict[str, Any]:
    """The document's lists: parts, layers, modules, cells (a layer's module), tensors; and maps for heat maps."""
    cells = _by(measured, _of_cell)
    return {
        "parts": _by(measured, lambda one: {"part": one.place.part}),
        "modules": sorted(
            _by(measured, lambda one: {"part": one.place.part, "module": one.place.module}),
            key=lambda row: rank_of(row["module"]),
        ),
        "layers": _by([one for one in measured if one.place.layer is not None], _of_layer),
        "cells": cells,
        "tensors": [
            {"name": one.name, "canonical": one.canonical, **_of_cell(one), "shape": list(one.shape),
             **numbers_of([one])}
            for one in measured
        ],
        "maps": _maps(cells),
    }  # fmt: skip


def _of_layer(one: Measured) -> Numbers:
    return {"part": one.place.part, "stack": one.place.stack, "layer": one.place.layer}


def _of_cell(one: Measured) -> Numbers:
    return {**_of_layer(one), "module": one.place.module}


def _by(measured: Sequence[Measured], key: Callable[[Measured], Numbers]) -> list[Numbers]:
    groups: dict[tuple[Hashable, ...], list[Measured]] = {}
    for one in measured:
        groups.setdefault(tuple(key(one).values()), []).append(one)
    return [{**key(group[0]), **numbers_of(group)} for group in groups.values()]


def _maps(cells: Sequence[Numbers]) -> list[Numbers]:
    """For each stack of layers a matrix of layers by modules: per member and per pair, null for what is not there.

    relative, changed, participation: ``(members, layers, modules)``. cosine, sign_agreement, overlap_left,
    overlap_right: ``(pairs, layers, modules)``, pairs as `pairs` lists them, by the members' numbers.
    """
    maps = []
    inside = [cell for cell in cells if cell["layer"] is not None]
    for part, stack in dict.fromkeys((cell["part"], cell["stack"]) for cell in inside):
        own = [cell for cell in inside if (cell["part"], cell["stack"]) == (part, stack)]
        layers = sorted({cell["layer"] for cell in own})
        modules = sorted(dict.fromkeys(cell["module"] for cell in own), key=rank_of)
        at = {(cell["layer"], cell["module"]): cell for cell in own}
        members = range(len(own[0]["norm"]))
        pairs = [(i, j) for i in members for j in members if i < j]

        def drawn(name: str, where: tuple[int, ...]) -> list[list[float | None]]:
            return [[_inside(at.get((n, m)), name, where) for m in modules] for n in layers]  # noqa: B023

        maps.append({
            "part": part, "stack": stack, "layers": layers, "modules": modules, "pairs": [list(pair) for pair in pairs],
            **{name: [drawn(name, (i,)) for i in members] for name in ("relative", "changed", "participation")},
            **{name: [drawn(name, pair) for pair in pairs] for name in
               ("cosine", "sign_agreement", "overlap_left", "overlap_right")},
        })  # fmt: skip
    return maps


def _inside(cell: Numbers | None, name: str, where: tuple[int, ...]) -> float | None:
    value: Any = cell.get(name) if cell else None
    for number in where:
        value = value[number] if value is not None else None
    return value
