"""`fuse import`: an official checkpoint into donor folders, with every tensor accounted for, or nothing and why."""

import hashlib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from fuse.errors import CheckpointError, RecipeError
from fuse.importers import IMPORTERS, About, Piece, kinds_of
from fuse.importers.host_record import host_config, open_host
from fuse.importers.pieces import check_pieces, coverage
from fuse.importers.read import open_source
from fuse.importers.write import write_pieces
from fuse.replaced import check_place
from fuse.suggest import did_you_mean
from fuse.unfinished import home_of, settle

MADE = ("projector.json", "graft.json", "language/config.json")  # one of them is in every import
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
    settle(out)
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
        check_pieces(sorted_)
    except CheckpointError as error:
        if error.where:
            raise
        raise type(error)(error.problem, where=source, hint=error.hint) from None
    except MISFITS as error:  # sizes of 0, tensors without dimensions, a config.json beside it that is none
        told = (str(error).strip().splitlines() or [type(error).__name__])[0][:120]
        raise CheckpointError(f"its tensors do not go together as those of {kind} do ({told})", where=source) from None
    went = coverage(opened.state, sorted_, source)
    told = {
        "file": " + ".join(file.name for file in opened.files),
        "sha256": " + ".join(_sha256(file) for file in opened.files), "tool": f"fuse import {kind}",
    }  # fmt: skip
    write_pieces(sorted_, told, member, out, force)
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
    check_place(out)


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def folded(name: str) -> str:
    """A tensor's name with `*` for its numbers, so that layers fold into one line."""
    return re.sub(r"(?<![^.])\d+(?![^.])", "*", name)
