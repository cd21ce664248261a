"""A plan carried out: weights, small files, a check, one rename."""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any, Literal

from fuse import interruption
from fuse.digests import UNHASHED, Digest, file_digest
from fuse.errors import CheckpointError
from fuse.fused import Fits
from fuse.inputs import Inputs, bring, check_unchanged, hashed_beside
from fuse.journal import Journal, Shard
from fuse.output import SMALL_FILES, check_target, check_written
from fuse.partial import Partial, partial_folder
from fuse.plan import Plan
from fuse.safetensors_header import stamp
from fuse.stores.needed import partial_files
from fuse.unfinished import settle

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Merged:
    """fits: how well bridges fit, by graft. resumed: how many weight files were there, of an unfinished run."""

    fits: Fits
    resumed: int = 0


def ready(plan: Plan, target: Path, *, force: bool) -> None:
    """Refuse a target that cannot be written, after completing what a killed run left half done there."""
    settle(target)
    check_target(plan, target, force=force)
    check_branches(plan)


def check_branches(plan: Plan) -> None:
    """CheckpointError for a branch that would not load, where that can be told before its weights are read."""
    if plan.fused:
        from fuse.branches.processor_types import check_processor_types

        check_processor_types(plan.fused.branches)


def merge(
    plan: Plan, target: Path, *, force: bool = False, progress: Callable[[int], None] = lambda _: None,
    threads: int | None = None, device: str = "cpu", hashed: bool = True, sync: bool = True, restart: bool = False,
    engine: Literal["local", "ray"] = "local",
) -> Merged:  # fmt: skip
    """Run the plan into the folder `target`, which appears whole or not at all.

    An unfinished run of the same plan and inputs is gone on with. progress: called with the bytes written since the
    last call, `plan.bytes_written` in all. threads, device: as `fuse.engine.execute` has them. hashed: whether
    fuse.json gets the sha256 of what was read and written ("" where not). sync: whether to wait until the disk has the
    output. restart: throw an unfinished run away. engine: who works: threads of this process, or a Ray cluster.
    Raises RecipeError when the target is taken, CheckpointError when a tensor is not finite or an input changed,
    MachineError when the machine has no room.
    """
    ready(plan, target, force=force)
    from fuse.engine.execute import cores, execute
    from fuse.team import made, team

    run = execute
    if engine == "ray":
        from fuse.engine.on_ray import execute_on_ray as run

    interruption.check()
    stop, inputs, unknown = Event(), bring(plan), partial_files(plan)
    with (
        partial_folder(
            target, makes(plan, inputs, device), files=len(plan.shards), size=plan.bytes_written + SMALL_FILES,
            force=force, sync=sync, restart=restart,
        ) as partial,
        team(cores(), stop) as pool,
        hashed_beside([f for of in inputs.values() for f in of if hashed and f not in unknown], pool, stop) as hashes,
    ):  # fmt: skip
        planned = {name for name, _ in copied(plan)}
        partial.keep(lambda path, shard: path.name in planned and is_whole(path, shard, stop, hashed=hashed))
        progress(sum(plan.rows[i].nbytes for name, own in plan.shards if name in partial.kept for i in own))
        run(
            plan.rows, [shard for shard in copied(plan) if shard[0] not in partial.kept], partial.folder, progress,
            constants(plan), threads=threads, device=device, hashed=hashed, sync=sync, stop=stop,
            written=noting(partial.journal, partial.folder, sync=sync),
        )  # fmt: skip
        found = {file: digest.sha256 for file, digest in made(hashes, stop).items()}
        fits = complete(plan, partial, inputs, found, progress, hashed=hashed)
    return Merged(fits, len(partial.kept))


def complete(
    plan: Plan, partial: Partial, inputs: Inputs, hashes: Mapping[Path, str], progress: Callable[[int], None], *,
    hashed: bool,
) -> Fits:  # fmt: skip
    """What follows once every tensor that is not made from others is written: those, the small files, and the check."""
    from fuse.sidecars import write_sidecars

    shards = partial.journal.shards
    digests = {name: Digest(one.sha256, one.marks) if hashed else UNHASHED for name, one in shards.items()}
    fits: Fits = {}
    if len(copied(plan)) < len(plan.shards):
        from fuse.grafts.make import make

        more, fits = make(plan, partial.folder, progress)
        digests |= more
    check_unchanged(inputs)
    here_in_part = partial_files(plan)
    known = {file: sha256 for file, sha256 in hashes.items() if file not in here_in_part}
    sources = {name: {file.name: known.get(file, "") for file in of} for name, of in inputs.items()}
    write_sidecars(plan, partial.folder, {name: digests[name] for name, _ in plan.shards}, sources, fits)
    try:
        check_written(plan, partial.folder)
    except CheckpointError as error:  # the folder has another name by now, or none
        told = error.where.replace(str(partial.folder), str(partial.target))
        raise CheckpointError(error.problem, where=told, hint=error.hint) from None
    return fits


def copied(plan: Plan) -> list[tuple[str, tuple[int, ...]]]:
    """The files whose tensors are computed from stored ones alone."""
    return [shard for shard in plan.shards if plan.rows[shard[1][0]].action != "make"]


def noting(journal: Journal, folder: Path, *, sync: bool) -> Callable[[str, int, Digest], None]:
    """What notes a file of the folder in the journal, once it is written. sync: whether the disk has it then."""

    def note(name: str, size: int, digest: Digest) -> None:
        journal.add(Shard(name, size, digest.sha256, digest.marks, sync, stamp((folder / name).stat())))

    return note


def is_whole(path: Path, shard: Shard, stop: Event, *, hashed: bool) -> bool:
    """Whether a file of an earlier run can be kept. hashed: whether its sha256 is wanted."""
    if not path.is_file() or path.is_symlink() or path.stat().st_size != shard.bytes:
        return False
    if shard.sha256:
        return file_digest(path, (), stop).sha256 == shard.sha256
    return shard.synced and not hashed and stamp(path.stat()) == shard.stamp


def makes(plan: Plan, inputs: Inputs, device: str) -> dict[str, Any]:
    """What decides the bytes of the weight files."""
    shards = json.dumps(plan.shards).encode()
    return {
        "what": "merge", "plan": f"{plan.digest()}-{hashlib.sha256(shards).hexdigest()[:16]}",
        "device": device.partition(":")[0],
        "inputs": {one.name: one.state for of in inputs.values() for one in of.values()},
    }  # fmt: skip


def constants(plan: Plan) -> Mapping[str, "Tensor"]:
    """What folds need of the host as a whole."""
    if not any(folded.whole for folded in plan.folded):
        return {}
    from fuse.engine.fold import constants_of
    from fuse.engine.read import Reader

    with Reader() as reader:
        return constants_of(plan, reader)
