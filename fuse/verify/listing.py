"""Which files a folder holds: none half-written, none that runs code, none beside those that were recorded."""

import os
from collections.abc import Collection, Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from fuse import strict_json
from fuse.checkpoint import INDEX, LEGACY
from fuse.code_keys import CODE_KEYS
from fuse.digests import CARD, RECORD, file_sha256
from fuse.errors import CheckpointError, MachineError
from fuse.folder_links import inside
from fuse.sizes import counted
from fuse.verify.outcome import Outcome
from fuse.verify.record import Record

HALF_WRITTEN = ("*.partial", "*.partial/*", "*.tmp", "*.incomplete", "*.part")
CODE = {".py", ".pyc", ".pyo", ".pyd", ".so", ".dll", ".dylib"}
# what no loader reads, so that it may lie beside what was recorded
HARMLESS = {".md", ".png", ".jpg", ".jpeg", ".gif", ".svg", ".pdf", ".html", ".yaml", ".yml"}
PLAIN = {"LICENSE", "LICENSE.txt", "NOTICE", "NOTICE.txt", "USE_POLICY"}
NO_CONFIGS = {"tokenizer.json", "vocab.json", INDEX, RECORD}  # large tables, and our own
MAX_CONFIG = 16 << 20
MAX_FILES = 100_000


def check_files(folder: Path, record: Record | None, *, weights: Collection[str] = ()) -> Outcome:
    """Every file of the folder has a reason to be there, and the small ones are those that were recorded.

    weights: files that are not small, whose bytes are for another check. Raises CheckpointError for a half-written
    file, a link out of the folder, code that fuse.json does not record, a JSON file that names code, and for a small
    file that is missing, was not recorded or differs from the record; MachineError for a folder that may not be read.
    """
    names = _names(folder)
    for name in names:
        if any(fnmatchcase(name, pattern) for pattern in HALF_WRITTEN):
            raise CheckpointError("is half-written", where=folder / name, hint="remove it, or make the folder again")
    _check_code(folder, names, record)
    if record is None:
        return Outcome(f"{counted(len(names), 'file')}, none half-written, none that runs code")
    for name in sorted(names):
        if name not in weights and any(fnmatchcase(Path(name).name, pattern) for pattern in LEGACY):
            raise CheckpointError("holds weights in a format that fuse does not write", where=folder / name)
    if not record.files:
        return Outcome(f"{counted(len(names), 'file')}, none half-written, none that runs code; the small ones were "
                       "not recorded")  # fmt: skip
    for name, sha256 in record.files.items():
        if name not in names:
            raise CheckpointError(f"is missing, and {RECORD} records it", where=folder / name)
        if sha256 and name not in weights and _sha256(folder / name) != sha256:
            raise CheckpointError(f"is not as {RECORD} records it", where=folder / name)
    known = {*record.files, *record.sha256, *record.code, RECORD, CARD}
    for name in sorted(names):
        if name not in known and not _is_harmless(name) and not name.endswith(".safetensors"):
            raise CheckpointError(f"is a file that {RECORD} does not record", where=folder / name,
                                  hint="loaders may read it; take it out of the folder")  # fmt: skip
    if not (small := len(record.files.keys() - set(weights))):
        return Outcome("none beside the weights that loaders read")
    return Outcome(f"{counted(small, 'small file')} as recorded, none beside them that loaders read")


def _names(folder: Path) -> set[str]:
    """Every file below the folder, by its path in it. Hidden folders and links to folders are not gone into."""
    names: set[str] = set()
    count, todo = 0, [""]
    while todo:
        at = todo.pop()
        try:
            with os.scandir(folder / at) as entries:
                for entry in entries:
                    count += 1
                    if count > MAX_FILES:
                        raise CheckpointError(f"holds more than {MAX_FILES:,} files", where=folder)
                    if entry.is_symlink():
                        inside(folder, Path(entry.path))
                    if entry.is_dir(follow_symlinks=False):
                        todo += [] if entry.name.startswith(".") else [f"{at}{entry.name}/"]
                    elif entry.is_file() or entry.is_dir():
                        names.add(f"{at}{entry.name}")
                    else:
                        raise CheckpointError("is neither a file nor a folder", where=entry.path)
        except OSError as error:
            raise MachineError(f"cannot be read ({error.strerror})", where=folder / at) from None
    return names


def _sha256(path: Path) -> str:
    if path.is_dir():  # by a link
        raise CheckpointError(f"is a folder, and {RECORD} records a file", where=path)
    return file_sha256(path)


def _is_harmless(name: str) -> bool:
    path = Path(name)
    return path.name in PLAIN or path.suffix.lower() in HARMLESS or path.name.startswith(".")


def _check_code(folder: Path, names: set[str], record: Record | None) -> None:
    """No file is code and no config names any, but for what fuse.json records by its sha256. Nothing is run."""
    code = record.code if record else {}
    for name, sha256 in code.items():
        if name not in names:
            raise CheckpointError(f"is missing, and {RECORD} records it", where=folder / name)
        if _sha256(folder / name) != sha256:
            raise CheckpointError(f"is code, and not as {RECORD} records it", where=folder / name)
    for name in sorted(names):
        if Path(name).suffix.lower() in CODE and name not in code:
            raise CheckpointError(f"is code that {RECORD} does not record", where=folder / name,
                                  hint="do not load this folder with trust_remote_code")  # fmt: skip
    for name in sorted(names):
        if not name.endswith(".json") or Path(name).name in NO_CONFIGS:
            continue
        for at, key, value in _code_keys(strict_json.read_object(folder / name, max_bytes=MAX_CONFIG)):
            if key != "auto_map":
                if value:
                    raise CheckpointError(f"{at} asks to run code from the folder", where=folder / name)
                continue
            for told in _modules(value):
                file = (Path(name).parent / f"{told.split('.')[0]}.py").as_posix()
                if file not in code:
                    raise CheckpointError(f"{at} names the code {told!r}, which {RECORD} does not record",
                                          where=folder / name)  # fmt: skip


def _code_keys(value: Any, at: str = "") -> Iterator[tuple[str, str, Any]]:
    """(place, key, value) of every key that names code, at any depth."""
    todo: list[tuple[str, Any]] = [(at, value)]
    while todo:
        at, value = todo.pop()
        if isinstance(value, list):
            todo += [(f"{at}[{i}]", item) for i, item in enumerate(value) if isinstance(item, dict | list)]
        elif isinstance(value, dict):
            for key, item in value.items():
                place = f"{at}.{key}" if at else key
                if key in CODE_KEYS:
                    yield place, key, item
                todo.append((place, item))


def _modules(value: Any) -> list[str]:
    """The classes that an auto_map names, as `module.Class`."""
    if isinstance(value, dict):
        return [told for item in value.values() for told in _modules(item)]
    if isinstance(value, list):
        return [told for item in value for told in _modules(item)]
    return [] if value is None else [str(value)]
