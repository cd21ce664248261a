"""Rows into files: each thread takes a whole tensor, the largest of a file first, and writes it where it belongs."""

import mmap
import os
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from itertools import count
from math import prod
from pathlib import Path
from threading import Event, Lock, local

import torch

from fuse import kernels
from fuse.digests import Digest
from fuse.engine.blocks import NO_CONSTANTS, Constants, blocks, check_copy, copies_bytes
from fuse.engine.device import GPU_THREADS, Gpu, Memory, devices
from fuse.engine.direct import SIZE
from fuse.engine.heap import keep_freed_memory
from fuse.engine.read import Reader
from fuse.engine.room import Room
from fuse.engine.write import ShardFile, stored_order
from fuse.memory import ROOM, row_memory
from fuse.plan import Row
from fuse.team import Stopped, error_of, finished, made, team
from fuse.torch_threads import one_thread

Progress = Callable[[int], None]
Written = Callable[[str, int, Digest], None]
SMALL = 1 << 18  # bytes of a small tensor


def execute(
    rows: Sequence[Row], shards: Sequence[tuple[str, Sequence[int]]], folder: Path, progress: Progress,
    constants: Constants = NO_CONSTANTS, *, threads: int | None = None, device: str = "cpu", hashed: bool = True,
    sync: bool = True, stop: Event | None = None, written: Written = lambda *_: None,
) -> dict[str, Digest]:  # fmt: skip
    """Write every shard into `folder`; the sha256 of each file by name, where `hashed`.

    rows: what to write. shards: file name and row numbers. progress: called with the bytes written since the last call.
    constants: what folds need (`fuse.engine.fold.constants_of`). threads: how many tensors are worked on at once; where
    left out one more than there are cores, since some wait for the disk, or some for each GPU. device: "cpu", "cuda"
    (every GPU) or "cuda:1". sync: wait until the disk has each file. stop: calls the work off. written: called with the
    name, bytes and digest of each file once it is whole, from any thread.
    Neither threads nor the device change a byte of what elementwise methods write.
    Raises CheckpointError when a value read or computed is not finite, naming tensor, member and first place;
    MachineError for a device that is not there; OSError where the disk fails.
    """
    names, stop = devices(device), stop or Event()
    threads = threads or (cores() + 1 if device == "cpu" else GPU_THREADS * len(names))
    files = [_file(folder / name, [rows[i] for i in numbers], direct=sync) for name, numbers in shards]
    room, telling, own, turn = Room(ROOM), Lock(), local(), count()

    def enter() -> None:
        torch.set_grad_enabled(False)
        own.buffer = mmap.mmap(-1, SIZE)
        own.stage = Memory() if device == "cpu" else Gpu(names[next(turn) % len(names)])

    def tell(bytes: int) -> None:
        with telling:
            progress(bytes)

    def run(row: Row, file: ShardFile) -> None:
        with room.taken(row_memory(row)):
            if stop.is_set():
                raise Stopped
            if copies_bytes(row):
                check_copy(row, reader, stop)
                file.copy(row, *reader.stored(row.sources[0]), stop)
                tell(row.nbytes)
                return
            stretch = file.stretch(row, own.buffer)
            for block in blocks(row, reader, own.stage, stop, constants=constants):
                data = block.contiguous().view(torch.uint8).numpy().data
                stretch.write(data)
                tell(len(data))
            stretch.finish()

    def run_all(small: Sequence[Row], file: ShardFile) -> None:
        for row in small:
            run(row, file)

    def close(file: ShardFile) -> Digest:
        digest = file.finish(stop, hashed=hashed, sync=sync)
        written(file.path.name, file.size, digest)
        return digest

    digests: dict[ShardFile, Future[Digest]] = {}
    keep_freed_memory()
    kernels.load_for(sum(prod(row.shape) for row in rows))
    try:
        with (
            Reader() as reader, one_thread(),
            team(threads, stop, enter) as workers, team(1, stop, enter) as other, team(threads, stop) as closers,
        ):  # fmt: skip
            jobs = {}
            for file in files:
                large, small = _by_size(file.rows)
                jobs |= {workers.submit(run, row, file): file for row in large}
                jobs |= {other.submit(run_all, small, file): file} if small else {}
            left = Counter(jobs.values())
            for job in finished(jobs, stop):
                file = jobs[job]
                left[file] -= 1
                if not left[file]:
                    digests[file] = closers.submit(close, file)
                    digests[file].add_done_callback(lambda done: stop.set() if error_of(done) else None)
            return made({file.path.name: digests[file] for file in files}, stop)
    except Stopped:
        raise next((error for done in digests.values() if (error := error_of(done))), Stopped()) from None
    finally:
        for file in files:
            file.close()


def cores() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0))


def _file(path: Path, rows: Sequence[Row], *, direct: bool) -> ShardFile:
    return ShardFile(path, [rows[i] for i in stored_order(rows)], direct=direct)


def _by_size(rows: Sequence[Row]) -> tuple[list[Row], list[Row]]:
    """The large rows, the largest first so that no thread is left alone with one at the end, and the small ones.

    Small ones are for a thread of their own: several would mostly wait for each other in the interpreter.
    """
    large = sorted((row for row in rows if row.nbytes >= SMALL), key=lambda row: -row.nbytes)
    return large, [row for row in rows if row.nbytes < SMALL]
