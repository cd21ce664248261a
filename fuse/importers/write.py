"""The folder that an import makes: graft, projector and language model, each with what is known of it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from fuse import strict_json
from fuse.anatomy import Member
from fuse.checkpoint import free_bytes
from fuse.errors import MachineError
from fuse.importers import Imported, Piece
from fuse.importers.host_record import host_record
from fuse.output import SMALL_FILES
from fuse.partial import new_folder
from fuse.small_files import COPIED, copy_small, without_code, write_json

FORMAT = 1


def write_pieces(imported: Imported, source: Mapping[str, str], host: Member | None, out: Path, force: bool) -> None:
    need, free = sum(map(nbytes, imported.pieces.values())) + SMALL_FILES, free_bytes(out.parent)
    if need > free:
        raise MachineError(f"the output needs {need:,} bytes and the disk has {free:,} free", where=out)
    with new_folder(out, force=force) as folder:
        for name, value in imported.beside.items():
            write_json(folder / name, without_code(value))
        for what, piece in imported.pieces.items():
            if what == "language":
                (folder / what).mkdir()
                _save(piece, folder / what / "model.safetensors")
                for name in COPIED if host else ():
                    if host and (host.folder / name).is_file():
                        copy_small(host.folder / name, folder / what / name)
                write_json(folder / what / "config.json", piece.config)
                _add_generation(folder / what / "generation_config.json", imported.generation)
            else:
                if piece.tensors:  # LLaMA-Adapter's projector has none
                    _save(piece, folder / f"{what}.safetensors")
                told = {"format": FORMAT, "kind": piece.kind, "config": piece.config}
                write_json(folder / f"{what}.json", told | {"host": host_record(piece, host), "source": dict(source)})


def _add_generation(file: Path, told: Mapping[str, Any]) -> None:
    if told:
        write_json(file, {**(strict_json.read_object(file) if file.is_file() else {}), **told})


def _save(piece: Piece, file: Path) -> None:
    """The tensors by name, each with a storage of its own."""
    from safetensors.torch import save_file

    seen: set[int] = set()
    tensors: dict[str, torch.Tensor] = {}
    for name in sorted(piece.tensors):
        tensor = piece.tensors[name].contiguous()
        shared = tensor.untyped_storage().data_ptr() in seen
        tensors[name] = tensor.clone() if shared else tensor
        seen.add(tensor.untyped_storage().data_ptr())
    save_file(tensors, file, metadata={"format": "pt"})


def nbytes(piece: Piece) -> int:
    """Bytes of a piece's tensors."""
    return sum(tensor.numel() * tensor.element_size() for tensor in piece.tensors.values())
