"""The folder that is exported, and the one that it is written to."""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fuse import strict_json
from fuse.digests import RECORD
from fuse.errors import CheckpointError, RecipeError
from fuse.replaced import check_place
from fuse.unfinished import settle
from fuse.verify.listing import check_files
from fuse.verify.record import Record, read_record

CONFIG = "config.json"
MAX_CONFIG = 16 << 20


@dataclass(frozen=True)
class Opened:
    """A folder that fuse wrote, with its record and its config."""

    folder: Path
    record: Record
    config: dict[str, Any]

    @property
    def is_fused(self) -> bool:
        return self.config.get("model_type") == "fuse"


def opened(folder: Path) -> Opened:
    """A folder whose small files are as its record says.

    Raises RecipeError for what fuse did not write, CheckpointError for a file that is not as it was written.
    """
    if not folder.is_dir():
        raise RecipeError("there is no such folder", where=folder)
    record = read_record(folder)
    if record is None:
        raise RecipeError(f"the folder has no {RECORD}", where=folder, hint="export what `fuse merge` wrote")
    check_files(folder, record)
    if not (folder / CONFIG).is_file():
        raise RecipeError(f"the folder has no {CONFIG}, so it is no model", where=folder)
    config = strict_json.read_object(folder / CONFIG, max_bytes=MAX_CONFIG)
    if not isinstance(config.get("model_type"), str):
        raise CheckpointError("model_type is missing", where=folder / CONFIG)
    return Opened(folder, record, config)


def check_target(folder: Path, out: Path, *, force: bool) -> None:
    """Refuse an output that is there (unless forced), that fuse did not make, or that lies in the folder or in another
    output; and, forced or not, one that holds a file which fuse did not write.
    """
    settle(out)
    if out.is_symlink():
        raise RecipeError("the output is a link", where=out, hint="name the folder itself")
    if out.exists() and not force:
        raise RecipeError("the output already exists", where=out, hint="choose another folder, or --force")
    if not out.parent.is_dir():
        raise RecipeError(f"the folder {str(out.parent)!r} does not exist", where=out, hint="make it first")
    check_apart(out, folder, "the folder")
    if out.exists() and not (out / RECORD).exists() and (not out.is_dir() or any(out.iterdir())):
        raise RecipeError(f"the output exists and fuse did not make it (it has no {RECORD})", where=out,
                          hint="choose another folder, or remove it yourself")  # fmt: skip
    check_place(out)


def check_apart(out: Path, folder: Path, what: str) -> None:
    """RecipeError where an output would be a folder, lie in it, or it in the output. what: the folder, in words."""
    real, other = out.resolve(), folder.resolve()
    if real == other or other in real.parents or real in other.parents:
        raise RecipeError(f"the output and {what} would lie in each other", where=out)


def link(source: Path, target: Path) -> None:
    """The same bytes at another place: a hard link, or a copy where there can be none."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source.resolve(), target)
    except OSError:
        copy(source, target)


def copy(source: Path, target: Path) -> None:
    """A copy of a file; the folder around it is made."""
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
