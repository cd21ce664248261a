"""Rows to fold, computed: graft tensors baked into those of the host, whole and in float32, not rounded here."""

from collections.abc import Callable, Mapping
from threading import Event

import torch

from fuse.engine.blocks import whole
from fuse.engine.finite import checked
from fuse.engine.read import Reader
from fuse.errors import CheckpointError
from fuse.grafts import lavin_fold, lion_fold, lora_fold, mks2_fold
from fuse.grafts.host_model import HostModel
from fuse.grafts.lavin import LavinGraft
from fuse.plan import Plan, Row, Source, without

Tensors = Mapping[str, torch.Tensor]


def folded(
    row: Row, reader: Reader, constants: Tensors, *, check: bool = True, stop: Event | None = None
) -> torch.Tensor:
    """What a row to fold is, in float32 or wider. constants: by graft, what `constants_of` gave.

    check: look whether what is read is finite. Raises CheckpointError where it is not, and where a donor's numbers do
    not allow the fold.
    """
    assert row.fold is not None
    given = {}
    for source in row.sources:
        tensor = reader.tensor(source)
        given[source.tensor.name] = checked(tensor, source, 0) if check else tensor
    host = {inner.canonical: whole(inner, reader, constants, check=check, stop=stop) for inner in row.fold.host}
    try:
        return _KINDS[row.fold.kind](row, host, given, constants)
    except ValueError as error:
        told = f"{row.fold.graft} cannot be folded: {error}"
        raise CheckpointError(told, where=row.sources[0].tensor.file) from None


def _lora(row: Row, host: Tensors, given: Tensors, constants: Tensors) -> torch.Tensor:
    del constants
    assert row.fold is not None
    return lora_fold.fold(host[row.canonical], row.fold.what, given)


def _mks2(row: Row, host: Tensors, given: Tensors, constants: Tensors) -> torch.Tensor:
    del constants
    assert row.fold is not None
    return mks2_fold.fold(host[row.canonical], row.fold.what, given)


def _lavin(row: Row, host: Tensors, given: Tensors, constants: Tensors) -> torch.Tensor:
    assert row.fold is not None
    what, scale, _ = row.fold.what
    return lavin_fold.fold(row.canonical, what, host, given, constants[row.fold.graft], scale)


def _lion(row: Row, host: Tensors, given: Tensors, constants: Tensors) -> torch.Tensor:
    """In float64, so that it is rounded once."""
    del host, constants
    assert row.fold is not None
    return lion_fold.fold_tensor(row.fold.what, row.canonical, {name: one.double() for name, one in given.items()})


_KINDS: Mapping[str, Callable[[Row, Tensors, Tensors, Tensors], torch.Tensor]] = {
    "lora": _lora, "mks2": _mks2, "lavin": _lavin, "lion": _lion,
}  # fmt: skip


def constants_of(plan: Plan, reader: Reader) -> dict[str, torch.Tensor]:
    """What folds need of the host as a whole, by graft: the routes of LaVIN's adapters, from one token's pass.

    The host is loaded in float32, with the grafts that were folded before.
    """
    found: dict[str, torch.Tensor] = {}
    for number, one in enumerate(plan.folded):
        if not one.whole:
            continue
        config = {**one.graft.config, "parts": "language"}
        graft = LavinGraft(config).float()
        sources = {key: Source(one.graft.lender.name, one.graft.donor.tensors[key]) for key in graft.state_dict()}
        graft.load_state_dict({key: checked(reader.tensor(s), s, 0).float() for key, s in sources.items()})
        graft.scale = one.graft.scale
        rows = {row.canonical: without(row, one.graft.name) for row in plan.rows if row.part == "language"}
        host = HostModel(plan, {name: row for name, row in rows.items() if row}, reader, plan.folded[:number])
        found[one.graft.name] = lavin_fold.fixed_routes(graft, host.load()[0])
    return found
