"""Folding a memory: which tensors of the host become wider, and when that is exact. torch is not imported.

A memory with a constant share, behind the host's own norm, with its activation and its kind of MLP, is more units of
that MLP: `down(act(gate x) * up x)` over both sets of units, the memory's columns of `down` times what it is heard
with.
"""

from collections.abc import Container, Mapping
from dataclasses import dataclass
from typing import Any

from fuse.families import Basis
from fuse.grafts.lora_files import TRANSPOSED
from fuse.grafts.lora_names import stored
from fuse.grafts.mks2_files import blocks_of, checked, is_gated

ACTIVATIONS: Mapping[str, str] = {  # names in hosts' configs -> ours
    "silu": "silu", "swish": "silu", "gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh", "quick_gelu": "quick_gelu", "relu": "relu",
    "gated-gelu": "gelu_tanh", "gated-silu": "silu", "gated-relu": "relu",
}  # fmt: skip


_BY_TOKEN = frozenset({"token_type", "prompts", "arrow"})


@dataclass(frozen=True)
class Wide:
    """What a stored tensor becomes.

    layer: whose memory's units are put behind the host's, None where the block has no memory and gets units of zeros.
    parts: (name in the memory, begin, end of its outputs in the tensor) of each projection that the tensor holds.
    units: how many are added. alpha, beta: what the memory's and the MLP's outputs are multiplied by, at full share.
    routed: the share is that of the memory's router, whose w_s is zero. transposed: the tensor lies [in, out].
    """

    layer: int | None
    parts: tuple[tuple[str, int, int], ...]
    bias: bool
    units: int
    alpha: float
    beta: float
    routed: bool
    transposed: bool


def why_no_fold(config: Mapping[str, Any], host: Basis, names: Container[str]) -> str:
    """One sentence why the memory cannot become part of the host's MLPs exactly, or "". names: the host's tensors."""
    config = checked(config)
    gated, bias = config["gated"], stored(host, *blocks_of(host)[0], "up")[0].removesuffix("weight") + "bias"
    reasons = {
        f"has router {config['router']}, whose shares differ from token to token": config["router"] in _BY_TOKEN,
        "has norms of its own, and the host's MLP reads behind the host's": config["norm"] != "host",
        "has low-rank changes of both experts, which are not folded": bool(config["lora"]),
        f"has activation {config['activation']}, and the host's MLP has {host.activation}": (
            ACTIVATIONS.get(host.activation) != config["activation"]
        ),
        "is gated, and the host's MLP is not": gated and not is_gated(host),
        "is not gated, and the host's MLP is": not gated and is_gated(host),
        "has biases, and the host's MLP has none": config["bias"] and bias not in names,
    }
    return next((reason for reason, holds in reasons.items() if holds), "")


def wider(config: Mapping[str, Any], host: Basis) -> int:
    """The host's intermediate size with the memory's units; every block gets them, as config.json has one number."""
    return host.intermediate_size + config["inner_size"]


def shape(stored_shape: tuple[int, ...], wide: Wide) -> tuple[int, ...]:
    """The shape of a tensor of the host afterwards."""
    parts = [part for part, *_ in wide.parts]
    more = wide.units * sum(part != "down" for part in parts)
    if wide.bias:
        return (stored_shape[0] + more,)
    outputs, inputs = reversed(stored_shape) if wide.transposed else stored_shape
    made = (outputs + more, inputs + wide.units * ("down" in parts))
    return made[::-1] if wide.transposed else made


def folds(config: Mapping[str, Any], host: Basis, scale: float, names: Container[str]) -> dict[str, Wide]:
    """Canonical name of a tensor of the host -> what it becomes. To be asked where `why_no_fold` found nothing."""
    config = checked(config)
    beta, routed = 1.0 - scale if config["place"] == "instead" else 1.0, config["router"] == "softmax"
    found: dict[str, Wide] = {}
    for number in range(len(blocks_of(host))):
        layer, held = number if number in config["layers"] else None, dict[str, list[tuple[str, int, int]]]()
        for part in ("gate", "up", "down") if config["gated"] else ("up", "down"):
            stack, index = blocks_of(host)[number]
            name, rows = stored(host, stack, index, part)
            held.setdefault(name, []).append((part, *rows))
        for name, parts in held.items():
            for stored_name, bias in ((name, False), (name.removesuffix("weight") + "bias", True)):
                if not bias or stored_name in names:
                    found[stored_name] = Wide(
                        layer, tuple(sorted(parts, key=lambda part: part[1])), bias, config["inner_size"], scale, beta,
                        routed, host.family in TRANSPOSED,
                    )  # fmt: skip
    return found
