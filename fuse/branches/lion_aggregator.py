"""LION's vision aggregator (arXiv 2311.11860, section 3.1): late tokens of a vision tower ask earlier ones.

Each block is a layer of BERT with cross-attention, norms behind the sums, no mask and no positions:

    a = norm(x + attend(x, x));  b = norm(a + attend(a, y));  x' = norm(b + W2 gelu(W1 b))

x begins as the tokens of the first of `layers`, y are those of the next one, another for each block. A last norm and
two linear layers make visual tokens. Modules have the names of the authors' checkpoint, which are BERT's.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional

_EPS = 1e-12  # BERT's; `ln_adapter` has torch's own


class _Heads(nn.Module):
    """softmax(q k^T / sqrt(d)) v in several heads, of tokens [B, n, C] over others [B, m, C]."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))

    def forward(self, asking: torch.Tensor, answering: torch.Tensor) -> torch.Tensor:
        q, k, v = self.query(asking), self.key(answering), self.value(answering)
        q, k, v = (one.unflatten(-1, (self.heads, -1)).transpose(1, 2) for one in (q, k, v))
        return functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


class _Output(nn.Module):
    """norm(x + W y)."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.dense = nn.Linear(inner, width)
        self.LayerNorm = nn.LayerNorm(width, eps=_EPS)

    def forward(self, y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return self.LayerNorm(x + self.dense(y))


class _Block(nn.Module):
    def __init__(self, width: int, heads: int, intermediate: int) -> None:
        super().__init__()
        for name in ("attention", "crossattention"):
            self.add_module(name, nn.ModuleDict({"self": _Heads(width, heads), "output": _Output(width, width)}))
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(width, intermediate)})
        self.output = _Output(width, intermediate)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """x: [B, n, C]. y: [B, m, C], what cross-attention reads."""
        for name, read in (("attention", None), ("crossattention", y)):
            part: Any = self.get_submodule(name)
            x = part["output"](part["self"](x, x if read is None else read), x)
        return self.output(functional.gelu(self.intermediate["dense"](x)), x)


class FusionAdapter(nn.Module):
    """As many blocks as there are others to ask."""

    def __init__(self, blocks: int, width: int, heads: int, intermediate: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(_Block(width, heads, intermediate) for _ in range(blocks))

    def forward(self, x: torch.Tensor, others: list[torch.Tensor]) -> torch.Tensor:
        """x: [B, n, C]. others: for each block [B, m, C]."""
        for block, y in zip(self.blocks, others, strict=True):
            x = block(x, y)
        return x


class LionAggregator(nn.Module):
    """The projector of kind `lion_aggregator`; config: `fuse.branches.lion_aggregator_files`."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        width, inner = config["width"], config["inner"]
        blocks = len(config["layers"]) - 1
        self.fusion_adapter = FusionAdapter(blocks, width, config["heads"], config["intermediate"])
        self.ln_adapter = nn.LayerNorm(width)
        self.adapter_proj = nn.Sequential(nn.Linear(width, inner), nn.GELU(), nn.Linear(inner, config["hidden_size"]))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """features: [B, k, n, width], the tokens of each block of `layers`, -> [B, n, hidden_size]."""
        first, *others = features.unbind(1)
        return self.adapter_proj(self.ln_adapter(self.fusion_adapter(first, others)))
