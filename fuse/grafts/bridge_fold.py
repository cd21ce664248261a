"""A bridge multiplied into the matrices of what it brings over: tensors in float64, to be rounded once."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from fuse.fused import Turned
from fuse.grafts.bridge_files import EMBEDDING, FINAL, has_gains, is_shared

Tensors = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Ways:
    """One map as it is where a module reads and writes, norms and all.

    into [d, D] and offset [d]: from the new host's state to what the module reads. out [D, d] and out_offset [D]: from
    what it gives to the new host's state.
    """

    into: torch.Tensor
    offset: torch.Tensor
    out: torch.Tensor
    out_offset: torch.Tensor


def ways(bridge: Mapping[str, Any], tensors: Tensors, name: str) -> Ways:
    """The map `name` of a bridge.

    bridge: its config. tensors: as `bridge_rows.make_bridge` gives them, in float64. Behind a norm, `into` of `final`
    is right for maps that keep lengths and a donor with RMSNorms (`bridge_fold_files`); `into` of others stands before
    the norm.
    """
    at = f"bridge.{EMBEDDING if is_shared(bridge, name) else name}."
    down, offset, size = tensors[f"{at}down"], tensors[f"{at}offset"], tensors.get(f"{at}size")
    up = tensors[f"{at}up"] if size is None else down.T / size.square()
    back = tensors[f"{at}up_offset"] if size is None else -(up @ offset)
    if not has_gains(bridge, name):
        return Ways(down, offset, up, back)
    gain, host_gain = tensors[f"bridge.{name}.gain"], tensors[f"bridge.{name}.host_gain"]
    bias = tensors.get(f"bridge.{name}.bias", torch.zeros_like(gain))
    host_bias = tensors.get(f"bridge.{name}.host_bias", torch.zeros_like(host_gain))
    if name == FINAL and size is not None:
        loud = (bridge["width"] / bridge["host_width"]) ** 0.5 / size  # what brings every token to a norm's length
        down = gain[:, None] * down * loud * _inverse(host_gain)
        offset = bias - down @ host_bias
    up = host_gain[:, None] * up * _inverse(gain)
    return Ways(down, offset, up, host_bias - up @ bias)


def turn(turned: Turned, tensors: Tensors, maps: Mapping[str, Ways]) -> torch.Tensor:
    """One tensor with the bridge in it, in float64.

    tensors: those of `turned.reads`. maps: by name. Of a matrix or vector that gives several tokens of d numbers, each
    is turned; rows of a `state` are shared out evenly among its maps.
    """
    given, first = [tensors[name].double() for name in turned.reads], maps[turned.at[0]]
    if turned.role == "in":
        return given[0] @ first.into
    if turned.role == "in_bias":
        return given[1] + given[0] @ first.offset
    width = first.out.shape[1]
    if turned.role == "out":
        own = given[0].reshape(-1, width, *given[0].shape[1:])  # [tokens, d] or [tokens, d, in]
        return torch.einsum("Dd,nd...->nD...", first.out, own).flatten(0, 1)
    own = given[0] if given else first.out.new_zeros(width)
    parts = own.reshape(len(turned.at), -1, width)
    made = [part @ maps[at].out.T + maps[at].out_offset for at, part in zip(turned.at, parts, strict=True)]
    return torch.stack(made).reshape(*own.shape[:-1], -1)


def _inverse(gain: torch.Tensor) -> torch.Tensor:
    """1 / gain; 0 where a gain of 0 hides what stands there."""
    return torch.where(gain == 0, 0, 1 / torch.where(gain == 0, 1, gain))
