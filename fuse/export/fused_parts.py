"""The tensors of a fused folder, taken apart: its language model, the eyes of each branch, each graft."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fuse import families
from fuse.checkpoint import read_tensors
from fuse.errors import CheckpointError
from fuse.families.family import Basis, TextFamily
from fuse.fused import BRANCHES, GRAFTS, LANGUAGE
from fuse.safetensors_header import TensorEntry

Tensors = Mapping[str, TensorEntry]


@dataclass(frozen=True)
class Parts:
    """language: by canonical name. branches, grafts: by name, each by its tensors' names without the prefix."""

    text: TextFamily
    basis: Basis
    language: Tensors
    branches: Mapping[str, Tensors]
    grafts: Mapping[str, Tensors]

    @property
    def is_tied(self) -> bool:
        """The head is the embedding: it is not stored."""
        return self.text.head not in self.language


def take_apart(folder: Path, config: Mapping[str, Any]) -> Parts:
    """The parts of a fused folder, the language model held against its text config. config: its config.json.

    Raises CheckpointError for a tensor of no part, and for a language model that is not as its text config says.
    """
    text_config, where = config.get("text_config"), str(folder)
    if not isinstance(text_config, Mapping):
        raise CheckpointError("config.json: text_config is missing", where=folder)
    family = families.family_of(text_config, where)
    stored = read_tensors(folder)
    language = {key.removeprefix(LANGUAGE): entry for key, entry in stored.items() if key.startswith(LANGUAGE)}
    placed = families.places(text_config, list(language), where)
    language = {place.canonical: language[key] for key, place in placed.items() if place is not None}
    families.check_language(text_config, {name: entry.shape for name, entry in language.items()}, where)
    named: dict[str, dict[str, dict[str, TensorEntry]]] = {
        room: {part.get("name", ""): {} for part in config.get(room) or ()} for room in ("branches", "grafts")
    }
    for key, entry in stored.items():
        if key.startswith(LANGUAGE):
            continue
        room, _, rest = key.partition(".")
        name, _, inner = rest.partition(".")
        if f"{room}." not in (BRANCHES, GRAFTS) or name not in named[room]:
            raise CheckpointError(f"tensor {key!r} is of no part that config.json names", where=entry.file)
        named[room][name][inner] = entry
    text = families.text_family_of(text_config, family, where)
    basis = families.basis_of(text_config, family, where)
    return Parts(text, basis, language, named["branches"], named["grafts"])
