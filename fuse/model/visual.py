"""From prepared images to visual tokens in their places: all that happens before the language model reads a prompt."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from fuse.branches.branch import Embed
from fuse.branches.budget import present
from fuse.branches.kinds import run_branch
from fuse.branches.select import keep_tokens
from fuse.errors import RecipeError
from fuse.model.positions import Patch

PREFIX = "branches."
RUNS, GRID = (
    "runs",
    "grid",
)  # inputs that the processor adds: [R, 2] full and kept length of each run; (t, h, w) or zeros
VARIABLE = frozenset({"slime"})  # kinds that choose by the question how many tokens they give


@dataclass(frozen=True)
class Visual:
    """One branch's kept tokens of one image.

    tokens: [n, D]. index: [n] where each stood among all the tokens that the branch saw. places: its placeholders in
    the prompt, of which the first n are used. runs, shares: the lengths of the image's runs, and what was kept of each.
    grid: (t, h, w) where all the branch's tokens are the cells of one grid.
    """

    tokens: torch.Tensor
    index: torch.Tensor
    places: int
    runs: tuple[int, ...]
    shares: tuple[int, ...]
    grid: tuple[int, int, int] | None


@dataclass(frozen=True)
class Prompt:
    """A prompt with its visual tokens in place.

    embeds: [B, L, D]. attention_mask: [B, L], 0 also where a branch gave fewer tokens than it has placeholders.
    visual: [B, L] bool, True at visual tokens. seen: by branch, what it gave for each image.
    """

    embeds: torch.Tensor
    attention_mask: torch.Tensor
    visual: torch.Tensor
    patches: tuple[Patch, ...]
    seen: Mapping[str, list[Visual]]


def split_inputs(kwargs: dict[str, Any]) -> dict[str, dict[str, list[torch.Tensor]]]:
    """Take the inputs of branches out of keyword arguments: branch name -> input name -> one tensor per image."""
    found: dict[str, dict[str, list[torch.Tensor]]] = {}
    for key in [key for key in kwargs if key.startswith(PREFIX)]:
        _, name, inner = key.split(".", 2)
        found.setdefault(name, {})[inner] = list(kwargs.pop(key))
    return found


def read_prompt(
    input_ids: torch.Tensor, attention_mask: torch.Tensor, given: Mapping[str, dict[str, list[torch.Tensor]]],
    branches: Sequence[Mapping[str, Any]], modules: Mapping[str, nn.Module], embed: Embed,
) -> Prompt:  # fmt: skip
    """Embed a prompt and put every branch's tokens at its placeholders.

    Raises RecipeError when the placeholders in `input_ids` and the images do not agree.
    """
    embeds = embed(input_ids)
    mask = attention_mask.clone()
    visual = torch.zeros_like(input_ids, dtype=torch.bool)
    patches: list[Patch] = []
    everything: dict[str, list[Visual]] = {}
    said: list[list[torch.Tensor]] = []  # by image: what earlier branches said
    text = _Text(input_ids, attention_mask, [b["token_id"] for b in branches])
    for branch in branches:
        places = (input_ids == branch["token_id"]).nonzero()
        inputs = given.get(branch["name"], {})
        images = len(next(iter(inputs.values()))) if inputs else 0
        wanted = sum(int(runs[:, 1].sum()) for runs in inputs.get(RUNS, []))
        if len(places) != wanted:
            raise RecipeError(
                f"the prompt has {len(places)} placeholders of branch {branch['name']!r} and its {images} images "
                f"have {wanted} tokens",
                hint="write the prompt and its images with the folder's own processor",
            )
        said = said or [[] for _ in range(images)]
        found = _look(branch, modules[branch["name"]], inputs, places, text, embed, said) if images else []
        everything[branch["name"]] = found
        start = 0
        for image, seen in enumerate(found):
            mine = places[start : start + seen.places]
            start += seen.places
            rows, columns = mine[: len(seen.tokens)].unbind(1)
            embeds = embeds.index_put((rows, columns), seen.tokens.to(embeds.device, embeds.dtype))
            visual[rows, columns] = True
            unused = mine[len(seen.tokens) :]
            mask[unused[:, 0], unused[:, 1]] = 0
            grid = seen.grid if len(seen.runs) == 1 else None  # markers between its rows would stand inside it
            patches.append(Patch(int(mine[0, 0]), columns, grid, seen.index))
            said[image].append(seen.tokens)
    return Prompt(embeds, mask, visual, tuple(patches), everything)


def _look(
    branch: Mapping[str, Any], module: nn.Module, inputs: dict[str, list[torch.Tensor]], places: torch.Tensor,
    text: "_Text", embed: Embed, said: list[list[torch.Tensor]],
) -> list[Visual]:  # fmt: skip
    """One branch's tokens of every image, within its budget."""
    runs = [[(int(full), int(kept)) for full, kept in image] for image in inputs[RUNS]]
    counts = [sum(kept for _, kept in image) for image in runs]
    starts = [sum(counts[:i]) for i in range(len(counts))]
    words = [text.of(int(places[start, 0])) for start in starts] if branch["kind"] in VARIABLE else []
    prune = branch.get("prune") or "pool"
    budget = branch.get("max_tokens") is not None
    pixels = {k: _at_home(v, module) for k, v in inputs.items() if k not in (RUNS, GRID)}
    seen = run_branch(branch, module, pixels, text=words, embed=embed, attention=budget and prune == "cls")
    found = []
    for image, one in enumerate(seen):
        full, kept = tuple(n for n, _ in runs[image]), tuple(n for _, n in runs[image])
        t, h, w = inputs[GRID][image].tolist()
        grid = (t, h, w) if t * h * w else None
        if branch["kind"] in VARIABLE:
            full, kept = present(full, kept, len(one.tokens))
        if len(one.tokens) != sum(full):
            raise RecipeError(
                f"branch {branch['name']!r} gave {len(one.tokens)} tokens for an image that the prompt holds "
                f"{sum(full)} of", hint="the processor's files do not belong to this branch",
            )  # fmt: skip
        tokens, index = keep_tokens(
            prune, one.tokens, full, kept, attention=one.attention, said=_joined(said[image]), grid=grid,
            name=branch["name"],
        )  # fmt: skip
        found.append(Visual(tokens, index, counts[image], full, kept, grid))
    return found


def _joined(tokens: list[torch.Tensor]) -> torch.Tensor | None:
    return torch.cat([t.to(tokens[0].device) for t in tokens]) if tokens else None


def _at_home(tensors: list[torch.Tensor], module: nn.Module) -> list[torch.Tensor]:
    """Tensors on the module's device, floats in its dtype."""
    weights = list(module.parameters())
    weight = next((w for w in weights if w.is_floating_point()), weights[0])  # quantised ones are integers
    dtype = weight.dtype if weight.is_floating_point() else None
    return [t.to(weight.device, dtype if t.is_floating_point() else None) for t in tensors]


@dataclass(frozen=True)
class _Text:
    """The words of each prompt of a batch: no placeholders, no padding."""

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    placeholders: list[int]

    def of(self, row: int) -> torch.Tensor:
        ids = self.input_ids[row]
        keep = self.attention_mask[row] != 0
        for token in self.placeholders:
            keep = keep & (ids != token)
        return ids[keep]
