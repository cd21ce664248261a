"""A bridge at work: a graft between two bases. It attaches to slots that look like those of the donor's own host.

What a block of the new host has is brought into the donor's basis, the graft does there what it always does, and the
change that it makes is brought back:

    y + up (graft(x, down y) - down y),    x = norm(down h + offset)   with the donor's own norm and its gain

h is the residual stream before the norm. The donor's norm is computed on what comes over the bridge, for each token,
so a bridge between models of other widths is as right behind a norm as before it (the per-token correction). On a host
that is the donor's in other orthogonal axes all of this is exact.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from fuse.errors import CheckpointError
from fuse.grafts.bridge_files import EMBEDDING, FINAL, is_shared, shapes
from fuse.grafts.bridge_map import Crossing
from fuse.grafts.graft import Graft, Reading, State
from fuse.grafts.slots import Beside, Change, KeyValue, Linear, Norm, Prefix, Slots


class Bridge(nn.Module):
    """All maps of a graft, under the names of `bridge_files.shapes` without `bridge.`."""

    def __init__(self, bridge: Mapping[str, Any]) -> None:
        """bridge: as `bridge_files.bridge_config` makes it. Raises CheckpointError for one that is none."""
        super().__init__()
        tensors: dict[str, dict[str, tuple[int, ...]]] = {}
        try:
            for name, shape in shapes(bridge).items():
                whose, _, last = name.removeprefix("bridge.").rpartition(".")
                tensors.setdefault(whose, {})[last] = shape
            for name in bridge["maps"]:
                tensors.setdefault(name, {})
            self.width, self.stacks = int(bridge["width"]), bridge["stacks"]
            made = {name: Crossing(bridge, own) for name, own in tensors.items()}
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"bridge is none: {error}", where="config.json: grafts") from None
        self.maps = made
        for name, crossing in made.items():
            if is_shared(bridge, name):
                crossing.takes(made[EMBEDDING])
            owner: nn.Module = self
            *path, last = name.split(".")
            for step in path:
                if step not in owner._modules:
                    owner.add_module(step, nn.Module())
                owner = owner.get_submodule(step)
            owner.add_module(last, crossing)

    def slots(self, slots: Mapping[str, Slots]) -> dict[str, Any]:
        """The slots of the host as the graft knows them; those of a vision tower stay as they are."""
        return {name: _Bridged(self, name, own) if name in self.stacks else own for name, own in slots.items()}

    def read(self, graft: Graft, reading: Reading) -> State:
        """`graft.read` in the donor's basis. Rows of embeddings that it leaves as they are stay bit by bit."""
        if EMBEDDING not in self.maps:
            return graft.read(reading)
        embedding, final = self.maps[EMBEDDING], self.maps.get(FINAL)
        before = embedding(reading.embeds, "state_in")

        def out(embeds: torch.Tensor) -> torch.Tensor:
            made = embedding(embeds, "state_out").to(reading.embeds)
            if embeds.shape != before.shape:
                return made
            return torch.where((embeds == before).all(-1, keepdim=True), reading.embeds, made)

        def run(embeds: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            said = reading.run(out(embeds), mask)
            return said if final is None else final(said, "behind_in")

        sights = {
            name: [replace(sight, tokens=embedding(sight.tokens, "state_in")) for sight in seen]
            for name, seen in reading.sights.items()
        }
        theirs = replace(
            reading, embeds=before.clone(), sights=sights, run=run,
            embed=lambda ids: embedding(reading.embed(ids), "state_in"),
        )  # fmt: skip
        state = graft.read(theirs)
        reading.embeds = out(theirs.embeds)
        return state


class _Bridged:
    """One stack as the donor's host had it: its layers, its width. Blocks of the new host stand for them."""

    def __init__(self, bridge: Bridge, name: str, slots: Slots) -> None:
        self._bridge, self._name, self._slots = bridge, name, slots
        self._onto: list[int] = bridge.stacks[name]["onto"]
        self.layers, self.width, self.heads = int(bridge.stacks[name]["layers"]), bridge.width, slots.heads

    def _at(self, layer: int, place: Norm) -> tuple[int, Crossing]:
        """(layer of the new host, map). Raises CheckpointError for a layer that the donor's host lacks."""
        found = self._bridge.maps.get(f"{self._name}.{layer}.{place}")
        if found is None:
            raise CheckpointError(f"the bridge has no map for {place} of layer {layer} ({self._name})")
        return self._onto[layer], found

    def ffn(self, layer: int, beside: Beside) -> None:
        self._beside_mlp(layer, beside, normed=True)

    def ffn_residual(self, layer: int, beside: Beside) -> None:
        self._beside_mlp(layer, beside, normed=False)

    def _beside_mlp(self, layer: int, beside: Beside, normed: bool) -> None:
        onto, crossing = self._at(layer, "ffn")

        def across(h: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            x = crossing(h, "state_in")
            given = crossing(y, "turn_in")
            given = given.to(torch.promote_types(y.dtype, torch.float32))  # the change is small beside it
            change = beside(crossing(x, "norm") if normed else x, given).to(given) - given
            return y + crossing(change.to(y.dtype), "turn_out").to(y)

        self._slots.ffn_residual(onto, across)

    def norm_output(self, layer: int, which: Norm, change: Change) -> None:
        onto, crossing = self._at(layer, which)

        def across(h: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
            theirs = crossing(crossing(h, "state_in"), "norm")
            return x + crossing(change(theirs).to(theirs) - theirs, "behind_turn_out").to(x)

        self._slots.norm(onto, which, across)

    def attention_prefix(self, layer: int, prefix: Prefix) -> None:
        """Prompts come over the bridge; keys, values and heads are the new host's."""
        onto, crossing = self._at(layer, "attention")

        def across(q: torch.Tensor, keyvalue: KeyValue, scaling: float) -> torch.Tensor:
            def over(prompts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
                return keyvalue(crossing(prompts, "behind_state_out").to(q))

            return prefix(q, over, scaling)

        self._slots.attention_prefix(onto, across)

    def linear(self, layer: int, which: Linear, beside: Beside) -> None:
        raise CheckpointError(f"a graft at {which} of layer {layer} cannot cross to another basis")

    def norm(self, layer: int | None, which: str, beside: Beside) -> None:
        raise CheckpointError(f"a graft at the {which} norm of layer {layer} cannot cross to another basis")


def bridged(graft: Graft, bridge: Mapping[str, Any]) -> Graft:
    """The graft with its bridge as `bridge`: what attaches it and what asks it about prompts goes over the bridge."""
    graft.bridge = Bridge(bridge)  # pyright: ignore[reportAttributeAccessIssue]
    return graft


def attach(graft: Graft, slots: Mapping[str, Slots]) -> None:
    """`graft.attach`, over its bridge where it has one."""
    bridge = getattr(graft, "bridge", None)
    graft.attach(slots if bridge is None else bridge.slots(slots))


def read(graft: Graft, reading: Reading) -> State:
    """`graft.read`, over its bridge where it has one."""
    bridge = getattr(graft, "bridge", None)
    return graft.read(reading) if bridge is None else bridge.read(graft, reading)
