"""Folders for the tests of `fuse verify`: made by `fuse merge`, then damaged."""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from threading import Event
from typing import Any

from fuse.digests import ends_of, file_digest, small_files
from fuse.safetensors_header import TensorEntry, read_header
from tests.cli import Ran, fuse_here


def merged(folder: Path, recipe: str, *more: object) -> Path:
    """The folder `out` that the recipe makes."""
    (folder / "recipe.yaml").write_text(recipe)
    ran = fuse_here("merge", folder / "recipe.yaml", folder / "out", *more)
    assert ran.code == 0, ran.err
    return folder / "out"


def hashed(folder: Path) -> None:
    """Make the record of fuse.json anew from the files as they are now."""
    told = json.loads((folder / "fuse.json").read_text())
    found = {
        file.name: file_digest(file, ends_of(read_header(file).values()), Event())
        for file in sorted(folder.glob("*.safetensors"))
    }
    told |= {"sha256": {name: digest.sha256 for name, digest in found.items()},
             "marks": {name: digest.marks for name, digest in found.items()},
             "files": small_files(folder)}  # fmt: skip
    (folder / "fuse.json").write_text(json.dumps(told, indent=2))


def unrecorded(folder: Path, *keys: str) -> None:
    """Take keys out of fuse.json."""
    edited(folder / "fuse.json", lambda told: [told.pop(key, None) for key in keys])


def edited(file: Path, change: Callable[[Any], object]) -> None:
    """Change a JSON file."""
    value = json.loads(file.read_text())
    change(value)
    file.write_text(json.dumps(value))


def flip(file: Path, byte: int, bit: int = 0) -> None:
    """Turn one bit of a file around."""
    data = bytearray(file.read_bytes())
    data[byte] ^= 1 << bit
    file.write_bytes(data)


def tensor(folder: Path, name: str) -> TensorEntry:
    """Where a tensor lies."""
    return next(e for file in folder.glob("*.safetensors") for e in read_header(file).values() if e.name == name)


def plant(entry: TensorEntry, element: int, value: float) -> None:
    """Write one number into a float32 tensor."""
    assert entry.dtype == "F32"
    data = bytearray(entry.file.read_bytes())
    struct.pack_into("<f", data, entry.begin + 4 * element, value)
    entry.file.write_bytes(data)


def verify(folder: Path, *options: object) -> Ran:
    return fuse_here("verify", folder, *options)


def outcomes(ran: Ran) -> dict[str, str]:
    """check -> outcome of a run with --json."""
    return {row["check"]: row["outcome"] for row in json.loads(ran.out)["checks"]}


def config_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text())
