"""A low-rank change of a projection (LoRA, arXiv 2106.09685, section 4.1), with a bias beside it where there is one."""

import torch
from torch import nn
from torch.nn import functional


class LowRank(nn.Module):
    """`down` [rank, in] and `up` [out, rank], neither where rank is 0, and `bias` [out] where there is one."""

    def __init__(self, rank: int, inputs: int, outputs: int, bias: bool = False) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.empty(rank, inputs)) if rank else None
        self.up = nn.Parameter(torch.empty(outputs, rank)) if rank else None
        self.bias = nn.Parameter(torch.empty(outputs)) if bias else None

    def forward(self, x: torch.Tensor, rows: slice = slice(None), scaling: float = 1.0) -> torch.Tensor:
        """What is added to the projection's output: `scaling * up(down(x)) + bias`, [..., out] for x [..., in].

        rows: the outputs that are asked for, of a change that goes over several projections. scaling leaves the bias
        alone: PEFT's alpha / rank.
        """
        bias = None if self.bias is None else self.bias[rows].to(x.device, x.dtype)
        if self.down is None or self.up is None:
            assert bias is not None
            return bias.expand(*x.shape[:-1], -1)
        inner = functional.linear(x, self.down.to(x.device, x.dtype))
        change = functional.linear(inner, self.up[rows].to(x.device, x.dtype)) * scaling
        return change if bias is None else change + bias
