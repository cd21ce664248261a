"""A plan carried out: weights, small files, a check, one rename."""

from collections.abc import Callable, Mapping
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING

from fuse import interruption
from fuse.checkpoint import fetch
from fuse.errors import CheckpointError
from fuse.fused import Fits
from fuse.output import check_target, check_written, new_folder
from fuse.plan import Plan

if TYPE_CHECKING:
    from torch import Tensor


def merge(
    plan: Plan, target: Path, *, force: bool = False, progress: Callable[[int], None] = lambda _: None,
    threads: int | None = None, device: str = "cpu", hashed: bool = True, sync: bool = True,
) -> Fits:  # fmt: skip
    """Run the plan into the folder `target`, which appears whole or not at all. Returns how well bridges fit, by graft.

    progress: called with the bytes written since the last call, `plan.bytes_written` in all. threads, device: as
    `fuse.engine.execute` has them. hashed: whether fuse.json gets the sha256 of what was read and written ("" where
    not). sync: whether to wait until the disk has the output.
    Raises RecipeError when the target is taken, CheckpointError when a tensor is not finite, MachineError when the
    machine has no room.
    """
    check_target(plan, target, force=force)
    from fuse.engine.execute import cores, execute
    from fuse.engine.team import team
    from fuse.engine.write import file_sha256
    from fuse.sidecars import write_sidecars

    interruption.check()
    stop = Event()
    for member in plan.members:
        fetch(member.checkpoint)
    for lender in plan.lenders:
        lender.fetch()
    for bridge in plan.bridges.values():
        fetch(bridge.host.checkpoint)
    files = {m.name: m.checkpoint.weight_files for m in plan.members} | {m.name: m.files for m in plan.lenders}
    files |= {name: bridge.host.checkpoint.weight_files for name, bridge in plan.bridges.items()}
    with new_folder(target, force=force, sync=sync) as folder, team(cores(), stop) as hashers:
        hashing = {f: hashers.submit(file_sha256, f, stop) for of in files.values() for f in of if hashed}
        copied = [shard for shard in plan.shards if plan.rows[shard[1][0]].action != "make"]
        fits: Fits = {}
        digests = execute(
            plan.rows, copied, folder, progress, _constants(plan), threads=threads, device=device, hashed=hashed,
            sync=sync, stop=stop,
        )  # fmt: skip
        if len(copied) < len(plan.shards):
            from fuse.grafts.make import make

            more, fits = make(plan, folder, progress)
            digests |= more
        sources = {name: {f.name: hashing[f].result() if hashed else "" for f in of} for name, of in files.items()}
        write_sidecars(plan, folder, digests, sources, fits)
        try:
            check_written(plan, folder)
        except CheckpointError as error:  # the folder has another name by now, or none
            told = error.where.replace(str(folder), str(target))
            raise CheckpointError(error.problem, where=told, hint=error.hint) from None
    return fits


def _constants(plan: Plan) -> Mapping[str, "Tensor"]:
    """What folds need of the host as a whole."""
    if not any(folded.whole for folded in plan.folded):
        return {}
    from fuse.engine.fold import constants_of
    from fuse.engine.read import Reader

    with Reader() as reader:
        return constants_of(plan, reader)
