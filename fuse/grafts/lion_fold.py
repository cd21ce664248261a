"""LION's two adapters of a layer as one of twice the bottleneck, for one task: exact, since ReLU works by channel.

    ratio_1 * s_1 (U_1 relu(D_1 h + d_1) + u_1) + ratio_2 * s_2 (U_2 relu(D_2 h + d_2) + u_2)
        = [diag(ratio_1 s_1) U_1, diag(ratio_2 s_2) U_2] relu([D_1; D_2] h + [d_1; d_2]) + the sum of the biases

A LayerNorm before each goes into D and d, but for the part that both share. The graft stays one: it reads the residual
stream before the norm, where no layer of the host does.
"""

from collections.abc import Mapping
from typing import Any

import torch

from fuse.grafts.lion_files import HINT, TASKS, fold_sources, folded, shapes

_NORM = "adapter_layer_norm_before."


def fold_tensor(config: Mapping[str, Any], name: str, tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """One tensor of the folded graft, computed in float64 and rounded once to the dtype of what it is made of.

    config: the donor's, with the recipe's task. tensors: those of `fold_sources`, by the donor's names.
    """
    if name == HINT:
        return tensors[HINT]
    layer, _, inner = name.partition(".adapters.0.")
    given = {key: value.double() for key, value in tensors.items()}
    first = tensors[fold_sources(config, name)[0]]
    if inner.startswith(_NORM):
        exact = torch.ones_like(first) if inner.endswith("weight") else torch.zeros_like(first)
    elif inner.startswith("down_proj."):
        exact = torch.cat([_down(given, f"{layer}.adapters.{k}.", inner) for k in range(2)])
    else:
        parts = [_up(given, layer, k, inner, config) for k in range(2)]
        exact = torch.cat(parts, 1) if inner.endswith("weight") else parts[0] + parts[1]
    return exact.to(first.dtype)


def fold(
    config: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]
) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """The whole graft folded: its config and its tensors. Raises ValueError as `lion_files.folded`."""
    made = folded(config)
    found = {}
    for name in shapes(made):
        found[name] = fold_tensor(config, name, {key: tensors[key] for key in fold_sources(config, name)})
    return made, found


def _down(given: Mapping[str, torch.Tensor], adapter: str, inner: str) -> torch.Tensor:
    """Rows of the joint down projection; a norm's gain and bias are in them."""
    gain, shift = (given.get(f"{adapter}{_NORM}{name}") for name in ("weight", "bias"))
    value = given[adapter + inner]
    if inner.endswith("weight"):
        return value if gain is None else value * gain
    return value if shift is None else value + given[f"{adapter}down_proj.weight"] @ shift


def _up(
    given: Mapping[str, torch.Tensor], layer: str, k: int, inner: str, config: Mapping[str, Any]
) -> torch.Tensor:  # fmt: skip
    """What one adapter adds to the joint up projection, as loud as the task hears it."""
    scale: Any = given.get(f"{layer}.adapters.{k}.scale", config.get("adapter_scale"))
    heard = given[f"{layer}.router_ratio{k + 1}"][TASKS.index(config["task"])] * scale
    value = given[f"{layer}.adapters.{k}.{inner}"]
    return value * (heard[:, None] if inner.endswith("weight") else heard)
