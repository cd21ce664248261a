"""What a recipe says about one graft."""

from typing import Any, Literal

from pydantic import ConfigDict, Field, model_validator

from fuse.names import mistake_in
from fuse.recipe_types import Number, OrText, Strict, Text, mistake


class Bridge(Strict):
    """How a graft from another basis is brought into the host's."""

    method: Literal["procrustes", "ridge", "embedding"] = Field(description="How the map between the bases is found.")
    texts: Text | None = Field(None, description="File with one text a line, read by both language models.")
    host: Text = Field(description="Folder or hub id of the language model that the graft was cut from.")

    @model_validator(mode="after")
    def _whole(self) -> "Bridge":
        if self.method != "embedding" and self.texts is None:
            raise mistake("parameter", f"is missing, and {self.method} needs it", "texts")
        return self


class Graft(OrText):
    """A module from a donor folder, put into the language model or into a branch's vision tower.

    Besides these keys it has those of its kind (`router`, `task` ...), which the plan checks.
    """

    model_config = ConfigDict(extra="allow")

    from_: Text = Field(alias="from", description="The donor: a folder with graft.json.")
    name: str | None = Field(None, description="Name in the output; the donor's kind where left out.")
    scale: Number = Field(1.0, description="How much of it is heard; 0 leaves the host exactly as it is.")
    tower: str | None = Field(None, description="The branch whose vision tower carries its tower part.")
    image: str | None = Field(None, description="The branch whose features it looks at.")
    fold: bool = Field(False, description="Bake it into native weights, where the algebra is exact.")
    bridge: Bridge | None = Field(None, description="How it is brought over from another basis.")
    accept_r2: float | None = Field(
        None, ge=-1e6, le=1, strict=True, description="Least held-out R2 of a bridge, instead of 0.5."
    )

    @model_validator(mode="before")
    @classmethod
    def _short(cls, value: Any) -> Any:
        if not isinstance(value, str | dict | Graft):
            told = "null" if value is None else repr(value)[:60]
            raise mistake("graft", f"is {told}, and a graft is a donor's folder or keys such as `from: FOLDER`")
        return {"from": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _whole(self) -> "Graft":
        if self.name is not None and (wrong := mistake_in(self.name)):
            raise mistake("graft", f"a graft cannot be called {self.name!r}: {wrong}", "name")
        if self.accept_r2 is not None and self.bridge is None:
            raise mistake("graft", "accept_r2 needs a bridge beside it", "accept_r2")
        return self

    @property
    def options(self) -> dict[str, Any]:
        """The keys of its kind."""
        return dict(self.model_extra or {})
