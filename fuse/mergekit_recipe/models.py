"""Which models a mergekit recipe names, and what they are called as members."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from fuse.mergekit_recipe.given import Given
from fuse.names import mistake_in
from fuse.recipe_mistakes import Path_


@dataclass(frozen=True)
class Reference:
    """A folder or hub id with its revision, and a LoRA's where there is one. Two that are equal are one model."""

    path: str
    revision: str | None = None
    lora: str | None = None
    lora_revision: str | None = None

    @property
    def member(self) -> dict[str, Any]:
        """As a recipe of fuse gives a member."""
        own = {"path": self.path, "revision": self.revision}
        return {"base": own, "adapter": {"path": self.lora, "revision": self.lora_revision}} if self.lora else own


def reference(given: Given, path: Path_, value: Any) -> Reference:
    """A model as mergekit writes one: `PATH`, `PATH@REVISION`, `PATH+LORA`, or these as a table."""
    if isinstance(value, dict):
        table = given.table(path, value, ("model", "lora"), ("model",))
        base = _location(given, (*path, "model"), table["model"])
        lora = _location(given, (*path, "lora"), table["lora"]) if table.get("lora") is not None else (None, None)
    else:
        parts = given.word(path, value).split("+")
        if len(parts) > 2:
            raise given.error(path, f"{value!r} has more than one +, which stands before a LoRA")
        base = _location(given, path, parts[0])
        lora = _location(given, path, parts[1]) if len(parts) > 1 else (None, None)
    assert base[0] is not None
    return Reference(base[0], base[1], *lora)


def _location(given: Given, path: Path_, value: Any) -> tuple[str | None, str | None]:
    if isinstance(value, dict):
        table = given.table(path, value, ("path", "revision"), ("path",))
        revision = table.get("revision")
        name = given.word((*path, "path"), table["path"])
        return name, None if revision is None else given.word((*path, "revision"), revision)
    name, at, revision = given.word(path, value).partition("@")
    if not name or (at and not revision) or "@" in revision:
        raise given.error(path, f"{value!r} is no model (such as org/name or org/name@revision)")
    return name, revision or None


def names_of(references: Iterable[Reference]) -> Mapping[Reference, str]:
    """A member's name for each model: the last word of its path as far as a name may be so, with a number if taken."""
    names: dict[Reference, str] = {}
    for one in references:
        if one in names:
            continue
        words = [re.sub(r"[^A-Za-z0-9_-]+", "_", part) for part in one.path.rstrip("/").split("/")]
        plain = (words[-1].strip("_") or "model")[:48]
        plain = plain if plain[0].isalpha() else f"m{plain}"
        plain = f"{plain}_model" if mistake_in(plain) else plain
        name, number = plain, 2
        while name in names.values():
            name, number = f"{plain}_{number}", number + 1
        names[one] = name
    return names
