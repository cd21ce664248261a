"""Rows of a plan for the tensors of one member: copied, or merged with the same tensors of others."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from fuse.anatomy import Member
from fuse.dtypes import stored
from fuse.errors import CheckpointError
from fuse.families.family import Part
from fuse.methods.table import METHODS
from fuse.parameters import Parameters
from fuse.plan import Row, Source
from fuse.recipe_merge import Merge
from fuse.recipe_yaml import LoadedRecipe
from fuse.safetensors_header import FLOAT_BYTES, TensorEntry
from fuse.sizes import counted


@dataclass(frozen=True)
class TensorRows:
    """Makes rows in the layout of `owner`, into which the other members' tensors are merged.

    dtypes: of the output's float tensors by part, each one's own for a part that has none. prefix: what stands before
    the canonical name in the output, None where the output keeps the owner's stored names.
    """

    members: Mapping[str, Member]
    base: Member | None
    owner: Member
    dtypes: Mapping[str, str]
    prefix: str | None = None

    def row(self, action: Literal["merge", "copy"], part: str, canonical: str, entry: TensorEntry, **more: Any) -> Row:
        name = entry.name if self.prefix is None else self.prefix + canonical
        dtype = stored(self.dtypes, part) if entry.dtype in FLOAT_BYTES else ""
        return Row(name, action, canonical, part, entry.shape, dtype or self.owner.dtype_of(entry), **more)

    def copy(self, part: str, canonical: str, entry: TensorEntry, note: str = "") -> Row:
        source = Source.of(self.owner, entry)
        if source.update is None:
            return self.row("copy", part, canonical, entry, sources=(source,), note=note)
        one = {"weights": [1.0], "normalize": True}  # the adapter's change is computed, as merges are
        return self.row("merge", part, canonical, entry, sources=(source,), method="linear", parameters=one, note=note)

    def merge(
        self, part: Part, canonical: str, entry: TensorEntry, parameters: Parameters, position: float,
        names: Mapping[str, str] | None = None,
    ) -> Row:  # fmt: skip
        """A row that merges one tensor. names: who gives it, and under which name, where not all under this one."""
        names = dict.fromkeys(parameters.members, canonical) if names is None else names
        sources = [self.source(self.members[member], part, name) for member, name in names.items()]
        base = self.base_source(parameters, part, next(iter(names.values())))
        for source in (*sources, base):
            if source and source.tensor.shape != entry.shape:
                raise CheckpointError(
                    f"tensor {source.tensor.name!r} of {source.member} has shape {list(source.tensor.shape)}, "
                    f"but {self.owner.name} has {list(entry.shape)}",
                    where=source.tensor.file,
                    hint="only tensors of one shape can be merged",
                )
            if source and source.tensor.dtype not in FLOAT_BYTES:
                raise CheckpointError(
                    f"tensor {source.tensor.name!r} of {source.member} has dtype {source.tensor.dtype}, "
                    f"which cannot be merged",
                    where=source.tensor.file,
                    hint=f"fuse merges {', '.join(FLOAT_BYTES)}",
                )
        return self.row(
            "merge", part, canonical, entry, sources=tuple(sources), base=base, method=parameters.merge.method,
            parameters=parameters.at(canonical, position, list(names)),
        )  # fmt: skip

    def eyes(self, parameters: Parameters | None, depths: Mapping[str, int]) -> dict[str, Row]:
        """A row for everything of the owner but its language model, by stored name."""
        from fuse.parameters import layer_position

        rows: dict[str, Row] = {}
        for key, place in self.owner.places.items():
            if place is None or place.part == "language":
                continue
            entry = self.owner.checkpoint.tensors[key]
            if parameters is not None and entry.dtype in FLOAT_BYTES:
                position = layer_position(place.canonical, depths)
                rows[key] = self.merge(place.part, place.canonical, entry, parameters, position)
            else:
                note = "integers are not merged" if parameters is not None else ""
                rows[key] = self.copy(place.part, place.canonical, entry, note)
        return rows

    def source(self, member: Member, part: Part, canonical: str) -> Source:
        """The member's tensor of that name; a tied head is the embedding."""
        tensors = member.parts[part]
        if canonical == member.text.head and part == "language" and canonical not in tensors:
            canonical = member.text.embedding
        if canonical not in tensors:
            raise CheckpointError(
                f"{member.name} has no tensor {canonical!r}, which {self.owner.name} has", where=member.folder,
                hint="members must have the same tensors in the parts that are merged",
            )  # fmt: skip
        return Source.of(member, tensors[canonical])

    def base_source(self, parameters: Parameters, part: Part, canonical: str) -> Source | None:
        if METHODS[parameters.merge.method].base == "none" or self.base is None:
            return None
        return self.source(self.base, part, canonical)


def check_method(
    loaded: LoadedRecipe, section: Sequence[str | int], merge: Merge, parameters: Parameters, base: Member | None
) -> None:
    """RecipeError where the method needs a base that is not there, or takes another number of members."""
    check_base(loaded, section, merge, base)
    check_count(loaded, (*section, "method"), merge, len(parameters.members))


def check_base(loaded: LoadedRecipe, section: Sequence[str | int], merge: Merge, base: Member | None) -> None:
    """RecipeError where the method needs a base that is not there."""
    if METHODS[merge.method].base == "required" and base is None:
        raise loaded.error((*section, "method"), f"{merge.method} needs a base", hint="add `base:` to the recipe")


def check_count(loaded: LoadedRecipe, path: Sequence[str | int], merge: Merge, count: int) -> None:
    """RecipeError where the method takes another number of members."""
    low, high = METHODS[merge.method].inputs
    if count < low or (high is not None and count > high):
        wanted = counted(low, "member") if low == high else f"{low} or more members"
        raise loaded.error(tuple(path), f"{merge.method} takes {wanted}, not {count}")


def plain(row: Row) -> Row:
    """The row as a copy, where it passes one tensor through as it is."""
    if row.method != "passthrough" or row.host is not None or row.sources[0].update or row.parameters["scale"] != 1:
        return row
    return replace(row, action="copy", method="", parameters={})
