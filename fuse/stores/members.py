"""Members in object stores: small files come first, headers by ranges, and of the weights what a plan reads.

The state of a folder is told by the names, sizes and etags of its files; everything is read from that state or not at
all.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from secrets import token_hex
from threading import Event, local
from typing import Any

from fuse.checkpoint import free_bytes
from fuse.errors import CheckpointError, MachineError, RecipeError
from fuse.hub import check_small
from fuse.progress import byte_progress
from fuse.safetensors_header import TensorEntry, parse_header
from fuse.stores import sparse
from fuse.stores.address import Address, address_of, connect
from fuse.stores.cache import folder_of
from fuse.stores.listing import Far, has_changed, listed, small_of
from fuse.stores.sentences import sentences
from fuse.stores.turns import turn
from fuse.team import made, team

FIRST = 1 << 18  # bytes of a weight file that are asked for at first; most headers fit


class Changed(CheckpointError):
    """A file of a store that is no longer the one which was listed."""

    def __init__(self, address: Address, name: str) -> None:
        super().__init__("the file changed in the store while it was read", where=f"{address}/{name}")


@dataclass(frozen=True)
class StoreFolder:
    """A folder in a store in one state, with the local folder that stands for it (a `fuse.repository.Repository`)."""

    address: Address
    commit: str
    files: Mapping[str, Far]
    folder: Path
    system: Any = field(repr=False, compare=False)
    pinned: bool = False  # whether the address is of one state for ever

    @property
    def names(self) -> frozenset[str]:
        return frozenset(self.files)

    @property
    def etags(self) -> dict[str, str]:
        return {name: far.etag for name, far in sorted(self.files.items()) if name.endswith(".safetensors")}

    def header(self, name: str, path: Path) -> dict[str, TensorEntry]:
        """The header of a weight file, by one or two ranges the first time; `path` is where the file will be."""
        if name not in self.files:
            raise CheckpointError("the file is missing", where=path)
        kept, size = self._kept(name), self.files[name].size
        start = kept.read_bytes() if kept.is_file() else b""

        def read(begin: int, end: int) -> bytes:
            nonlocal start
            if end > len(start):
                with self._reading(name) as get:
                    start += get(len(start), min(max(end, FIRST), size))
            return start[begin:end]

        entries = parse_header(read, size, path)
        if not kept.is_file():
            _write(kept, start[: min(entry.begin for entry in entries.values())])
        return entries

    def fetch(self, entries: Sequence[TensorEntry]) -> None:
        """Bring at least these tensors to where their entries say, and the header of every file that was opened."""
        wanted: dict[str, list[sparse.Range]] = {}
        for entry in entries:
            wanted.setdefault(entry.file.name, []).append((entry.begin, entry.end))
        files = {name: wanted.get(name, []) for name in self.etags}
        needed = {name: ranges for name, ranges in files.items() if self._lacks(name, ranges)}
        lacking = {name: _nbytes(sparse.missing(self._here(name), ranges)) for name, ranges in needed.items()}
        total = sum(lacking.values())
        if total > (free := free_bytes(self.folder)):
            told = f"{self.address} needs {total:,} bytes here and the disk has {free:,} free"
            raise MachineError(told, where=self.folder, hint="XDG_CACHE_HOME says where members are kept")
        with byte_progress(total, shown=bool(total), name="fetch") as progress, _noted():
            for name, ranges in needed.items():
                self._bring(name, ranges, lacking[name], progress)

    def _here(self, name: str) -> list[sparse.Range]:
        return sparse.here(self.folder / name, self.files[name].size)

    def _lacks(self, name: str, ranges: Sequence[sparse.Range]) -> bool:
        """Whether something of the header of a file that was opened, or of these ranges, is not here."""
        kept = self._kept(name)
        return kept.is_file() and bool(sparse.missing(self._here(name), [(0, kept.stat().st_size), *ranges]))

    def _bring(
        self, name: str, ranges: Sequence[sparse.Range], lacking: int, progress: Callable[[int], None]
    ) -> None:  # fmt: skip
        """Bring the header of a file and these ranges, but what another run brings while it is its turn.

        lacking: how many bytes of the ranges were not here before that.
        """
        file, kept, size = self.folder / name, self._kept(name), self.files[name].size
        with turn(file):
            if not kept.is_file():  # the other run found it so, and discarded the file
                raise Changed(self.address, name)
            head, there = kept.read_bytes(), sparse.prepare(file, size)
            if sparse.missing(there, [(0, len(head))]):
                sparse.put(file, 0, head)
                there = sparse.joined([*there, (0, len(head))])
            left = sparse.missing(there, ranges)
            progress(lacking - _nbytes(left))
            if left:
                try:
                    with self._reading(name) as get:
                        sparse.fill(file, left, get, progress)
                except Changed:
                    sparse.discard(file)
                    kept.unlink(missing_ok=True)
                    raise
            sparse.close(file, size)

    def read_small(self, names: Sequence[str]) -> None:
        """Bring whole files that are no weights. CheckpointError, before any comes, where they are too large."""
        check_small(self.address, {name: self.files[name].size for name in names})

        def bring(name: str) -> None:
            path, size = self.folder / name, self.files[name].size
            if path.is_file() and path.stat().st_size == size:
                return
            path.parent.mkdir(exist_ok=True)
            with self._reading(name) as get:
                _write(path, get(0, size) if size else b"")

        with team(sparse.THREADS, stop := Event()) as pool:
            made({name: pool.submit(bring, name) for name in names}, stop)

    def _kept(self, name: str) -> Path:
        return self.folder / f".{name}.header"

    @contextmanager
    def _reading(self, name: str) -> Iterator[Callable[[int, int], bytes]]:
        """A function that reads a range of a file, from any thread; its state is compared at the beginning and end."""
        far, path, own = self.files[name], self.address.file(name), local()

        def get(begin: int, end: int) -> bytes:
            if not hasattr(own, "file"):
                own.file = self.system.open(path, "rb", block_size=sparse.PIECE, cache_type="none")
            own.file.seek(begin)
            return own.file.read(end - begin)

        with sentences(self.address):
            try:
                yield get
            except Exception:  # of any library under the store: a file that changed explains it better
                if not self.pinned and has_changed(self.system, path, far):
                    raise Changed(self.address, name) from None
                raise
            if not self.pinned and has_changed(self.system, path, far):
                raise Changed(self.address, name)


@contextmanager
def _noted() -> Iterator[None]:
    """What an interruption or a lost connection leaves."""
    told = "what was fetched is kept: the same command goes on from there"
    try:
        yield
    except MachineError as error:
        raise MachineError(f"{error.problem}; {told}", where=error.where, hint=error.hint) from None
    except (KeyboardInterrupt, SystemExit) as stop:
        stop.add_note(told)
        raise


def open_store(location: str, revision: str | None) -> StoreFolder:
    """The state of a folder, with its small files here.

    revision: refuse any state but this one, as `fuse plan` and fuse.json tell it (or its first characters).
    Raises RecipeError where there is no such folder, CheckpointError where it is in another state, MachineError where
    the store cannot be reached.
    """
    address = address_of(location)
    system = connect(address)
    found = listed(system, address)
    if not found:
        raise RecipeError("there is no such folder in the store", where=address)
    small = small_of(found)
    told = [(n, f.size, f.etag) for n, f in sorted(found.items()) if n in small or n.endswith(".safetensors")]
    commit = hashlib.sha256(json.dumps(told).encode()).hexdigest()[:40]
    if revision is not None and not (len(revision) >= 7 and commit.startswith(revision)):
        problem = f"is in another state than revision {revision}: it is {commit}"
        raise CheckpointError(problem, where=address, hint="files were replaced since")
    opened = StoreFolder(address, commit, found, folder_of(address, commit), system)
    opened.read_small(small)
    return opened


def _nbytes(ranges: Iterable[sparse.Range]) -> int:
    """How many bytes are fetched for these ranges."""
    return sum(end - begin for begin, end in sparse.pieces(ranges))


def _write(path: Path, data: bytes) -> None:
    """A file whole or not at all, whoever else writes it."""
    new = path.with_name(f".{path.name}.{token_hex(8)}.new")
    new.write_bytes(data)
    new.replace(path)
