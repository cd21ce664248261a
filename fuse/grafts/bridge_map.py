"""One map of a bridge, between the basis of a donor's host (d numbers) and that of a new host (D numbers)."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn import functional


class Crossing(nn.Module):
    """One map, with the tensors that `bridge_files.shapes` names. All weights are touched in `forward` alone, so that
    they may lie on another device or on disk.

    Ways of `forward`: `turn` is a change of a state, and `state` a state itself; `in` goes from the host [..., D] to
    the donor's basis [..., d], `out` back. `norm`: the norm of the donor's host on one of its states. `behind`: what
    stands behind the norm of one side as it would stand behind the norm of the other.
    """

    down: torch.Tensor
    offset: torch.Tensor
    size: torch.Tensor
    gain: torch.Tensor
    host_gain: torch.Tensor
    up: torch.Tensor | None
    up_offset: torch.Tensor
    bias: torch.Tensor | None
    host_bias: torch.Tensor | None

    def __init__(self, bridge: Mapping[str, Any], tensors: Mapping[str, tuple[int, ...]]) -> None:
        super().__init__()
        self.kind, self.eps = bridge["norm"], float(bridge["norm_eps"])
        for name in ("up", "up_offset", "bias", "host_bias"):
            self.register_parameter(name, None)
        for name, shape in tensors.items():
            self.register_parameter(name, nn.Parameter(torch.empty(shape)))
        self._ways: Mapping[str, Callable[[torch.Tensor], torch.Tensor]] = {
            "turn_in": self._turn_in, "state_in": self._state_in, "turn_out": self._turn_out,
            "state_out": self._state_out, "norm": self._norm, "behind_in": self._behind_in,
            "behind_turn_out": partial(self._behind_out, is_state=False),
            "behind_state_out": partial(self._behind_out, is_state=True),
        }  # fmt: skip
        self._matrix: list[Crossing] = []

    def takes(self, matrix: "Crossing") -> None:
        """From now on the matrix is another map's."""
        self._matrix = [matrix]  # in a list it is no child, and stored once

    def forward(self, x: torch.Tensor, way: str) -> torch.Tensor:
        return self._ways[way](x)

    def _turn_in(self, x: torch.Tensor) -> torch.Tensor:
        if self._matrix:
            return self._matrix[0](x, "turn_in")
        return functional.linear(x, self.down.to(x))

    def _state_in(self, x: torch.Tensor) -> torch.Tensor:
        return self._matrix[0](x, "state_in") if self._matrix else self._turn_in(x) + self.offset.to(x)

    def _turn_out(self, y: torch.Tensor) -> torch.Tensor:
        if self._matrix:
            return self._matrix[0](y, "turn_out")
        if self.up is not None:
            return functional.linear(y, self.up.to(y))
        return functional.linear(y, self.down.to(y).T) / self.size.to(y).square()

    def _state_out(self, y: torch.Tensor) -> torch.Tensor:
        if self._matrix:
            return self._matrix[0](y, "state_out")
        if self.up is not None:
            return self._turn_out(y) + self.up_offset.to(y)
        return self._turn_out(y - self.offset.to(y))

    def _norm(self, y: torch.Tensor) -> torch.Tensor:
        """Computed in float32 or wider."""
        wide = y.to(torch.promote_types(y.dtype, torch.float32))
        if self.kind == "layer":
            wide = wide - wide.mean(-1, keepdim=True)
        unit = (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)).to(y)
        found = unit * self.gain.to(y)
        return found if self.bias is None else found + self.bias.to(y)

    def _behind_out(self, y: torch.Tensor, is_state: bool) -> torch.Tensor:
        if is_state and self.bias is not None:
            y = y - self.bias.to(y)
        found = self.host_gain.to(y) * self._turn_out(_divided(y, self.gain.to(y)))
        return found + self.host_bias.to(y) if is_state and self.host_bias is not None else found

    def _behind_in(self, x: torch.Tensor) -> torch.Tensor:
        if self.host_bias is not None:
            x = x - self.host_bias.to(x)
        unit = _divided(x, self.host_gain.to(x))
        found = self._turn_in(unit).to(torch.promote_types(x.dtype, torch.float32))
        if self.kind == "layer":
            found = found - found.mean(-1, keepdim=True)
        least = torch.finfo(found.dtype).tiny
        found = found * (_size(unit.to(found)) / _size(found).clamp_min(least))  # what a norm would give, and its eps
        found = found.to(x) * self.gain.to(x)
        return found if self.bias is None else found + self.bias.to(x)


def _size(x: torch.Tensor) -> torch.Tensor:
    """[..., width] -> [..., 1], the root of the mean square."""
    return x.square().mean(-1, keepdim=True).sqrt()


def _divided(x: torch.Tensor, gain: torch.Tensor) -> torch.Tensor:
    """What a norm gave before its gain; 0 where a gain of 0 hides it."""
    return torch.where(gain == 0, 0, x / torch.where(gain == 0, 1, gain))
