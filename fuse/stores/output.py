"""An output for a store: made in a staging folder here, then published; the staging folder stays until it is."""

import hashlib
import json
import os
import shutil
from contextlib import closing, nullcontext, suppress
from pathlib import Path
from typing import Any

from fuse.errors import MachineError, RecipeError
from fuse.handles import reason
from fuse.inputs import bring
from fuse.journal import JOURNAL, Journal
from fuse.merge import Merged, makes, merge
from fuse.plan import Plan
from fuse.progress import byte_progress
from fuse.stores.address import Address, address_of, is_store
from fuse.stores.publish import MARKER, check_free, output_address, publish, take_back
from fuse.strict_json import read_object
from fuse.unfinished import normal, settle

MADE = "made.json"  # of what the finished folder beside it was made


def merge_to_store(
    plan: Plan, url: str, *, staging: Path | None, shown: bool, force: bool = False, restart: bool = False,
    device: str = "cpu", **options: Any,
) -> Merged:  # fmt: skip
    """Run the plan into a folder at the address, where fuse.json is written last.

    staging: the folder to make it in, the recipe's where left out; what an interrupted run left there is gone on with.
    restart: throw that away. shown: whether to show progress. force, device, options: as `fuse.merge.merge`.
    Raises what `fuse.merge.merge` and `fuse.stores.publish.publish` raise.
    """
    address = output_address(url)
    _check_apart(plan, address)
    home = staging_for(address, staging or plan.recipe_file.parent)
    if home.is_symlink() or (home.exists() and not home.is_dir()):
        raise RecipeError("is in the way and fuse did not make it", where=home, hint="remove it yourself")
    if restart:
        _throw_away(home, home / address.name, url)
    if not (home / JOURNAL).exists():
        check_free(url, force=force)
    try:
        home.mkdir(exist_ok=True)
        folder = home / address.name
        making = normal(makes(plan, bring(plan), device))
        merged = Merged({}, len(plan.shards))
        if not _is_made(home, folder, making):
            with byte_progress(plan.bytes_written, shown=shown, name="merge") as progress:
                merged = merge(plan, folder, force=folder.exists(), progress=progress, device=device, **options)
            _note(home / MADE, json.dumps(making))
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        with byte_progress(size, shown=shown, name="upload") as progress:
            publish(folder, url, force=force, progress=progress)
        shutil.rmtree(home)
    except OSError as error:
        raise MachineError(f"cannot be written ({reason(error)})", where=error.filename or home,
                           hint="--staging DIR makes it elsewhere") from None  # fmt: skip
    finally:
        with suppress(OSError):  # nothing was left there
            home.rmdir()
    return merged


def staging_for(address: Address, parent: Path) -> Path:
    """The folder in which an output for the address is made. RecipeError where its parent does not exist."""
    if not parent.is_dir():
        raise RecipeError(f"the folder {str(parent)!r} does not exist", where="--staging", hint="make it first")
    return parent / f".{address.name}.{hashlib.sha256(str(address).encode()).hexdigest()[:8]}.staging"


def _is_made(home: Path, folder: Path, making: dict[str, Any]) -> bool:
    """Whether the staging folder holds the finished output of the same plan and inputs."""
    if not (folder / MARKER).is_file() or not (home / MADE).is_file():
        return False
    if read_object(home / MADE) != making:
        told = "holds a merge of another recipe, or of members that changed since, that was not published"
        raise RecipeError(told, where=home, hint="--restart throws it away")
    return True


def _throw_away(home: Path, folder: Path, url: str) -> None:
    """Remove the staging folder and what was sent of it; errors as `take_back`."""
    settle(folder)
    if (home / JOURNAL).exists():
        take_back(folder, url)
    with closing(Journal(home, folder)) if (home / JOURNAL).exists() else nullcontext():
        shutil.rmtree(home, ignore_errors=True)


def _note(path: Path, text: str) -> None:
    """A file whole or not at all, also after a power cut."""
    new = path.with_suffix(".new")
    with new.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)


def _check_apart(plan: Plan, address: Address) -> None:
    """RecipeError where the output and a member would lie in each other."""
    opened = [(m.name, m.checkpoint.origin) for m in plan.members] + [(one.name, one.origin) for one in plan.lenders]
    for name, origin in opened:
        if is_store(origin):
            other = address_of(origin)
            shared = min(len(other.parts), len(address.parts))
            if other.scheme == address.scheme and other.parts[:shared] == address.parts[:shared]:
                raise RecipeError(f"the output and the member {name} would lie in each other", where=address)
