"""The geometry of a recipe's task vectors, from weights alone: how large they are, and how they lie to each other."""

from collections.abc import Callable
from itertools import combinations_with_replacement
from math import isfinite
from typing import Any

import torch

from fuse import interruption
from fuse.align.deltas.directions import Directions, chance, directions, overlap
from fuse.align.deltas.groups import Measured, Spectra, grouped, numbers_of
from fuse.align.deltas.modules import place_of
from fuse.align.deltas.plan import delta_rows
from fuse.align.deltas.read import TaskVectors
from fuse.align.deltas.sums import DeltaSums
from fuse.align.deltas.verdicts import THRESHOLDS, verdicts_of, weights_of
from fuse.checkpoint import fetch
from fuse.engine.read import Reader
from fuse.errors import CheckpointError
from fuse.fused import adapter_lenders
from fuse.methods import random
from fuse.plan import Plan, Row
from fuse.torch_threads import one_thread

TOP = 8  # directions of a matrix that are compared
SEED = 0  # of sketches
FARTHEST = float(torch.finfo(torch.float32).max) / 2


def bytes_of(plan: Plan) -> int:
    """What `measure` will tell its progress of."""
    return sum(map(_bytes_of, delta_rows(plan)))


def measure(plan: Plan, *, top: int = TOP, progress: Callable[[int], None] = lambda _: None) -> dict[str, Any]:
    """The document of `fuse inspect deltas`: every tensor that the plan merges over its base, in one pass.

    plan: of `delta_plan`. top: how many directions of each matrix are compared.
    progress: called with the bytes read since the last call, `bytes_of` in all.
    Holds one matrix at a time, in float32 (float64 where it is stored so), and about a fifth more. Measures are those
    of `deltas_sums` and `deltas_directions`; of an embedding or a head whose rows are matched by token, over the rows
    of tokens that the members and the base share.

    Raises CheckpointError for a number that is not finite.
    """
    rows = delta_rows(plan)
    moved = {source.member for row in rows for source in row.sources}
    names = [member.name for member in plan.members if member.name in moved]
    for member in plan.members:
        fetch(member.checkpoint)
    for lender in adapter_lenders(plan.members):
        lender.fetch()
    measured = []
    with Reader() as reader, torch.inference_mode():
        for row in rows:
            interruption.check()
            measured.append(_measured(row, reader, names, top))
            progress(_bytes_of(row))
    groups = grouped(measured)
    parts = groups["parts"]
    main = next((part for part in parts if part["part"] == "language"), parts[0])
    return {
        "inspect": "deltas", "version": 1, "recipe": str(plan.recipe_file), "members": names, "top": top,
        "overall": numbers_of(measured), **groups, "weights": weights_of(main, names), "thresholds": dict(THRESHOLDS),
        "verdicts": verdicts_of(parts, names),
    }  # fmt: skip


def _bytes_of(row: Row) -> int:
    return sum(source.tensor.nbytes for source in row.reads)


def _measured(row: Row, reader: Reader, names: list[str], top: int) -> Measured:
    vectors = TaskVectors(row, reader)
    who = [names.index(member) for member in vectors.members]
    sums = DeltaSums(len(names))
    with one_thread():  # blocks are too small to share out
        for parts, base in vectors.blocks():
            sums.add(parts, base, who)
    for number, source in zip(who, row.sources, strict=True):
        if not (isfinite(length := float(sums.products[number, number]) ** 0.5) and length < FARTHEST):
            raise CheckpointError(
                f"tensor {source.tensor.name!r} of {source.member} is {length:g} away from the base's",
                where=source.tensor.file,
                hint="that is too far to measure",
            )
    spectra = None
    if vectors.is_matrix:
        found = [
            directions(vectors.matrix(number), top, random.key(SEED, row.canonical, member))
            for number, member in enumerate(vectors.members)
        ]
        spectra = _spectra(found, who, len(names))
    return Measured(row.name, row.canonical, place_of(row.part, row.canonical), vectors.shape, sums, spectra)


def _spectra(found: list[Directions], who: list[int], count: int) -> Spectra:
    single, pairs = torch.full((2, count), torch.nan).double(), torch.full((4, count, count), torch.nan).double()
    for i, one in zip(who, found, strict=True):
        single[:, i] = torch.tensor([one.participation, one.energy])
    for (i, one), (j, other) in combinations_with_replacement(zip(who, found, strict=True), 2):
        told = [overlap(one.left, other.left), overlap(one.right, other.right),
                chance(one.left, other.left), chance(one.right, other.right)]  # fmt: skip
        pairs[:, i, j] = pairs[:, j, i] = torch.tensor(told, dtype=torch.float64)
    return Spectra(*single, *pairs)
