"""LoRA beside the projections of a host, at any scale."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from fuse.grafts.graft import Graft
from fuse.grafts.lora_files import split
from fuse.grafts.lora_names import parts
from fuse.grafts.low_rank import LowRank
from fuse.grafts.slots import Beside, Slots


class LoraGraft(Graft):
    """`y + scale * scaling * up(down(x))` on every projection that the donor changes (arXiv 2106.09685, 4.1)."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__(config)
        trees: dict[str, dict[str, dict[str, nn.Module]]] = {}
        for name, row in config["modules"].items():
            stack, layer, linear = split(name)
            made = LowRank(row["rank"], row["in"], row["out"])
            trees.setdefault(stack, {}).setdefault(str(layer), {})[linear] = made
        for stack, layers in trees.items():
            self.add_module(stack, nn.ModuleDict({n: nn.ModuleDict(linears) for n, linears in layers.items()}))

    def attach(self, slots: Mapping[str, Slots]) -> None:
        for name, row in self.config["modules"].items():
            stack, layer, linear = split(name)
            change: Any = self.get_submodule(name)
            for part, rows in parts(linear, row["in"], row["out"]).items():
                slots[stack].linear(layer, part, self._beside(change, slice(*rows), row["scaling"]))  # pyright: ignore[reportArgumentType]

    def _beside(self, change: LowRank, rows: slice, scaling: float) -> Beside:
        def beside(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return y + change(x, rows, scaling * self.scale)

        return beside
