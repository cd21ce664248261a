"""A memory with a constant share becomes part of the host's MLP: the same function with more units (`mks2_wider`)."""

from collections.abc import Mapping

import torch

from fuse.grafts.mks2_wider import Wide

Tensors = Mapping[str, torch.Tensor]


def widened(host: Tensors, memory: Tensors, alpha: float, beta: float = 1.0) -> dict[str, torch.Tensor]:
    """The one MLP that computes `beta * host(x) + alpha * memory(x)`, exactly up to rounding.

    host, memory: `up.weight` [F or h, d], `gate.weight` where gated, `down.weight` [d, F or h], and biases of
    the host's (the memory's are zeros where it has none). Returns the same names with F + h units, in the host's dtype.
    """
    units = memory["up.weight"].shape[0]
    found = {}
    for name, given in host.items():
        part, _, what = name.partition(".")
        wide = Wide(0, ((part, 0, given.shape[0]),), what == "bias", units, alpha, beta, False, False)
        found[name] = fold(given, wide, {f"layers.0.{key}": tensor for key, tensor in memory.items()})
    return found


def fold(weight: torch.Tensor, wide: Wide, tensors: Tensors) -> torch.Tensor:
    """One tensor of the host's MLP with the memory's units behind its own, in its own dtype.

    tensors: the memory's, by their names in graft.safetensors. What is multiplied is so in float32 (float64 where the
    host is) and rounded once. Raises ValueError for a router that looks at the token.
    """
    exact = torch.promote_types(weight.dtype, torch.float32)
    given = weight.T if wide.transposed and not wide.bias else weight
    alpha, beta = _factors(wide, tensors)
    done = []
    for part, begin, end in wide.parts:
        own = given[begin:end].to(exact)
        new = _of_memory(wide, part, tensors, own)
        if part != "down":
            done.append(torch.cat([own, new]))
        elif wide.bias:
            done.append(beta * own + alpha * new)
        else:
            done.append(torch.cat([beta * own, alpha * new], 1))
    made = torch.cat(done).to(weight.dtype)
    return (made.T if wide.transposed and not wide.bias else made).contiguous()


def _of_memory(wide: Wide, part: str, tensors: Tensors, like: torch.Tensor) -> torch.Tensor:
    """The memory's own tensor, or zeros of its shape, in the dtype of `like`."""
    name = f"layers.{wide.layer}.{part}.{'bias' if wide.bias else 'weight'}"
    if name in tensors:
        return tensors[name].to(like)
    if wide.bias:
        return like.new_zeros(len(like) if part == "down" else wide.units)
    return like.new_zeros((len(like), wide.units) if part == "down" else (wide.units, like.shape[1]))


def _factors(wide: Wide, tensors: Tensors) -> tuple[float, float]:
    """What the memory's and the MLP's outputs are multiplied by in this block."""
    if wide.layer is None:
        return 0.0, 1.0
    if not wide.routed:
        return wide.alpha, wide.beta
    if bool(tensors[f"layers.{wide.layer}.router.weight"].any()):
        raise ValueError(f"the router of block {wide.layer} looks at the token, so that its share is not constant")
    share = wide.alpha * float(tensors[f"layers.{wide.layer}.router.bias"].double().softmax(0)[0])
    return share, 1.0 - share
