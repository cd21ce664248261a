"""Where every image of every branch stands in a prompt, told on the CPU before the first encoder runs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from fuse.branches.options import is_shared, separator_ids
from fuse.errors import RecipeError
from fuse.model.positions import Shared

# Inputs that the processor adds to a branch's own, one tensor for each image. RUNS: [R, 2] full and kept length of each
# run. GRID: (t, h, w) or zeros. EDGES: [2] tokens of the block before its first visual token, with the separator, and
# behind its last one; only where an option of a branch needs them.
RUNS, GRID, EDGES = "runs", "grid", "edges"
OWN_PROCESSOR = "write the prompt and its images with the folder's own processor"


@dataclass(frozen=True)
class Look:
    """One image of one branch, as the processor wrote it into the prompt.

    columns: its placeholders, on the CPU. grid: (t, h, w), or None. begin, end: the columns of its block: separator,
    markers and visual tokens; those of the visual tokens alone where the processor does not tell.
    """

    row: int
    columns: torch.Tensor
    runs: tuple[int, ...]
    shares: tuple[int, ...]
    grid: tuple[int, int, int] | None
    begin: int
    end: int


def looks_of(
    branch: Mapping[str, Any], inputs: Mapping[str, list[torch.Tensor]], ids: torch.Tensor, edges: bool
) -> list[Look]:
    """Every image of a branch. ids: [B, L] on the CPU. edges: whether `inputs` must tell where blocks begin and end.

    Raises RecipeError when the placeholders in `ids` and the images do not agree.
    """
    places = (ids == branch["token_id"]).nonzero()
    runs = [image.tolist() for image in inputs.get(RUNS, [])]
    counts = [sum(kept for _, kept in image) for image in runs]
    if len(places) != sum(counts):
        raise RecipeError(
            f"the prompt has {len(places)} placeholders of branch {branch['name']!r} and its {len(runs)} images "
            f"have {sum(counts)} tokens", hint=OWN_PROCESSOR,
        )  # fmt: skip
    around = [edge.tolist() for edge in inputs.get(EDGES, [])]
    if edges and len(around) != len(runs):
        told = f"the inputs do not tell where the tokens of branch {branch['name']!r} begin and end"
        raise RecipeError(told, hint=OWN_PROCESSOR)
    found, start = [], 0
    for number, (image, count) in enumerate(zip(runs, counts, strict=True)):
        mine = places[start : start + count]
        start += count
        t, h, w = inputs[GRID][number].tolist()
        before, behind = around[number] if edges else (0, 0)
        full, kept = tuple(n for n, _ in image), tuple(n for _, n in image)
        begin, end = int(mine[0, 1]) - before, int(mine[-1, 1]) + 1 + behind
        if begin < 0 or end > ids.shape[1]:
            raise RecipeError(f"the block of branch {branch['name']!r} leaves the prompt", hint=OWN_PROCESSOR)
        grid = (t, h, w) if t * h * w else None
        found.append(Look(int(mine[0, 0]), mine[:, 1], full, kept, grid, begin, end))
    return found


def shared_blocks(branches: Sequence[Mapping[str, Any]], looks: Mapping[str, list[Look]]) -> tuple[Shared, ...]:
    """The blocks whose tokens stand at the positions of the first branch's block of the same image."""
    return tuple(
        Shared(look.row, (first.begin, first.end), (look.begin, look.end))
        for branch in branches if is_shared(branch)
        for first, look in zip(looks[branches[0]["name"]], looks[branch["name"]], strict=True)
    )  # fmt: skip


def separator_places(
    branches: Sequence[Mapping[str, Any]], looks: Mapping[str, list[Look]], like: torch.Tensor
) -> torch.Tensor:
    """[B, L] bool on the CPU, True where a separator stands. like: [B, L]."""
    found = torch.zeros(like.shape, dtype=torch.bool)
    for branch in branches:
        length = len(separator_ids(branch))
        for look in looks[branch["name"]] if length else []:
            found[look.row, look.begin : look.begin + length] = True
    return found
