"""What fuse.json tells of a folder, as parts of a card: for folders that are made of another one, not of a plan."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fuse.card import licence_keys
from fuse.card_tables import licence_section, sha256_section
from fuse.card_text import fenced
from fuse.digests import RECORD
from fuse.licences import read_licences


def record_sections(told: Mapping[str, Any], folder: Path) -> str:
    """The recipe, the parents' licences, and the sha256 of what was read and of the folder's own weights.

    told: what fuse.json holds. folder: where it is, for the words of a CheckpointError where it is of another form.
    """
    recipe, licences = told.get("recipe"), read_licences(told.get("licences"), folder / RECORD)
    members = told.get("members")
    sources = {
        str(name): {str(file): str(sha256) for file, sha256 in one["sha256"].items()}
        for name, one in (members.items() if isinstance(members, dict) else ())
        if isinstance(one, dict) and isinstance(one.get("sha256"), dict)
    }  # fmt: skip
    parts = [
        f"## Recipe\n\n{fenced(recipe.rstrip(), 'yaml')}" if isinstance(recipe, str) else "",
        licence_section(licences) if licences else "",
        sha256_section(sources, told.get("sha256", {})),
    ]
    return "\n".join(part for part in parts if part)


def record_licence(told: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The hub's `license` keys of a folder, by the licences that fuse.json holds; none where it holds none."""
    licences = read_licences(told.get("licences"), folder / RECORD)
    return licence_keys(licences) if licences else {}
