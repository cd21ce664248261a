"""Where what was fetched from stores is kept: a folder that is ours alone."""

import os
from pathlib import Path

from fuse.errors import MachineError
from fuse.handles import reason
from fuse.stores.address import Address


def folder_of(address: Address, commit: str) -> Path:
    """``$XDG_CACHE_HOME/fuse/stores/s3/bucket/folder@COMMIT``, or under ``~/.cache``; it is made.

    Raises MachineError where there is no home, or others may write there.
    """
    try:
        parent = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:
        raise MachineError("there is no home to keep members in", hint="set XDG_CACHE_HOME") from None
    stores = parent / "fuse" / "stores"
    try:
        stores.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = stores.stat()
        found = stores.joinpath(address.scheme, *address.parts[:-1], f"{address.name}@{commit[:16]}")
        found.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MachineError(f"cannot be written ({reason(error)})", where=stores, hint="set XDG_CACHE_HOME") from None
    if status.st_uid != os.geteuid() or status.st_mode & 0o022:
        raise MachineError("others may write there", where=stores, hint="chmod 700, or set XDG_CACHE_HOME")
    return found
