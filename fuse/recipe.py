"""The recipe: a strict schema. What a recipe may say is here; what it means for tensors is in `plan`."""

import re
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Discriminator, Field, Tag, model_validator

from fuse.errors import short
from fuse.names import mistake_in
from fuse.recipe_graft import Graft
from fuse.recipe_merge import Merge
from fuse.recipe_types import OrText, Strict, mistake
from fuse.recipe_vision import Branch

SIZE = re.compile(r"(\d{1,15}(?:\.\d{1,15})?)\s*(KB|MB|GB|KiB|MiB|GiB)")
SIZE_UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}


class Towers(Strict):
    """Where the vision towers lie that an original-LLaVA config names but does not store."""

    vision_tower: str | None = Field(None, min_length=1, max_length=4096, description="Folder or hub id.")
    vision_tower_aux: str | None = Field(None, min_length=1, max_length=4096, description="Folder or hub id.")


PATH = "Folder, relative to the recipe, hub id org/name, or s3://bucket/folder."
REVISION = "Hub commit, tag or branch; of an object store the state that `fuse plan` tells."


def _stays(value: str) -> str:
    if ".." in value or value.startswith(("/", "-")):
        raise mistake("revision", f"{value!r} is not a commit, tag or branch")
    return value


Revision = Annotated[str, Field(pattern=r"^[\w./-]{1,200}$"), AfterValidator(_stays)]


def _path_alone(value: Any) -> Any:
    return {"path": value} if isinstance(value, str) else value


class Location(OrText):
    """A folder or hub id, alone or with the revision to pin."""

    path: str = Field(min_length=1, max_length=4096, description=PATH)
    revision: Revision | None = Field(None, description=REVISION)
    _short = model_validator(mode="before")(_path_alone)


class Member(OrText):
    """A checkpoint that takes part: a folder or hub id, or a base with the adapter that was trained on it."""

    path: str = Field("", min_length=1, max_length=4096, description=PATH)
    revision: Revision | None = Field(None, description=REVISION)
    base: Location | None = Field(None, description="What an adapter was trained on, instead of `path`.")
    adapter: Location | None = Field(None, description="Folder or hub id of a PEFT adapter, merged while it is read.")
    towers: Towers | None = Field(None, description="Towers of an original-LLaVA checkpoint, instead of its config's.")

    _short = model_validator(mode="before")(_path_alone)

    @model_validator(mode="after")
    def _named(self) -> Self:
        if self.base is None and self.adapter is None and not self.path:
            raise mistake("missing", "is missing", "path")
        if self.base is None and self.adapter is None:
            return self
        if self.base is None or self.adapter is None:
            raise mistake("path", "an adapter needs its base, and a base its adapter: {base: X, adapter: Y}")
        if self.path or self.revision:
            raise mistake("path", "a member is a path, or a base and an adapter, each with a revision of its own")
        return self


def _range(value: Any) -> Any:
    if not isinstance(value, list) or len(value) != 2 or any(type(n) is not int for n in value):
        raise mistake("range", f"{value!r} is not a range of layers (such as [0, 16])")
    if not 0 <= value[0] < value[1]:
        raise mistake("range", f"{value} holds no layer: a range is its first layer and the one behind its last")
    return value


def _entries(value: list[dict[str, list[int]]]) -> list[dict[str, list[int]]]:
    if not 0 < len(value) <= MAX_ENTRIES:
        raise mistake("layers", f"has {len(value):,} entries, and a stack has from 1 to {MAX_ENTRIES:,}")
    if {} in value:
        raise mistake("layers", f"entry {value.index({}) + 1} names no member (such as a: [0, 16])")
    return value


MAX_ENTRIES = 1024
Range = Annotated[
    list[int], BeforeValidator(_range), Field(json_schema_extra={"minItems": 2, "maxItems": 2}),
]  # fmt: skip
ACCEPTABLE = Literal["norm_eps", "rope_theta", "rope_scaling", "activation"]


class Language(Merge):
    """How the language model of the output is made."""

    embeddings: str = Field(
        "merge",
        description="`merge` mixes the rows of tokens that all members share and keeps the host's others; `union` also "
        "adds the tokens that only guests have; `base` or a member's name takes that one's rows.",
    )
    layers: Annotated[list[dict[str, Range]], AfterValidator(_entries)] | None = Field(
        None,
        description="Stacks ranges of the members' layers, `{a: [0, 16]}` for a's layers 0 to 15; ranges in one entry "
        "are merged by the method.",
    )
    accept: tuple[ACCEPTABLE, ...] = Field((), strict=False, description="Differences between bases to accept.")


def _member_name(name: str) -> str:
    if wrong := mistake_in(name):
        raise mistake("name", f"a member cannot be called {name!r}: {wrong}")
    return name


class Prompt(Strict):
    template: str | None = Field(None, description="The member whose chat template the output uses (else the host's).")


def _size(value: Any) -> Any:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    match = (
        re.fullmatch(r"(\d{1,15}(?:\.\d{1,15})?)\s*(KB|MB|GB|KiB|MiB|GiB)", value) if isinstance(value, str) else None
    )
    if match is None:
        raise mistake("size", f"{short(value)} is not a size (such as 5GB or 500MB)")
    return int(float(match[1]) * SIZE_UNITS[match[2]])


Dtype = Literal["bfloat16", "float16", "float32"]


class PartDtypes(Strict):
    """A dtype for each part of the output; a part that is left out keeps its own."""

    language: Dtype | None = Field(None, description="Of the language model.")
    vision: Dtype | None = Field(None, description="Of encoders and projectors.")
    projector: Dtype | None = Field(None, description="Of projectors, where they differ from their encoders.")
    grafts: Dtype | None = Field(None, description="Of grafts.")

    @model_validator(mode="after")
    def _names_a_part(self) -> "PartDtypes":
        if not self.model_fields_set:
            raise mistake("dtype", "names no part (such as language: bfloat16)")
        return self


class Output(Strict):
    dtype: (
        Annotated[
            Annotated[Dtype, Tag("word")] | Annotated[PartDtypes, Tag("table")],
            Discriminator(lambda value: "table" if isinstance(value, dict | PartDtypes) else "word"),
        ]
        | None
    ) = Field(
        None,
        description="dtype of merged tensors and of copied float tensors, for all or by part; the host's own where "
        "left out.",
    )
    shard_size: Annotated[int, BeforeValidator(_size)] = Field(
        5 * 10**9, ge=1000, description="Largest size of one file, in bytes or as 5GB.",
        json_schema_extra={"type": ["integer", "string"]},
    )  # fmt: skip
    host: str | None = Field(None, description="The member whose config, tokenizer and layout the output takes.")
    model: Literal["native", "fuse"] | None = Field(
        None, description="`fuse` writes the fused class even where a class of transformers fits."
    )


class Recipe(Strict):
    """One composition: members of one base in, one folder out."""

    base: Member | None = Field(None, description="The pretrained LLM that the members share.")
    members: dict[Annotated[str, AfterValidator(_member_name)], Member] = Field(min_length=1, max_length=64)
    language: Language
    vision: list[Branch] | None = Field(None, description="Whose encoders the output has. Needed when any member sees.")
    grafts: list[Graft] = Field(default_factory=list, max_length=64, description="Modules to insert.")
    prompt: Prompt = Prompt(template=None)
    output: Output = Output(dtype=None, shard_size=5 * 10**9, host=None, model=None)
