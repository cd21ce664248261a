"""What an importer made of a file, checked before it is written: whole, finite, every key accounted for."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from fuse.branches.projector_files import read_projector
from fuse.branches.projector_kinds import describe
from fuse.errors import CheckpointError
from fuse.families import check_language
from fuse.grafts.kinds import files_of
from fuse.importers import Imported, Piece
from fuse.safetensors_header import TensorEntry

FLOATS = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}


def check_pieces(imported: Imported) -> None:
    """Every piece has the tensors that its kind wants, in their shapes, of finite floats."""
    if not imported.pieces:
        raise CheckpointError("holds nothing that can be imported")
    for what, piece in imported.pieces.items():
        for name, tensor in piece.tensors.items():
            key = (piece.origins.get(name) or (name,))[0]
            if tensor.dtype not in FLOATS:
                raise CheckpointError(
                    f"tensor {key!r} has dtype {str(tensor.dtype).removeprefix('torch.')}, not floats"
                )
            if not torch.isfinite(tensor).all():
                raise CheckpointError(f"tensor {key!r} holds numbers that are not finite")
        found = {name: tuple(tensor.shape) for name, tensor in piece.tensors.items()}
        if what == "language":
            check_language(piece.config, found, "")
        elif piece.kind == "linear":
            read_projector({name: _entry(name, tensor) for name, tensor in piece.tensors.items()}, Path("projector"))
        else:
            wanted = _shapes(what, piece)
            _compare(piece, found, {name: tuple(shape) for name, shape in wanted.items()})


def _shapes(what: str, piece: Piece) -> Mapping[str, tuple[int, ...]]:
    if what == "projector":
        return describe(piece.kind, piece.config, "").shapes
    try:
        return files_of(piece.kind).shapes(piece.config)
    except KeyError as error:
        raise CheckpointError(f"the {piece.kind} graft lacks {error.args[0]}") from None
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"is no {piece.kind} graft: {error}") from None


def _entry(name: str, tensor: torch.Tensor) -> TensorEntry:
    return TensorEntry(Path("projector"), name, FLOATS[tensor.dtype], tuple(tensor.shape), 0, 0)


def _compare(piece: Piece, found: Mapping[str, tuple[int, ...]], wanted: Mapping[str, tuple[int, ...]]) -> None:
    if missing := [name for name in wanted if name not in found]:
        more = f" ({len(missing)} are missing)" if len(missing) > 1 else ""
        raise CheckpointError(f"holds nothing for {missing[0]!r} of {piece.kind}{more}")
    for name, shape in found.items():
        key = piece.origins[name][0] if piece.origins.get(name) else name
        if name not in wanted:
            raise CheckpointError(f"tensor {key!r} is no part of {piece.kind} as the others make it")
        if shape != wanted[name]:
            raise CheckpointError(
                f"tensor {key!r} has shape {list(shape)}, and the others make it {list(wanted[name])}"
            )


def coverage(state: Mapping[str, Any], imported: Imported, source: Path) -> dict[str, list[tuple[str, str]]]:
    """Where every key went. Raises CheckpointError for a key that went nowhere and was not dropped."""
    went: dict[str, list[tuple[str, str]]] = {}
    for what, piece in imported.pieces.items():
        for name in piece.tensors:
            for key in piece.origins.get(name, ()):
                went.setdefault(key, []).append((what, name))
    lost = [key for key in state if key not in went and key not in imported.dropped]
    if lost:
        more = f" ({len(lost)} such tensors)" if len(lost) > 1 else ""
        raise CheckpointError(f"tensor {lost[0]!r} has no place in what is imported{more}", where=source)
    return {key: went[key] for key in state if key in went}
