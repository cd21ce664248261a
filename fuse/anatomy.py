"""A member taken apart: which stored tensor is which part, under its canonical name, on which base."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from fuse import families
from fuse.checkpoint import ADAPTED, Checkpoint, open_checkpoint
from fuse.errors import CheckpointError
from fuse.families.eyes import check_encoder
from fuse.families.family import Basis, Family, Part, Place, TextFamily
from fuse.families.plain import check_plain
from fuse.licence_files import UNSTATED, stated_in
from fuse.safetensors_header import FLOAT_BYTES, TensorEntry
from fuse.small_files import TEMPLATES, TOKENIZER
from fuse.vocabulary import Vocabulary, read_vocabulary

if TYPE_CHECKING:
    from fuse.adapters.adapter import Adapter


@dataclass(frozen=True)
class Member:
    """An opened checkpoint with every key placed. `places[key]` is None for a buffer that models recompute.

    adapter: what changes its tensors while they are read.
    """

    checkpoint: Checkpoint
    family: Family
    text: TextFamily
    basis: Basis
    places: Mapping[str, Place | None]
    vocabulary: Vocabulary | None
    adapter: "Adapter | None" = None

    @property
    def name(self) -> str:
        return self.checkpoint.name

    @property
    def folder(self) -> Path:
        return self.checkpoint.folder

    def dtype_of(self, entry: TensorEntry) -> str:
        """In which dtype a tensor is stored; the base's, where an adapter's own stands in its place."""
        displaced = self.adapter.displaced if self.adapter else ()
        return next((other.dtype for other in displaced if other.name == entry.name), entry.dtype)

    def file(self, name: str) -> Path:
        """One of its small files, there or not: what belongs to the tokenizer is the adapter's where that has one."""
        if self.adapter is None or not self.adapter.tokenizer or name not in TOKENIZER:
            return self.folder / name
        return (self.folder if name in TEMPLATES and not self.adapter.template else self.adapter.folder) / name

    @cached_property
    def parts(self) -> dict[Part, dict[str, TensorEntry]]:
        """Stored tensors by part and canonical name, in stored order."""
        parts: dict[Part, dict[str, TensorEntry]] = {"language": {}, "encoder": {}, "projector": {}, "extra": {}}
        for key, place in self.places.items():
            if place is not None:
                parts[place.part][place.canonical] = self.checkpoint.tensors[key]
        return parts

    @property
    def language(self) -> dict[str, TensorEntry]:
        return self.parts["language"]

    @property
    def sees(self) -> bool:
        """The member is multimodal: it has an encoder or a projector, or its family would load one from elsewhere."""
        return bool(self.parts["encoder"] or self.parts["projector"] or self.parts["extra"])

    @property
    def is_tied(self) -> bool:
        """The head is the embedding: it is not stored."""
        return self.text.head not in self.language

    @cached_property
    def licence(self) -> str:
        """What its card, a LICENSE file or its config states, or ""; where an adapter states another, both."""
        own = stated_in(self.folder, self.checkpoint.config).licence
        theirs = stated_in(self.adapter.folder).licence if self.adapter else ""
        if self.adapter is None or own == theirs:
            return own
        return f"{own or UNSTATED} + {theirs or UNSTATED}"


def open_member(
    name: str, location: str, *, revision: str | None, relative_to: Path | None, adapted: str = ADAPTED
) -> Member:  # fmt: skip
    """Open a checkpoint and place every tensor; errors as `open_checkpoint` and `families` raise them."""
    return assemble(open_checkpoint(name, location, revision=revision, relative_to=relative_to, adapted=adapted))


def assemble(checkpoint: Checkpoint) -> Member:
    """Place every tensor of an opened checkpoint; errors as `families` raises them."""
    where = str(checkpoint.folder)
    family = families.family_of(checkpoint.config, where)
    text = families.text_family_of(checkpoint.config, family, where)
    basis = families.basis_of(checkpoint.config, family, where)
    check_plain(checkpoint.config, where)
    check_plain(families.text_config(checkpoint.config, family, where), where)
    places = families.places(checkpoint.config, list(checkpoint.tensors), where)
    member = Member(checkpoint, family, text, basis, places, read_vocabulary(checkpoint.folder))
    families.check_language(checkpoint.config, {k: e.shape for k, e in member.language.items()}, where)
    _check_eyes(member, where)
    for part, tensors in member.parts.items():
        for entry in tensors.values():
            if entry.dtype not in FLOAT_BYTES and (part == "language" or entry.name.endswith((".weight", ".bias"))):
                raise CheckpointError(
                    f"tensor {entry.name!r} has dtype {entry.dtype}, which cannot be merged", where=entry.file,
                    hint=f"fuse merges {', '.join(FLOAT_BYTES)}",
                )  # fmt: skip
    return member


def _check_eyes(member: Member, where: str) -> None:
    """A multimodal config describes its encoder, and its image placeholder is a row that is stored."""
    config, family = member.checkpoint.config, member.family
    if not (family.native and member.sees):
        return
    if family.vision and member.parts["encoder"]:
        shapes = {name: entry.shape for name, entry in member.parts["encoder"].items()}
        check_encoder(config, family.vision, shapes, where)
    rows = member.language[member.text.embedding].shape[0]
    for key in ("image_token_id", "image_token_index"):
        value = config.get(key)
        if value is not None and (type(value) is not int or not 0 <= value < rows):
            raise CheckpointError(f"config.json: {key} is {value!r}, and the embedding has {rows} rows", where=where)
