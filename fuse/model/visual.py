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
from fuse.errors import CheckpointError, RecipeError
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
    grid: (t, h, w) where all the branch's tokens are the cells of one grid. chosen: `Seen.chosen`.
    """

    tokens: torch.Tensor
    index: torch.Tensor
    places: int
    runs: tuple[int, ...]
    shares: tuple[int, ...]
    grid: tuple[int, int, int] | None
    chosen: torch.Tensor | None = None


@dataclass(frozen=True)
class Prompt:
    """A prompt with its visual tokens in place.

    embeds: [B, L, D]. attention_mask: [B, L], 0 also where a branch gave fewer tokens than it has placeholders.
    numbers: [B, L], 0 at words, at visual tokens the number of their image and branch, from 1. seen: by branch, what it
    gave for each image.
    """

    embeds: torch.Tensor
    attention_mask: torch.Tensor
    numbers: torch.Tensor
    patches: tuple[Patch, ...]
    seen: Mapping[str, list[Visual]]

    @property
    def visual(self) -> torch.Tensor:
        """[B, L] bool, True at visual tokens."""
        return self.numbers != 0


def split_inputs(kwargs: dict[str, Any]) -> dict[str, dict[str, list[torch.Tensor]]]:
    """Take the inputs of branches out of keyword arguments: branch name -> input name -> one tensor per image.

    Lists of lists, as batching code makes them of several prompts' lists, are taken one after another.
    """
    found: dict[str, dict[str, list[torch.Tensor]]] = {}
    for key in [key for key in kwargs if key.startswith(PREFIX)]:
        name, _, inner = key.removeprefix(PREFIX).rpartition(".")
        given = kwargs.pop(key)
        flat = [one for part in given for one in (part if isinstance(part, list | tuple) else [part])]
        found.setdefault(name, {})[inner] = flat
    return found


def read_prompt(
    input_ids: torch.Tensor, attention_mask: torch.Tensor, given: Mapping[str, dict[str, list[torch.Tensor]]],
    branches: Sequence[Mapping[str, Any]], modules: Mapping[str, nn.Module], embed: Embed,
) -> Prompt:  # fmt: skip
    """Embed a prompt and put every branch's tokens at its placeholders.

    All counting happens on the CPU before the first encoder runs, so that a GPU gets its work without a stop.
    Raises RecipeError when the placeholders in `input_ids` and the images do not agree.
    """
    if unknown := given.keys() - {branch["name"] for branch in branches}:
        raise RecipeError(f"there are inputs of branch {min(unknown)!r}, which the model does not have")
    ids = input_ids.cpu()
    looks = {branch["name"]: _looks(branch, given.get(branch["name"], {}), ids) for branch in branches}
    embeds, mask = embed(input_ids), attention_mask.clone()
    numbers = torch.zeros_like(input_ids)
    text = _Text(input_ids, attention_mask, [branch["token_id"] for branch in branches])
    patches: list[Patch] = []
    everything: dict[str, list[Visual]] = {}
    said: list[list[torch.Tensor]] = [[] for _ in max(looks.values(), key=len, default=[])]  # by image
    for branch in branches:
        name = branch["name"]
        everything[name] = _see(branch, modules[name], given.get(name, {}), looks[name], text, embed, said)
        for image, (look, seen) in enumerate(zip(looks[name], everything[name], strict=True)):
            used, unused = look.columns[: len(seen.tokens)], look.columns[len(seen.tokens) :]
            columns = used.to(input_ids.device)
            embeds = _put(embeds, look.row, columns, seen.tokens)
            numbers[look.row, columns] = len(patches) + 1
            if len(unused):
                mask[look.row, unused.to(mask.device)] = 0
            grid = seen.grid if len(seen.runs) == 1 else None  # markers between its rows would stand inside it
            patches.append(Patch(look.row, used, grid, seen.index))
            said[image].append(seen.tokens)
    return Prompt(embeds, mask, numbers, tuple(patches), everything)


def _put(embeds: torch.Tensor, row: int, columns: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    tokens = tokens.to(embeds.device, embeds.dtype)
    if embeds.requires_grad or tokens.requires_grad:
        return embeds.index_put((torch.tensor(row, device=columns.device), columns), tokens)
    embeds[row, columns] = tokens
    return embeds


@dataclass(frozen=True)
class _Look:
    """One image of one branch, as the processor wrote it into the prompt. columns: its placeholders, on the CPU."""

    row: int
    columns: torch.Tensor
    runs: tuple[int, ...]
    shares: tuple[int, ...]
    grid: tuple[int, int, int] | None


def _looks(branch: Mapping[str, Any], inputs: Mapping[str, list[torch.Tensor]], ids: torch.Tensor) -> list[_Look]:
    """Where each image of a branch stands. ids: [B, L] on the CPU."""
    places = (ids == branch["token_id"]).nonzero()
    runs = [image.tolist() for image in inputs.get(RUNS, [])]
    counts = [sum(kept for _, kept in image) for image in runs]
    if len(places) != sum(counts):
        raise RecipeError(
            f"the prompt has {len(places)} placeholders of branch {branch['name']!r} and its {len(runs)} images "
            f"have {sum(counts)} tokens",
            hint="write the prompt and its images with the folder's own processor",
        )
    found, start = [], 0
    for image, count, (t, h, w) in zip(runs, counts, [grid.tolist() for grid in inputs.get(GRID, [])], strict=True):
        mine = places[start : start + count]
        start += count
        full, kept = tuple(n for n, _ in image), tuple(n for _, n in image)
        found.append(_Look(int(mine[0, 0]), mine[:, 1], full, kept, (t, h, w) if t * h * w else None))
    return found


def _see(
    branch: Mapping[str, Any], module: nn.Module, inputs: dict[str, list[torch.Tensor]], looks: list[_Look],
    text: "_Text", embed: Embed, said: list[list[torch.Tensor]],
) -> list[Visual]:  # fmt: skip
    """One branch's tokens of every image, within its budget."""
    if not looks:
        return []
    words = [text.of(look.row) for look in looks] if branch["kind"] in VARIABLE else []
    prune = branch.get("prune") or "pool"
    attention = branch.get("max_tokens") is not None and prune == "cls"
    pixels = _at_home({k: v for k, v in inputs.items() if k not in (RUNS, GRID)}, module)
    found = []
    try:
        seen = run_branch(branch, module, pixels, text=words, embed=embed, attention=attention)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ValueError, IndexError) as error:
        raise CheckpointError(
            f"branch {branch['name']!r} cannot encode its image: {str(error).strip().splitlines()[0]}",
            hint="the processor's files and the encoder do not agree",
        ) from error
    for image, one in enumerate(seen):
        look = looks[image]
        runs, shares = look.runs, look.shares
        if branch["kind"] in VARIABLE:
            runs, shares = present(runs, shares, len(one.tokens))
        if len(one.tokens) != sum(runs):
            raise RecipeError(
                f"branch {branch['name']!r} gave {len(one.tokens)} tokens for an image that the prompt holds "
                f"{sum(runs)} of", hint="the processor's files do not belong to this branch",
            )  # fmt: skip
        tokens, index = keep_tokens(
            prune, one.tokens, runs, shares, attention=one.attention, said=_joined(said[image]), grid=look.grid,
            name=branch["name"],
        )  # fmt: skip
        found.append(Visual(tokens, index, len(look.columns), runs, shares, look.grid, one.chosen))
    return found


def _joined(tokens: list[torch.Tensor]) -> torch.Tensor | None:
    return torch.cat([t.to(tokens[0].device) for t in tokens]) if tokens else None


def _at_home(inputs: Mapping[str, list[torch.Tensor]], module: nn.Module) -> dict[str, list[torch.Tensor]]:
    """Inputs on the module's device, floats in its dtype. Quantised weights are integers, offloaded ones nowhere."""
    weights = module.parameters()
    weight = next((w for w in weights if w.is_floating_point()), None)
    if weight is None:
        return dict(inputs)
    device = None if weight.device.type == "meta" else weight.device
    return {
        name: [t.to(device=device, dtype=weight.dtype if t.is_floating_point() else None) for t in tensors]
        for name, tensors in inputs.items()
    }


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
