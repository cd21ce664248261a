"""LaVIN's adapters with fixed routes, baked into the host's own matrices: exact up to rounding.

An adapter adds scale * (route_0 * B(A(x)) + route_1 * D(A(x))), all of it linear (RepAdapter, arXiv 2302.08106): with
`up` = scale * (route_0 * B + route_1 * D), W(x + up(A(x)) + shift) = (W + W up A) x + W shift. The routes of a prompt
depend on its modality alone (`fuse.grafts.lavin`), so that a host of one modality needs no graft.
"""

from collections.abc import Mapping
from typing import Any

import torch

from fuse.grafts.graft import Reading
from fuse.grafts.lavin import LavinGraft
from fuse.grafts.lavin_fold_files import Fold
from fuse.grafts.slots import slots_of

Tensors = Mapping[str, torch.Tensor]


@torch.no_grad()
def fixed_routes(graft: LavinGraft, model: Any) -> torch.Tensor:
    """[layers, places, 2]: the routes of `modality` (image or text) in a language model, from one token's pass.

    model: a causal class of transformers, without grafts. The graft is attached for the pass only.
    """
    slots = slots_of(model)
    weight = model.get_input_embeddings().weight
    none = torch.zeros(1, 1, dtype=torch.long, device=weight.device)
    embeds = torch.zeros(1, 1, weight.shape[1], dtype=weight.dtype, device=weight.device)

    def run(embeds: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        decoder = model.get_decoder()
        return decoder(inputs_embeds=embeds, attention_mask=mask, use_cache=False).last_hidden_state

    graft.attach(slots)
    try:
        return graft.read(Reading(none, none + 1, none, embeds, {}, model.get_input_embeddings(), run))["routes"][0]
    finally:
        for stack in slots.values():
            stack.remove()


def fold(name: str, what: Fold, host: Tensors, graft: Tensors, routes: torch.Tensor, scale: float) -> torch.Tensor:
    """The host's tensor `name` with an adapter in it, in the dtype of the host's matrix.

    what: from `lavin_fold_files.folds`. host: `what.weight` as it was and, for a bias that is there, the bias. graft:
    by the names in graft.safetensors. routes: as `fixed_routes` gives them. scale: the graft's, times adapter_scale.
    The sums are made in float32 (float64 where the host is) and rounded once.
    """
    stored = host[what.weight]
    exact = torch.promote_types(stored.dtype, torch.float32)
    weight = (stored.T if what.transposed else stored).to(exact)
    bias = host[name].to(exact) if name in host and name != what.weight else weight.new_zeros(len(weight))
    if what.adapter is None:
        return bias.to(stored.dtype)
    up, down, shift = _linear(graft, what.adapter, routes[what.layer, what.place].to(weight), scale)
    if name != what.weight:
        return (bias + weight @ shift).to(stored.dtype)
    made = weight + (weight @ up) @ down
    return (made.T if what.transposed else made).to(stored.dtype).contiguous()


def _linear(graft: Tensors, name: str, route: torch.Tensor, scale: float) -> tuple[torch.Tensor, ...]:
    """An adapter as x -> x + up @ down @ x + shift: up [d, h], down [h, d], shift [d], in the dtype of `route`."""
    down = graft[f"{name}.conv_A.weight"].to(route).squeeze(-1)
    share = scale * route
    up = share[0] * _dense(graft[f"{name}.conv_B.weight"].to(route), len(down))
    up = up + share[1] * _dense(graft[f"{name}.conv_D.weight"].to(route), len(down))
    shift = share[0] * graft[f"{name}.conv_B.bias"].to(route) + share[1] * graft[f"{name}.conv_D.bias"].to(route)
    return up, down, shift + up @ graft[f"{name}.conv_A.bias"].to(route)


def _dense(weight: torch.Tensor, hidden: int) -> torch.Tensor:
    """A grouped pointwise convolution [d, h / groups, 1] as the matrix [d, h] that it is."""
    groups = hidden // weight.shape[1]
    return torch.block_diag(*weight.squeeze(-1).chunk(groups))
