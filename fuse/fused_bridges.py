"""The bridges of a recipe's grafts: the language model that a graft was cut from, opened, and what the bridge needs."""

import hashlib
from collections.abc import Mapping
from typing import Any

from fuse.anatomy import Member, open_member
from fuse.errors import CheckpointError, FuseError, RecipeError
from fuse.fused import Bridging
from fuse.grafts.basis import why_another_basis
from fuse.grafts.bridge_files import LEAST_R2, bridge_config, shapes
from fuse.grafts.donor import JSON, Donor
from fuse.recipe_graft import Graft
from fuse.recipe_yaml import LoadedRecipe
from fuse.sizes import counted, size_text

LEAST_TEXTS = 5  # every fifth is held out
MOST_BYTES = 64 << 20


def open_bridge(
    loaded: LoadedRecipe, number: int, entry: Graft, donor: Donor, config: Mapping[str, Any], host: Member
) -> Bridging:
    """The bridge that entry `number` of the recipe names.

    config: the graft's, as configured. Raises RecipeError for texts or a graft that cannot be used, CheckpointError for
    a language model that is not the one that the donor was cut from.
    """
    assert entry.bridge is not None
    at, name = ("grafts", number, "bridge"), entry.name or donor.kind
    try:
        own = open_member(f"{name}'s host", entry.bridge.host, revision=None, relative_to=loaded.folder)
    except RecipeError as error:
        raise loaded.error((*at, "host"), error.problem, error.hint) from None
    if why := why_another_basis(donor.host, own):
        hint = f"`host` of a bridge is the language model that {donor.folder.name} was cut from"
        raise CheckpointError(f"{name}: {why}", where=donor.folder / JSON, hint=hint)
    if why := donor.files.why_not(config, own.basis):
        raise CheckpointError(f"{name} cannot be grafted into {own.name}: {why}", where=donor.folder)
    if made := [key for key in donor.files.shapes(config) if key not in donor.tensors]:
        told = f"{name} cannot cross to another basis: {made[0]} and others are made from the host that it is put into"
        raise loaded.error(at, told)
    try:
        told = bridge_config(donor.kind, config, entry.bridge.method, own, host)
    except ValueError as error:
        raise loaded.error(at, f"{name} cannot cross to {host.name}: {error}") from None
    texts, digest = _texts(loaded, number, entry.bridge.texts) if entry.bridge.texts else ((), "")
    least = LEAST_R2 if entry.accept_r2 is None else entry.accept_r2
    return Bridging(told, shapes(told), own, texts, digest, least)


def _texts(loaded: LoadedRecipe, number: int, name: str) -> tuple[tuple[str, ...], str]:
    """The lines of a file that are not empty, and its sha256."""
    file, at = loaded.folder / name, ("grafts", number, "bridge", "texts")
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
