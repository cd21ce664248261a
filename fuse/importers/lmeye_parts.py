"""What both generations of LMEye's files need to be sorted: checks, frozen parts of other folders, what is left."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fuse.checkpoint import fetch, open_checkpoint
from fuse.errors import CheckpointError
from fuse.importers import Piece

if TYPE_CHECKING:
    from torch import Tensor


def in_folder(what: str, named: str, parts: Sequence[str]) -> tuple[dict[str, Tensor], Mapping[str, Any], Path]:
    """(tensors whose names begin with one of `parts`, config.json, folder) of a folder or hub id that an option names.

    Raises CheckpointError where it holds no such tensors, RecipeError where there is no such folder.
    """
    from safetensors import safe_open

    opened = open_checkpoint(what, named, revision=None, relative_to=None)
    entries = {name: entry for name, entry in opened.tensors.items() if name.startswith(tuple(parts))}
    if not entries:
        raise CheckpointError(f"holds none of {', '.join(parts)}, which --set {what} is for", where=opened.folder)
    fetch(opened)
    found: dict[str, Tensor] = {}
    for file in sorted({entry.file for entry in entries.values()}):
        with safe_open(file, "pt") as stored:
            found |= {name: stored.get_tensor(name) for name, entry in entries.items() if entry.file == file}
    return found, opened.config, opened.folder


def need(found: Mapping[str, Any], *wanted: str) -> None:
    """CheckpointError for a tensor that is not there."""
    if missing := [name for name in wanted if name not in found]:
        raise CheckpointError(f"has no {missing[0]!r}, which LMEye's network needs")


def check(name: str, tensor: Tensor, shape: Sequence[int | None]) -> None:
    """CheckpointError for a tensor of another shape; None: any size."""
    good = tensor.ndim == len(shape) and all(w in (None, n) for w, n in zip(shape, tensor.shape, strict=True))
    if not good or not tensor.is_floating_point():
        want = " x ".join("any" if one is None else str(one) for one in shape)
        told = f"{name} has shape {' x '.join(map(str, tensor.shape)) or 'of one number'}, and {want} is needed"
        raise CheckpointError(told)


def rest(state: Mapping[str, Tensor], pieces: list[Piece], reasons: Mapping[str, str]) -> dict[str, str]:
    """The keys that no piece was made of, with the reason; CheckpointError for one that LMEye's files do not have."""
    used = {key for piece in pieces for keys in piece.origins.values() for key in keys}
    dropped = {}
    for key in state:
        if key not in used:
            why = next((why for start, why in reasons.items() if key.startswith(start)), "")
            if not why:
                raise CheckpointError(f"has a key {key!r}, which LMEye's files do not have")
            dropped[key] = why
    return dropped
