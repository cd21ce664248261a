"""Official checkpoint files, opened without running anything in them: pickles of PyTorch, and safetensors.

Pickles are opened in a process of their own (`fuse.importers.unpickle`). Tensors stay as they are stored: half
precision and bfloat16 are not widened.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fuse import strict_json
from fuse.errors import CheckpointError, RecipeError
from fuse.importers.child import unpickled
from fuse.importers.contents import Contents, contents_of
from fuse.plain_files import open_plain
from fuse.safetensors_header import read_header

SUFFIXES = (".pth", ".pt", ".bin", ".ckpt", ".safetensors")
BESIDE = ("params.json", "adapter_config.json", "config.json")


@dataclass(frozen=True)
class Opened:
    """A checkpoint file's tensors, on the CPU, under their names without wrappers and prefixes.

    dropped: entries that are no weights, with the reason. files: what was read. beside: the JSON objects of BESIDE that
    lie in the same folder. args: the plain options of the training script, where it stored them beside the weights.
    """

    state: dict[str, torch.Tensor]
    dropped: dict[str, str]
    files: tuple[Path, ...]
    beside: dict[str, Mapping[str, Any]]
    args: dict[str, Any]


def open_source(path: Path, names: tuple[str, ...] = (), *, room: Path | None = None) -> Opened:
    """The tensors of one file, or of those of `names` that a folder holds. room: as `fuse.importers.child` takes it.

    Raises RecipeError where there is no such file, CheckpointError where it is not whole, would run code, holds no
    tensors, or holds two of one name; MachineError where the process that opens it is killed.
    """
    files = _files(path, names)
    state: dict[str, torch.Tensor] = {}
    dropped: dict[str, str] = {}
    args: dict[str, Any] = {}
    for file in files:
        held = _contents(file, room)
        args |= held.args
        for key, reason in held.dropped.items():
            dropped[key if len(files) == 1 else f"{file.name}: {key}"] = reason
        if twice := [name for name in held.state if name in state]:
            raise CheckpointError(f"tensor {twice[0]!r} is in another file of the folder too", where=file)
        state |= held.state
    if not state:
        raise CheckpointError("holds no tensors", where=path)
    folder = path if path.is_dir() else path.parent
    beside: dict[str, Mapping[str, Any]] = {
        name: strict_json.read_object(folder / name, max_bytes=1 << 20)
        for name in BESIDE if (folder / name).is_file()
    }  # fmt: skip
    return Opened(state, dropped, files, beside, args)


def _files(path: Path, names: tuple[str, ...]) -> tuple[Path, ...]:
    if not path.exists():
        raise RecipeError("there is no such file", where=path)
    if path.is_dir():
        found = tuple(path / name for name in names if (path / name).is_file())
        if not found:
            told = f"holds none of {', '.join(names)}" if names else "is a folder"
            raise RecipeError(told, where=path, hint="name the checkpoint file itself")
        return found
    if not path.is_file():
        raise RecipeError("is no plain file", where=path)
    if path.suffix.lower() not in SUFFIXES:
        raise RecipeError(f"has suffix {path.suffix!r}", where=path, hint=f"fuse imports {', '.join(SUFFIXES)}")
    return (path,)


def _contents(file: Path, room: Path | None) -> Contents:
    with open_plain(file) as stream:
        start = stream.read(16)
    if file.suffix.lower() == ".safetensors":
        from safetensors.torch import load_file

        read_header(file)  # whatever is wrong with it is said in one sentence
        try:
            return contents_of(load_file(file))
        except CheckpointError as error:
            raise type(error)(error.problem, where=file, hint=error.hint) from None
    if start.startswith(b"version "):
        raise CheckpointError(
            "this is a git-lfs pointer, not the weights", where=file, hint="run `git lfs pull` in that folder"
        )
    if not start:
        raise CheckpointError("is empty", where=file)
    if start[8:9] == b"{":
        raise CheckpointError("looks like safetensors", where=file, hint="call it .safetensors")
    if not start.startswith((b"PK\x03\x04", b"\x80")):
        raise CheckpointError("is no checkpoint of PyTorch: it begins neither as a zip nor as a pickle", where=file)
    return unpickled(file, room)
