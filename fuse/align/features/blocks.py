"""What the blocks of a vision tower give while a branch looks at images, and where their tokens lie.

Blocks are found by the names that transformers, timm and open_clip give to their stacks; a tower without one is read at
its end alone. Class and register tokens, which come before the patches, are left out. Of a tiled image the view of the
whole picture counts (our choice), so that two encoders are compared on the same picture.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from fuse.branches.places import Boxes
from fuse.errors import CheckpointError, RecipeError

TOWERS = ("vision_tower", "vision_model", "visual", "encoder")
STACKS = (
    "transformer.resblocks", "transformer.layers", "encoder.layers", "encoder.layer", "encoder.stages", "blocks",
    "model.layer", "model.layers", "layers", "layer", "stages", "model.stages",
)  # fmt: skip
INSIDE = ("", "vision_model.", "trunk.")
STAGES = ("layer1", "layer2", "layer3", "layer4")  # of a ResNet
Grid = tuple[int, int]


@dataclass(frozen=True)
class Map:
    """Tokens [n, D] of one image.

    grid: (h, w), h * w == n, where they are the cells of a grid in raster order. places: [n, 4] where each lies on the
    image (`fuse.branches.places`), where they are no grid and this is known.
    """

    tokens: torch.Tensor
    grid: Grid | None
    places: Boxes | None = None


@dataclass(frozen=True)
class Lie:
    """How one image's tokens lie in a tower.

    patches: (h, w) patches of a view, None where only the count tells. merge: squares of so many by so many patches
    that stand together (Qwen2-VL). window: the side, in such squares, of the windows that come one after another
    (Qwen2.5-VL), 0 without. whole: which view shows the whole picture. channels_last: of maps.
    """

    patches: Grid | None = None
    merge: int = 1
    window: int = 0
    whole: int = 0
    channels_last: bool = False
    aspect: float = 1.0  # height / width of a view


def tower_of(branch: nn.Module) -> nn.Module:
    """The vision tower of a branch. Raises CheckpointError where no attribute has a tower's name."""
    for name in TOWERS:
        if isinstance(found := getattr(branch, name, None), nn.Module):
            return found
    raise CheckpointError(f"a {type(branch).__name__} has no vision tower that is known here")


def blocks_of(tower: nn.Module) -> list[nn.Module]:
    """The blocks or stages of a tower, in order; none where it has no stack that is known here."""
    for path in (inside + stack for inside in INSIDE for stack in STACKS):
        found: Any = tower
        for name in path.split("."):
            found = getattr(found, name, None)
        if isinstance(found, nn.ModuleList | nn.Sequential) and len(found):
            return list(found)
    stages = [getattr(tower, name, None) for name in STAGES]
    return [stage for stage in stages if isinstance(stage, nn.Module)] if None not in stages else []


@contextmanager
def watching(blocks: Mapping[int, nn.Module]) -> Iterator[dict[int, list[torch.Tensor]]]:
    """What blocks give inside the context, by number, one tensor for each time that they ran, on the CPU."""
    seen: dict[int, list[torch.Tensor]] = {number: [] for number in blocks}

    def keep(number: int) -> Any:
        return lambda *told: seen[number].append((told[2][0] if isinstance(told[2], tuple | list) else told[2]).cpu())

    handles = [block.register_forward_hook(keep(number)) for number, block in blocks.items()]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def maps(given: Sequence[torch.Tensor], images: int, lie: Lie, rows_first: bool = False) -> list[Map]:
    """What one block gave for so many images of the same size, as a map each.

    given: one tensor for each run: [views, n, D], [n, D] or [1, n, D] packed, or [views, D, h, w]. rows_first: tokens
    before views, as old open_clip towers have them.
    """
    first = given[0]
    if first.ndim == 4:
        found = torch.cat(list(given))
        found = found if lie.channels_last else found.permute(0, 2, 3, 1)
        grid = (found.shape[1], found.shape[2])
        whole = found.flatten(1, 2).unflatten(0, (images, -1))[:, lie.whole]
        return [Map(tokens, grid) for tokens in whole]
    if first.ndim == 2 or (first.shape[0] == 1 and images > 1 and len(given) == 1):
        views = torch.cat([one.flatten(0, -2) for one in given]).unflatten(0, (images, -1))
    else:
        found = torch.cat([one.transpose(0, 1) if rows_first else one for one in given])
        views = found.unflatten(0, (images, -1))[:, lie.whole]
    return [_laid(tokens, lie) for tokens in views]


def _laid(tokens: torch.Tensor, lie: Lie) -> Map:
    if lie.merge > 1 and lie.patches is not None:
        return _merged(tokens, lie.patches, lie)
    grid = lie.patches
    if grid is not None and grid[0] * grid[1] <= len(tokens):
        return Map(tokens[len(tokens) - grid[0] * grid[1] :], grid)
    rows = round((len(tokens) * lie.aspect) ** 0.5) or 1
    return Map(tokens, (rows, len(tokens) // rows) if len(tokens) % rows == 0 else None)


def _merged(tokens: torch.Tensor, patches: Grid, lie: Lie) -> Map:
    """The means of patches that stand together, put back into raster order."""
    h, w = patches[0] // lie.merge, patches[1] // lie.merge
    cells = tokens.unflatten(0, (h * w, lie.merge**2)).mean(1)
    if lie.window:
        k = lie.window
        order = sorted(range(h * w), key=lambda i: (i // w // k, i % w // k, i // w, i % w))
        back = torch.empty_like(cells)
        back[torch.tensor(order)] = cells
        cells = back
    return Map(cells, (h, w))


def chosen_layers(count: int, wanted: Sequence[int] | None, most: int, where: object) -> list[int]:
    """Which of so many blocks are read, from 0.

    wanted: numbers, negative ones from the end; None for all, or of more than `most` that many, evenly spaced, the
    first and last among them. Raises RecipeError for a number that is not there.
    """
    if wanted is None:
        if count <= most:
            return list(range(count))
        return [round(i * (count - 1) / (most - 1)) for i in range(most)] if most > 1 else [count - 1]
    if wrong := [layer for layer in wanted if not -count <= layer < count]:
        told = f"has {count} layers, and no layer {wrong[0]}"
        raise RecipeError(told, where=where, hint=f"--layers takes 0 to {count - 1}, or -1 for the last")
    return sorted({layer % count for layer in wanted})
