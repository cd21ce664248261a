"""What a recipe says about one branch of `vision`."""

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from fuse.names import mistake_in
from fuse.recipe_graft import Bridge
from fuse.recipe_merge import Merge
from fuse.recipe_types import Number, OrText, Strict, Text, mistake

ENCODERS = ("open_clip", "timm", "encoder")


class Share(Strict):
    """One of several projectors of one shape, whose weighted mean is used."""

    path: Text = Field(description="File or folder of the projector.")
    weight: Number = Field(1, description="Its weight in the mean; the weights are divided by their sum.")


def _one_or_more(value: Any) -> str:
    return "list" if isinstance(value, list) else "text"


class Branch(OrText):
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
    projector: (
        Annotated[
            Annotated[Text, Tag("text")] | Annotated[list[Share], Tag("list"), Field(min_length=2)],
            Discriminator(_one_or_more),
        ]
        | None
    ) = Field(
        None,
        description="safetensors file or folder of the projector into the language model, or several to be averaged.",
    )
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

    bridge: Bridge | None = Field(None, description="How its projector is brought over from another language model.")
    accept_r2: float | None = Field(
        None, ge=-1e6, le=1, strict=True, description="Least held-out R2 of the bridge, instead of 0.5."
    )

    @model_validator(mode="before")
    @classmethod
    def _short(cls, value: Any) -> Any:
        if not isinstance(value, str | dict | Branch):
            told = "null" if value is None else repr(value)[:60]
            raise mistake("branch", f"is {told}, and a branch is a member's name or keys such as `from: MEMBER`")
        return {"from": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _whole(self) -> "Branch":
        """Either a member's branch or an encoder's, each with what belongs to it."""
        kinds = [kind for kind in ENCODERS if getattr(self, kind) is not None]
        if self.from_ is not None:
            for field in ("name", *ENCODERS, "weights", "projector", "layer", "bridge", "accept_r2"):
                if field in self.model_fields_set and getattr(self, field) is not None:
                    raise mistake("branch", "is for encoder branches, and this branch is a member's", field)
        elif len(kinds) > 1:
            raise mistake("branch", f"names {' and '.join(kinds)}, and a branch has one encoder")
        elif not kinds:
            raise mistake("branch", "a branch is a member (from) or one encoder (open_clip, timm or encoder)")
        else:
            self._encoder(kinds[0])
        if self.max_tokens is None and "prune" in self.model_fields_set:
            raise mistake("branch", "prune needs max_tokens beside it", "prune")
        if self.accept_r2 is not None and self.bridge is None:
            raise mistake("branch", "accept_r2 needs a bridge beside it", "accept_r2")
        return self

    def _encoder(self, kind: str) -> None:
        wanted = ("name", "projector") if kind == "encoder" else ("name", "weights", "projector")
        for field in wanted:
            if getattr(self, field) is None:
                raise mistake("parameter", f"is missing, and a branch with {kind} needs it", field)
        if kind == "encoder" and self.weights is not None:
            raise mistake("branch", "encoder is a folder, which holds its weights", "weights")
        if self.merge is not None:
            raise mistake("branch", "mixes encoders of members, and this one is from a file", "merge")
        if wrong := mistake_in(self.name):
            raise mistake("branch", f"a branch cannot be called {self.name!r}: {wrong}", "name")

    @property
    def projectors(self) -> list[Share]:
        """The projectors of an encoder branch, of which the first gives the layout."""
        if self.projector is None or isinstance(self.projector, str):
            return [Share(path=self.projector, weight=1)] if self.projector else []
        return self.projector

    @property
    def title(self) -> str:
        """The branch's name: the member's, or the encoder branch's own."""
        return self.from_ or str(self.name)
