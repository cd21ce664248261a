"""What an unfinished output left beside its target: gone on with, completed, refused or thrown away."""

import json
import os
import re
import shutil
import stat
from collections.abc import Callable, Mapping
from contextlib import closing, nullcontext, suppress
from pathlib import Path
from typing import Any

from fuse import __version__
from fuse.errors import RecipeError
from fuse.journal import JOURNAL, Journal

FOLDER, OLD, WORK = "folder", "old", "work"
LONGEST = 255  # bytes of a name on most disks
WORKERS = re.compile(r"worker-(\d+)-of-(\d+)\.jsonl")  # their journals
ONCE = ("import", "export")  # what is made in one go
# what differs -> what an unfinished output is, in words
OTHERS: Mapping[str, Callable[[Any], str]] = {
    "what": lambda one: f"an unfinished {one}",
    "fuse": lambda one: f"what fuse {one} left unfinished",
    "plan": lambda _: "an unfinished merge of another recipe",
    "device": lambda one: f"an unfinished merge on another device ({one})",
    "inputs": lambda _: "an unfinished merge of members that changed since",
}


def home_of(target: Path) -> Path:
    """The folder that holds an unfinished output. RecipeError for a target that has no name of its own."""
    if target.name in ("", ".."):
        raise RecipeError("the output has no name of its own", where=target, hint="name a folder, such as ../out")
    if target.name.endswith(".partial"):
        raise RecipeError("the output is named as unfinished ones are", where=target, hint="choose another name")
    home = target.parent / f".{target.name}.partial"
    if len(os.fsencode(home.name)) > LONGEST:
        told = f"the output's name is longer than {LONGEST - len('..partial')} bytes"
        raise RecipeError(told, where=target.parent, hint="choose a shorter one")
    return home


def settle(target: Path) -> None:
    """Complete what a killed run left half done between its last check and its end.

    Raises RecipeError where another process is writing the target, or where its place is taken.
    """
    home = home_of(target)
    _check_ours(home)
    if not (home / JOURNAL).is_file():
        with suppress(OSError):
            home.rmdir()  # an empty one is the rest of a removal
        return
    with closing(Journal(home, target)) as journal:
        if (home / OLD).exists() and not target.exists():
            (home / OLD).rename(target)
        if moved(home / FOLDER, journal):
            remove(home)


def enter(home: Path) -> bool:
    """Make the folder, where there is none; whether there was none."""
    try:
        home.mkdir()
        return True
    except FileExistsError:
        _check_ours(home)
        return False


def _check_ours(home: Path) -> None:
    """RecipeError for what has the folder's name and was not made by this user's fuse; links in it lead elsewhere."""
    try:
        status = home.lstat()
        ours = stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid()
        with os.scandir(home) if ours else nullcontext(()) as entries:
            ours = ours and all(_is_ours(entry) for entry in entries)
    except (FileNotFoundError, NotADirectoryError):  # or no longer
        return
    if not ours:
        raise RecipeError("is in the way and fuse did not make it", where=home, hint="remove it yourself")


def _is_ours(entry: os.DirEntry[str]) -> bool:
    if entry.name in (FOLDER, OLD, WORK):
        return entry.is_dir(follow_symlinks=False)
    return entry.is_file(follow_symlinks=False) and bool(entry.name == JOURNAL or WORKERS.fullmatch(entry.name))


def take_over(home: Path, journal: Journal, makes: Mapping[str, Any], *, restart: bool) -> None:
    """Go on with an earlier run's journal, or begin a new one where there is none, or only one that is to go."""
    before = journal.head
    if restart or moved(home / FOLDER, journal) or (before is not None and not journal.shards):
        shutil.rmtree(home / FOLDER, ignore_errors=True)
        journal.forget()
        return
    check_same(home, journal, makes)


def check_same(home: Path, journal: Journal, makes: Mapping[str, Any], hint: str = "--restart throws it away") -> None:
    """RecipeError for a journal of something else; one that is empty is of nothing yet. hint: what gets rid of it."""
    before = journal.head
    if before == {}:
        return
    if before is None:
        what = "a journal that cannot be read"
    elif (key := next((key for key in OTHERS if before.get(key) != makes.get(key)), None)) is not None:
        what = OTHERS[key](before.get(key))
    else:
        return
    once = "remove it, or choose another folder"
    raise RecipeError(f"holds {what}", where=home, hint=once if makes["what"] in ONCE else hint)


def refuse_workers(home: Path, *, restart: bool) -> None:
    """What workers wrote is completed by `commit` or thrown away, never mixed with a run of one process."""
    found = [path for path in home.iterdir() if WORKERS.fullmatch(path.name)]
    if found and not restart:
        hint = "fuse commit completes it, --restart throws it away"
        raise RecipeError("holds what workers wrote", where=home, hint=hint)
    for path in found:
        path.unlink()


def normal(makes: Mapping[str, Any]) -> dict[str, Any]:
    """What decides the bytes of an output, as a journal gives it back."""
    return json.loads(json.dumps({"fuse": __version__, **makes}))


def moved(whole: Path, journal: Journal) -> bool:
    """Whether the finished output has left this path: what is there now, if anything, is what it replaced."""
    try:
        return journal.complete is not None and whole.stat().st_ino != journal.complete
    except FileNotFoundError:
        return True


def remove(home: Path) -> None:
    """An interrupted removal is completed; the journal, which is the lock, goes last."""
    try:
        for name in (FOLDER, OLD, WORK):
            shutil.rmtree(home / name, ignore_errors=True)
    finally:
        for name in (FOLDER, OLD, WORK):
            shutil.rmtree(home / name, ignore_errors=True)
        with suppress(OSError):
            for path in home.glob("worker-*.jsonl"):
                path.unlink()
            (home / JOURNAL).unlink(missing_ok=True)
            home.rmdir()
