"""The files of weights that a merge reads: which, that they stay as they were, and their sha256."""

from collections.abc import Iterator, Mapping
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from typing import TypeAlias

from fuse.checkpoint import fetch
from fuse.digests import Digest, file_digest
from fuse.errors import CheckpointError
from fuse.handles import unread
from fuse.plan import Plan
from fuse.safetensors_header import Stamp, stamp
from fuse.stores.needed import wanted_of

Inputs: TypeAlias = Mapping[str, Mapping[Path, Stamp]]  # by what they belong to


def bring(plan: Plan) -> Inputs:
    """Bring what is elsewhere to this machine; every file as it was when its header was read.

    Raises MachineError when it cannot be reached, CheckpointError for a file that differs from the plan.
    """
    wanted = wanted_of(plan)
    for member in plan.members:
        fetch(member.checkpoint, wanted)
    for lender in plan.lenders:
        lender.fetch(wanted)
    bridged = {name: bridge.host.checkpoint for name, bridge in plan.bridges.items()}
    for checkpoint in bridged.values():
        fetch(checkpoint)
    seen = {m.name: (m.checkpoint.stored or m.checkpoint.tensors, m.checkpoint.weight_files) for m in plan.members}
    seen |= {m.name: (m.tensors, m.files) for m in plan.lenders}
    seen |= {name: (one.stored or one.tensors, one.weight_files) for name, one in bridged.items()}
    found: dict[str, dict[Path, Stamp]] = {}
    for name, (tensors, files) in seen.items():
        stamps = {entry.file: entry.stamp for entry in tensors.values()}
        found[name] = {file: stamps[file] or _stamp(file) for file in files}
    return found


def check_unchanged(inputs: Inputs) -> None:
    """CheckpointError for a file that is not the one whose header was read."""
    for files in inputs.values():
        for file, seen in files.items():
            if _stamp(file) != seen:
                raise CheckpointError("the file changed while it was read", where=file)


@contextmanager
def hashed_beside(files: list[Path], pool: Executor, stop: Event) -> Iterator[Mapping[Path, "Future[Digest]"]]:
    """The sha256 of each file, computed by the pool while the block works.

    A file that cannot be read ends the block's work through `stop`, and is what it is said to have failed for.
    """
    from fuse.engine.team import error_of
    from fuse.engine.views import Stopped

    jobs = {file: pool.submit(file_digest, file, (), stop) for file in files}
    for job in jobs.values():
        job.add_done_callback(lambda done: stop.set() if error_of(done) else None)
    try:
        yield jobs
    except (OSError, Stopped):
        for file, job in jobs.items():
            if isinstance(error := error_of(job), OSError):
                raise unread(error, file) from None
        raise


def _stamp(file: Path) -> Stamp:
    try:
        return stamp(file.stat())
    except OSError as error:
        raise unread(error, file) from None
