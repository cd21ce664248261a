"""The files of a folder in a store, as the store tells of them."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from fuse.hub import SMALL
from fuse.small_files import FOLDERS
from fuse.stores.address import PART, Address
from fuse.stores.sentences import sentences

TAGS = ("ETag", "etag", "content_md5", "md5Hash", "generation", "blob_id")  # one of them changes with the bytes


@dataclass(frozen=True)
class Far:
    """A file in a store: its size in bytes and what changes when its bytes do."""

    size: int
    etag: str


def listed(system: Any, address: Address) -> dict[str, Far]:
    """The files that a member may need, and what else lies beside them, by name. RecipeError for a missing bucket."""
    with sentences(address):
        rows = list(_listing(system, address))
    prefix = f"{address.path}/"
    return {row["name"].lstrip("/").removeprefix(prefix): far_of(row) for row in rows}


def small_of(files: Iterable[str]) -> list[str]:
    """The names of what may be needed besides the weights."""
    plain = [name for name in files if all(PART.fullmatch(part) for part in name.split("/"))]
    return [name for name in plain if any(fnmatchcase(name, pattern) for pattern in SMALL)]


def _listing(system: Any, address: Address) -> Iterator[dict[str, Any]]:
    """The files of the folder, and of the few folders inside that travel."""
    for row in system.ls(address.path, detail=True, refresh=True):
        name = row["name"].rstrip("/").rpartition("/")[2]
        if row["type"] == "file" and row["name"].strip("/") != address.path:
            yield row
        elif row["type"] == "directory" and name in FOLDERS:
            yield from (inner for inner in system.ls(row["name"], detail=True) if inner["type"] == "file")


def far_of(row: Mapping[str, Any]) -> Far:
    """A file as fsspec tells it. Where the store has no etag, the hash of all that it tells of the file is one."""
    own = next((str(row[key]).strip('"') for key in TAGS if row.get(key)), "")
    own = (row.get("lfs") or {}).get("sha256", own)  # which the hub knows
    told = str(sorted(row.items(), key=lambda pair: pair[0])).encode()
    return Far(int(row["size"]), own or hashlib.sha256(told).hexdigest())


def has_changed(system: Any, path: str, far: Far) -> bool:
    """Whether a file is not the one that was listed any more."""
    system.invalidate_cache()
    try:
        row = system.info(path)
    except FileNotFoundError:
        return True
    return far_of(row) != far
