"""The towers of original-LLaVA members: what they lend to a branch, and their configs."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fuse.anatomy import Member
from fuse.branches.convnext_files import fetch_convnext
from fuse.branches.towers import AUXILIARY, MAIN, Tower, tower_checkpoint
from fuse.checkpoint import fetch
from fuse.errors import RecipeError
from fuse.fused import Lender
from fuse.recipe_yaml import LoadedRecipe


def open_towers(member: Member, loaded: LoadedRecipe) -> dict[str, Tower]:
    """The member's towers by name, from the recipe's `towers` or the member's config; errors as `tower_checkpoint`."""
    given = loaded.recipe.members[member.name].towers
    names = [MAIN, *([AUXILIARY] if f"model.{AUXILIARY}." in member.family.prefixes else [])]
    towers: dict[str, Tower] = {}
    for name in (MAIN, AUXILIARY):
        override = getattr(given, name) if given else None
        path = ("members", member.name, "towers", name)
        if name not in names:
            if override:
                raise loaded.error(path, f"{member.name} ({member.family.model_type}) has no such tower")
            continue
        try:
            towers[name] = tower_checkpoint(member, name, override, relative_to=loaded.folder)
        except RecipeError as error:
            raise loaded.error(path, error.problem, error.hint) from None
    return towers


def lenders_of(member: Member, towers: Mapping[str, Tower]) -> tuple[Lender, ...]:
    """What the towers that were opened lend, with everything that they hold besides."""
    return tuple(
        Lender(
            f"{member.name}.{name}", tower.checkpoint.origin, tower.checkpoint.tensors, tower.places, tower.dropped,
            tower.checkpoint, fetch_convnext if name == AUXILIARY else fetch,
        )
        for name, tower in towers.items() if tower.checkpoint is not None
    )  # fmt: skip


def tower_configs(towers: Mapping[str, Tower]) -> dict[str, Any]:
    return {name: dict(tower.config) for name, tower in towers.items()}


def preprocessing_folders(towers: Mapping[str, Tower]) -> tuple[Path, ...]:
    """Where the main tower says how it wants images prepared."""
    opened = towers[MAIN].checkpoint
    return (opened.folder,) if opened else ()
