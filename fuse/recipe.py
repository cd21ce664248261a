"""The recipe: a strict schema. What a recipe may say is here; what it means for tensors is in `plan`."""

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag, model_validator
from pydantic_core import PydanticCustomError

from fuse.methods.table import METHODS, REQUIRED
from fuse.names import mistake_in
from fuse.suggest import did_you_mean

SIZE_UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}


def _kind(value: Any) -> str:
    return "list" if isinstance(value, list) else "table" if isinstance(value, dict) else "number"


Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Gradient = Annotated[list[Number], Field(min_length=1, max_length=1024)]
Patterns = Annotated[
    dict[
        str,
        Annotated[Annotated[Number, Tag("number")] | Annotated[Gradient, Tag("list")], Discriminator(_kind)],
    ],
    Field(min_length=1),
]
OfMember = Annotated[
    Annotated[Number, Tag("number")] | Annotated[Gradient, Tag("list")] | Annotated[Patterns, Tag("table")],
    Discriminator(_kind),
]
Value = Annotated[
    Annotated[Number, Tag("number")]
    | Annotated[Gradient, Tag("list")]
    | Annotated[dict[str, OfMember], Tag("table"), Field(min_length=1)],
    Discriminator(_kind),
]


def _mistake(kind: str, text: str, key: str = "") -> PydanticCustomError:
    """An error whose sentence is ours; `key` is the field that it is about, where the error stands one level up."""
    return PydanticCustomError(kind, "{text}", {"text": text, "key": key})  # pyright: ignore[reportArgumentType]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, populate_by_name=True)


class Towers(Strict):
    """Where the vision towers lie that an original-LLaVA config names but does not store."""

    vision_tower: str | None = Field(None, min_length=1, max_length=4096, description="Folder or hub id.")
    vision_tower_aux: str | None = Field(None, min_length=1, max_length=4096, description="Folder or hub id.")


class Member(Strict):
    """A checkpoint that takes part: a folder or hub id, alone or with the revision to pin."""

    path: str = Field(min_length=1, max_length=4096, description="Folder, relative to the recipe, or hub id org/name.")
    revision: str | None = Field(None, pattern=r"^[\w./-]{1,200}$", description="Hub commit, tag or branch.")
    towers: Towers | None = Field(None, description="Towers of an original-LLaVA checkpoint, instead of its config's.")

    @model_validator(mode="before")
    @classmethod
    def _short(cls, value: Any) -> Any:
        return {"path": value} if isinstance(value, str) else value


def _method(name: str) -> str:
    if name not in METHODS:
        raise _mistake("method", f"unknown method {name!r} ({did_you_mean(name, METHODS)})")
    return name


class Merge(Strict):
    """How tensors are mixed: a method and its parameters.

    A parameter is a number, a list over depth (interpolated from the first layer to the last), a table of name patterns
    (the first that fits wins), or, where the method takes one per member, any of these by member.
    """

    method: Annotated[str, AfterValidator(_method)] = Field(
        description="Merge method.", json_schema_extra={"enum": [*sorted(METHODS)]}
    )
    weights: Value | None = Field(None, description="Coefficient of each member's weights or task vector.")
    density: Value | None = Field(None, description="Share of a task vector's elements that is kept, 0 to 1.")
    t: Value | None = Field(None, description="slerp: position between the first member (0) and the second (1).")
    lambda_: Value | None = Field(None, alias="lambda", description="Factor of the merged task vector.")
    epsilon: Value | None = Field(None, description="Half width of the range of drop probabilities (della).")
    gamma: Value | None = Field(None, description="Share of largest elements that is dropped (breadcrumbs).")
    normalize: bool | None = Field(None, description="Divide by the sum of the weights.")
    rescale: bool | None = Field(None, description="Divide kept elements by the density.")
    seed: int | None = Field(None, ge=0, lt=1 << 63, description="Seed of the methods that draw at random.")

    @model_validator(mode="after")
    def _belongs(self) -> "Merge":
        row = METHODS[self.method]
        for field in PARAMETERS:
            given = getattr(self, "lambda_" if field == "lambda" else field) is not None
            if given and field not in row.params:
                told = f"{self.method} has no {field} (it takes: {', '.join(row.params)})"
                raise _mistake("parameter", told, field)
            if not given and field in row.params and row.params[field].default is REQUIRED:
                raise _mistake("parameter", f"{self.method} needs {field}", field)
        return self

    def given(self, field: str) -> Any:
        """The value that the recipe gives for a parameter, by its recipe name, or None."""
        return getattr(self, "lambda_" if field == "lambda" else field)


PARAMETERS = ("weights", "density", "t", "lambda", "epsilon", "gamma", "normalize", "rescale", "seed")
ACCEPTABLE = Literal["norm_eps", "rope_theta", "rope_scaling", "activation"]


class Language(Merge):
    """How the language model of the output is made."""

    embeddings: str = Field(
        "merge",
        description="`merge` mixes the rows of tokens that all members share and keeps the host's others; `union` also "
        "adds the tokens that only guests have; `base` or a member's name takes that one's rows.",
    )
    accept: tuple[ACCEPTABLE, ...] = Field((), strict=False, description="Differences between bases to accept.")


def _member_name(name: str) -> str:
    if wrong := mistake_in(name):
        raise _mistake("name", f"a member cannot be called {name!r}: {wrong}")
    return name


ENCODERS = ("open_clip", "timm", "encoder")
Text = Annotated[str, Field(min_length=1, max_length=4096)]


class Branch(Strict):
    """What the output sees with: a member's encoder and projector, or an encoder and a projector from files."""

    from_: str | None = Field(
        None, alias="from", description="The member whose encoder, projector and preprocessing are used."
    )
    merge: Merge | None = Field(None, description="Mix encoder, projector and extra tensors of members alike in shape.")
    name: str | None = Field(None, description="Name of an encoder branch.")
    open_clip: Text | None = Field(None, description="Architecture of open_clip, such as ViT-B-32.")
    timm: Text | None = Field(None, description="Architecture of timm.")
    encoder: Text | None = Field(None, description="Folder of an encoder that transformers' AutoModel loads.")
    weights: Text | None = Field(None, description="The encoder's safetensors file.")
    projector: Text | None = Field(None, description="safetensors file of the projector into the language model.")
    layer: int = Field(
        -1, ge=-1000, le=-1, description="The encoder's layer that is read: -1 its end, -2 the last block but one."
    )
    max_tokens: int | None = Field(None, ge=1, lt=1 << 31, description="Most visual tokens of one image.")
    prune: Literal["pool", "norm", "cls", "similarity"] = Field(
        "pool",
        description="How max_tokens is reached: mean of neighbours, largest norm, attention of the class token, or "
        "what earlier branches do not say already.",
    )
    separator: str | None = Field(
        None, max_length=4096, description="Text between the tokens of the branch before this one and its own."
    )
    positions: Literal["continued", "shared"] = Field(
        "continued",
        description="Where its tokens stand: behind those of the branch before, or spread over the positions of the "
        "first branch's.",
    )
    norm: Literal["none", "match", "embeddings"] = Field(
        "none",
        description="Scale its tokens of an image so that their mean norm is that of the first branch's tokens, or of "
        "the language model's words.",
    )

    @model_validator(mode="before")
    @classmethod
    def _short(cls, value: Any) -> Any:
        return {"from": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _whole(self) -> "Branch":
        """Either a member's branch or an encoder's, each with what belongs to it."""
        kinds = [kind for kind in ENCODERS if getattr(self, kind) is not None]
        if self.from_ is not None:
            for field in ("name", *ENCODERS, "weights", "projector", "layer"):
                if field in self.model_fields_set and getattr(self, field) is not None:
                    raise _mistake("branch", "is for encoder branches, and this branch is a member's", field)
        elif len(kinds) > 1:
            raise _mistake("branch", f"names {' and '.join(kinds)}, and a branch has one encoder")
        elif not kinds:
            raise _mistake("branch", "a branch is a member (from) or one encoder (open_clip, timm or encoder)")
        else:
            self._encoder(kinds[0])
        if self.max_tokens is None and "prune" in self.model_fields_set:
            raise _mistake("branch", "prune needs max_tokens beside it", "prune")
        return self

    def _encoder(self, kind: str) -> None:
        wanted = ("name", "projector") if kind == "encoder" else ("name", "weights", "projector")
        for field in wanted:
            if getattr(self, field) is None:
                raise _mistake("parameter", f"is missing, and a branch with {kind} needs it", field)
        if kind == "encoder" and self.weights is not None:
            raise _mistake("branch", "encoder is a folder, which holds its weights", "weights")
        if self.merge is not None:
            raise _mistake("branch", "mixes encoders of members, and this one is from a file", "merge")
        if wrong := mistake_in(self.name):
            raise _mistake("branch", f"a branch cannot be called {self.name!r}: {wrong}", "name")

    @property
    def title(self) -> str:
        """The branch's name: the member's, or the encoder branch's own."""
        return self.from_ or str(self.name)


class Prompt(Strict):
    template: str | None = Field(None, description="The member whose chat template the output uses (else the host's).")


def _size(value: Any) -> Any:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(KB|MB|GB|KiB|MiB|GiB)", value) if isinstance(value, str) else None
    if match is None:
        raise _mistake("size", f"{value!r} is not a size (such as 5GB or 500MB)")
    return int(float(match[1]) * SIZE_UNITS[match[2]])


class Output(Strict):
    dtype: Literal["bfloat16", "float16", "float32"] | None = Field(
        None, description="dtype of merged tensors and of copied float tensors; the host's own where left out."
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
    grafts: list[Any] = Field(default_factory=list, max_length=0, description="Modules to insert; none yet.")
    prompt: Prompt = Prompt(template=None)
    output: Output = Output(dtype=None, shard_size=5 * 10**9, host=None, model=None)
