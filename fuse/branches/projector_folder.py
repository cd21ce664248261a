"""The projector of an encoder branch as a recipe names it: a file of linear layers, or a projector folder.

A projector folder holds projector.json and projector.safetensors (`fuse import` writes them). Only headers are read.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fuse import strict_json
from fuse.branches.projector_files import read_projector
from fuse.branches.projector_kinds import Described, describe
from fuse.errors import CheckpointError
from fuse.safetensors_header import FLOAT_BYTES, TensorEntry, read_header

JSON, WEIGHTS, FORMAT, LINEAR = "projector.json", "projector.safetensors", 1, "linear"
Placed = tuple[TensorEntry, str | None, str]


@dataclass(frozen=True)
class Given:
    """A projector from files.

    config: what goes into the branch's JSON. placed: every stored tensor with its name in the branch, or None and why.
    width, hidden_size: numbers of one feature that it reads and of one token that it gives. kind: None where it is
    linear layers. host: what a folder says of the language model that it was trained for.
    """

    config: dict[str, Any]
    placed: tuple[Placed, ...]
    width: int
    hidden_size: int
    kind: Described | None
    host: Mapping[str, Any]
    where: Path


def linear_projector(file: Path, host: Mapping[str, Any] | None = None) -> Given:
    """A file of linear layers with GELU between them. Raises CheckpointError for what is no such file."""
    found = read_projector(read_header(file), file)
    config = {"projector": list(found.layers), "projector_names": list(found.names)}
    first, last = found.layers[0], found.layers[-1]
    return Given(config, found.placed, int(first["in"]), int(last["out"]), None, host or {}, file)


def open_projector(folder: Path) -> Given:
    """A projector folder. Raises CheckpointError for a folder that holds none, or one that is not whole."""
    where = folder / JSON
    if not where.is_file():
        raise CheckpointError(f"holds no {JSON}", where=folder, hint="`fuse import` writes it, or name one file")
    told = strict_json.read_object(where, max_bytes=16 << 20)
    if told.get("format") != FORMAT:
        raise CheckpointError(f"has format {told.get('format')!r}, and fuse reads {FORMAT}", where=where)
    host = told.get("host")
    if not isinstance(host, dict | None):
        raise CheckpointError(f"host is {host!r}, not an object", where=where)
    if told.get("kind") == LINEAR:
        return linear_projector(folder / WEIGHTS, host)
    kind = describe(told.get("kind"), told.get("config"), where)
    tensors = read_header(folder / WEIGHTS) if kind.shapes or (folder / WEIGHTS).exists() else {}
    _check(kind, tensors, folder / WEIGHTS)
    placed = tuple((entry, f"projector.{name}", "") for name, entry in tensors.items())
    config = {"projector": {"kind": kind.kind, "config": dict(kind.config)}}
    return Given(config, placed, kind.width, kind.hidden_size, kind, host or {}, where)


def _check(kind: Described, tensors: Mapping[str, TensorEntry], file: Path) -> None:
    for name, shape in kind.shapes.items():
        if name not in tensors:
            raise CheckpointError(f"tensor {name!r} is missing, and {JSON} promises it", where=file)
        if tensors[name].shape != tuple(shape):
            told = f"tensor {name!r} has shape {list(tensors[name].shape)}, and {JSON} makes it {list(shape)}"
            raise CheckpointError(told, where=file)
    for name, entry in tensors.items():
        if name not in kind.shapes:
            raise CheckpointError(f"tensor {name!r} is not part of this {kind.kind} projector", where=file)
        if entry.dtype not in FLOAT_BYTES:
            raise CheckpointError(f"tensor {name!r} has dtype {entry.dtype}, not floats", where=file)
