"""What a method parameter of the recipe comes to for one tensor: numbers over depth, by name pattern, by member."""

import re
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from fuse.methods.table import METHODS, REQUIRED, Param
from fuse.recipe_merge import Merge
from fuse.recipe_yaml import LoadedRecipe
from fuse.suggest import did_you_mean

Setting = tuple[str | int, ...]
LAYER = re.compile(r"(.*?\.)(\d+)\.")
FIRST = re.compile(
    r"embed|wte|wpe|project_in|shared|patch|position|pre_la|ln_pre|layernorm_pre|class_token|query_tokens"
)
PROJECTOR = re.compile(r"multi_modal_projector|connector|visual\.merger|language_projection|image_newline")


class Parameters:
    """The parameters of one `Merge` section, resolved tensor by tensor.

    members: the names that take part, in recipe order. depth: number of layers, for lists over depth.
    Raises RecipeError at construction when a name is neither a member nor a pattern, or a member is left without a
    required number.
    """

    def __init__(self, loaded: LoadedRecipe, section: Setting, merge: Merge, members: Sequence[str]) -> None:
        self.loaded, self.section, self.merge = loaded, section, merge
        self.row = METHODS[merge.method]
        self.members = self._participants(members)
        self.used: set[Setting] = set()
        for field in self.row.params:
            self._check(field, merge.given(field), list(members))

    def _participants(self, members: Sequence[str]) -> list[str]:
        """The members that the weights name; all of them where the weights are not by member."""
        weights = self.merge.given("weight" if "weight" in self.row.params else "weights")
        if isinstance(weights, dict) and any(name in members for name in weights):
            return [name for name in members if name in weights]
        return list(members)

    def _check(self, field: str, value: Any, known: list[str]) -> None:
        path = self._path(field)
        param = self.row.params[field]
        if not isinstance(value, dict):
            self._check_range(path, value, param)
            return
        named = [key for key in value if key in known]
        if named and not param.per_member:
            raise self.loaded.error((*path, named[0]), f"{self.merge.method} has one {field} for all members")
        for key, inner in value.items():
            if not named and not _is_pattern(key):
                raise self.loaded.error((*path, key), f"is neither a member nor a pattern ({did_you_mean(key, known)})")
            if named and key in known and key not in self.members:
                raise self.loaded.error((*path, key), "has no weight here, so its parameters mean nothing")
            if named and key not in known:
                raise self.loaded.error((*path, key), f"is not a member ({did_you_mean(key, known)})")
            if isinstance(inner, dict):
                if not named:
                    raise self.loaded.error((*path, key), "a pattern stands for a number or a list over depth")
                for pattern, number in inner.items():
                    if not _is_pattern(pattern) or isinstance(number, dict):
                        raise self.loaded.error((*path, key, pattern), "is not a name pattern with a number or a list")
                    self._check_range((*path, key, pattern), number, param)
            else:
                self._check_range((*path, key), inner, param)
        if named and param.default is REQUIRED and (absent := [m for m in self.members if m not in value]):
            raise self.loaded.error(path, f"member {absent[0]!r} has no {field}")

    def _check_range(self, path: Setting, value: Any, param: Param) -> None:
        for number in value if isinstance(value, list) else [value]:
            if number is not None and (why := param.problem(number)):
                raise self.loaded.error(path, why)

    def at(self, canonical: str, layer: float, members: Sequence[str] | None = None) -> dict[str, Any]:
        """Every parameter for one tensor: lists (one number per member) for those by member, else single values.

        members: whose tensors are merged, all of `self.members` where left out.
        """
        members = self.members if members is None else members
        resolved: dict[str, Any] = {}
        for field, param in self.row.params.items():
            value, path = self.merge.given(field), self._path(field)
            if value is None:
                resolved[field] = [param.default] * len(members) if param.per_member else param.default
            elif param.per_member:
                resolved[field] = [self._of_member(value, m, param, path, canonical, layer) for m in members]
            else:
                resolved[field] = self._number(value, path, canonical, layer)
        if why := self.row.problem(resolved, len(members)):
            raise self.loaded.error(self.section, f"{why}, at {canonical}")
        return resolved

    def _of_member(self, value: Any, member: str, param: Param, path: Setting, canonical: str, layer: float) -> Any:
        if isinstance(value, dict) and any(key in self.members for key in value):
            if member not in value:
                return param.default
            value, path = value[member], (*path, member)
        return self._number(value, path, canonical, layer)

    def _number(self, value: Any, path: Setting, canonical: str, layer: float) -> Any:
        if isinstance(value, dict):
            for pattern, inner in value.items():
                if fnmatchcase(canonical, pattern):
                    self.used.add((*path, pattern))
                    return self._number(inner, (*path, pattern), canonical, layer)
            raise self.loaded.error(path, f"no pattern fits {canonical!r}", hint='end the table with "*"')
        return interpolate(value, layer) if isinstance(value, list) else value

    def check_patterns(self) -> None:
        """RecipeError for a pattern that no tensor met (after every `at`)."""
        for path in self._patterns():
            if path not in self.used:
                raise self.loaded.error(path, "the pattern fits no tensor, or an earlier one takes all it fits")

    def _patterns(self) -> Iterable[Setting]:
        for field in self.row.params:
            value = self.merge.given(field)
            if not isinstance(value, dict):
                continue
            by_member = any(key in self.members for key in value)
            for key, inner in value.items():
                if not by_member:
                    yield (*self._path(field), key)
                elif isinstance(inner, dict) and key in self.members:
                    yield from ((*self._path(field), key, pattern) for pattern in inner)

    def _path(self, field: str) -> Setting:
        return (*self.section, *self.merge.place(field))


def _is_pattern(key: str) -> bool:
    return any(c in key for c in "*?[.")


def interpolate(values: Sequence[float], position: float) -> float:
    """A list over depth at a position from 0 (first layer) to 1 (last layer), piecewise linear."""
    at = position * (len(values) - 1)
    low = min(int(at), len(values) - 1)
    high = min(low + 1, len(values) - 1)
    share = at - low
    return values[low] if share == 0 else values[low] * (1 - share) + values[high] * share


def stack_depths(names: Iterable[str]) -> dict[str, int]:
    """Number of layers of each stack; a stack is what stands before the first number of a tensor's name."""
    depths: dict[str, int] = {}
    for name in names:
        if match := LAYER.match(name):
            depths[match[1]] = max(depths.get(match[1], 0), int(match[2]) + 1)
    return depths


def layer_position(canonical: str, depths: Mapping[str, int]) -> float:
    """Where a tensor stands between the first layer (0) of its stack and the last (1).

    Tensors outside the layers stand at 0 if they come before them (embeddings, patches, the norm in front) and at 1 if
    they come after (final norm, head, projector): our choice; mergekit puts all of them at 0.
    """
    if match := LAYER.match(canonical):
        return min(int(match[2]) / max(depths[match[1]] - 1, 1), 1.0)
    return 0.0 if FIRST.search(canonical) and not PROJECTOR.match(canonical) else 1.0
