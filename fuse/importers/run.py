"""`fuse import`: an official checkpoint into donor folders, with every tensor accounted for, or nothing and why."""

import hashlib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from fuse import strict_json
from fuse.anatomy import Member
from fuse.branches.projector_files import read_projector
from fuse.branches.projector_kinds import describe
from fuse.checkpoint import free_bytes
from fuse.errors import CheckpointError, MachineError, RecipeError
from fuse.families import check_language
from fuse.grafts.kinds import files_of
from fuse.importers import IMPORTERS, About, Imported, Piece, kinds_of
from fuse.importers.host_record import host_config, host_record, open_host
from fuse.importers.read import open_source
from fuse.output import SMALL_FILES
from fuse.partial import new_folder
from fuse.safetensors_header import TensorEntry
from fuse.small_files import COPIED, copy_small, without_code, write_json
from fuse.suggest import did_you_mean
from fuse.unfinished import home_of

FORMAT = 1
MADE = ("projector.json", "graft.json", "language/config.json")  # one of them is in every import
FLOATS = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
MISFITS = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, RuntimeError)


@dataclass(frozen=True)
class Report:
    """What an import did. went: key of the file -> (piece, new name) of every tensor that it is an origin of."""

    source: dict[str, str]
    pieces: dict[str, Piece]
    went: dict[str, list[tuple[str, str]]]
    dropped: dict[str, str]


def import_file(
    kind: str, source: Path, out: Path, *, host: Path | None = None, options: Mapping[str, str] | None = None,
    force: bool = False,
) -> Report:  # fmt: skip
    """Sort a checkpoint file into the folder `out`, which appears whole or not at all.

    Raises RecipeError for what the caller says wrongly, CheckpointError for a file that is not what it is said to be,
    MachineError where there is no room.
    """
    if kind not in IMPORTERS:
        raise RecipeError(f"there is no kind {kind!r} of checkpoint ({did_you_mean(kind, IMPORTERS)})")
    row = IMPORTERS[kind]
    importer = import_module(f"fuse.importers.{row.module}")
    chosen = _options(kind, getattr(importer, "OPTIONS", {}), options or {})
    _check_target(out, [source, *([host] if host else [])], force)
    member = open_host(host) if host else None
    opened = open_source(source, row.files, room=out.parent)
    looks = kinds_of(opened.state)
    if looks and kind not in looks:
        raise CheckpointError(f"is no {kind} file: it holds the tensors of {looks[0]}", where=source,
                              hint=f"fuse import {looks[0]}")  # fmt: skip
    about = About(chosen, opened.beside, host_config(member) if member else {}, opened.args)
    try:
        sorted_ = importer.sort_keys(opened.state, about)
        _check_pieces(sorted_)
    except CheckpointError as error:
        if error.where:
            raise
        raise type(error)(error.problem, where=source, hint=error.hint) from None
    except MISFITS as error:  # sizes of 0, tensors without dimensions, a config.json beside it that is none
        told = (str(error).strip().splitlines() or [type(error).__name__])[0][:120]
        raise CheckpointError(f"its tensors do not go together as those of {kind} do ({told})", where=source) from None
    went = _coverage(opened.state, sorted_, source)
    told = {
        "file": " + ".join(file.name for file in opened.files),
        "sha256": " + ".join(_sha256(file) for file in opened.files), "tool": f"fuse import {kind}",
    }  # fmt: skip
    _write(sorted_, told, member, out, force)
    return Report(told, sorted_.pieces, went, {**opened.dropped, **sorted_.dropped})


def _options(kind: str, known: Mapping[str, tuple[Any, ...]], given: Mapping[str, str]) -> dict[str, Any]:
    """The options of `--set`: one of the values that the importer names, else a number where it is one, else a text."""
    found: dict[str, Any] = {}
    for key, text in given.items():
        if key not in known:
            hint = did_you_mean(key, known) if known else "it takes none"
            raise RecipeError(f"the import of {kind} has no option {key!r}", where="--set", hint=hint)
        values = {str(value).lower(): value for value in known[key]}
        if values and text.lower() not in values:
            told = f"{key} is {text!r}, not one of {', '.join(values)}"
            raise RecipeError(told, where="--set")
        found[key] = values[text.lower()] if values else _number(text)
    return found


def _number(text: str) -> int | float | str:
    for kind in (int, float):
        try:
            value = kind(text)
        except ValueError:
            continue
        return value if abs(value) < math.inf else text
    return text


def _check_target(out: Path, inputs: list[Path], force: bool) -> None:
    home_of(out)  # refuses what is no name
    if out.is_symlink():
        raise RecipeError("the output is a link", where=out, hint="name the folder itself")
    if out.exists() and (not force or not out.is_dir()):
        raise RecipeError("the output already exists", where=out, hint="choose another folder, or --force")
    if not out.parent.is_dir():
        raise RecipeError(f"the folder {str(out.parent)!r} does not exist", where=out, hint="make it first")
    real = out.resolve()
    for path in (path.resolve() for path in inputs):
        if real == path or real in path.parents or (path.is_dir() and path in real.parents):
            raise RecipeError(f"the output and {path.name} would lie in each other", where=out)
    if out.exists() and any(out.iterdir()) and not any((out / name).is_file() for name in MADE):
        hint = "choose another folder, or remove it yourself"
        raise RecipeError("the output exists and fuse import did not make it", where=out, hint=hint)


def _check_pieces(imported: Imported) -> None:
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


def _coverage(state: Mapping[str, Any], imported: Imported, source: Path) -> dict[str, list[tuple[str, str]]]:
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


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _write(imported: Imported, source: Mapping[str, str], host: Member | None, out: Path, force: bool) -> None:
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


def folded(name: str) -> str:
    """A tensor's name with `*` for its numbers, so that layers fold into one line."""
    return re.sub(r"(?<![^.])\d+(?![^.])", "*", name)
