"""The bridges of grafts and projectors: the language model that each was cut from, opened, and what a bridge needs."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fuse.anatomy import Member, open_member
from fuse.branches.projector_folder import Given
from fuse.errors import CheckpointError, FuseError, RecipeError
from fuse.fused import Bridging, Turned
from fuse.grafts.basis import why_another_basis
from fuse.grafts.bridge_files import LEAST_R2, bridge_config, shapes
from fuse.grafts.bridge_fold_files import projector_over, token_bridge
from fuse.grafts.donor import JSON, Donor
from fuse.recipe_graft import Bridge, Graft
from fuse.recipe_vision import Branch
from fuse.recipe_yaml import LoadedRecipe
from fuse.sizes import counted, size_text

LEAST_TEXTS = 5  # every fifth is held out
MOST_BYTES = 64 << 20


def open_bridge(
    loaded: LoadedRecipe, number: int, entry: Graft, donor: Donor, config: Mapping[str, Any], host: Member
) -> Bridging:
    """The bridge that entry `number` of the recipe's grafts names.

    config: the graft's, as configured. Raises RecipeError for texts or a graft that cannot be used, CheckpointError for
    a language model that is not the one that the donor was cut from.
    """
    assert entry.bridge is not None
    at, name = ("grafts", number, "bridge"), entry.name or donor.kind
    own = _own_host(loaded, at, name, entry.bridge, donor.host, donor.folder / JSON)
    if why := donor.files.why_not(config, own.basis):
        raise CheckpointError(f"{name} cannot be grafted into {own.name}: {why}", where=donor.folder)
    if made := [key for key in donor.files.shapes(config) if key not in donor.tensors]:
        told = f"{name} cannot cross to another basis: {made[0]} and others are made from the host that it is put into"
        raise loaded.error(at, told)
    try:
        told = bridge_config(donor.kind, config, entry.bridge.method, own, host)
    except ValueError as error:
        raise loaded.error(at, f"{name} cannot cross to {host.name}: {error}") from None
    texts, digest = _texts(loaded, at, entry.bridge.texts) if entry.bridge.texts else ((), "")
    return Bridging(told, shapes(told), own, texts, digest, _least(entry.accept_r2))


def cross_projector(
    loaded: LoadedRecipe, number: int, entry: Branch, given: Given, config: Mapping[str, Any], host: Member
) -> tuple[Bridging, dict[str, Any], dict[str, Turned]]:
    """The bridge of entry `number` of the recipe's branches, which is in its projector: the branch's JSON afterwards,
    and what becomes of its tensors.

    given: the projector. config: the branch's JSON before. Raises RecipeError for texts or a projector that cannot be
    used, CheckpointError for a language model that the projector was not trained for.
    """
    assert entry.bridge is not None
    at, name = ("vision", number, "bridge"), f"the projector of {entry.name}"
    if len(entry.projectors) > 1:
        raise loaded.error(at, "brings one projector over, and there are several to be averaged")
    own = _own_host(loaded, at, name, entry.bridge, given.host, given.where)
    if given.hidden_size != own.basis.hidden_size:
        told = f"{name} gives tokens of {given.hidden_size} numbers, and {own.name} reads {own.basis.hidden_size}"
        raise CheckpointError(
            told, where=given.where, hint=f"`host` of a bridge is what {given.where.name} was made for"
        )
    try:
        told, turned = projector_over(config, host.basis.hidden_size)
    except ValueError as error:
        raise loaded.error(at, f"{name} cannot cross to {host.name}: {error}") from None
    texts, digest = _texts(loaded, at, entry.bridge.texts) if entry.bridge.texts else ((), "")
    bridge = token_bridge(entry.bridge.method, own, host)
    made = Bridging(bridge, {}, own, texts, digest, _least(entry.accept_r2), folded=True, whole=False)
    return made, told, turned


def _own_host(
    loaded: LoadedRecipe, at: tuple[str | int, ...], name: str, bridge: Bridge, record: Mapping[str, Any], where: Path
) -> Member:
    """The language model that a donor was cut from. record: what the donor says of it, at `where`."""
    try:
        own = open_member(f"{name}'s host", bridge.host, revision=None, relative_to=loaded.folder)
    except RecipeError as error:
        raise loaded.error((*at, "host"), error.problem, error.hint) from None
    if why := why_another_basis(record, own):
        folder = where.parent if where.suffix == ".json" else where
        hint = f"`host` of a bridge is the language model that {folder.name} was cut from"
        raise CheckpointError(f"{name}: {why}", where=where, hint=hint)
    return own


def _least(accepted: float | None) -> float:
    return LEAST_R2 if accepted is None else accepted


def _texts(loaded: LoadedRecipe, within: tuple[str | int, ...], name: str) -> tuple[tuple[str, ...], str]:
    """The lines of a file that are not empty, and its sha256."""
    file, at = loaded.folder / name, (*within, "texts")
    try:
        size = file.stat().st_size
        if size > MOST_BYTES:
            raise loaded.error(at, f"{name} has {size_text(size)}, and a bridge reads at most {size_text(MOST_BYTES)}")
        if not (file.is_file() or file.is_dir()):  # a device or a pipe has no end
            raise loaded.error(at, f"{name} is no plain file")
        data = file.read_bytes()
        lines = tuple(line for line in data.decode("utf-8").splitlines() if line.strip())
    except FuseError:
        raise
    except UnicodeDecodeError as error:
        raise loaded.error(at, f"{name} is not UTF-8 at byte {error.start}") from None
    except OSError as error:
        raise loaded.error(at, f"{name} cannot be read: {(error.strerror or str(error)).lower()}") from None
    if len(lines) < LEAST_TEXTS:
        told = f"{name} has {counted(len(lines), 'text')}, and a bridge is fitted to {LEAST_TEXTS} or more"
        raise loaded.error(at, told, "one text a line")
    return lines, hashlib.sha256(data).hexdigest()
