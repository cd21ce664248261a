"""The sums of one comparison of encoders while batches of images pass."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import torch
from PIL import Image

from fuse.align.features.blocks import Grid, chosen_layers
from fuse.align.features.grids import Common, common_grid
from fuse.align.features.look import Looked, layers_that_run, look
from fuse.align.features.open import Encoder
from fuse.align.features.pool import grid_of, pool
from fuse.align.features.rows import Kept
from fuse.align.measures.cka.linear import LinearCKA, choose
from fuse.errors import CheckpointError

LAYERS = 12  # of an encoder, where none are named
MEMORY = 2 << 30  # bytes of the sums of all pairs
PLACES = ("encoder", "projector")


@dataclass
class Side:
    """One encoder and what is kept of it.

    name: its label. words: ids of a question, for branches that look at it. layers: the blocks that are read. grids: of
    its tokens in the first image, widths: their numbers, and kept: samples of them, each by place: at the last of the
    layers, and behind the projector where it has one.
    """

    name: str
    encoder: Encoder
    words: torch.Tensor
    layers: list[int] = field(default_factory=list)
    grids: dict[str, Grid | None] = field(default_factory=dict)
    widths: dict[str, int] = field(default_factory=dict)
    kept: dict[str, Kept] = field(default_factory=dict)


class Run:
    """Adds up batches of images.

    images: how many were seen. common: by place, the grid that tokens are pooled to. sums: the CKA of a pair of sides
    (by number) at a place, at the encoder of all layers with all. Memory does not grow with images: it is that of the
    sums (`LinearCKA`), and of two draws of up to `limit` samples a place.
    """

    def __init__(
        self,
        sides: Sequence[Side],
        files: int,
        *,
        layers: Sequence[int] | None,
        cells: int,
        limit: int,
        memory: int = MEMORY,
    ) -> None:
        """files: how many images will come at most. layers: the blocks to read, None for up to `LAYERS` of them.
        memory: bytes of all sums; where exact ones need more, CKA is averaged over batches of tokens."""
        self.sides, self.images = list(sides), 0
        self.common: dict[str, Common] = {}
        self.sums: dict[tuple[int, int, str], LinearCKA] = {}
        self._files, self._layers, self._cells, self._limit, self._memory = files, layers, cells, limit, memory

    def prepare(self, image: Image.Image) -> list[Any]:
        """What each encoder makes of an image; raises what its eyes raise."""
        return [side.encoder.prepare(image) for side in self.sides]

    def add(self, images: Sequence[list[Any]]) -> None:
        """Let every encoder look at a batch, as `prepare` made it.

        Raises as `fuse.align.features.look.look` and `chosen_layers`, and CheckpointError for features that are not
        finite.
        """
        prepared = [list(one) for one in zip(*images, strict=True)]
        first = not self.images
        if first:
            for side, given in zip(self.sides, prepared, strict=True):
                count = layers_that_run(side.encoder, given[0], side.words)
                side.layers = chosen_layers(count, self._layers, LAYERS, side.name) if count else []
        looked = [
            look(side.encoder, side.layers, given, side.words) for side, given in zip(self.sides, prepared, strict=True)
        ]
        if first:
            self._begin(looked)
        found = [self._cells_of(side, one) for side, one in zip(self.sides, looked, strict=True)]
        for (i, j, place), cka in self.sums.items():
            a, b = found[i][place], found[j][place]
            if cka.form == "batches":  # which are to hold tokens of all these images
                order = torch.randperm(len(a[0]), generator=torch.Generator().manual_seed(self.images))
                a, b = [layer[order] for layer in a], [layer[order] for layer in b]
            cka.add(a, b)
        self.images += len(images)

    def _cells_of(self, side: Side, looked: Looked) -> dict[str, list[torch.Tensor]]:
        """[images * cells, D] of each layer, by place; draws from the last."""
        found = {}
        for place, maps in (("encoder", looked.layers), ("projector", [looked.projected])):
            if place in side.widths:
                layers = [pool(layer, self.common[place].grid) for layer in maps if layer is not None]
                if place == "encoder":
                    chosen = layers[: len(side.layers)]  # a last one behind them is the encoder's output
                    for number, layer in zip(side.layers, chosen, strict=True):
                        _check_finite(layer, f"of block {number}", side)
                _check_finite(layers[-1], f"of the {place}", side)
                side.kept[place].add(layers[-1])
                found[place] = [layer.flatten(0, 1) for layer in layers]
        return found

    def _begin(self, looked: Sequence[Looked]) -> None:
        """What the first batch tells: grids and widths."""
        for side, one in zip(self.sides, looked, strict=True):
            first = {"encoder": one.layers[-1][0], **({"projector": one.projected[0]} if one.projected else {})}
            side.grids = {place: grid_of(tokens) for place, tokens in first.items()}
            side.widths = {place: tokens.tokens.shape[-1] for place, tokens in first.items()}
            side.kept = {place: Kept(self._limit) for place in first}
        pairs = list(combinations(range(len(self.sides)), 2))
        for place in PLACES:
            grids = {side.name: side.grids[place] for side in self.sides if place in side.grids}
            if not grids:
                continue
            self.common[place] = common = common_grid(grids, cells=self._cells)
            samples = self._files * (common.grid[0] * common.grid[1] if common.grid else 1)
            for i, j in pairs:
                if place in self.sides[i].widths and place in self.sides[j].widths:
                    a, b = (_widths(looked[number], place) for number in (i, j))
                    form = choose(a, b, samples, self._memory // len(pairs))
                    self.sums[i, j, place] = LinearCKA(form=form)


def _check_finite(layer: torch.Tensor, where: str, side: Side) -> None:
    if not bool(layer.isfinite().all()):
        raise CheckpointError(f"the features {where} are not all finite numbers", where=side.encoder.name)


def _widths(looked: Looked, place: str) -> list[int]:
    maps = looked.layers if place == "encoder" else [looked.projected or []]
    return [layer[0].tokens.shape[-1] for layer in maps]
