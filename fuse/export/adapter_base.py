"""What an adapter is the difference of: the language model of a folder, and that of its base."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fuse.anatomy import Member, open_member
from fuse.checkpoint import fetch
from fuse.errors import CheckpointError, RecipeError
from fuse.export.folders import Opened
from fuse.export.fused_parts import take_apart
from fuse.families.family import TextFamily
from fuse.safetensors_header import TensorEntry

NAME_IT = "--base FOLDER names the model that it was merged from"
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


def base_of(source: Opened, given: str | None) -> tuple[Member, str]:
    """The base, opened and here, and how it was named: as given, else as fuse.json records it.

    Raises RecipeError where none is recorded or it is not at that place, and what `open_member` raises.
    """
    if given is not None:
        return _here(open_member("base", given, revision=None, relative_to=Path.cwd())), given
    members: Any = source.record.told.get("members")
    told = members.get("base") if isinstance(members, dict) else None
    if not isinstance(told, dict) or not isinstance(told.get("origin"), str):
        raise RecipeError("fuse.json records no base", where=source.folder, hint=NAME_IT)
    origin, revision = told["origin"], told.get("revision") or None
    if told.get("adapter"):
        raise RecipeError("fuse.json records a base that an adapter changes", where=source.folder, hint=NAME_IT)
    places = [Path.cwd() / origin, source.folder.resolve().parent / origin]
    local = next((place for place in places if place.is_dir()), None)
    if local is None and revision is None:
        told = f"the base {origin!r} that fuse.json records is not there"
        raise RecipeError(told, where=source.folder, hint=NAME_IT)
    where = str(local) if local else origin
    return _here(open_member("base", where, revision=revision, relative_to=Path.cwd())), origin


def _here(base: Member) -> Member:
    fetch(base.checkpoint, list(base.language.values()))
    return base


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
