"""The files that a folder was made of, against the hashes that fuse.json records of them."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from threading import Event
from typing import Any

from fuse.digests import RECORD, file_digest
from fuse.errors import CheckpointError, MachineError
from fuse.sizes import counted
from fuse.stores.address import is_store
from fuse.team import made, team
from fuse.verify.outcome import Outcome, skipped
from fuse.verify.record import Record

Bar = Callable[[int], AbstractContextManager[Callable[[int], None]]]
WEIGHTS = ".safetensors"  # of the only kind of file that outputs are made of: fuse.json may name any
Origin = tuple[str, str, str, bool]  # where it was, the file's name, its sha256, whether that was on this disk


def check_sources(record: Record | None, home: Path, threads: int, bar: Bar) -> Outcome:
    """Every source that is still where it was has the sha256 that was recorded. Those on the hub are not fetched.

    home: the folder of the recipe, which local origins are relative to. bar: opened with the bytes to read.
    Raises CheckpointError for the first file that is another one now.
    """
    if record is None:
        return skipped(f"no {RECORD}: the sources are not known")
    found: dict[Path, str] = {}
    gone: list[Path] = []
    away = 0
    for origin, name, sha256, here in _origins(record.told):
        path = home / origin  # an absolute origin stands alone
        file = path if path.suffix == WEIGHTS and not _is(Path.is_dir, path) else path / name
        if not sha256 or not here or file.suffix != WEIGHTS:
            away += 1
        elif _is(Path.is_file, file):
            found[file] = sha256
        else:
            gone.append(file)
    beside = [f"{len(gone):,} no longer where it was, the first {gone[0]}"] if gone else []
    beside += [f"{away:,} on the hub, in a store or without a hash"] if away else []
    if not found:
        return skipped("; ".join(["no source with a hash is where it was", *beside]))
    now = digests(list(found), threads, bar)
    for file, sha256 in found.items():
        if now[file] != sha256:
            raise CheckpointError("is not the file that the folder was made of", where=file)
    told = "; ".join([f"{counted(len(found), 'source file')} as recorded", *beside])
    return Outcome(told, counts={"files": len(found), "missing": len(gone)})


def _is(kind: Callable[[Path], bool], path: Path) -> bool:
    try:
        return kind(path)
    except OSError:  # no name of a file
        return False


def digests(files: list[Path], threads: int, bar: Bar) -> dict[Path, str]:
    """The sha256 of files, several at once. bar: opened with the bytes to read."""
    stop = Event()

    def digest(file: Path) -> str:
        try:
            return file_digest(file, (), stop, progress=progress).sha256
        except OSError as error:
            raise MachineError(f"cannot be read ({error.strerror})", where=file) from None

    with bar(sum(file.stat().st_size for file in files)) as progress, team(min(threads, len(files)), stop) as hashers:
        return made({file: hashers.submit(digest, file) for file in files}, stop)


def _origins(told: Mapping[str, Any]) -> Iterator[Origin]:
    """What the tables of fuse.json say of sources: anything that has an origin and a sha256, at any depth."""
    todo: list[Any] = [told]
    while todo:
        value = todo.pop()
        if isinstance(value, list):
            todo += value
        if not isinstance(value, dict):
            continue
        origin, sha256 = value.get("origin"), value.get("sha256")
        if isinstance(origin, str) and origin and "\0" not in origin:
            here = not (value.get("revision") or origin.startswith("hf://") or is_store(origin))
            table = sha256 if isinstance(sha256, dict) else {"graft.safetensors": sha256}
            for name, digest in table.items():
                if isinstance(digest, str) and Path(name).name == name:
                    yield origin, name, digest, here
        todo += [item for key, item in value.items() if key not in ("recipe", "dropped", "marks", "files", "code")]
