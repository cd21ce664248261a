"""What a merge method is as data: what it needs, which parameters it takes, and what is wrong with given values.

Read by the recipe schema and the planner, so this file imports no torch.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final, Literal


class Required(Enum):
    """The type of `REQUIRED`, the default of a parameter that has none."""

    REQUIRED = "required"

    def __repr__(self) -> str:
        return "REQUIRED"


REQUIRED: Final = Required.REQUIRED


@dataclass(frozen=True, slots=True)
class Param:
    """One parameter of a method, under the name that a recipe gives it.

    per_member: one value for each non-base tensor; a single value then stands for all of them.
    low, high: the bounds; low_open or high_open says that the bound itself is not allowed.
    choices: the words that a parameter of kind str may be.
    """

    doc: str
    default: float | int | bool | str | Required = REQUIRED
    kind: type[float] | type[int] | type[bool] | type[str] = float
    per_member: bool = False
    low: float | None = None
    high: float | None = None
    low_open: bool = False
    high_open: bool = False
    choices: tuple[str, ...] = ()

    def problem(self, value: object) -> str | None:
        """What is wrong with one value, as the end of a sentence; None where it is right."""
        if self.kind is bool or self.kind is str:
            right = isinstance(value, bool) if self.kind is bool else value in self.choices
            told = "true or false" if self.kind is bool else f"{', '.join(self.choices[:-1])} or {self.choices[-1]}"
            return None if right else f"should be {told}, not {value!r}"
        if isinstance(value, bool) or not isinstance(value, int if self.kind is int else int | float):
            return f"should be a {'whole ' * (self.kind is int)}number, not {value!r}"
        if isinstance(value, float) and not math.isfinite(value):
            return f"should be finite, not {value!r}"
        low, high = self.low, self.high
        if low is not None and (value < low or (self.low_open and value == low)):
            return f"should be {'greater than' if self.low_open else 'at least'} {low:g}, not {value!r}"
        if high is not None and (value > high or (self.high_open and value == high)):
            return f"should be {'less than' if self.high_open else 'at most'} {high:g}, not {value!r}"
        return None

    def problem_of_all(self, value: object, inputs: int) -> str | None:
        """As `problem`, for one value or, where it is per member, a sequence of `inputs` values."""
        if value is REQUIRED:
            return "is missing"
        if not isinstance(value, Sequence) or isinstance(value, str):
            return self.problem(value)
        if not self.per_member:
            return "should be one value, not a list"
        if len(value) != inputs:
            return f"has {len(value)} values for {inputs} members"
        return next((text for text in map(self.problem, value) if text), None)


@dataclass(frozen=True, slots=True)
class Method:
    """One merge method.

    base: "required" (the function takes `base` as its second argument), "optional" (it takes one where the recipe has
    one) or "none" (it takes no base).
    inputs: the least and the greatest number of non-base tensors; None for no limit.
    kind: how much of a tensor the method must see, and so what its file holds beside the function of its name.
    "elementwise": output element i depends on element i of the inputs only, so that a tensor may be merged in blocks of
    any size with the same bytes. "measured": the same once `measure` has looked through the whole tensor, block by
    block; `apply` then merges a block. "whole": the function needs whole tensors.
    by_row: blocks hold whole rows of the tensor, as `(rows, width)`; an elementwise method may then look at all of
    the row of an element.
    random: takes `keys`, one a tensor from `fuse.methods.random.key`, and `offset`, the index of the block's
    first element in the tensor. `seed` makes the keys and is not passed to the function.
    transparent: a measured method whose result is not finite where an input is not, so that nobody has to look at the
    inputs first; elementwise methods always are.
    nonzero_sum: with `normalize`, weights that sum to zero are an error; with a base they may all be zero.
    check: what is wrong with the function's arguments taken together, as a sentence.
    numbers: how many float32 numbers a "whole" method keeps in memory at most, from the tensor's rows and width as a
    matrix and the number of inputs; where left out, those of the inputs and of three more tensors.
    """

    name: str
    doc: str
    base: Literal["required", "optional", "none"]
    inputs: tuple[int, int | None]
    params: Mapping[str, Param]
    kind: Literal["elementwise", "measured", "whole"]
    random: bool = False
    by_row: bool = False
    transparent: bool = False
    nonzero_sum: bool = False
    check: Callable[[Mapping[str, Any]], str | None] | None = None
    numbers: Callable[[int, int, int], int] | None = None

    def problem(self, values: Mapping[str, object], inputs: int) -> str | None:
        """The first thing wrong with the values for one tensor, as a sentence; None where all is right.

        values: by parameter name, a number, or a sequence of `inputs` numbers where the parameter is per
        member. Parameters that have a default may be missing. inputs: the number of non-base tensors.
        """
        least, most = self.inputs
        if inputs < least or (most is not None and inputs > most):
            wanted = f"exactly {most}" if least == most else f"{least} or more"
            return f"{self.name} takes {wanted} members, not {inputs}"
        for name in values:
            if name not in self.params:
                return f"{self.name} has no parameter {name!r}; it has {', '.join(self.params)}"
        for name, param in self.params.items():
            if text := param.problem_of_all(values.get(name, param.default), inputs):
                return f"{self.name}: {name} {text}"
        if self.nonzero_sum:
            filled = self.arguments(values, inputs)
            weights = filled["weights"]
            assert isinstance(weights, Sequence)
            divided = filled["normalize"] and (any(weights) or self.base != "required")
            if divided and sums_to_zero(weights):
                return f"{self.name}: the weights sum to zero, so normalize cannot divide by their sum"
        if self.check and (text := self.check(self.arguments(values, inputs))):
            return f"{self.name}: {text}"
        return None

    def arguments(self, values: Mapping[str, object], inputs: int) -> dict[str, object]:
        """The function's keyword arguments: defaults filled in, one number a member, `lambda` as `lambda_`.

        values: as in `problem`, and found right by it. `keys` and `offset` are not among them.
        """
        filled: dict[str, object] = {}
        for name, param in self.params.items():
            value = values.get(name, param.default)
            if param.per_member and not isinstance(value, Sequence):
                value = [value] * inputs
            filled["lambda_" if name == "lambda" else name] = value
        filled.pop("seed", None)
        return filled


def sums_to_zero(weights: Sequence[float]) -> bool:
    """Whether the weights cancel: a sum within 1e-8 of zero, relative to the sum of their magnitudes."""
    return abs(math.fsum(weights)) <= 1e-8 * math.fsum(map(abs, weights))
