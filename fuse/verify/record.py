"""What fuse.json says of the files beside it, checked before it is believed."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from fuse import strict_json
from fuse.digests import MARK, RECORD
from fuse.errors import CheckpointError

HEX = re.compile(r"[0-9a-f]{64}|")
MARKS = re.compile(rf"(?:[0-9a-f]{{{MARK}}})*")
MAX_BYTES = 64 << 20


@dataclass(frozen=True)
class Record:
    """The tables of fuse.json, each by file: empty where it has none.

    sha256: of the files of weights, "" where they were not hashed. marks: as `fuse.digests.file_digest` makes
    them. files: sha256 of the small files. code: sha256 of the Python files that belong to the folder. told: all of it.
    """

    sha256: Mapping[str, str]
    marks: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    code: Mapping[str, str] = field(default_factory=dict)
    told: Mapping[str, Any] = field(default_factory=dict)


def read_record(folder: Path) -> Record | None:
    """The record of a folder, None where there is none.

    Raises CheckpointError for a fuse.json that is no strict JSON, or that names files and hashes in no way we write.
    """
    where = folder / RECORD
    if not where.exists():
        return None
    told = strict_json.read_object(where, max_bytes=MAX_BYTES)
    if "sha256" not in told:
        raise CheckpointError("has no table sha256", where=where)
    tables = {key: _table(told.get(key, {}), key, where) for key in ("sha256", "marks", "files", "code")}
    return Record(**tables, told=told)


def _table(value: Any, key: str, where: Path) -> dict[str, str]:
    if not isinstance(value, dict):
        raise CheckpointError(f"{key} is not a table of files", where=where)
    form = MARKS if key == "marks" else HEX
    for name, digest in value.items():
        path = PurePosixPath(name)
        if not name or "\\" in name or path.is_absolute() or ".." in path.parts or str(path) != name:
            raise CheckpointError(f"{key} names {name!r}, which is no file in the folder", where=where)
        if not isinstance(digest, str) or not form.fullmatch(digest):
            raise CheckpointError(f"{key} of {name!r} is {str(digest)[:80]!r}, which is no hash", where=where)
    return value
