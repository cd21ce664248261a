"""Where a graft attaches to a stack of blocks: one table per host architecture, and hooks that call the graft."""

from collections.abc import Callable
from typing import Any, Literal, Protocol

import torch

Norm = Literal["attention", "ffn"]
Linear = Literal["q", "k", "v", "o", "gate", "up", "down"]
Change = Callable[[torch.Tensor], torch.Tensor]  # x -> x'
Beside = Callable[
    [torch.Tensor, torch.Tensor], torch.Tensor
]  # (what goes in, comes out) -> what comes out instead
KeyValue = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
Prefix = Callable[[torch.Tensor, KeyValue, float], torch.Tensor]


class Slots(Protocol):
    """The slots of one stack of blocks. Every function is called with tensors [B, L, width] of the running pass."""

    layers: int
    width: int
    heads: int

    def norm_output(self, layer: int, which: Norm, change: Change) -> None:
        """`attention_input` and `ffn_input`: what a norm gives to attention or to the MLP goes through `change`."""
        ...

    def ffn(self, layer: int, beside: Beside) -> None:
        """`ffn`: beside(x, y), x what the MLP reads (behind the norm), y what it gives."""
        ...

    def ffn_residual(self, layer: int, beside: Beside) -> None:
        """`ffn_residual`: beside(h, y), h the residual stream before the MLP's norm, y what the MLP gives."""
        ...

    def attention_prefix(self, layer: int, prefix: Prefix) -> None:
        """`attention_prefix`: prefix(q, keyvalue, scaling) -> [B, H, L, d], added to each head's output before the
        output projection.

        q: [B, H, L, d], as attention reads it (after query norm and rotary positions), not scaled. keyvalue: prompts
        [B or 1, P, D] -> (k, v), each [B or 1, H, P, d]: the host's own projections, without positions, heads of groups
        repeated. scaling: what scores are multiplied by.
        """
        ...

    def linear(self, layer: int, which: Linear, beside: Beside) -> None:
        """`linear`: beside(x, y) on one projection, also where the host stores several in one matrix."""
        ...

    def norm(self, layer: int | None, which: Norm | Literal["final"], beside: Beside) -> None:
        """`norm_bias`: beside(x, y) on a norm itself."""
        ...


def slots_of(model: Any) -> dict[str, Slots]:
    """The slots of a language model by stack, or of a vision tower (`tower`)."""
    raise NotImplementedError
