"""ClipCap's mappers: a pooled CLIP feature becomes the prefix of a language model (arXiv 2111.09734).

Names of modules follow the authors' state dicts (rmokady/CLIP_prefix_caption), so that their tensors need no map.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from fuse.branches.clipcap_mlp_files import normalizes, number


def _feature(features: torch.Tensor, config: Mapping[str, Any]) -> torch.Tensor:
    """[B, 1, c] -> [B, c], of length 1 where the config says so."""
    feature = features[:, 0]
    return feature / feature.norm(dim=-1, keepdim=True) if normalizes(config) else feature


class MlpMapper(nn.Module):
    """Linear, Tanh, Linear; the result is cut into prefix_length tokens."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        """config: as `fuse.branches.clipcap_mlp_files` says it."""
        super().__init__()
        self.config = dict(config)
        self.length, self.width = number(config, "prefix_length"), number(config, "hidden_size")
        hidden = number(config, "hidden")
        self.model = nn.Sequential(
            nn.Linear(number(config, "width"), hidden), nn.Tanh(), nn.Linear(hidden, self.length * self.width)
        )

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """[B, 1, c] -> [B, prefix_length, d]."""
        return self.model(_feature(features, self.config)).unflatten(-1, (self.length, self.width))


class TransformerMapper(nn.Module):
    """Blocks over the feature's own tokens and learned ones; the learned ones come out as the prefix. No last norm."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        """config: as `fuse.branches.clipcap_transformer_files` says it."""
        super().__init__()
        self.config = dict(config)
        hidden, self.clip_length = number(config, "hidden_size"), number(config, "clip_length")
        heads, inner = number(config, "heads"), number(config, "inner")
        self.linear = nn.Linear(number(config, "width"), self.clip_length * hidden)
        self.prefix_const = nn.Parameter(torch.empty(number(config, "prefix_length"), hidden))
        self.transformer = nn.Module()
        self.transformer.layers = nn.ModuleList(_Block(hidden, heads, inner) for _ in range(number(config, "layers")))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """[B, 1, c] -> [B, prefix_length, d]."""
        told = self.linear(_feature(features, self.config)).unflatten(-1, (self.clip_length, -1))
        x = torch.cat([told, self.prefix_const.to(told.dtype).expand(len(told), -1, -1)], 1)
        for block in self.transformer.layers:  # pyright: ignore[reportGeneralTypeIssues]
            x = block(x)
        return x[:, self.clip_length :]


class _Block(nn.Module):
    """Attention and MLP, each behind a LayerNorm, each added."""

    def __init__(self, width: int, heads: int, inner: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = _Attention(width, heads)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, inner), "fc2": nn.Linear(inner, width)})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp["fc2"](functional.relu(self.mlp["fc1"](self.norm2(x))))


class _Attention(nn.Module):
    """Every token attends to every token; queries, keys and values have no bias."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_queries = nn.Linear(width, width, bias=False)
        self.to_keys_values = nn.Linear(width, 2 * width, bias=False)
        self.project = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        query, key, value = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in (self.to_queries(x), *self.to_keys_values(x).chunk(2, -1))
        )
        scores = query @ key.transpose(-1, -2) * key.shape[-1] ** -0.5
        return self.project((scores.softmax(-1) @ value).transpose(1, 2).flatten(2))
