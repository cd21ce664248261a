"""Which files of a folder are pushed: all that fuse.json records, and what people put beside them."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from fuse.digests import CARD, RECORD, file_sha256
from fuse.errors import CheckpointError, RecipeError
from fuse.licences import RollUp, read_licences
from fuse.verify.listing import HARMLESS, PLAIN
from fuse.verify.record import read_record


@dataclass(frozen=True)
class File:
    """A file of the folder by its path in it. sha256: as fuse.json records it, or of the file where it does not."""

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Local:
    """A folder as it is pushed. left: what stays here, with the reason. licences: None where none were recorded."""

    folder: Path
    files: tuple[File, ...]
    left: tuple[tuple[str, str], ...]
    licences: RollUp | None

    @property
    def bytes(self) -> int:
        return sum(file.bytes for file in self.files)


def look(folder: Path) -> Local:
    """What a push of the folder would send; the weights are not read where their sha256 is recorded.

    Raises RecipeError for what is no folder that fuse made, CheckpointError for a record that is none, and for a file
    that is recorded and is hidden or not there.
    """
    if not folder.is_dir():
        raise RecipeError("there is no such folder", where=folder)
    record = read_record(folder)
    if record is None:
        raise RecipeError(f"has no {RECORD}, so there is nothing to compare it with", where=folder,
                          hint="fuse pushes what `fuse merge` and `fuse export` wrote")  # fmt: skip
    recorded = {**record.files, **record.code, **record.sha256}
    for name in recorded:
        if _is_hidden(name):
            told = f"is hidden, and {RECORD} records it: hidden files are not sent"
            hint = f"make the folder again without it, or take its line out of {RECORD}"
            raise CheckpointError(told, where=folder / name, hint=hint)
        if not (folder / name).is_file():
            raise CheckpointError(f"is missing, and {RECORD} records it", where=folder / name)
    files, left = [], []
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = path.relative_to(folder).as_posix()
        if why := "" if name in recorded or name in (RECORD, CARD) else _why_not(name):
            left.append((name, why))
        else:
            files.append(File(name, path.stat().st_size, recorded.get(name) or file_sha256(path)))
    return Local(folder, tuple(files), tuple(left), read_licences(record.told.get("licences"), folder / RECORD))


def _why_not(name: str) -> str:
    """Why a file that is not recorded stays here; "" for what people put beside a model."""
    if _is_hidden(name):
        return "hidden"
    path = Path(name)
    return "" if path.name in PLAIN or path.suffix.lower() in HARMLESS else "not of the model"


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") for part in Path(name).parts)


def git_id(path: Path) -> str:
    """The id that git gives a file of this content: what the hub tells of files that it does not keep as LFS."""
    data = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
