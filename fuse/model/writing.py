"""Images into a prompt: every branch's block of tokens, and the inputs that tell the model what they are."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from fuse.branches.branch import Prepared
from fuse.branches.options import separator_ids, tells_edges
from fuse.model.looks import EDGES, GRID, RUNS
from fuse.model.visual import PREFIX

Layout = tuple[int | str, ...]
Image = Sequence[tuple[Prepared, Layout]]  # of each branch: what it prepared, and its layout within its budget
Branches = Sequence[Mapping[str, Any]]


def write(
    ids: list[int], images: Sequence[Image], branches: Branches, marker: Callable[[str, Mapping[str, Any]], int],
    behind: Sequence[int] = (),
) -> list[int]:  # fmt: skip
    """Ids with every branch's block in place of each image's first placeholder.

    A block is the branch's separator, and then its layout. marker: the id of a marker token that a branch writes.
    behind: the placeholders of grafts, which follow every image.
    """
    if not branches:
        return ids
    first = branches[0]["token_id"]
    out: list[int] = []
    waiting = iter(images)
    for token in ids:
        if token != first:
            out.append(token)
            continue
        for branch, (_, layout) in zip(branches, next(waiting), strict=True):
            out += separator_ids(branch)
            for item in layout:
                out += [branch["token_id"]] * item if isinstance(item, int) else [marker(item, branch)]
        out += behind
    return out


def graft_slots(grafts: Sequence[Mapping[str, Any]]) -> list[int]:
    """The placeholders that follow every image, for grafts that are heard.

    Those of one graft stand in the order of their ids, which is the kind's: transformers sorts what it saves.
    """
    return [
        number
        for graft in grafts if graft["scale"] != 0
        for number, name in sorted((number, name) for name, number in (graft.get("token_ids") or {}).items())
        for _ in range(graft["tokens"][name])
    ]  # fmt: skip


def branch_inputs(images: Sequence[Image], branches: Branches) -> dict[str, list[torch.Tensor]]:
    """`branches.NAME.*` of a batch: one tensor for each image, of what the eyes prepared and of how it is written."""
    inputs: dict[str, list[torch.Tensor]] = {}
    edges = tells_edges(branches)
    for image in images:
        for branch, (one, kept) in zip(branches, image, strict=True):
            name = f"{PREFIX}{branch['name']}."
            runs = [(a, b) for a, b in zip(one.layout, kept, strict=True) if isinstance(a, int)]
            inputs.setdefault(name + RUNS, []).append(torch.tensor(runs))
            inputs.setdefault(name + GRID, []).append(torch.tensor(one.grid or (0, 0, 0)))
            if edges:
                before, behind = edges_of(kept)
                inputs.setdefault(name + EDGES, []).append(torch.tensor((before + len(separator_ids(branch)), behind)))
            for key, value in one.inputs.items():
                inputs.setdefault(name + key, []).append(value)
    return inputs


def edges_of(layout: Layout) -> tuple[int, int]:
    """How many markers stand before the first visual token of a layout, and how many behind the last one."""
    visual = [i for i, item in enumerate(layout) if isinstance(item, int) and item > 0]
    return visual[0], len(layout) - 1 - visual[-1]
