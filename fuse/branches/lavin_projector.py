"""LaVIN's projector: two linear layers with SiLU between them (`adapter_proj`, arXiv 2305.15023)."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from fuse.branches import lavin_projector_files as files


class LavinProjector(nn.Module):
    """`conv_A` and `conv_B`, which are linear layers under the authors' names."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        """config: as `lavin_projector_files` describes it."""
        super().__init__()
        width, hidden_size = files.widths(config)
        self.conv_A = nn.Linear(width, config["hidden"])
        self.conv_B = nn.Linear(config["hidden"], hidden_size)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Class tokens [B, k, width] -> tokens [B, k, hidden_size]."""
        return self.conv_B(functional.silu(self.conv_A(features)))
