"""What the schema of recipes is made of: numbers, lists over depth, tables, and the strict model."""

from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    GetJsonSchemaHandler,
    Tag,
    WithJsonSchema,
)
from pydantic_core import CoreSchema, PydanticCustomError


def _kind(value: Any) -> str:
    return "list" if isinstance(value, list) else "table" if isinstance(value, dict) else "number"


def mistake(kind: str, text: str, key: str | tuple[str, ...] = "") -> PydanticCustomError:
    """An error whose sentence is ours; `key` leads to what it is about, where the error stands above it."""
    return PydanticCustomError(kind, "{text}", {"text": text, "key": key})  # pyright: ignore[reportArgumentType]


LARGEST = (2 - 2**-23) * 2.0**127  # of float32, which merges compute in


def _within(value: Any) -> Any:
    if abs(value) > LARGEST:
        raise mistake("number", f"{value:g} is beyond float32, whose largest number is {LARGEST:g}")
    return value


Number = Annotated[float, Field(strict=True, allow_inf_nan=False), AfterValidator(_within)]
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


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, populate_by_name=True)


class OrText(Strict):
    """What may also be written as a text alone, of which a validator of its own makes the table."""

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"anyOf": [{"type": "string", "minLength": 1}, handler(schema)]}


def _plain(value: Any) -> Any:
    if not isinstance(value, bool | int | float):
        raise mistake("number", f"should be a number, true or false, not {value!r}")
    return _within(value)


# As `Value`, with whole numbers and switches left as they are: what another library's parameters may be.
Plain = Annotated[Any, AfterValidator(_plain), WithJsonSchema({"type": ["number", "boolean"]})]
PlainGradient = Annotated[list[Plain], Field(min_length=1, max_length=1024)]
PlainPatterns = Annotated[
    dict[
        str,
        Annotated[Annotated[Plain, Tag("number")] | Annotated[PlainGradient, Tag("list")], Discriminator(_kind)],
    ],
    Field(min_length=1),
]
PlainOfMember = Annotated[
    Annotated[Plain, Tag("number")] | Annotated[PlainGradient, Tag("list")] | Annotated[PlainPatterns, Tag("table")],
    Discriminator(_kind),
]
PlainValue = Annotated[
    Annotated[Plain, Tag("number")]
    | Annotated[PlainGradient, Tag("list")]
    | Annotated[dict[str, PlainOfMember], Tag("table"), Field(min_length=1)],
    Discriminator(_kind),
]
