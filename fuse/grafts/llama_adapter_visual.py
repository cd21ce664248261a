"""The visual prompts of LLaMA-Adapter v2 (arXiv 2304.15010, section 3.3; details from the authors' code).

Learned queries and the image's features go through a few blocks of a ViT together; what becomes of the queries is
projected to the language model's width and is added to the prompts of every block there.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional


class Block(nn.Module):
    """A pre-norm ViT block: self-attention without a mask, then an MLP with exact GELU; biases and norms' eps 1e-5.

    It is the block of timm 0.3.2, which the authors' requirements name; later versions of timm have another eps.
    """

    def __init__(self, width: int, heads: int, inner: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.fc1, self.fc2 = nn.Linear(width, inner), nn.Linear(inner, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: [B, n, width]."""
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        x = x + self.proj(functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + self.fc2(functional.gelu(self.fc1(self.norm2(x))))


class VisualPrompts(nn.Module):
    """Features of images -> visual prompts, as many as there are queries."""

    def __init__(self, visual: Mapping[str, Any], length: int, hidden_size: int) -> None:
        """visual: `visual` of the config (`fuse.grafts.llama_adapter_files`)."""
        super().__init__()
        width = visual["width"]
        self.query = nn.Parameter(torch.empty(length, width))
        self.proj_in, self.norm_in = nn.Linear(visual["features"], width), nn.LayerNorm(width)
        self.blocks = nn.ModuleList(Block(width, visual["heads"], visual["inner"]) for _ in range(visual["depth"]))
        self.proj_out, self.norm_out = nn.Linear(width, hidden_size), nn.LayerNorm(hidden_size)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """[B, length, hidden_size] from features [B, n, c]: CLIP's tokens, class token first, normed and projected."""
        seen = self.norm_in(self.proj_in(features))
        x = torch.cat([self.query.expand(len(features), -1, -1), seen], 1)
        for block in self.blocks:
            x = block(x)
        return self.norm_out(self.proj_out(x[:, : len(self.query)]))
