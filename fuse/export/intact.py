"""What an export reads is what fuse.json records: the weights are hashed while they are read for something else."""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from threading import Event

from fuse.digests import RECORD
from fuse.errors import CheckpointError
from fuse.export.folders import Opened
from fuse.inputs import hashed_beside
from fuse.verify.headers import check_headers


@contextmanager
def intact(source: Opened) -> Iterator[None]:
    """While the block works, the weights of a folder are hashed; at its end they must be those that fuse.json records.

    Files that were not hashed when they were made are taken as they are. Raises CheckpointError for the first file that
    is another one, and before the block for one that is missing or was not recorded; MachineError where one cannot be
    read.
    """
    _, weights = check_headers(source.folder, source.record)
    recorded = {file: source.record.sha256[file.name] for file in weights.files}

    def wrong(file: Path, _: str) -> CheckpointError:
        told = f"is not as {RECORD} records it"
        return CheckpointError(told, where=file, hint="`fuse verify` tells where it differs")

    with compared(recorded, wrong):
        yield


@contextmanager
def compared(recorded: Mapping[Path, str], wrong: Callable[[Path, str], CheckpointError]) -> Iterator[None]:
    """While the block works, files are hashed; at its end each must have its sha256.

    recorded: file -> sha256, "" where that is not known. wrong: what is said of a file, given with the sha256 it has.
    """
    from fuse.team import made, team

    known = [file for file, sha256 in recorded.items() if sha256]
    stop, threads = Event(), len(os.sched_getaffinity(0))
    with team(max(1, min(threads, len(known))), stop) as pool, hashed_beside(known, pool, stop) as jobs:
        yield
        for file, found in made(jobs, stop).items():
            if found.sha256 != recorded[file]:
                raise wrong(file, found.sha256)
