"""What the schema of recipes is made of: numbers, lists over depth, tables, and the strict model."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag
from pydantic_core import PydanticCustomError


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
Text = Annotated[str, Field(min_length=1, max_length=4096)]


def mistake(kind: str, text: str, key: str = "") -> PydanticCustomError:
    """An error whose sentence is ours; `key` is the field that it is about, where the error stands one level up."""
    return PydanticCustomError(kind, "{text}", {"text": text, "key": key})  # pyright: ignore[reportArgumentType]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, populate_by_name=True)
