"""What an adapter is the difference of: the language model of a folder, and that of its base."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fuse.anatomy import Member, open_member
from fuse.checkpoint import fetch
from fuse.digests import RECORD
from fuse.errors import CheckpointError, RecipeError
from fuse.export.folders import Opened
from fuse.export.fused_parts import take_apart
from fuse.export.intact import compared
from fuse.families.family import TextFamily
from fuse.safetensors_header import TensorEntry
from fuse.stores.address import is_store

NAME_IT = "--base FOLDER names the model that it was merged from"
SHOWN = 12  # hex digits of a hash
EYES = ("encoder", "projector", "extra")


@dataclass(frozen=True)
class Merged:
    """language: by canonical name. eyes: encoder, projector and the rest of a VLM of one class, by canonical name;
    beside: how many tensors of branches and grafts a fused folder has.
    """

    text: TextFamily
    language: Mapping[str, TensorEntry]
    eyes: Mapping[str, TensorEntry]
    beside: int = 0


def merged_of(source: Opened) -> Merged:
    """The language model of a finished folder. Raises CheckpointError for tensors that are not as its config says."""
    if source.is_fused:
        parts = take_apart(source.folder, source.config)
        beside = sum(len(tensors) for room in (parts.branches, parts.grafts) for tensors in room.values())
        return Merged(parts.text, parts.language, {}, beside)
    member = open_member("output", str(source.folder.resolve()), revision=None, relative_to=source.folder)
    return Merged(member.text, member.language, eyes_of(member))


def eyes_of(member: Member) -> dict[str, TensorEntry]:
    """Everything of a member that is not its language model."""
    return {name: entry for part in EYES for name, entry in member.parts[part].items()}  # pyright: ignore


@dataclass(frozen=True)
class Base:
    """The base, opened and here. named: as loaders find it, a path or a hub id. hub_id: "" where it is not on the hub.

    recorded: its files of weights with the sha256 that fuse.json has of them, where it is to be the one recorded and
    nothing else tells. places: folders here that must not be written to: its own, and where the recorded one may be.
    """

    member: Member
    named: str
    hub_id: str
    recorded: Mapping[Path, str]
    places: tuple[Path, ...]


def base_of(source: Opened, given: str | None) -> Base:
    """The base: the one that is given, whichever that is, else the one that fuse.json records.

    Raises RecipeError where none is recorded or it is not at that place, CheckpointError where its files of weights
    have other names than those recorded, and what `open_member` raises.
    """
    members: Any = source.record.told.get("members")
    told = members.get("base") if isinstance(members, dict) else None
    told = told if isinstance(told, dict) and isinstance(told.get("origin"), str) else {}
    places = _places(source, told["origin"]) if told else []
    if given is not None:
        return _opened(given, None, given, {}, places)
    if not told:
        raise RecipeError("fuse.json records no base", where=source.folder, hint=NAME_IT)
    origin, revision = told["origin"], told.get("revision") or None
    if told.get("adapter"):
        raise RecipeError("fuse.json records a base that an adapter changes", where=source.folder, hint=NAME_IT)
    if revision is None and not places:
        problem = f"the base {origin!r} that fuse.json records is not there"
        raise RecipeError(problem, where=source.folder, hint=NAME_IT)
    named = str(places[0]) if places and revision is None else origin
    sha256 = told.get("sha256") if revision is None else None  # a commit tells the bytes
    return _opened(named, revision, named, sha256 if isinstance(sha256, dict) else {}, places)


def _places(source: Opened, origin: str) -> list[Path]:
    """The folders here that the recorded base may be: as seen from here, and from beside the folder."""
    here, beside = Path.cwd(), Path(os.path.normpath(source.folder.resolve().parent / origin))
    beside = beside.relative_to(here) if beside.is_relative_to(here) else beside
    return [place for place in (Path(origin), beside) if place.is_dir()]


def _opened(
    where: str, revision: str | None, named: str, sha256: Mapping[str, Any], places: list[Path]
) -> Base:  # fmt: skip
    member = open_member("base", where, revision=revision, relative_to=None)
    checkpoint = member.checkpoint
    fetch(checkpoint, list(member.language.values()))
    files = {file.name: file for file in checkpoint.weight_files}
    if sha256 and files.keys() != sha256.keys():
        odd = min(files.keys() ^ sha256.keys())
        told = f"has other files of weights than the base that {RECORD} records, the first {odd}"
        raise CheckpointError(told, where=named, hint=NAME_IT)
    on_hub = checkpoint.revision and not is_store(checkpoint.origin)
    hub_id = checkpoint.origin.removeprefix("hf://") if on_hub else ""
    recorded = {files[name]: str(told) for name, told in sha256.items()}
    return Base(member, hub_id or named, hub_id, recorded, (member.folder, *places))


@contextmanager
def as_recorded(base: Base) -> Iterator[None]:
    """While the block works, a base that fuse.json records is hashed. Raises CheckpointError for another one."""

    def wrong(file: Path, found: str) -> CheckpointError:
        there = f"its sha256 is {found[:SHOWN]}..., and {RECORD} records {base.recorded[file][:SHOWN]}..."
        return CheckpointError(f"is not of the base that it was merged from: {there}", where=file, hint=NAME_IT)

    with compared(base.recorded, wrong):
        yield


def check_alike(merged: Merged, base: Member, folder: Path) -> None:
    """CheckpointError where the two language models do not have the same tensors in the same shapes."""
    if merged.text.name != base.text.name:
        told = f"its language model is a {merged.text.name}, and that of the base a {base.text.name}"
        raise CheckpointError(told, where=folder, hint=NAME_IT)
    for name, entry in merged.language.items():
        other = base.language.get(name)
        if other is None:
            told = f"tensor {name!r} has none beside it in the base, and an adapter adds no tensors to a model"
            raise CheckpointError(told, where=folder, hint=NAME_IT)
        if other.shape != entry.shape:
            told = f"tensor {name!r} has shape {list(entry.shape)}, and that of the base {list(other.shape)}"
            raise CheckpointError(f"{told}: an adapter changes no shape", where=folder, hint=NAME_IT)
    if lost := [name for name in base.language if name not in merged.language]:
        told = f"the base has the tensor {lost[0]!r}, and the folder has none"
        raise CheckpointError(f"{told}: an adapter takes no tensors away", where=folder, hint=NAME_IT)
