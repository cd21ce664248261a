"""Grafts in the fused model: attached to their slots, asked about every prompt, given its state again afterwards."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from fuse.branches.branch import Embed
from fuse.errors import RecipeError
from fuse.grafts import bridge
from fuse.grafts.graft import Reading, Sight, State
from fuse.grafts.slots import slots_of
from fuse.model.at_hand import at_hand
from fuse.model.visual import Prompt
from fuse.suggest import did_you_mean

States = Mapping[str, State]  # by graft
Run = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def heard(entries: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The grafts that do anything: those whose scale is not 0."""
    return [entry for entry in entries if entry["scale"] != 0]


def attach(
    entries: Sequence[Mapping[str, Any]], grafts: Mapping[str, nn.Module], language: nn.Module,
    branches: Mapping[str, nn.Module],
) -> list[Any]:  # fmt: skip
    """Give every graft that is heard its slots; returns the slots, whose `remove` lets go of them again.

    Raises CheckpointError where the host has no such slot.
    """
    made: list[Any] = []
    for entry in heard(entries):
        graft: Any = grafts[entry["name"]]
        graft.scale = entry["scale"]
        slots = dict(slots_of(language))
        if entry.get("tower"):
            slots |= slots_of(branches[entry["tower"]])
        bridge.attach(graft, slots)
        made += slots.values()
    return made


@contextmanager
def remembering(grafts: Mapping[str, Any], states: States, begins: bool = True) -> Iterator[None]:
    """The grafts know the prompts that a pass reads (`begins`) or continues, and have their tensors at hand."""
    for name, graft in grafts.items():
        graft.state, graft.begins = dict(states.get(name, {})), begins
    try:
        with at_hand(*grafts.values(), lazily=(nn.Linear,)):  # large ones are Linear: experts, adapters
            yield
    finally:
        for graft in grafts.values():
            graft.state = {}


def need_words(grafts: Mapping[str, Any]) -> list[str]:
    """The grafts that look at a prompt before it is read."""
    return [name for name, graft in grafts.items() if graft.looks]


def read_grafts(
    entries: Sequence[Mapping[str, Any]], grafts: Mapping[str, nn.Module], prompt: Prompt, input_ids: torch.Tensor,
    options: Mapping[str, Mapping[str, Any]], embed: Embed, run: Callable[[Prompt], Run],
) -> Prompt:  # fmt: skip
    """The prompt as every graft leaves it, in the order of the recipe, with their states.

    Grafts that run the language model (`RUNS`) come last, so that all others are known by then: first those that run a
    token of their own (1), then those that run the prompt (2). options: by graft, what the caller asks of it. run:
    makes the pass that a graft may ask for. Raises RecipeError for an option that is none.
    """
    check_options(entries, grafts, options)
    order = sorted(heard(entries), key=lambda entry: int(getattr(grafts[entry["name"]], "RUNS", 0)))
    states: dict[str, State] = {}
    sights = _sights(prompt)
    for entry in order:
        graft: Any = grafts[entry["name"]]
        reading = Reading(
            input_ids, prompt.attention_mask, prompt.numbers, prompt.embeds, sights, embed, run(prompt),
            entry.get("token_ids") or {}, options.get(entry["name"], {}), entry.get("image"),
        )  # fmt: skip
        with remembering(grafts, states):
            states[entry["name"]] = bridge.read(graft, reading)
        prompt = replace(prompt, embeds=reading.embeds, states=dict(states))
    return prompt


def _sights(prompt: Prompt) -> dict[str, list[Sight]]:
    """What every branch saw of every image, for grafts."""
    return {
        name: [Sight(v.row, v.tokens if v.features is None else v.features, v.tokens, v.columns) for v in seen]
        for name, seen in prompt.seen.items()
    }


def check_options(
    entries: Sequence[Mapping[str, Any]], grafts: Mapping[str, nn.Module], options: Mapping[str, Mapping[str, Any]]
) -> None:
    """RecipeError for a graft that is not there, an option that it does not have, or a value that is none."""
    names = [entry["name"] for entry in entries]
    for name, asked in options.items():
        if name not in names:
            known = did_you_mean(name, names) if names else "the model has none"
            raise RecipeError(f"there is no graft {name!r} ({known})")
        graft: Any = grafts[name]
        for key, value in asked.items():
            if key not in graft.ASKED:
                known = did_you_mean(key, graft.ASKED) if graft.ASKED else "it takes none"
                raise RecipeError(f"graft {name!r} has no option {key!r} ({known})")
            if not graft.ASKED[key](value):
                raise RecipeError(f"graft {name!r}: {key} cannot be {value!r}")
