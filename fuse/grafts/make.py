"""Tensors of grafts that no donor holds: computed from the host, once its weights are written."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from threading import Event

import torch

from fuse.digests import Digest
from fuse.engine.finite import checked
from fuse.engine.read import TORCH, Reader
from fuse.engine.write import ShardFile, stored_order
from fuse.errors import CheckpointError, RecipeError
from fuse.fused import Bridging, Fit, FusedBranch, FusedGraft, Turned
from fuse.fused_turned import donors
from fuse.grafts.host_model import HostModel
from fuse.plan import Plan, Row, Source, without
from fuse.safetensors_header import read_header


def make(plan: Plan, folder: Path, progress: Callable[[int], None]) -> tuple[dict[str, Digest], dict[str, list[Fit]]]:
    """Compute the rows to make and write their files into `folder`, which holds all others: digests by file name, and
    by graft or branch how well the maps of its bridge fit.

    Raises RecipeError for what the recipe gives that makes nothing, CheckpointError for values that are not finite and
    a bridge that fits too badly.
    """
    assert plan.fused is not None
    made: dict[str, torch.Tensor] = {}
    fits: dict[str, list[Fit]] = {}
    with Reader() as reader:
        host = _host(plan, folder, reader)
        for branch in plan.fused.branches:
            if branch.bridge is not None:
                tensors, fits[branch.name] = _of_branch(branch, branch.bridge, plan, host)
                made |= {branch.prefix + name: tensor for name, tensor in tensors.items()}
        for graft in plan.fused.grafts:
            tensors = {}
            if graft.bridge is not None:
                tensors, fits[graft.name] = _bridged(graft, graft.bridge, plan, host)
            elif graft.made:
                tensors = _of(graft, plan, host)
            made |= {graft.prefix + name: tensor for name, tensor in tensors.items()}
    digests = {}
    for name, numbers in plan.shards:
        rows = [plan.rows[i] for i in numbers]
        if rows[0].action != "make":
            continue
        rows = [rows[i] for i in stored_order(rows)]
        file = ShardFile(folder / name, rows)
        for row in rows:
            file.write(row, 0, _stored(row, made[row.name]).contiguous().view(torch.uint8).numpy().data)
            progress(row.nbytes)
        digests[name] = file.finish(Event(), hashed=True, sync=True)
    return digests, fits


def _of_branch(
    branch: FusedBranch, bridge: Bridging, plan: Plan, host: HostModel
) -> tuple[dict[str, torch.Tensor], list[Fit]]:
    """The projector's tensors with the bridge in them, by canonical name, and how well its map fits."""
    from fuse.grafts.bridge_tokens import made_of_tokens, words_of

    theirs = words_of(bridge.host, host.reader)
    maps, fit = made_of_tokens(bridge.config, theirs, host.words(), bridge.texts)
    _check_fits(f"the projector of {branch.name}", bridge, [fit], plan, "the branch")
    read = {
        canonical: checked(host.reader.tensor(source), source, 0)
        for lender in branch.lenders for key, canonical in lender.places.items()
        if any(canonical in turned.reads for turned in branch.turned.values())
        for source in (Source(lender.name, lender.tensors[key]),)
    }  # fmt: skip
    return _turned(branch.turned, bridge, maps, read), [fit]


def _bridged(
    graft: FusedGraft, bridge: Bridging, plan: Plan, host: HostModel
) -> tuple[dict[str, torch.Tensor], list[Fit]]:  # fmt: skip
    """The maps of a graft's bridge, or the graft's tensors with them in, and how well the maps fit."""
    from fuse.grafts import bridge_rows

    maps, fits = bridge_rows.make_bridge(bridge.config, bridge_rows.load(bridge.host), host.load(), bridge.texts)
    _check_fits(graft.name, bridge, fits, plan, "the graft")
    if not graft.turned:
        return maps, fits
    names = [name for turned in graft.turned.values() for name in turned.reads]
    given = {s.tensor.name: checked(host.reader.tensor(s), s, 0).double() for s in donors(graft, names)}
    if graft.joined:
        from fuse.grafts.lion_fold import fold_tensor

        parts = {name: {key: given[key] for key in graft.joined[name]} for name in names}
        given = {name: fold_tensor(graft.unfolded, name, own) for name, own in parts.items()}
    return _turned(graft.turned, bridge, maps, given), fits


def _turned(
    turned: Mapping[str, Turned], bridge: Bridging, tensors: Mapping[str, torch.Tensor],
    given: Mapping[str, torch.Tensor],
) -> dict[str, torch.Tensor]:  # fmt: skip
    """Every tensor that the bridge is in, in float64. tensors: of the bridge; given: what they are without it."""
    from fuse.grafts.bridge_fold import turn, ways

    maps = {at: ways(bridge.config, tensors, at) for one in turned.values() for at in one.at}
    return {name: turn(one, given, maps) for name, one in turned.items()}


def _check_fits(name: str, bridge: Bridging, fits: Sequence[Fit], plan: Plan, whose: str) -> None:
    from fuse.grafts.bridge_rows import why_poor

    if why := why_poor(fits, bridge.least):
        hint = f"more texts, another method, or `accept_r2` on {whose}"
        raise CheckpointError(
            f"{name} does not cross to {plan.host.name}: {why}", where=plan.recipe_file.name, hint=hint
        )


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
    stored = tensor.detach().cpu().to(TORCH[row.dtype])
    if not bool(torch.isfinite(stored).all()):
        raise CheckpointError(f"tensor {row.name!r} that was made from the host holds values that are not finite")
    return stored


def _host(plan: Plan, folder: Path, reader: Reader) -> HostModel:
    """The host whose files are written but for the rows to make, without the grafts that were folded into it."""
    files = [folder / name for name, numbers in plan.shards if plan.rows[numbers[0]].action != "make"]
    rows = {row.canonical: (row, without(row)) for row in plan.rows if row.part == "language"}
    plain = {name: replace(inner, dtype=row.dtype) for name, (row, inner) in rows.items() if inner is not None}
    changed = {row.name for row, _ in rows.values() if row.fold is not None}
    stored = {name: entry for file in files for name, entry in read_header(file).items() if name not in changed}
    return HostModel(plan, plain, reader, (), stored)
