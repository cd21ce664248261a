"""From prepared images to visual tokens in their places: all that happens before the language model reads a prompt."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from fuse.branches.branch import Embed
from fuse.branches.budget import present
from fuse.branches.kinds import run_branch
from fuse.branches.options import tells_edges
from fuse.branches.select import keep_tokens
from fuse.errors import CheckpointError, RecipeError
from fuse.model.at_hand import at_hand
from fuse.model.looks import EDGES, GRID, RUNS, Look, looks_of, separator_places, shared_blocks
from fuse.model.norms import embedding_norm, mean_norm, scaled
from fuse.model.positions import Patch, Shared

PREFIX = "branches."
VARIABLE = frozenset({"slime"})  # kinds that choose by the question how many tokens they give


@dataclass(frozen=True)
class Visual:
    """One branch's kept tokens of one image.

    tokens: [n, D], scaled where the branch has a `norm`. index: [n] where each stood among all the tokens that the
    branch saw. places: its placeholders in the prompt, of which the first n are used. runs, shares: the lengths of the
    image's runs, and what was kept of each. grid: (t, h, w) where all the branch's tokens are the cells of one grid.
    chosen: `Seen.chosen`. features: `Seen.features`. row, columns: where in the batch and in its prompt.
    """

    tokens: torch.Tensor
    index: torch.Tensor
    places: int
    runs: tuple[int, ...]
    shares: tuple[int, ...]
    grid: tuple[int, int, int] | None
    chosen: torch.Tensor | None = None
    features: torch.Tensor | None = None
    row: int = 0
    columns: torch.Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.long))


@dataclass(frozen=True)
class Prompt:
    """A prompt with its visual tokens in place.

    embeds: [B, L, D]. attention_mask: [B, L], 0 also where a branch gave fewer tokens than it has placeholders.
    numbers: [B, L], 0 at words, at visual tokens the number of their image and branch, from 1. seen: by branch, what it
    gave for each image. shared: the blocks that stand at the positions of another. states: by graft, what it keeps of
    the prompt.
    """

    embeds: torch.Tensor
    attention_mask: torch.Tensor
    numbers: torch.Tensor
    patches: tuple[Patch, ...]
    seen: Mapping[str, list[Visual]]
    shared: tuple[Shared, ...] = ()
    states: Mapping[str, dict[str, torch.Tensor]] = field(default_factory=dict)

    @property
    def visual(self) -> torch.Tensor:
        """[B, L] bool, True at visual tokens."""
        return self.numbers != 0


def split_inputs(kwargs: dict[str, Any]) -> dict[str, dict[str, list[torch.Tensor]]]:
    """Take the inputs of branches out of keyword arguments: branch name -> input name -> one tensor per image.

    Lists of lists, as batching code makes them of several prompts' lists, are taken one after another. The kinds of
    tokens, which servers ask of the processor, are dropped: the placeholders tell them.
    """
    kwargs.pop("mm_token_type_ids", None)
    found: dict[str, dict[str, list[torch.Tensor]]] = {}
    for key in [key for key in kwargs if key.startswith(PREFIX)]:
        name, _, inner = key.removeprefix(PREFIX).rpartition(".")
        given = kwargs.pop(key)
        flat = [one for part in given for one in (part if isinstance(part, list | tuple) else [part])]
        found.setdefault(name, {})[inner] = flat
    return found


def read_prompt(
    input_ids: torch.Tensor, attention_mask: torch.Tensor, given: Mapping[str, dict[str, list[torch.Tensor]]],
    branches: Sequence[Mapping[str, Any]], modules: Mapping[str, nn.Module], embed: Embed, rows: int,
) -> Prompt:  # fmt: skip
    """Embed a prompt and put every branch's tokens at its placeholders.

    All counting happens on the CPU before the first encoder runs, so that a GPU gets its work without a stop.
    rows: how many tokens `embed` knows. Raises RecipeError when the placeholders in `input_ids` and the images do not
    agree.
    """
    if unknown := given.keys() - {branch["name"] for branch in branches}:
        raise RecipeError(f"there are inputs of branch {min(unknown)!r}, which the model does not have")
    ids, edges = input_ids.cpu(), tells_edges(branches)
    looks = {branch["name"]: looks_of(branch, given.get(branch["name"], {}), ids, edges) for branch in branches}
    said: list[list[torch.Tensor]] = [[] for _ in max(looks.values(), key=len, default=[])]  # by image, not scaled
    embeds, mask = embed(input_ids), attention_mask.clone()
    numbers = torch.zeros_like(input_ids)
    between = separator_places(branches, looks, ids).to(input_ids.device)
    text = _Text(input_ids, attention_mask, [branch["token_id"] for branch in branches], between)
    wordy = bool(said) and any(branch.get("norm") == "embeddings" for branch in branches)
    word = embedding_norm(embed, rows, input_ids.device) if wordy else torch.zeros(())
    patches: list[Patch] = []
    everything: dict[str, list[Visual]] = {}
    for branch in branches:
        name = branch["name"]
        found = _see(branch, modules[name], given.get(name, {}), looks[name], text, embed, said)
        first = everything[branches[0]["name"]] if everything else found
        everything[name] = _long(branch, found, first, word)
        for image, (look, seen) in enumerate(zip(looks[name], everything[name], strict=True)):
            used, unused = look.columns[: len(seen.tokens)], look.columns[len(seen.tokens) :]
            columns = used.to(input_ids.device)
            embeds = _put(embeds, look.row, columns, seen.tokens)
            numbers[look.row, columns] = len(patches) + 1
            if len(unused):
                mask[look.row, unused.to(mask.device)] = 0
            grid = seen.grid if len(seen.runs) == 1 else None  # markers between its rows would stand inside it
            patches.append(Patch(look.row, used, grid, seen.index))
            said[image].append(found[image].tokens)
    return Prompt(embeds, mask, numbers, tuple(patches), everything, shared_blocks(branches, looks))


def _long(branch: Mapping[str, Any], seen: list[Visual], first: Sequence[Visual], word: torch.Tensor) -> list[Visual]:
    """A branch's tokens of every image with the norm that the branch asks for.

    first: what the first branch gave for the same images, as the prompt holds it. word: the mean norm of a word.
    """
    if branch.get("norm") == "match":
        norms = [mean_norm(one.tokens) for one in first]
    elif branch.get("norm") == "embeddings":
        norms = [word] * len(seen)
    else:
        return seen
    return [replace(one, tokens=scaled(one.tokens, norm)) for one, norm in zip(seen, norms, strict=True)]


def _put(embeds: torch.Tensor, row: int, columns: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    tokens = tokens.to(embeds.device, embeds.dtype)
    if embeds.requires_grad or tokens.requires_grad:
        return embeds.index_put((torch.tensor(row, device=columns.device), columns), tokens)
    embeds[row, columns] = tokens
    return embeds


def _see(
    branch: Mapping[str, Any], module: nn.Module, inputs: dict[str, list[torch.Tensor]], looks: list[Look],
    text: "_Text", embed: Embed, said: list[list[torch.Tensor]],
) -> list[Visual]:  # fmt: skip
    """One branch's tokens of every image, within its budget."""
    if not looks:
        return []
    words = [text.of(look.row) for look in looks] if branch["kind"] in VARIABLE else []
    prune = branch.get("prune") or "pool"
    attention = branch.get("max_tokens") is not None and prune == "cls"
    pixels = {k: v for k, v in inputs.items() if k not in (RUNS, GRID, EDGES)}
    found = []
    try:
        with at_hand(module):
            pixels = _at_home(pixels, module)
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
        if branch["kind"] in VARIABLE or _is_silent(branch):
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
        columns = look.columns[: len(tokens)].to(tokens.device)
        found.append(
            Visual(
                tokens, index, len(look.columns), runs, shares, look.grid, one.chosen, one.features, look.row, columns
            )
        )
    return found


def _is_silent(branch: Mapping[str, Any]) -> bool:
    """Whether a branch's projector gives no tokens: the one placeholder of an image stays empty."""
    return branch["kind"] == "encoder" and branch["config"].get("tokens") == 0


def _joined(tokens: list[torch.Tensor]) -> torch.Tensor | None:
    return torch.cat([t.to(tokens[0].device) for t in tokens]) if tokens else None


def _at_home(inputs: Mapping[str, list[torch.Tensor]], module: nn.Module) -> dict[str, list[torch.Tensor]]:
    """Inputs on the module's device, floats in its dtype. Quantised weights are integers."""
    weights = module.parameters()
    weight = next((w for w in weights if w.is_floating_point()), None)
    if weight is None:
        return dict(inputs)
    return {
        name: [t.to(device=weight.device, dtype=weight.dtype if t.is_floating_point() else None) for t in tensors]
        for name, tensors in inputs.items()
    }


@dataclass(frozen=True)
class _Text:
    """The words of each prompt of a batch: no placeholders, no padding, no separators."""

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    placeholders: list[int]
    separators: torch.Tensor  # [B, L] bool

    def of(self, row: int) -> torch.Tensor:
        ids = self.input_ids[row]
        keep = (self.attention_mask[row] != 0) & ~self.separators[row]
        for token in self.placeholders:
            keep = keep & (ids != token)
        return ids[keep]
