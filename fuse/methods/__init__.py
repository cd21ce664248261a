"""Merge methods: pure functions of tensors and numbers, one file each, and the table that describes them."""

import difflib
from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Any

from fuse.errors import RecipeError
from fuse.methods.table import METHODS, REQUIRED, Method, Param
from fuse.methods.table_foreign import PREFIX

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["METHODS", "REQUIRED", "Method", "Param", "load", "part"]


def load(name: str) -> "Callable[..., Tensor]":
    """The function of the method with this name; imports torch.

    Call it as ``load(name)(tensors, base, **arguments)``, without ``base`` where the table's row says "none".
    Raises RecipeError where the table has no such name.
    """
    if name not in METHODS:
        near = difflib.get_close_matches(name, METHODS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(METHODS)}"
        raise RecipeError(f"unknown merge method {name!r}", hint=hint)
    return part(name, name)


def part(name: str, function: str) -> "Callable[..., Any]":
    """A function of a method's file: `measure` and `apply` of one that is measured."""
    if name.startswith(PREFIX):
        return import_module("fuse.methods.foreign").kernel(name)
    return getattr(import_module(f"fuse.methods.{name}"), function)
