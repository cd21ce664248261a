"""A plan carried out: weights, small files, a check, one rename."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any

from fuse import interruption
from fuse.checkpoint import fetch
from fuse.errors import CheckpointError
from fuse.fused import Fits
from fuse.journal import Shard
from fuse.output import SMALL_FILES, check_target, check_written
from fuse.partial import Partial, partial_folder, settle
from fuse.plan import Plan
from fuse.safetensors_header import Stamp, stamp

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Merged:
    """fits: how well bridges fit, by graft. resumed: how many weight files an earlier, unfinished run had written."""

    fits: Fits
    resumed: int = 0


def ready(plan: Plan, target: Path, *, force: bool) -> None:
    """Refuse a target that cannot be written, after completing what a killed run left half done there."""
    settle(target)
    check_target(plan, target, force=force)


def merge(
    plan: Plan, target: Path, *, force: bool = False, progress: Callable[[int], None] = lambda _: None,
    threads: int | None = None, device: str = "cpu", hashed: bool = True, sync: bool = True, restart: bool = False,
) -> Merged:  # fmt: skip
    """Run the plan into the folder `target`, which appears whole or not at all.

    An unfinished run of the same plan and inputs is gone on with. progress: called with the bytes written since the
    last call, `plan.bytes_written` in all. threads, device: as `fuse.engine.execute` has them. hashed: whether
    fuse.json gets the sha256 of what was read and written ("" where not). sync: whether to wait until the disk has the
    output. restart: throw an unfinished run away.
    Raises RecipeError when the target is taken, CheckpointError when a tensor is not finite or an input changed,
    MachineError when the machine has no room.
    """
    ready(plan, target, force=force)
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
    inputs = _inputs(plan)
    copied = [shard for shard in plan.shards if plan.rows[shard[1][0]].action != "make"]
    size = plan.bytes_written + SMALL_FILES

    def matches(path: Path, shard: Shard) -> bool:
        if not shard.sha256:
            return shard.synced and not hashed
        return file_sha256(path, stop) == shard.sha256

    with (
        partial_folder(
            target, _makes(plan, inputs, device), files=len(plan.shards), size=size, force=force, sync=sync,
            restart=restart,
        ) as partial,
        team(cores(), stop) as hashers,
    ):  # fmt: skip
        partial.keep(matches)
        folder, kept = partial.folder, partial.kept
        progress(sum(plan.rows[i].nbytes for name, numbers in copied for i in numbers if name in kept))
        hashing = {f: hashers.submit(file_sha256, f, stop) for of in inputs.values() for f in of if hashed}
        with _called_off_by(hashing, stop):
            digests = {name: shard.sha256 if hashed else "" for name, shard in kept.items()} | execute(
                plan.rows, [shard for shard in copied if shard[0] not in kept], folder, progress, _constants(plan),
                threads=threads, device=device, hashed=hashed, sync=sync, stop=stop,
                written=lambda *shard: partial.journal.add(Shard(*shard, synced=sync)),
            )  # fmt: skip
            fits: Fits = {}
            if len(copied) < len(plan.shards):
                from fuse.grafts.make import make

                more, fits = make(plan, folder, progress)
                digests |= more
            sources = {name: {f.name: hashing[f].result() if hashed else "" for f in of} for name, of in inputs.items()}
        for of in inputs.values():
            _check_unchanged(of)
        write_sidecars(plan, folder, digests, sources, fits)
        _check(plan, partial)
    return Merged(fits, len(kept))


def _inputs(plan: Plan) -> dict[str, dict[Path, Stamp]]:
    """The files of weights by what they belong to, each as it was when its header was read."""
    seen = {m.name: (m.checkpoint.stored or m.checkpoint.tensors, m.checkpoint.weight_files) for m in plan.members}
    seen |= {m.name: (m.tensors, m.files) for m in plan.lenders}
    bridged = {name: bridge.host.checkpoint for name, bridge in plan.bridges.items()}
    seen |= {name: (one.stored or one.tensors, one.weight_files) for name, one in bridged.items()}
    found: dict[str, dict[Path, Stamp]] = {}
    for name, (tensors, files) in seen.items():
        stamps = {entry.file: entry.stamp for entry in tensors.values()}
        found[name] = {file: stamps[file] or _stamp(file) for file in files}
    return found


def _makes(plan: Plan, inputs: Mapping[str, Mapping[Path, Stamp]], device: str) -> dict[str, Any]:
    """What decides the bytes of the weight files."""
    shards = json.dumps(plan.shards).encode()
    return {
        "what": "merge", "plan": f"{plan.digest()}-{hashlib.sha256(shards).hexdigest()[:16]}",
        "device": device.partition(":")[0],
        "inputs": {str(file.resolve()): seen for of in inputs.values() for file, seen in of.items()},
    }  # fmt: skip


def _stamp(file: Path) -> Stamp:
    try:
        return stamp(file.stat())
    except OSError as error:
        raise CheckpointError(f"cannot be read ({error.strerror})", where=file) from None


def _check_unchanged(files: Mapping[Path, Stamp]) -> None:
    """CheckpointError for a file that is not the one whose header was read."""
    for file, seen in files.items():
        if _stamp(file) != seen:
            raise CheckpointError("the file changed while it was read", where=file)


@contextmanager
def _called_off_by(hashing: Mapping[Path, "Future[str]"], stop: Event) -> Iterator[None]:
    """Inputs that cannot be hashed end the work that goes on beside, and are what it is said to have failed for."""
    from fuse.engine.team import error_of
    from fuse.engine.views import Stopped

    for job in hashing.values():
        job.add_done_callback(lambda done: stop.set() if error_of(done) else None)
    try:
        yield
    except (OSError, Stopped):
        for file, job in hashing.items():
            if isinstance(error := error_of(job), OSError):
                raise CheckpointError(f"cannot be read ({error.strerror})", where=file) from None
        raise


def _check(plan: Plan, partial: Partial) -> None:
    try:
        check_written(plan, partial.folder)
    except CheckpointError as error:  # the folder has another name by now, or none
        told = error.where.replace(str(partial.folder), str(partial.target))
        raise CheckpointError(error.problem, where=told, hint=error.hint) from None


def _constants(plan: Plan) -> Mapping[str, "Tensor"]:
    """What folds need of the host as a whole."""
    if not any(folded.whole for folded in plan.folded):
        return {}
    from fuse.engine.fold import constants_of
    from fuse.engine.read import Reader

    with Reader() as reader:
        return constants_of(plan, reader)
