"""MKS2's modular visual memory (arXiv 2311.15759): a feed-forward network beside every block's MLP, and its mixing.

The paper's equations, with the formats that are ours, are in `fuse.grafts.mks2_files`; shares and sums are in
`fuse.grafts.mks2_routers`.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from fuse.errors import CheckpointError
from fuse.grafts.graft import Graft, Reading, State
from fuse.grafts.low_rank import LowRank
from fuse.grafts.mks2_files import checked, matrices, scores_of
from fuse.grafts.mks2_routers import blended, share_of
from fuse.grafts.slots import Slots

ACTIVATIONS: Mapping[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "silu": functional.silu,
    "gelu": functional.gelu,
    "gelu_tanh": partial(functional.gelu, approximate="tanh"),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "relu": functional.relu,
}


class OwnNorm(nn.Module):
    """RMSNorm or LayerNorm of a memory that does not read behind the host's, computed in float32 or wider."""

    def __init__(self, kind: str, width: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(width))
        self.bias = nn.Parameter(torch.empty(width)) if kind == "layer" else None

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        wide = h.to(torch.promote_types(h.dtype, torch.float32))
        if self.bias is not None:
            wide = wide - wide.mean(-1, keepdim=True)
        found = (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)).to(h.dtype) * self.weight
        return found if self.bias is None else found + self.bias


class Memory(nn.Module):
    """The memory of one block with its norm, its router, and the low-rank changes of both experts, where it has any."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        d, h, lora = config["hidden_size"], config["inner_size"], config["lora"] or {}
        self.router_kind, self.temperature = config["router"], config["temperature"]
        self.act, self.gated = ACTIVATIONS[config["activation"]], config["gated"]
        mine = matrices(d, h, self.gated)
        for name, sizes in mine.items():
            setattr(self, name, nn.Linear(*sizes, bias=config["bias"]))
        self.norm = None if config["norm"] == "host" else OwnNorm(config["norm"], d, config["norm_eps"])
        self.scores = scores_of(config)
        if self.scores:
            setattr(self, self.scores, nn.Linear(d, 2, bias=self.router_kind != "arrow"))
        theirs = matrices(d, lora["mlp_size"], lora["mlp_gated"]) if lora else {}
        self.lora_scaling = {name: lora["alpha"] / lora[name] for name in ("memory", "mlp") if lora and lora[name]}
        self.memory_lora = _low_rank(mine, lora.get("memory", 0))
        self.mlp_lora = _low_rank(theirs, lora.get("mlp", 0))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """What the memory says, [..., d], and its share of each token, [..., 1], where a router computes one.

        x: [..., d], what the MLP reads; with a norm of its own the residual stream.
        """
        x = x if self.norm is None else self.norm(x)
        up = self._given("up", x)
        inner = self.act(self._given("gate", x)) * up if self.gated else self.act(up)
        scores = getattr(self, self.scores)(x) if self.scores else None
        share = None if scores is None else share_of(scores, self.router_kind, self.temperature)
        return self._given("down", inner), share

    def _given(self, name: str, x: torch.Tensor) -> torch.Tensor:
        plain = getattr(self, name)(x)
        if name not in self.memory_lora:
            return plain
        return plain + self.memory_lora[name](x, scaling=self.lora_scaling["memory"])


def _low_rank(sizes: Mapping[str, tuple[int, int]], rank: int) -> nn.ModuleDict:
    return nn.ModuleDict({name: LowRank(rank, *size) for name, size in sizes.items()} if rank else {})


class Mks2Graft(Graft):
    """The memories of all blocks, under the names of `mks2_files.shapes`.

    With router `token_type` the memory is heard at visual tokens alone: the MLP's output at words is left bit by bit as
    it is, words that are said later are words, and a decoder, which has no visual tokens, is left alone.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        try:
            config = checked(config)
        except ValueError as error:
            raise CheckpointError(f"config.json: grafts: {error}") from None
        super().__init__(config)
        self.layers = nn.ModuleDict({str(number): Memory(config) for number in config["layers"]})

    @property
    def looks(self) -> bool:
        return self.config["router"] == "token_type"

    def attach(self, slots: Mapping[str, Slots]) -> None:
        """Slots `ffn`, or `ffn_residual` for a norm of its own, and `linear` for the low-rank change of the MLP."""
        stacks = [slots[name] for name in ("language", "encoder", "decoder") if name in slots]
        blocks = [(stack, index) for stack in stacks for index in range(stack.layers)]
        for number in self.config["layers"]:
            stack, index = blocks[number]
            memory = self.layers[str(number)]
            assert isinstance(memory, Memory)
            if self.config["router"] == "token_type" and stack is slots.get("decoder"):
                continue
            put = stack.ffn if memory.norm is None else stack.ffn_residual
            put(index, partial(self._mixed, memory))
            for name in ("up", "gate", "down"):
                if name in memory.mlp_lora:
                    stack.linear(index, name, partial(self._tuned, memory, name))

    def read(self, reading: Reading) -> State:
        """Where the visual tokens are, for `token_type`; nothing where there are none."""
        visual = reading.numbers != 0
        return {"visual": visual} if self.config["router"] == "token_type" and bool(visual.any()) else {}

    def _mixed(self, memory: Memory, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """What the MLP's slot gives instead of y [B, L, d]. x: [B, L, d], what the memory reads."""
        if self.config["router"] == "token_type":
            return self._at_visual(memory, x, y)
        m, share = memory(x)
        share = self.scale if share is None else self.scale * share.to(y.device, y.dtype)
        return blended(y, m.to(y.device, y.dtype), share, self.config["place"])

    def _at_visual(self, memory: Memory, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """The memory is asked about visual tokens only; a pass that goes on from a cache holds words."""
        if not self.begins or "visual" not in self.state:
            return y
        visual = self.rows_of("visual", y)
        visual = functional.pad(visual, (0, y.shape[1] - visual.shape[1]))
        said = memory(x[visual.to(x.device)])[0].to(y.device, y.dtype)
        return y.index_put(torch.where(visual), blended(y[visual], said, self.scale, self.config["place"]))

    def _tuned(self, memory: Memory, name: str, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """One projection of the host's MLP with its low-rank change. x: [..., in], y: [..., out]."""
        change = memory.mlp_lora[name](x, scaling=memory.lora_scaling["mlp"])
        return y + self.scale * change.to(y.device, y.dtype)
