"""Tensors of grafts that no donor holds: computed from the host, once its weights are written."""

from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import torch

from fuse.engine.read import TORCH, Reader
from fuse.engine.write import ShardWriter, stored_order
from fuse.errors import CheckpointError, RecipeError
from fuse.fused import Bridging, Fit, FusedGraft
from fuse.grafts.host_model import HostModel
from fuse.plan import Plan, Row, Source, without
from fuse.safetensors_header import read_header


def make(plan: Plan, folder: Path, progress: Callable[[int], None]) -> tuple[dict[str, str], dict[str, list[Fit]]]:
    """Compute the rows to make and write their files into `folder`, which holds all others: sha256 by file name, and by
    graft how well the maps of its bridge fit.

    Raises RecipeError for what the recipe gives that makes nothing, CheckpointError for values that are not finite and
    a bridge that fits too badly.
    """
    assert plan.fused is not None
    made: dict[str, torch.Tensor] = {}
    fits: dict[str, list[Fit]] = {}
    with Reader() as reader:
        host = _host(plan, folder, reader)
        for graft in plan.fused.grafts:
            tensors: dict[str, torch.Tensor] = {}
            if graft.bridge is not None:
                tensors, fits[graft.name] = _bridge(graft, graft.bridge, plan, host)
            elif graft.made:
                tensors = _of(graft, plan, host)
            made |= {graft.prefix + name: tensor for name, tensor in tensors.items()}
    digests = {}
    for name, numbers in plan.shards:
        rows = [plan.rows[i] for i in numbers]
        if rows[0].action != "make":
            continue
        rows = [rows[i] for i in stored_order(rows)]
        with ShardWriter(folder / name, rows) as writer:
            for row in rows:
                data = _stored(row, made[row.name]).contiguous().view(torch.uint8).numpy().data
                writer.write(data)
                progress(len(data))
        digests[name] = writer.sha256
    return digests, fits


def _bridge(
    graft: FusedGraft, bridge: Bridging, plan: Plan, host: HostModel
) -> tuple[dict[str, torch.Tensor], list[Fit]]:  # fmt: skip
    """The maps of a graft's bridge, and how well they fit."""
    from fuse.grafts import bridge_rows

    tensors, fits = bridge_rows.make_bridge(bridge.config, bridge_rows.load(bridge.host), host.load(), bridge.texts)
    if why := bridge_rows.why_poor(fits, bridge.least):
        hint = "more texts, another method, or `accept_r2` on the graft"
        told = f"{graft.name} does not cross to {plan.host.name}: {why}"
        raise CheckpointError(told, where=plan.recipe_file.name, hint=hint)
    return tensors, fits


def _of(graft: FusedGraft, plan: Plan, host: HostModel) -> dict[str, torch.Tensor]:
    """What one graft's kind makes of the host."""
    maker = import_module(f"fuse.grafts.{graft.kind}_rows")
    tensors = {key: host.reader.tensor(Source(graft.lender.name, e)) for key, e in graft.donor.tensors.items()}
    try:
        return maker.make_rows(graft.config, graft.options, tensors, plan.host.basis, host.tensor, host.load)
    except ValueError as error:
        raise RecipeError(f"grafts: {graft.name}: {error}", where=plan.recipe_file.name) from None


def _stored(row: Row, tensor: torch.Tensor) -> torch.Tensor:
    if tuple(tensor.shape) != row.shape:
        raise RuntimeError(f"{row.name} was planned as {list(row.shape)} and made as {list(tensor.shape)}")
    if not bool(torch.isfinite(tensor).all()):
        raise CheckpointError(f"tensor {row.name!r} that was made from the host holds values that are not finite")
    return tensor.detach().cpu().to(TORCH[row.dtype])


def _host(plan: Plan, folder: Path, reader: Reader) -> HostModel:
    """The host whose files are written but for the rows to make, without the grafts that were folded into it."""
    files = [folder / name for name, numbers in plan.shards if plan.rows[numbers[0]].action != "make"]
    rows = {row.canonical: (row, without(row)) for row in plan.rows if row.part == "language"}
    plain = {name: replace(inner, dtype=row.dtype) for name, (row, inner) in rows.items() if inner is not None}
    changed = {row.name for row, _ in rows.values() if row.fold is not None}
    stored = {name: entry for file in files for name, entry in read_header(file).items() if name not in changed}
    return HostModel(plan, plain, reader, (), stored)
