"""ClipCap's transformer mapper, from its config alone (arXiv 2111.09734; train.py).

A CLIP feature becomes `clip_length` tokens, which stand before `prefix_length` learned ones; what a transformer of
`layers` blocks makes of the learned ones is the prefix. config: width (c), hidden_size (d), clip_length, prefix_length,
layers, heads (8 in the authors' code), inner (of the MLP, 2 * d there), normalize. Tensors keep the authors' names,
without `clip_project.`.
"""

from collections.abc import Mapping
from typing import Any

from fuse.branches.clipcap_mlp_files import normalizes, number
from fuse.branches.encoder_reads import Reads

Config = Mapping[str, Any]


def reads(config: Config) -> Reads:
    """What CLIP's `encode_image` gives."""
    return Reads("pooled")


def widths(config: Config) -> tuple[int, int]:
    """Numbers of the CLIP feature, and of one token of the prefix."""
    return number(config, "width"), number(config, "hidden_size")


def tokens(config: Config, given: int) -> int:
    """The prefix."""
    return number(config, "prefix_length")


def shapes(config: Config) -> dict[str, tuple[int, ...]]:
    """Every tensor. Raises ValueError where the heads do not divide the width."""
    normalizes(config)
    (width, hidden), inner, layers = widths(config), number(config, "inner"), number(config, "layers")
    if hidden % number(config, "heads") or layers > 1000:
        raise ValueError(f"{config['heads']} heads in {layers} layers of width {hidden} make no mapper")
    wide = number(config, "clip_length") * hidden
    made: dict[str, tuple[int, ...]] = {
        "linear.weight": (wide, width), "linear.bias": (wide,),
        "prefix_const": (number(config, "prefix_length"), hidden),
    }  # fmt: skip
    block: dict[str, tuple[int, ...]] = {
        "norm1.weight": (hidden,), "norm1.bias": (hidden,),
        "attn.to_queries.weight": (hidden, hidden), "attn.to_keys_values.weight": (2 * hidden, hidden),
        "attn.project.weight": (hidden, hidden), "attn.project.bias": (hidden,),
        "norm2.weight": (hidden,), "norm2.bias": (hidden,),
        "mlp.fc1.weight": (inner, hidden), "mlp.fc1.bias": (inner,),
        "mlp.fc2.weight": (hidden, inner), "mlp.fc2.bias": (hidden,),
    }  # fmt: skip
    for i in range(layers):
        made |= {f"transformer.layers.{i}.{name}": shape for name, shape in block.items()}
    return made
