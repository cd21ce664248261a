"""The branch side of LLaMA-Adapter v2: an image gives no tokens, and its features go on to the graft."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from fuse.branches import llama_adapter_projector_files as files


class LlamaAdapterProjector(nn.Module):
    """Without parameters."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        """config: as `llama_adapter_projector_files` describes it."""
        super().__init__()
        self.hidden_size = files.widths(config)[1]

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Features [B, n, width] -> no tokens [B, 0, hidden_size]."""
        return features.new_empty(len(features), 0, self.hidden_size)
