"""A finished folder copied into a store so that no reader takes a part of it for the whole.

Weights go first, then the small files, then config.json and the index, and last fuse.json, the marker: where it is,
everything is. What was sent is noted in a journal beside the folder, so that a killed run is gone on with.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from fuse import interruption
from fuse.checkpoint import INDEX
from fuse.errors import MachineError, RecipeError
from fuse.hub import LOADED
from fuse.journal import Journal, Shard
from fuse.small_files import FOLDERS
from fuse.stores.address import Address, address_of, connect
from fuse.stores.listing import Far, far_of
from fuse.stores.sentences import sentences

MARKER = "fuse.json"
LAST = ("config.json", INDEX, MARKER)  # in this order, behind everything else
ELSE = "choose another folder"


def output_address(url: str) -> Address:
    """The address of an output. RecipeError where it is a whole bucket, or no address."""
    address = address_of(url)
    if len(address.parts) < 2:
        raise RecipeError("the output would be a whole bucket", where=url, hint=f"such as {address}/folder")
    return address


def check_free(url: str, *, force: bool) -> None:
    """Refuse an output that is there already, unless it is forced and fuse made it; errors as `publish`."""
    address = output_address(url)
    with sentences(address):
        _check_free(address, _there(connect(address), address), force=force)


def publish(folder: Path, url: str, *, force: bool = False, progress: Callable[[int], None] = lambda _: None) -> int:
    """Copy a finished output folder to the address, where nothing is unless forced; how many files were there already.

    progress: called with bytes sent since the last call, those of all files together.
    Raises RecipeError where something else is at the address, or another run is publishing the folder; MachineError
    where the store refuses, cannot be reached, or has not what was sent.
    """
    address = output_address(url)
    system = connect(address)
    names = _ordered([path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()])
    head = {"url": str(address), "output": hashlib.sha256((folder / MARKER).read_bytes()).hexdigest()}
    with closing(Journal(folder.parent, folder)) as journal, _told(folder, address, journal, names), sentences(address):
        there = _there(system, address)
        if journal.head != head:
            _check_free(address, there, force=force)
            journal.forget()
            journal.begin(head)
        elif foreign := sorted(there.keys() - set(names)):
            _check_foreign(address, foreign, force=force)
        sent = _still_there(journal, there)
        for name in journal.shards.keys() - sent:
            journal.lose(name)
        if len(sent) < len(names):
            _clear(system, address, there, sent, names)
        for name in names:
            interruption.check()
            if name in sent:
                progress(sent[name].size)
                continue
            if name == MARKER:
                _check_sent(journal, _there(system, address), address)
            journal.add(_send(system, folder, name, address, progress))
        return len(sent)


def take_back(folder: Path, url: str) -> None:
    """Remove what an unfinished `publish` of the folder sent, where it is as it was sent and is no whole output.

    Raises RecipeError where another run is publishing the folder, MachineError where the store refuses.
    """
    address = output_address(url)
    with closing(Journal(folder.parent, folder)) as journal, sentences(address):
        if not journal.head or journal.head.get("url") != str(address):
            return
        system = connect(address)
        there = _there(system, address)
        for name in _still_there(journal, there) if MARKER not in there else ():
            system.rm_file(address.file(name))


def _there(system: Any, address: Address) -> dict[str, Far]:
    """Every file under the address, by its name from there."""
    system.invalidate_cache()
    try:
        rows = system.find(address.path, detail=True)
    except FileNotFoundError:
        if system.exists(address.parts[0]):
            return {}
        raise FileNotFoundError("bucket") from None
    if not rows and not system.exists(address.parts[0]):
        raise FileNotFoundError("bucket")
    prefix = f"{address.path}/"
    return {path.lstrip("/").removeprefix(prefix): far_of(row) for path, row in rows.items()}


def _check_free(address: Address, there: Mapping[str, Far], *, force: bool) -> None:
    if there and not force:
        raise RecipeError("the output already exists", where=address, hint=f"{ELSE}, or --force")
    if there and MARKER not in there:
        told = f"the output exists and fuse did not make it (it has no {MARKER})"
        raise RecipeError(told, where=address, hint=f"{ELSE}, or remove it yourself")


def _check_foreign(address: Address, foreign: list[str], *, force: bool) -> None:
    if not force:
        told = f"holds {foreign[0]!r}, which is not of this output"
        raise RecipeError(told, where=address, hint="--force removes what a loader would read of it")


def _still_there(journal: Journal, there: Mapping[str, Far]) -> dict[str, Far]:
    """The files that were sent and are in the store as they came."""
    found = {name: Far(shard.bytes, shard.sha256) for name, shard in journal.shards.items()}
    return {name: far for name, far in found.items() if there.get(name) == far}


def _clear(
    system: Any, address: Address, there: Mapping[str, Far], sent: Mapping[str, Far], names: list[str]
) -> None:  # fmt: skip
    """Remove what would make a reader take what is there for whole, and what a loader would read besides ours."""
    first = [name for name in reversed(LAST) if name in there and name not in sent]
    stale = sorted(name for name in there if name not in names and name not in LAST and _is_read(name))
    for name in [*first, *stale]:
        interruption.check()
        system.rm_file(address.file(name))


def _is_read(name: str) -> bool:
    inner, _, last = name.rpartition("/")
    return inner in ("", *FOLDERS) and any(fnmatchcase(last, pattern) for pattern in (*LOADED, "*.safetensors"))


def _ordered(names: list[str]) -> list[str]:
    def rank(name: str) -> tuple[int, str]:
        return (LAST.index(name) + 2 if name in LAST else int(not name.endswith(".safetensors"))), name

    return sorted(names, key=rank)


def _send(system: Any, folder: Path, name: str, address: Address, progress: Callable[[int], None]) -> Shard:
    """Send a file; its line of the journal, with the store's etag in place of a hash."""
    from fsspec.callbacks import Callback

    class Told(Callback):
        def relative_update(self, inc: int = 1) -> None:
            progress(inc)

    system.put_file(str(folder / name), address.file(name), callback=Told())
    system.invalidate_cache()
    far, size = far_of(system.info(address.file(name))), (folder / name).stat().st_size
    if far.size != size:
        raise MachineError(f"{size:,} bytes were sent and the store has {far.size:,}", where=f"{address}/{name}")
    return Shard(name, far.size, far.etag, "", synced=True)


def _check_sent(journal: Journal, there: Mapping[str, Far], address: Address) -> None:
    """Before the marker says so: everything else is there as it was sent."""
    if lost := sorted(journal.shards.keys() - _still_there(journal, there)):
        raise MachineError("the store does not have what was sent", where=f"{address}/{lost[0]}",
                           hint="is another fuse writing there?")  # fmt: skip


@contextmanager
def _told(folder: Path, address: Address, journal: Journal, names: list[str]) -> Iterator[None]:
    """What is where after a failure or an interruption."""
    try:
        yield
    except RecipeError:
        raise
    except MachineError as error:
        raise MachineError(f"{error.problem}; {_state(folder, address, journal, names)}", where=error.where,
                           hint=error.hint) from None  # fmt: skip
    except BaseException as stop:
        stop.add_note(_state(folder, address, journal, names))
        raise


def _state(folder: Path, address: Address, journal: Journal, names: list[str]) -> str:
    done = len(journal.shards)
    return f"{done} of {len(names)} files are at {address}, all are in {folder}: the same command goes on from there"
