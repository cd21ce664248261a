"""An output folder is all or nothing: everything is written beside the target, and takes its place by one rename.

`.NAME.partial` beside the target NAME holds `journal.jsonl`, `folder` (the output as it grows) and, for a moment on
file systems that cannot exchange two folders, `old` (what was there). An interrupted run leaves it, and the next goes
on.
"""

import errno
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fuse import interruption, rename
from fuse.errors import CheckpointError, FuseError, MachineError, RecipeError
from fuse.handles import Spare, reason, spare_handles
from fuse.journal import JOURNAL, Journal, Shard
from fuse.unfinished import (
    FOLDER,
    OLD,
    WORKERS,
    enter,
    home_of,
    moved,
    normal,
    refuse_workers,
    remove,
    settle,
    take_over,
)

NO_MEMORY = ("can't allocate memory", "out of memory", "can't start new thread")  # as torch and Python say it
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@dataclass
class Partial:
    """The folder to write into, and its journal.

    files: how many weight files it is to have. size: bytes it needs. alone: the file of the target's name takes its
    place, not the folder. spare: open files, for what is to be removed.
    """

    target: Path
    journal: Journal
    files: int
    size: int
    alone: bool = False
    spare: Spare = field(default_factory=Spare)
    kept: dict[str, Shard] = field(default_factory=dict)  # whole files of an earlier run
    placed: bool = False

    @property
    def folder(self) -> Path:
        return home_of(self.target) / FOLDER

    @property
    def whole(self) -> Path:
        """What takes the target's place."""
        return self.folder / self.target.name if self.alone else self.folder

    def keep(self, matches: Callable[[Path, Shard], bool]) -> None:
        """Keep the earlier run's files that are as its journal says, and remove all else."""
        for name, shard in list(self.journal.shards.items()):
            path = self.folder / name
            whole = path.is_file() and not path.is_symlink() and path.stat().st_size == shard.bytes
            if whole and matches(path, shard):
                self.kept[name] = shard
            else:
                self.journal.lose(name)
        for path in self.folder.iterdir():
            if path.name not in self.kept:
                path.unlink() if path.is_symlink() or not path.is_dir() else shutil.rmtree(path)

    def told(self) -> str:
        """What there is of the output, in words."""
        if self.placed:
            return f"{self.target} is whole"
        if not (done := len(self.journal.shards)):
            return "nothing was written"
        home = home_of(self.target)
        return f"{done} of {self.files} files are kept in {home}: the same command goes on from there"


@contextmanager
def partial_folder(
    target: Path, makes: Mapping[str, Any], *, files: int = 0, size: int = 0, force: bool = False, sync: bool = True,
    restart: bool = False, adopted: Mapping[str, Shard] | None = None, alone: bool = False,
) -> Iterator[Partial]:  # fmt: skip
    """A folder to write into; it becomes `target` when the block ends.

    makes: what decides its bytes: an unfinished output of the same is gone on with. force: replace a target that is
    there. sync: whether the disk has every file before the folder takes its place. restart: throw away an unfinished
    output. adopted: files that workers wrote, which are kept. alone: the target is a file, not a folder.
    Where the block fails, its finished files are kept unless the input is at fault or the disk is full.
    Raises RecipeError where another process writes the target, or where there is an unfinished output of something
    else; MachineError where the disk or the memory fails, with what is kept.
    """
    home = home_of(target)
    makes = normal(makes)
    with ExitStack() as stack:
        with interruption.held():
            spare = stack.enter_context(spare_handles(target.parent))
            journal = stack.enter_context(closing(_opened(home, target, sync=sync)))
            if not adopted:
                _taken_over(home, journal, makes, restart=restart)
            partial = Partial(target, journal, files, size, alone, spare)
            stack.callback(_clear, home, partial)
        with _sentences(partial):
            partial.folder.mkdir(exist_ok=True)
            journal.begin(makes)
            for shard in (adopted or {}).values():
                journal.add(shard)
            yield partial
            for path in [*partial.folder.rglob("*"), partial.folder, home] if sync else ():
                _sync(path)
            journal.finish(partial.whole.stat().st_ino)
            _place(partial, force=force)
            if sync:
                _sync(target.parent)
            remove(home)


def _clear(home: Path, partial: Partial) -> None:
    """Remove what is not worth keeping; what workers wrote is theirs."""
    partial.spare.release()
    theirs = any(WORKERS.fullmatch(path.name) for path in home.glob("worker-*")) and not partial.placed
    if home.exists() and not theirs and (partial.placed or not partial.journal.shards):
        remove(home)


@contextmanager
def new_folder(target: Path, what: str = "import", *, force: bool = False, sync: bool = True) -> Iterator[Path]:
    """As `partial_folder`, for what is made in one go (of `unfinished.ONCE`): nothing of it is ever kept."""
    with partial_folder(target, {"what": what}, force=force, sync=sync) as partial:
        partial.keep(lambda *_: False)
        yield partial.folder


@contextmanager
def new_file(target: Path, what: str, *, force: bool = False) -> Iterator[Path]:
    """As `new_folder`, for one file: where to write it."""
    with partial_folder(target, {"what": what}, force=force, alone=True) as partial:
        partial.keep(lambda *_: False)
        yield partial.whole


def _opened(home: Path, target: Path, *, sync: bool) -> Journal:
    """The journal of the folder, which is made, or is seen to be an earlier run's of this user."""
    made = False
    try:
        settle(target)
        made = enter(home)
        if made and sync:
            _sync(target.parent)
        return Journal(home, target, sync=sync)
    except BaseException as error:
        if made:
            _leave(home)
        if not isinstance(error, OSError):
            raise
        raise MachineError(f"cannot be written ({reason(error)})", where=target.parent) from None


def _taken_over(home: Path, journal: Journal, makes: Mapping[str, Any], *, restart: bool) -> None:
    try:
        refuse_workers(home, restart=restart)
        take_over(home, journal, makes, restart=restart)
    except OSError as error:
        _leave(home)
        raise MachineError(f"cannot be written ({reason(error)})", where=home) from None


def _leave(home: Path) -> None:
    """Remove what was just made, without needing a handle: there may be none left."""
    with suppress(OSError):
        if (home / JOURNAL).exists() and not (home / JOURNAL).stat().st_size:
            (home / JOURNAL).unlink()
        home.rmdir()


def _place(partial: Partial, *, force: bool) -> None:
    target = partial.target
    try:
        if force and partial.alone:
            partial.whole.replace(target)
        elif force and target.exists():
            rename.exchange(partial.folder, target, home_of(target) / OLD)
        else:
            rename.put(partial.whole, target)
    except FileExistsError:
        told = f"the output appeared while it was being made; {partial.told()}"
        raise RecipeError(told, where=target) from None
    except BaseException:
        old = home_of(target) / OLD
        if old.exists() and not target.exists():
            old.rename(target)
        raise
    finally:
        partial.placed = moved(partial.whole, partial.journal)


@contextmanager
def _sentences(partial: Partial) -> Iterator[None]:
    """Failures in words, with what is kept; of what is not worth keeping, the journal forgets the files."""
    try:
        yield
    except (RecipeError, CheckpointError):
        if partial.journal.complete is None:
            _forget(partial)
        raise
    except FuseError as error:
        told = f"{error.problem}; {partial.told()}"
        raise MachineError(told, where=error.where, hint=error.hint, more=error.more) from None
    except OSError as error:
        where = str(error.filename or partial.target).replace(str(partial.folder), str(partial.target))
        room = ""
        if error.errno in FULL:
            _forget(partial)
        if partial.size and error.errno in FULL - {errno.EFBIG}:
            stat = os.statvfs(partial.target.parent)
            room = f" (the output needs {partial.size:,} bytes, {stat.f_bavail * stat.f_frsize:,} are free)"
        raise MachineError(f"{reason(error)}{room}; {partial.told()}", where=where) from None
    except (RuntimeError, MemoryError) as error:
        if isinstance(error, RuntimeError) and not any(text in str(error) for text in NO_MEMORY):
            raise
        hint = "fewer threads need less"
        raise MachineError(f"out of memory; {partial.told()}", where=partial.target, hint=hint) from None
    except BaseException as stop:  # an interruption
        stop.add_note(partial.told())
        raise


def _forget(partial: Partial) -> None:
    partial.spare.release()
    if not partial.placed:
        shutil.rmtree(partial.folder, ignore_errors=True)
        partial.journal.shards = {}


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
