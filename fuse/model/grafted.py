"""What a fused model does with its grafts: attach them, change how much of them is heard, ask for what they know."""

# transformers' mixins are typed against a protocol that none of its own classes meets.
# pyright: reportAttributeAccessIssue=false

import sys
from collections.abc import Sequence
from copy import deepcopy
from operator import is_
from typing import Any

from fuse.errors import RecipeError
from fuse.model.grafting import States, attach, heard, need_words


class GraftedMixin:
    """For a model with `config.grafts`, a `language_model`, and `branches` and `grafts` by name."""

    _attached: list[Any] | None = None
    _parts: Sequence[Any] = ()  # the modules when they were attached

    def attach(self, begins: bool = True) -> None:
        """Attach the grafts to their slots, where they are not; the first pass does it.

        Not before: quantisation puts other modules into the places of those that the model is built with. And again
        where modules have been replaced since, which is looked at where a prompt begins: PEFT puts its own around
        projections, and takes them away. Raises CheckpointError where the host has no such slot.
        """
        if not self.config.grafts or not (begins or self._attached is None):
            return
        parts = list(self.modules())
        if self._attached is not None and len(parts) == len(self._parts) and all(map(is_, parts, self._parts)):
            return
        self.detach()
        branches = dict(self.branches.items())
        self._attached = attach(self.config.grafts, dict(self.grafts.items()), self.language_model, branches)
        self._parts = parts

    def detach(self) -> None:
        """Take the grafts off again, until the next pass."""
        for slots in self._attached or ():
            slots.remove()
        self._attached, self._parts = None, ()

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        """A copy attaches its own grafts: functions in slots, which are not copied, know those that they are of."""
        self.detach()
        made = type(self).__new__(type(self))
        memo[id(self)] = made
        made.__dict__.update(deepcopy(self.__dict__, memo))
        return made

    def set_scale(self, name: str, scale: float) -> None:
        """How much of a graft is heard from now on. Its placeholders follow the folder's own config.

        Raises RecipeError for a graft that is not there, a scale that is no finite number, and where a scale of 0 and
        another change places for a graft that has placeholders in the prompt.
        """
        entry = next((graft for graft in self.config.grafts if graft["name"] == name), None)
        if entry is None:
            raise RecipeError(f"there is no graft {name!r}", hint=", ".join(g["name"] for g in self.config.grafts))
        if any((entry.get("tokens") or {}).values()) and (scale == 0) != (entry["scale"] == 0):
            raise RecipeError(f"graft {name!r} writes into the prompt", hint="change its scale in config.json")
        if not isinstance(scale, int | float) or not abs(scale) <= sys.float_info.max:
            raise RecipeError(f"graft {name!r}: scale cannot be {scale!r}", hint="a finite number")
        self.detach()
        entry["scale"] = scale

    def check_states(self, states: States) -> None:
        """Embeddings that a caller made, or a cache of another model, do not tell grafts what they must know."""
        mine = {graft["name"] for graft in heard(self.config.grafts)}
        if lost := [name for name in need_words(self.grafts) if name in mine - states.keys()]:  # pyright: ignore
            raise RecipeError(
                f"graft {lost[0]!r} must see the prompt's tokens, and this call gives embeddings or a foreign cache",
                hint="give input_ids, or graft_states of `read`",
            )
