"""LMEye's static mapping: an image as one token of the language model (LMEye/modeling/modeling_LMEye.py)."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn


class LmeyeProjector(nn.Module):
    """`imgLinear` and `embedding_img`, the learned offset of the token `<img>`.

    The source adds both to the token's own embedding; an importer has folded that row into the offset where the file
    has it.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        """config: as `fuse.branches.lmeye_projector_files` describes it."""
        super().__init__()
        self.n = config["tokens"]
        self.imgLinear = nn.Linear(config["width"], self.n * config["hidden_size"])
        self.embedding_img = nn.Embedding(1, config["hidden_size"])

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """[B, 1, c] -> [B, n, d]."""
        offset = self.embedding_img(torch.zeros(1, dtype=torch.long, device=features.device))
        return self.imgLinear(features[:, 0]).unflatten(-1, (self.n, -1)) + offset
