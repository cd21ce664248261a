"""What a fused model does with its grafts: attach them, change how much of them is heard, ask for what they know."""

# transformers' mixins are typed against a protocol that none of its own classes meets.
# pyright: reportAttributeAccessIssue=false

import sys
from typing import Any

from fuse.errors import RecipeError
from fuse.model.grafting import States, attach, heard, need_words


class GraftedMixin:
    """For a model with `config.grafts`, a `language_model`, and `branches` and `grafts` by name."""

    _attached: list[Any] | None = None

    def attach(self) -> None:
        """Attach the grafts to their slots, where they are not; the first pass does it.

        Not before: quantisation puts other modules into the places of those that the model is built with. Raises
        CheckpointError where the host has no such slot.
        """
        if self._attached is None:
            branches = dict(self.branches.items())
            self._attached = attach(self.config.grafts, dict(self.grafts.items()), self.language_model, branches)

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
        for slots in self._attached or ():
            slots.remove()
        entry["scale"], self._attached = scale, None

    def check_states(self, states: States) -> None:
        """Embeddings that a caller made, or a cache of another model, do not tell grafts what they must know."""
        mine = {graft["name"] for graft in heard(self.config.grafts)}
        if lost := [name for name in need_words(self.grafts) if name in mine - states.keys()]:  # pyright: ignore
            raise RecipeError(
                f"graft {lost[0]!r} must see the prompt's tokens, and this call gives embeddings or a foreign cache",
                hint="give input_ids, or graft_states of `read`",
            )
