"""A mergekit recipe as far as it can be read without opening its models."""

from dataclasses import dataclass
from typing import Final

from fuse.errors import short
from fuse.mergekit_recipe.given import TOP, Given
from fuse.mergekit_recipe.layout import Slice, layout
from fuse.mergekit_recipe.methods import foreign
from fuse.mergekit_recipe.models import Reference, reference
from fuse.mergekit_recipe.tokens import tokenizer_source
from fuse.methods.method import Method
from fuse.methods.table_foreign import FOREIGN, PREFIX
from fuse.recipe_mistakes import Path_
from fuse.suggest import did_you_mean

DTYPES: Final = ("bfloat16", "float16", "float32")


@dataclass(frozen=True)
class Read:
    """What the recipe says. source: where the source of the tokenizer stands, and what it is."""

    given: Given
    method: Method  # mergekit's row
    base: Reference | None
    slices: tuple[Slice, ...]
    source: tuple[Path_, str | Reference]
    dtype: str | None

    @property
    def name(self) -> str:
        return self.method.name.removeprefix(PREFIX)

    @property
    def apart(self) -> Reference | None:
        """The base, where the method sets it apart from the models that it merges."""
        return None if self.method.base == "none" else self.base

    def inputs(self, one: Slice) -> int:
        """How many members fuse's own method merges at the tensors of a slice."""
        return len(one.sources) - (self.apart is not None and self.name != "slerp")


def read_words(given: Given) -> Read:
    """The recipe's words; RecipeError where one is wrong, missing, or means nothing here."""
    data = given.table((), given.data, TOP, ("merge_method",))
    name = given.word(("merge_method",), data["merge_method"])
    if PREFIX + name not in FOREIGN:
        known = [one.removeprefix(PREFIX) for one in FOREIGN]
        raise given.error(("merge_method",), f"unknown method {short(name)} ({did_you_mean(name, known)})")
    method = foreign(name)
    base = data.get("base_model")
    base = reference(given, ("base_model",), base) if base is not None else None
    if method.base == "required" and base is None:
        raise given.error(("merge_method",), f"{name} needs a base_model")
    slices = layout(given, method, base)
    if base is not None and method.base != "none":
        for one in slices:
            if all(source.model != base for source in one.sources):
                raise given.error((*one.path, "sources"), f"{name} needs the base_model among them")
    words = {key: _dtype(given, key) for key in ("dtype", "out_dtype")}
    return Read(given, method, base, slices, tokenizer_source(given), words["out_dtype"] or words["dtype"])


def _dtype(given: Given, key: str) -> str | None:
    value = given.data.get(key)
    word = value.removeprefix("torch.") if isinstance(value, str) else value
    if word is not None and word not in DTYPES:
        raise given.error((key,), f"should be bfloat16, float16 or float32, not {short(value)}")
    return word
