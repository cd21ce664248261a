"""What a setting of a mergekit recipe comes to for one tensor: numbers, lists over a slice, filters, by precedence."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fuse.errors import short
from fuse.mergekit_recipe.given import MISTAKEN, Given
from fuse.methods.method import REQUIRED, Method, Param
from fuse.recipe_mistakes import Path_
from fuse.recipe_types import LARGEST
from fuse.suggest import did_you_mean


@dataclass(frozen=True)
class Scope:
    """One table of parameters and where it stands."""

    path: Path_
    table: Mapping[str, Any]


def scope(given: Given, path: Path_, value: Any, method: Method) -> Scope:
    """A table of parameters, checked: names of the method, settings of its kinds. Nothing at all is an empty table."""
    if value is None:
        return Scope(path, {})
    if not isinstance(value, dict):
        raise given.error(path, f"should be a table, not {short(value)}")
    takes = [*dict.fromkeys([*method.params, "int8_mask"])]
    for name, setting in value.items():
        if name not in takes or name == "seed":
            known = [one for one in takes if one != "seed"]
            raise given.error((*path, name), f"unknown parameter ({did_you_mean(name, known)})", MISTAKEN)
        _check(given, (*path, name), setting, method.params.get(name, Param("", False, bool)))
    return Scope(path, value)


def _check(given: Given, path: Path_, setting: Any, param: Param, *, filters: bool = True) -> None:
    if isinstance(setting, dict) and filters:
        given.table(path, setting, ("filter", "value"), ("value",))
        if not isinstance(setting.get("filter", ""), str | None):
            raise given.error((*path, "filter"), f"should be a part of names, not {short(setting['filter'])}")
        _check(given, (*path, "value"), setting["value"], param, filters=False)
    elif isinstance(setting, list):
        for i, inner in enumerate(given.entries(path, setting)):
            if isinstance(inner, dict) != isinstance(setting[0], dict) or isinstance(inner, list):
                raise given.error((*path, i), "a list holds numbers, or tables of filter and value, not both")
            _check(given, (*path, i), inner, param, filters=filters)
    elif param.kind is bool:
        if not isinstance(setting, bool | int | float) or setting not in {0, 1}:
            raise given.error(path, f"should be true or false, not {short(setting)}")
    elif isinstance(setting, bool) or not isinstance(setting, int | float):
        raise given.error(path, f"should be a number, not {short(setting)}")
    elif abs(setting) > LARGEST:
        raise given.error(path, f"{setting:g} is beyond float32, whose largest number is {LARGEST:g}")


class Settings:
    """Finds values as mergekit does, and remembers which filters fitted a tensor."""

    def __init__(self, given: Given, method: Method) -> None:
        self.given, self.method = given, method
        self.fitted: set[Path_] = set()

    def value(
        self, name: str, scopes: Sequence[Scope], tensor: str, t: float, whose: str = ""
    ) -> tuple[Any, Path_ | None]:
        """The value for one tensor and the place that it comes from, None for a default.

        scopes: in order of precedence; one whose filters do not fit passes the question on. tensor: its name where it
        comes from. t: where its layer stands in its slice, 0 to 1. whose: the model, where the value is one of its own.
        """
        param = self.method.params[name]
        asked = [self._at((*one.path, name), one.table[name], tensor, t, param) for one in scopes if name in one.table]
        if found := next((hit for hit in asked if hit is not None), None):
            return found
        if param.default is REQUIRED:
            filtered = next(((*one.path, name) for one in scopes if name in one.table), None)
            hint = "a list of filters may end with a value alone, which fits all" if filtered else ""
            raise self.given.error(
                filtered or scopes[0].path, f"{whose or 'the recipe'} has no {name} for {tensor}", hint
            )
        return param.default, None

    def _at(self, path: Path_, setting: Any, tensor: str, t: float, param: Param) -> tuple[Any, Path_] | None:
        if isinstance(setting, dict):
            return self._filtered(path, [setting], [path], tensor, t, param)
        if isinstance(setting, list) and isinstance(setting[0], dict):
            return self._filtered(path, setting, [(*path, i) for i in range(len(setting))], tensor, t, param)
        return _number(setting, t, param), path

    def _filtered(
        self, path: Path_, entries: Sequence[Mapping[str, Any]], places: Sequence[Path_], tensor: str, t: float,
        param: Param,
    ) -> tuple[Any, Path_] | None:  # fmt: skip
        fitting = [i for i, entry in enumerate(entries) if _fits(entry, tensor)]
        self.fitted.update(places[i] for i in fitting)
        if not fitting:
            return None
        return _number(entries[fitting[0]]["value"], t, param), places[fitting[0]]

    def check_filters(self, scopes: Iterable[Scope]) -> None:
        """RecipeError for a filter that fitted no tensor, which mergekit would read over."""
        for one in scopes:
            for name, setting in one.table.items():
                entries = setting if isinstance(setting, list) else [setting]
                for i, entry in enumerate(entries):
                    path = (*one.path, name, i) if isinstance(setting, list) else (*one.path, name)
                    if name in self.method.params and isinstance(entry, dict) and path not in self.fitted:
                        at = (*path, "filter") if "filter" in entry else path
                        raise self.given.error(at, f"{short(entry.get('filter'))} is part of no tensor's name")


def _fits(entry: Mapping[str, Any], tensor: str) -> bool:
    word = entry.get("filter")
    return word is None or word == "*" or word in tensor


def _number(value: Any, t: float, param: Param) -> Any:
    """A value, or a list over the layers of a slice at t: numbers run piecewise linear, switches step."""
    if isinstance(value, list) and param.kind is bool:
        value = value[int(t * (len(value) - 1))]
    elif isinstance(value, list):
        at = t * (len(value) - 1)
        low = int(at)
        high = min(len(value) - 1, low + 1)
        value = (1 - (at - low)) * value[low] + (at - low) * value[high]
    if param.kind is bool:
        return bool(value)
    return int(value) if param.kind is int and value == int(value) else value
