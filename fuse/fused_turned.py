"""The rows of tensors that a folded bridge is in, and what fuse.json says of a bridge."""

from collections.abc import Mapping, Sequence
from typing import Any

from fuse.fused import Bridging, Fits, FusedBranch, FusedGraft
from fuse.plan import Row, Source

NOTE = "with the bridge in it"


def graft_turned(graft: FusedGraft, dtype: str) -> list[Row]:
    """A row for each tensor of a graft that its bridge is in. dtype: of the output, "" for the donor's own."""
    if graft.bridge is None or not graft.turned:
        return []
    shapes, how, found = graft.donor.files.shapes(graft.config), making(graft.bridge), list[Row]()
    for name, turned in graft.turned.items():
        sources = donors(graft, turned.reads)
        kept = dtype or sources[0].tensor.dtype
        row = Row(
            graft.prefix + name, "make", name, "graft", tuple(shapes[name]), kept, sources, parameters=how, note=NOTE
        )
        found.append(row)
    return found


def donors(graft: FusedGraft, names: Sequence[str]) -> tuple[Source, ...]:
    """The donor's tensors that tensors of the graft are made of, each once."""
    read = dict.fromkeys(key for name in names for key in graft.joined.get(name, (name,)))
    return tuple(Source(graft.lender.name, graft.donor.tensors[key]) for key in read)


def branch_turned(branch: FusedBranch, rows: Sequence[Row]) -> list[Row]:
    """The rows of a branch, with those that its bridge is in as they are in the new host.

    rows: as they are without it.
    """
    if branch.bridge is None:
        return list(rows)
    config, how, found = branch.bridge.config, making(branch.bridge), list[Row]()
    stored = {row.canonical: row for row in rows}
    for name, turned in branch.turned.items():
        read = [stored[key] for key in turned.reads]
        like = read[0] if read else stored[f"{name.rpartition('.')[0]}.weight"]  # of a bias that was not there
        axis = 0 if turned.role == "out" else -1
        shape = list(read[0].shape if read else (config["width"],))
        shape[axis] = shape[axis] // config["width"] * config["host_width"]
        sources = tuple(source for row in read for source in row.sources)
        row = Row(
            branch.prefix + name,
            "make",
            name,
            "projector",
            tuple(shape),
            like.dtype,
            sources,
            parameters=how,
            note=NOTE,
        )
        found.append(row)
    return [*(row for row in rows if row.canonical not in branch.turned), *found]


def making(bridge: Bridging) -> dict[str, Any]:
    """What decides the values of tensors that a bridge makes, besides the weights of hosts and donor."""
    return {"method": bridge.config["method"], "host": bridge.host.checkpoint.origin, "texts": bridge.sha256}


def bridge_json(
    crossed: FusedGraft | FusedBranch, bridge: Bridging, sources: Mapping[str, Mapping[str, str]], fits: Fits
) -> dict[str, Any]:
    """The bridge of a graft or of a branch's projector, as fuse.json states it."""
    return {
        "method": bridge.config["method"], "host": bridge.host.checkpoint.origin, "folded": bridge.folded,
        "sha256": dict(sources[crossed.prefix + "bridge"]),
        "texts": {"count": len(bridge.texts), "sha256": bridge.sha256},
        "r2": {fit.name: [round(fit.read, 4), round(fit.write, 4)] for fit in fits[crossed.name]},
    }  # fmt: skip
