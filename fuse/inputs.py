"""The files of weights that a merge reads: which, that they stay as they were, and their sha256."""

from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import TypeAlias

from fuse import interruption
from fuse.checkpoint import Checkpoint, fetch
from fuse.digests import Digest, file_digest
from fuse.errors import CheckpointError
from fuse.handles import unread
from fuse.plan import Plan
from fuse.safetensors_header import Stamp, TensorEntry, stamp
from fuse.stores.needed import wanted_of


@dataclass(frozen=True)
class Input:
    """A file of weights as it was when its header was read.

    name, state: what every machine calls it, and what changes with its bytes: of a local file its path and stamp; of
    one in a store or on the hub its address and the etag or commit, since each machine has a copy of its own. stamp: of
    the file here. far: whether it is such a copy, to which other runs may be adding what they need.
    """

    name: str
    state: tuple[int | str, ...]
    stamp: Stamp
    far: bool = False


Inputs: TypeAlias = Mapping[str, Mapping[Path, Input]]  # by what they belong to


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
    found: dict[str, dict[Path, Input]] = {}
    for name, one in {**{m.name: m.checkpoint for m in plan.members}, **bridged}.items():
        found[name] = _inputs(one.stored or one.tensors, one.weight_files, one)
    for lender in plan.lenders:
        found[lender.name] = _inputs(lender.tensors, lender.files, lender.checkpoint)
    return found


def _inputs(
    tensors: Mapping[str, TensorEntry], files: Iterable[Path], opened: Checkpoint | None
) -> dict[Path, Input]:  # fmt: skip
    stamps = {entry.file: entry.stamp for entry in tensors.values()}
    far = opened if opened is not None and opened.repository is not None else None
    found: dict[Path, Input] = {}
    for file in files:
        seen = stamps[file] or _stamp(file)
        if far is None or far.repository is None:
            found[file] = Input(str(file.resolve()), seen, seen)
        else:
            tag = far.repository.etags.get(file.name, far.revision)
            found[file] = Input(f"{far.origin}@{far.revision}/{file.name}", (seen[0], tag), seen, far=True)
    return found


def check_unchanged(inputs: Inputs) -> None:
    """CheckpointError for a file that is not the one whose header was read."""
    for files in inputs.values():
        for file, seen in files.items():
            now = _stamp(file)
            if now != seen.stamp and not (seen.far and now[:2] == seen.stamp[:2]):
                raise CheckpointError("the file changed while it was read", where=file)


@contextmanager
def hashed_beside(files: list[Path], pool: Executor, stop: Event) -> Iterator[Mapping[Path, "Future[Digest]"]]:
    """The sha256 of each file, computed by the pool (of a `fuse.team.team`) while the block works, and hears signals.

    A file that cannot be read ends the block's work through `stop`, and is what it is said to have failed for.
    """
    from fuse.team import Stopped, error_of

    jobs = {file: pool.submit(file_digest, file, (), stop) for file in files}
    for job in jobs.values():
        job.add_done_callback(lambda done: stop.set() if error_of(done) else None)
    try:
        with interruption.heard():
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
