"""What --force may replace: a folder that holds nothing but what fuse wrote. And no output lies in another one."""

import os
from collections.abc import Iterator
from pathlib import Path

from fuse.digests import CARD, RECORD
from fuse.errors import FuseError, MachineError, RecipeError
from fuse.verify.record import read_record

UNWRITTEN = {".DS_Store", ".gitattributes"}  # what file managers and the hub put beside a model, and nobody misses


def check_place(target: Path) -> None:
    """RecipeError for a target that would lie in an output of fuse, or replace a file that fuse did not write."""
    for folder in target.resolve().parents:
        if (folder / RECORD).is_file():
            raise RecipeError(f"the output would lie in {str(folder)!r}, which is an output of fuse", where=target,
                              hint="choose another folder")  # fmt: skip
    if (target / RECORD).exists() and (name := _stranger(target)):
        told = f"holds {name!r}, which fuse did not write and --force would delete"
        raise RecipeError(told, where=target, hint="move it out, or choose another folder")


def _stranger(folder: Path) -> str:
    """The first file that the folder's record does not name, by its path in it; "" where there is none."""
    try:
        record = read_record(folder)
    except FuseError as error:
        raise RecipeError(f"{error.problem}, so what fuse wrote there is not known", where=folder / RECORD,
                          hint="choose another folder, or remove it yourself") from None  # fmt: skip
    assert record is not None
    known = {*record.files, *record.sha256, *record.code, RECORD, CARD}
    return next((name for name in _names(folder) if name not in known and Path(name).name not in UNWRITTEN), "")


def _names(folder: Path) -> Iterator[str]:
    """Every file below the folder, hidden ones too, by its path in it. Links are not followed: they go as they are."""

    def fail(error: OSError) -> None:
        raise MachineError(f"cannot be read ({error.strerror})", where=error.filename or folder)

    for at, folders, files in os.walk(folder, onerror=fail):
        place = Path(at)
        for name in sorted([*files, *(name for name in folders if (place / name).is_symlink())]):
            yield (place / name).relative_to(folder).as_posix()
        folders.sort()
