"""An output folder is all or nothing: everything is written beside the target, and takes its place by one rename.

`.NAME.partial` beside the target NAME holds `journal.jsonl`, `folder` (the output as it grows) and, for a moment on
file systems that cannot exchange two folders, `old` (what was there). An interrupted run leaves it, and the next goes
on.
"""

import errno
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fuse import __version__, rename
from fuse.errors import CheckpointError, FuseError, MachineError, RecipeError
from fuse.journal import JOURNAL, Journal, Shard

NO_MEMORY = ("can't allocate memory", "out of memory", "can't start new thread")  # as torch and Python say it
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
FOLDER, OLD = "folder", "old"
ONCE = {"what": "import"}
# what differs -> what an unfinished output is, in words
OTHERS: Mapping[str, Callable[[Any], str]] = {
    "what": lambda one: f"an unfinished {one}",
    "fuse": lambda one: f"what fuse {one} left unfinished",
    "plan": lambda _: "an unfinished merge of another recipe",
    "device": lambda one: f"an unfinished merge on another device ({one})",
    "inputs": lambda _: "an unfinished merge of members that changed since",
}


@dataclass
class Partial:
    """The folder to write into, and its journal. files: how many weight files it is to have. size: bytes it needs."""

    target: Path
    journal: Journal
    files: int
    size: int
    kept: dict[str, Shard] = field(default_factory=dict)  # whole files of an earlier run
    placed: bool = False

    @property
    def folder(self) -> Path:
        return home_of(self.target) / FOLDER

    def keep(self, matches: Callable[[Path, Shard], bool]) -> None:
        """Keep the earlier run's files that are as its journal says, and remove all else."""
        for name, shard in list(self.journal.shards.items()):
            path = self.folder / name
            if path.is_file() and path.stat().st_size == shard.bytes and matches(path, shard):
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


def home_of(target: Path) -> Path:
    """The folder that holds an unfinished output."""
    return target.parent / f".{target.name}.partial"


def settle(target: Path) -> None:
    """Complete what a killed run left half done between its last check and its end.

    Raises RecipeError where another process is writing the target.
    """
    home = home_of(target)
    if home.is_symlink() or not (home / JOURNAL).is_file():
        return
    with closing(Journal(home, target)) as journal:
        if (home / OLD).exists() and not target.exists():
            (home / OLD).rename(target)
        if _moved(home, journal):
            _remove(home)


@contextmanager
def partial_folder(
    target: Path, makes: Mapping[str, Any], *, files: int = 0, size: int = 0, force: bool = False, sync: bool = True,
    restart: bool = False,
) -> Iterator[Partial]:  # fmt: skip
    """A folder to write into; it becomes `target` when the block ends.

    makes: what decides its bytes: an unfinished output of the same is gone on with. force: replace a target that is
    there. sync: whether the disk has every file before the folder takes its place. restart: throw away an unfinished
    output. Where the block fails, its finished files are kept unless the input is at fault or the disk is full.
    Raises RecipeError where another process writes the target, or where there is an unfinished output of something
    else; MachineError where the disk or the memory fails, with what is kept.
    """
    home = home_of(target)
    makes = json.loads(json.dumps({"fuse": __version__, **makes}))
    journal = _opened(home, target, sync=sync)
    with closing(journal):
        _take_over(home, journal, makes, restart=restart)
        partial = Partial(target, journal, files, size)
        try:
            with _sentences(partial):
                partial.folder.mkdir(exist_ok=True)
                journal.begin(makes)
                yield partial
                for path in [*partial.folder.rglob("*"), partial.folder, home] if sync else ():
                    _sync(path)
                journal.finish(partial.folder.stat().st_ino)
                _place(partial, force=force)
                if sync:
                    _sync(target.parent)
                _remove(home)
        finally:
            if home.exists() and (partial.placed or not journal.shards):
                _remove(home)


@contextmanager
def new_folder(target: Path, *, force: bool = False, sync: bool = True) -> Iterator[Path]:
    """As `partial_folder`, for what is made in one go: nothing of it is ever kept."""
    with partial_folder(target, ONCE, force=force, sync=sync) as partial:
        partial.keep(lambda *_: False)
        yield partial.folder


def _opened(home: Path, target: Path, *, sync: bool) -> Journal:
    """The journal of the folder, which is made, or is seen to be an earlier run's of this user."""
    made = False
    try:
        settle(target)
        made = _enter(home)
        return Journal(home, target, sync=sync)
    except OSError as error:
        if made:
            shutil.rmtree(home, ignore_errors=True)
        raise MachineError(f"cannot be written ({error.strerror})", where=target.parent) from None


def _enter(home: Path) -> bool:
    """Make the folder, where there is none."""
    try:
        home.mkdir()
        return True
    except FileExistsError:
        status = home.lstat()
        ours = home.is_dir() and not home.is_symlink() and status.st_uid == os.geteuid()
        if not ours or {path.name for path in home.iterdir()} - {JOURNAL, FOLDER, OLD}:
            raise RecipeError("is in the way and fuse did not make it", where=home, hint="remove it yourself") from None
        return False


def _take_over(home: Path, journal: Journal, makes: Mapping[str, Any], *, restart: bool) -> None:
    """Go on with an earlier run's journal, or begin a new one where there is none, or only one that is to go."""
    before = journal.head
    if restart or _moved(home, journal) or (before is not None and not journal.shards):
        shutil.rmtree(home / FOLDER, ignore_errors=True)
        journal.forget()
        return
    if before is None:
        what = "a journal that cannot be read"
    elif (key := next((key for key in OTHERS if before.get(key) != makes.get(key)), None)) is not None:
        what = OTHERS[key](before.get(key))
    else:
        return
    hint = "--restart throws it away" if makes["what"] != ONCE["what"] else "remove it, or choose another folder"
    raise RecipeError(f"holds {what}", where=home, hint=hint)


def _moved(home: Path, journal: Journal) -> bool:
    """Whether the finished output has left: what is called `folder` now, if anything, is what it replaced."""
    try:
        return journal.complete is not None and (home / FOLDER).stat().st_ino != journal.complete
    except FileNotFoundError:
        return True


def _place(partial: Partial, *, force: bool) -> None:
    target = partial.target
    try:
        if force and target.exists():
            rename.exchange(partial.folder, target, home_of(target) / OLD)
        else:
            rename.put(partial.folder, target)
    except FileExistsError:
        told = f"the output appeared while it was being made; {partial.told()}"
        raise RecipeError(told, where=target) from None
    except BaseException:
        old = home_of(target) / OLD
        if old.exists() and not target.exists():
            old.rename(target)
        raise
    finally:
        partial.placed = _moved(home_of(target), partial.journal)


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
        raise MachineError(f"{error.problem}; {partial.told()}", where=error.where, hint=error.hint) from None
    except OSError as error:
        where = str(error.filename or partial.target).replace(str(partial.folder), str(partial.target))
        room = ""
        if error.errno in FULL:
            _forget(partial)
        if error.errno in FULL - {errno.EFBIG}:
            stat = os.statvfs(partial.target.parent)
            room = f" (the output needs {partial.size:,} bytes, {stat.f_bavail * stat.f_frsize:,} are free)"
        raise MachineError(f"{error.strerror or error}{room}; {partial.told()}", where=where) from None
    except (RuntimeError, MemoryError) as error:
        if isinstance(error, RuntimeError) and not any(text in str(error) for text in NO_MEMORY):
            raise
        hint = "fewer threads need less"
        raise MachineError(f"out of memory; {partial.told()}", where=partial.target, hint=hint) from None
    except BaseException as stop:  # an interruption
        stop.add_note(partial.told())
        raise


def _forget(partial: Partial) -> None:
    if not partial.placed:
        shutil.rmtree(partial.folder, ignore_errors=True)
        partial.journal.shards = {}


def _remove(home: Path) -> None:
    """An interrupted removal is completed; the journal, which is the lock, goes last."""
    try:
        for name in (FOLDER, OLD):
            shutil.rmtree(home / name, ignore_errors=True)
    finally:
        for name in (FOLDER, OLD):
            shutil.rmtree(home / name, ignore_errors=True)
        with suppress(OSError):
            (home / JOURNAL).unlink(missing_ok=True)
            home.rmdir()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
