"""How a recipe says that tensors are mixed: a method and its parameters."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from fuse.errors import short
from fuse.methods.table import METHODS, REQUIRED
from fuse.methods.table_foreign import PREFIX
from fuse.recipe_types import PlainValue, Strict, Value, mistake
from fuse.suggest import did_you_mean

RANK = Literal["stable_rank", "entropy", "participation", "participation_sqrt", "cumvar", "gavish_donoho"]


def _method(name: str) -> str:
    if name not in METHODS:
        known = [other for other in METHODS if other.startswith(PREFIX) == name.startswith(PREFIX)]
        raise mistake("method", f"unknown method {short(name)} ({did_you_mean(name, known)})")
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
    scale: Value | None = Field(None, description="passthrough: factor of the tensor.")
    lambda_: Value | None = Field(None, alias="lambda", description="Factor of the merged task vector.")
    epsilon: Value | None = Field(None, description="Half width of the range of drop probabilities (della).")
    gamma: Value | None = Field(None, description="Share of largest elements that is dropped (breadcrumbs).")
    select_topk: Value | None = Field(None, description="sce: share of elements that is merged, by their variance.")
    flatten: bool | None = Field(None, description="nuslerp: one angle for a tensor, not for each row or column.")
    row_wise: bool | None = Field(None, description="nuslerp, flatten false: an angle for each column, not row.")
    filter_wise: bool | None = Field(None, description="model_stock: a ratio for each row, not one for a tensor.")
    max_iter: int | None = Field(None, ge=0, description="karcher: the most steps.")
    tol: Value | None = Field(None, description="karcher: the angle below which a step is the last.")
    eps: Value | None = Field(None, description="multislerp: a length up to which a vector has no direction.")
    variant: Literal["lora", "full", "modality"] | None = Field(None, description="optmerge: what the members are.")
    init: Literal["sum", "mean", "zero"] | None = Field(None, description="swudi, aswudi: where the way down begins.")
    rank: RANK | None = Field(None, description="aswudi: the rule of how many directions are taken.")
    share: Value | None = Field(None, description="aswudi, rank cumvar: the share of the spectrum.")
    ratio: Value | None = Field(None, description="swudi: the share of the directions that is descended.")
    time: Value | None = Field(None, description="swudi: how far down.")
    steps: int | None = Field(None, ge=0, description="wudi, optmerge: steps of the way down.")
    normalize: bool | None = Field(None, description="Divide by the sum of the weights.")
    rescale: bool | None = Field(None, description="Divide kept elements by the density.")
    seed: int | None = Field(None, ge=0, lt=1 << 63, description="Seed of the methods that draw at random.")
    parameters: dict[str, PlainValue] | None = Field(
        None, description="Parameters of a method called mergekit/..., under mergekit's names."
    )

    @model_validator(mode="after")
    def _belongs(self) -> "Merge":
        params = METHODS[self.method].params
        beside = [field for field in params if self.place(field) == (field,)]
        for field in PARAMETERS:
            given = getattr(self, "lambda_" if field == "lambda" else field) is not None
            if given and field not in beside:
                raise mistake("parameter", f"{self.method} has no {field} ({self._takes(field, beside)})", field)
            if not given and field in beside and params[field].default is REQUIRED:
                raise mistake("parameter", f"{self.method} needs {field}", field)
        return self

    def _takes(self, field: str, beside: Sequence[str]) -> str:
        if not self.method.startswith(PREFIX):
            return f"it takes: {', '.join(beside) or 'no parameters'}"
        return "it draws nothing at random" if field == "seed" else "its parameters are a table: parameters"

    @model_validator(mode="after")
    def _means_something(self) -> "Merge":
        if self.row_wise and self.flatten is not False:
            raise mistake("parameter", "row_wise means something with flatten: false only", "row_wise")
        if self.share is not None and self.rank != "cumvar":
            raise mistake("parameter", "share means something with rank: cumvar only", "share")
        return self

    @model_validator(mode="after")
    def _table_belongs(self) -> "Merge":
        params = METHODS[self.method].params
        inside = [field for field in params if self.place(field) != (field,)]
        if self.parameters is not None and not inside:
            raise mistake("parameter", f"{self.method} has no table of parameters", "parameters")
        for field in self.parameters or ():
            if field not in inside:
                told = f"{self.method} has no {field} (it takes: {', '.join(inside)})"
                raise mistake("parameter", told, ("parameters", field))
        for field in inside:
            if self.given(field) is None and params[field].default is REQUIRED:
                raise mistake("parameter", f"{self.method} needs parameters with a {field}", "parameters")
        return self

    def given(self, field: str) -> Any:
        """The value that the recipe gives for a parameter, by its recipe name, or None."""
        if len(self.place(field)) > 1:
            return (self.parameters or {}).get(field)
        return getattr(self, "lambda_" if field == "lambda" else field)

    def place(self, field: str) -> tuple[str, ...]:
        """Where a parameter stands in the section: beside `method`, or in the table of another library's parameters."""
        foreign = self.method.startswith(PREFIX) and field != "seed"
        return ("parameters", field) if foreign else (field,)


PARAMETERS = (
    "weights", "density", "t", "scale", "lambda", "epsilon", "gamma", "select_topk",
    "flatten", "row_wise", "filter_wise", "max_iter", "tol", "eps", "variant", "init", "rank", "share", "ratio",
    "time", "steps", "normalize", "rescale", "seed",
)  # fmt: skip
