"""What the tables of attacks do to whole members: a key of a config, a tensor, a token."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.attacks.making import GOOD, Make

GONE = object()  # of a key: it is taken out
SEEN = "members: {a: v1, b: v2}\nlanguage: {method: linear, weights: 0.5}\nvision: [a]\n"
FUSED = SEEN.replace("[a]", "[a, b]")
ADAPTED = "members: {a: {base: base, adapter: ad}}\nlanguage: {method: linear, weights: 1}\n"
SLERP = "members: {a: a, b: b}\nlanguage: {method: slerp, t: 0.5}\n"


def place(folder: Path, members: Path, recipe: str = GOOD) -> None:
    """Copies of the members, and a recipe."""
    shutil.copytree(members, folder, dirs_exist_ok=True)
    (folder / "recipe.yaml").write_text(recipe)


def changed(file: str, **keys: Any) -> Make:
    """Keys of a JSON file; `__` goes into a table, GONE takes a key out."""

    def make(folder: Path) -> None:
        value = json.loads((folder / file).read_text())
        for name, given in keys.items():
            *path, last = name.split("__") if not name.startswith("_") else [name]
            table = value
            for key in path:
                table = table[key]
            if given is GONE:
                table.pop(last, None)
            else:
                table[last] = given
        (folder / file).write_text(json.dumps(value))

    return make


def edited(file: str, edit: Callable[[Any], object]) -> Make:
    """A JSON file after a function."""

    def make(folder: Path) -> None:
        value = json.loads((folder / file).read_text())
        edit(value)
        (folder / file).write_text(json.dumps(value))

    return make


def weights(member: str, edit: Callable[[dict[str, Any]], dict[str, Any] | None]) -> Make:
    """A member's tensors after a function, which changes them or gives others."""

    def make(folder: Path) -> None:
        from safetensors.torch import load_file, save_file

        tensors = load_file(folder / member / "model.safetensors")
        given = edit(tensors)
        save_file(tensors if given is None else given, folder / member / "model.safetensors", {"format": "pt"})

    return make


def gone(name: str) -> Make:
    return lambda folder: (folder / name).unlink()
